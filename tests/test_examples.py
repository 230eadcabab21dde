"""The examples run as their docstrings say, score what they claim, and tell DCP's scheduler no more."""
import csv
import os
import re
import socket
from urllib.parse import unquote

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from .project import PROJECT

LINES = (PROJECT / 'input' / 'GSE57383_ps_psa.txt').read_text().splitlines()
HEADER, *SAMPLES = [line.split('\t') for line in LINES]
DATA = [*HEADER[1:], *(f'{a}\t{b}' for sample in SAMPLES for a, b in zip(sample[1:], sample[2:8]))]


@pytest.fixture(autouse=True)
def free_ports(project):
    """Edit the examples as their docstrings say."""
    with socket.create_server(('127.0.0.1', 0)) as north, socket.create_server(('127.0.0.1', 0)) as south:
        ports = {'5001': project.port, '5002': north.getsockname()[1], '5003': south.getsockname()[1]}
    for path in (project.folder / 'tests' / 'examples').glob('*.py'):
        path.write_text(re.sub('(?<=127.0.0.1:)5001|500[23]', lambda m: str(ports[m[0]]), path.read_text()))


def start(project, name, *more):
    """Start the commands on the mocked DCP that an example's docstring names."""
    text = (project.folder / 'tests' / 'examples' / f'{name}.py').read_text().replace('\\\\\n', '')
    commands = re.findall('^    python3 -m tests.mock_dcp (.*)', text, re.MULTILINE)
    return [project.start('-m', 'tests.mock_dcp', '--log', f'log{n}', *arguments.split(), *more)
            for n, arguments in enumerate(commands)]


def told(project, texts):
    """Return those of the texts that DCP's scheduler heard or said."""
    heard = re.sub(r'\\+t', '\t', ''.join(unquote(log.read_text()) for log in project.folder.glob('log*')))
    return [text for text in texts if text in heard]


def nearer(sample, *groups):
    """Return by how much a sample is nearer to the centroid of the second group, itself left out."""
    first, second = [group[(group != sample).any(axis=1)].mean(axis=0) for group in groups]
    return np.linalg.norm(sample - first) - np.linalg.norm(sample - second)


def is_right(row, score=lambda sample, *groups: sample.mean(), samples=SAMPLES):
    """Say whether a row's AUC is what its signature has in the samples, but for ties that rounding makes."""
    columns = [HEADER.index(name) for name in row['probesets'].split(', ')]
    groups = [np.array([[float(line[column]) for column in columns] for line in samples if line[0] == name])
              for name in ('Psoriasis', 'Psoriatic Arthritis')]
    ps, psa = [[score(sample, *groups) for sample in group] for group in groups]
    return abs(float(row['auc']) - mannwhitneyu(psa, ps).statistic / len(ps) / len(psa)) < 0.002


def finish(project, jobs, site='.'):
    """Wait for jobs. Return the rows of a site's results files."""
    for job in jobs:
        assert job.wait() == 0 and 'Done.' in job.lines, job.output
    return [row for path in (project.folder / 'results' / site).glob('*.txt')
            for row in csv.DictReader(path.open(), delimiter='\t')]


def test_remote_work_function(served):
    rows = finish(served, start(served, 'remote_work_function'))
    assert len(rows) == 10 and all(map(is_right, rows))
    assert not told(served, (served.folder / 'input/work_function.js').read_text().splitlines()[1:-1] + DATA)


@pytest.mark.parametrize('more', [[], ['pattern']])
def test_remote_input_set(served, more):
    rows = finish(served, start(served, 'remote_input_set', *more))
    assert len(rows) == 10 and all(map(is_right, rows))
    for row in rows:
        assert row['probesets'] == (served.folder / f'input/signature-{row["slice"]}.txt').read_text()
    assert not told(served, DATA) and len(told(served, ['signature-{slice}.txt'])) == len(more)


def test_python_work_function(served):
    rows = finish(served, start(served, 'python_work_function'))
    assert len(rows) == 10 and all(is_right(row, nearer) for row in rows) and not told(served, DATA)


def test_results_are_fetched_from_all_files_of_the_job_and_the_newest_wins(served):
    (job,) = start(served, 'fetch_results')
    served.server.wait_for('Result received')
    served.server.stop()
    header, row = served.results()[0].read_text().splitlines()[:2]
    job_id, number = row.split('\t')[:2]
    better, best = [f'{job_id}\t{n}\tfalse\t{auc}\tx' for n, auc in ((number, 8), (41, 9))]
    old, other = [served.folder / 'results' / name for name in ('old.txt', 'other.txt')]
    old.write_text(f'{header}\n{better}\n{best}\n')
    os.utime(old, (0, 0))
    other.write_text(f'{header}\nother{better}\n{better}')
    served.serve()
    assert job.wait() == 0, job.output
    old.unlink(), other.unlink()
    rows = sorted(finish(served, [job]), key=lambda row: float(row['auc']), reverse=True)
    real, chance = [[row for row in rows if row['shuffled'] == which] for which in ('false', 'true')]
    assert len(rows) == 40 and all(map(is_right, real)) and not all(map(is_right, chance))
    assert [line[:5] for line in job.lines[2:]] == [f'{float(r["auc"]):.3f}' for r in real[:2] + chance[:1]]
    assert not told(served, DATA) and told(served, ['const pairs = '])    # what is told is found


def test_federated_sites_score_their_own_samples_and_refuse_the_others_workers(project):
    for site in ('north', 'south'):
        project.start('tests/examples/federated_server.py', site).wait_for('Debug mode: off')
    jobs = start(project, 'federated')
    for site, samples in {'north': SAMPLES[:40], 'south': SAMPLES[40:]}.items():
        rows = finish(project, jobs, site)
        assert len(rows) == 10 and all(is_right(row, samples=samples) for row in rows)
        assert {row['samples'] for row in rows} == {str(len(samples))}
    assert not told(project, [text for text in DATA if '\t' in text])    # names are told, values are not
    assert project.run('tests/examples/federated_aggregate.py').lines[0].startswith('10 signatures')
    others = ['--join', 'north,north-secret', '--allow-origin', project.url]
    refused = project.start('-m', 'tests.mock_dcp', *others, 'tests/examples/federated.py', 'north')
    refused.wait_for('A worker: Not allowed to fetch from the origin')


def test_aggregate_ranks_by_the_worst_site_then_by_the_mean_of_all_samples(project):
    tables = {'north/old': 'c 40 .1;', 'north/new': 'a 40 .9;b 40 .7;c 40 .8;d 40 1;',
              'south/new': 'a 20 .6;b 20 .85;c 20 .7;d 20 1'}    # d: half a line
    for age, (name, lines) in enumerate(tables.items()):
        path = project.folder / 'results' / f'{name}.txt'
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'probesets samples auc;{lines}'.replace(' ', '\t').replace(';', '\n'))
        os.utime(path, (age, age))
    lines = project.run('tests/examples/federated_aggregate.py').lines[2:]
    assert [line.split()[::4] for line in lines] == [['0.700', 'c'], ['0.700', 'b'], ['0.600', 'a']]
