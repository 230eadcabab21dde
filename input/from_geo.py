"""Turn a series of GEO into the table that server.py serves, in place of the simulated one.

Download its "Series Matrix File(s)", such as that of www.ncbi.nlm.nih.gov/geo/query/acc.cgi?acc=GSE57383.
List the texts that describe its samples, then say which of them mean which of two classes:

    python input/from_geo.py GSE57383_series_matrix.txt.gz
    python input/from_geo.py GSE57383_series_matrix.txt.gz --class LABEL TEXT --class LABEL TEXT
"""
import argparse
import gzip
import re
import sys
import zlib
from collections import Counter
from pathlib import Path

import numpy as np

from simulate import OUTPUT, write_table


def check(is_right, problem):
    """End with a line that names the problem, unless all is right."""
    if not is_right:
        sys.exit(f'from_geo.py: {problem}')


def cells_of(line):
    """Return the cells of a line, with single spaces and without the quotes around them."""
    cells = [' '.join(cell.split()) for cell in line.split('\t')]
    return [cell[1:-1].strip() if cell[:1] == cell[-1:] == '"' else cell for cell in cells]


def print_counts(texts):
    """Print how often each text is there, the most frequent first."""
    for text, count in Counter(sorted(texts)).most_common():
        print(f'{count:6}  {text}')


# COMMAND
parser = argparse.ArgumentParser(description='Turn a GEO series matrix into input/GSE57383_ps_psa.txt.')
parser.error = lambda message: check(False, f'{message}; see --help')
parser.add_argument('file', help='such as GSE57383_series_matrix.txt.gz')
parser.add_argument('--class', dest='classes', nargs=2, metavar=('LABEL', 'TEXT'), action='append',
                    type=lambda text: ' '.join(text.split()), help='a text that samples of this class have')
args = parser.parse_args()
sys.excepthook = lambda kind, error, _: check(False, f'{kind.__name__}: {error}')    # no such file, Ctrl-C
sys.stdout.reconfigure(errors='replace')    # what the terminal cannot show

# FILE
try:
    data = Path(args.file).read_bytes()
    if data.startswith(b'\x1f\x8b'):    # whatever its name: some browsers unpack what they download
        data = gzip.decompress(data)
    content = data.decode('utf-8-sig')
except UnicodeDecodeError:
    content = data.decode('cp1252', errors='replace')
except (EOFError, zlib.error, gzip.BadGzipFile):
    check(False, f'{args.file} does not unpack: download it again')
content = content if '\n' in content else content.replace('\r', '\n')    # an old Mac's line ends
head, *tables = re.split('^"?!series_matrix_table_(?:begin|end).*\n?', content, flags=re.MULTILINE)
check(tables or head.startswith('!Series_'), f'{args.file} is no series matrix file: there is no table in it')
check(len(tables) > 1, f'{args.file} is truncated, its table does not begin or end: download it again')

# TABLE
lines = enumerate(map(cells_of, tables[0].split('\n')[:-1] or ['']), head.count('\n') + 2)
number, (corner, *samples) = next(lines)
check(corner == 'ID_REF', f'line {number}: "{corner}" in place of ID_REF and the names of the samples')
texts, values = {}, {}    # of each sample; of each probeset
for sample in samples:
    check(sample and sample not in texts, f'line {number}: sample "{sample}" is there twice, or has no name')
    texts[sample] = set()
for number, (probeset, *cells) in lines:
    where = f'line {number}: probeset "{probeset}"'
    check(probeset and probeset not in values, f'{where} is there twice, or has no name')
    check(len(cells) == len(samples), f'{where} has {len(cells)} values for {len(samples)} samples')
    values[probeset] = np.empty(len(samples))
    for i, cell in enumerate(cells):
        try:
            values[probeset][i] = float('nan' if cell.lower() in ('', 'na', 'null') else cell)
        except ValueError:
            check(False, f'{where}, sample {samples[i]}: "{cell}" is no number such as 7.5')
check(not ''.join(tables[1:]).strip(), f'line {number + 2}: more follows the table; keep one series only')
check(values, f'line {number}: no probesets follow; the values may be in a "Supplementary file" at GEO')

# TEXTS
for number, (field, *cells) in enumerate(map(cells_of, head.split('\n')), 1):
    if field.startswith(('!Sample_title', '!Sample_source_name_ch', '!Sample_characteristics_ch')):
        check(len(cells) == len(samples), f'line {number}: {len(cells)} texts for {len(samples)} samples')
        for sample, text in zip(samples, cells):
            texts[sample] |= {text} - {''}
    if field == '!Sample_geo_accession':
        check(cells == samples, f'line {number}: these samples are not those of the table, in the same order')
if not args.classes:
    print_counts(text for sample in samples for text in texts[sample])
    print(f'So many of {len(samples)} samples have each text. Say which mean which class, in place of TEXT:')
    print(f'python {sys.argv[0]} "{args.file}" --class "Psoriatic Arthritis" "TEXT" --class Psoriasis "TEXT"')
    print('A class may have several, each with --class before it. * in a text stands for any characters.')
    sys.exit()

# CLASSES
class_of, known = {}, set().union(*texts.values())
for label, text in args.classes:
    pattern = '.*'.join(map(re.escape, text.split('*')))    # for titles, as each sample has another
    meant = known & {text} or {other for other in known if re.fullmatch(pattern, other)}
    check(meant, f'no sample has the text "{text}": see those that they have without --class')
    for sample in samples:
        if texts[sample] & meant:
            other = class_of.setdefault(sample, label)
            check(other == label, f'sample {sample} is of both classes: {other}, but by "{text}" {label}')
sizes = Counter(class_of.values())
check(len(sizes) == 2 and '' not in sizes and min(sizes.values()) > 1,
      f'two classes, of two or more samples each, are needed, not {dict(sizes)}')

# VALUES
chosen = [sample for sample in samples if sample in class_of]
matrix = np.array(list(values.values()))[:, [sample in class_of for sample in samples]]
finite = matrix[np.isfinite(matrix)]
check(finite.size, 'no sample of the two classes has a value')
check((finite % 1).any(), f'all values are whole, like {finite[0]:.0f}: counts, which need a normalized log2')
# GEO2R's rule (its R script, www.ncbi.nlm.nih.gov/geo/info/geo2r.html) for values that are not yet log2.
low, quarter, percentile_99, high = np.quantile(finite, [0, 0.25, 0.99, 1])
log2 = ''
if percentile_99 > 100 or (high - low > 50 and quarter > 0):
    log2 = ', log2 of the values, as GEO2R would take it'
    matrix = np.log2(np.where(matrix > 0, matrix, np.nan))
present = np.isfinite(matrix)
complete = present.all(axis=1)
fewest, sample = min(zip(present.sum(axis=0), chosen))
check(complete.any(), f'no probeset has all its values; {sample} has {fewest}: empty its texts to drop it')

# RESULT
names = [probeset for probeset, is_complete in zip(values, complete) if is_complete]
write_table(OUTPUT, [class_of[sample] for sample in chosen], names, matrix[complete].T, decimals=4)
print_counts(f'{class_of.get(sample, "Neither")} | {text}' for sample in samples for text in texts[sample])
print(f'Left out: samples of neither class: {len(samples) - len(chosen)}, '
      f'probesets with a missing value: {len(values) - len(names)}')
print(f'Wrote {OUTPUT}: {len(chosen)} samples, {len(names)} probesets' + log2)
