"""Rank the signatures of federated.py by the site where each does worst: what holds at one site only may come
from its patients, or its laboratory. Among equals the mean of all samples decides.

    python3 tests/examples/federated_aggregate.py

On DCP, copy each site's results files to results/<site> first. They hold scores, and of how many samples they
are: no data. But a score of very few samples tells much of each of them.
"""
import csv
from pathlib import Path

tables = {'north': {}, 'south': {}}    # of each site: its rows, by their signature
for site, table in tables.items():
    paths = Path('results', site).glob('*.txt')
    for path in sorted(paths, key=lambda path: path.stat().st_mtime):    # the newest last: it wins
        whole_lines = [line for line in path.open() if line.endswith('\n')]
        table.update((row['probesets'], row) for row in csv.DictReader(whole_lines, delimiter='\t'))

common = set.intersection(*map(set, tables.values()))
print(f'{len(common)} signatures are scored at all sites, of', *map(len, tables.values()))
ranking = []
for probesets in common:
    rows = [table[probesets] for table in tables.values()]
    aucs, samples = [float(row['auc']) for row in rows], [int(row['samples']) for row in rows]
    mean = sum(auc * n for auc, n in zip(aucs, samples)) / sum(samples)
    ranking.append((min(aucs), mean, *aucs, probesets))
print('worst', 'mean ', *tables, sep='   ')
for *scores, probesets in sorted(ranking, reverse=True)[:3]:
    print(*(f'{score:.3f}' for score in scores), probesets, sep='   ')
