"""Make the simulated stand-in for GEO series GSE57383 that server.py serves.

    python input/simulate.py    # rewrites input/GSE57383_ps_psa.txt
    python input/simulate.py --samples 80 --probesets 12000 --output big.txt    # any other size

No value in it was measured. For the real series, see from_geo.py.
"""
import argparse
import os
import sys
from pathlib import Path

import numpy as np

OUTPUT = Path(__file__).with_name('GSE57383_ps_psa.txt')
MODULE_SIZE = 20    # neighbouring probesets that are co-expressed


def simulate(samples=60, probesets=5000, differing=None, seed=57383):
    """Return (phenotypes, names, matrix) of a simulated study.

    phenotypes  list of str, one per sample, in random order: about 45 % 'Psoriasis', the others 'Psoriatic
                Arthritis', at least 10 of each, for 10-fold cross-validation
    names       list of str, one per probeset: 'simulated_0001', ...
    matrix      float array (samples, probesets), log2 intensities, not rounded

    Within a phenotype each probeset is normal with a standard deviation of 0.3 to 0.7; the MODULE_SIZE
    probesets of a module share half of their variance (correlation 0.5). `differing` probesets (default: 1
    in 125), evenly spaced from the first one on, are by turns one standard deviation higher and lower in
    psoriatic arthritis; 0 makes pure noise. Raises ValueError for too small a size.
    """
    if samples < 20:
        raise ValueError(f'cannot simulate {samples} samples: ask for at least 20, 10 of each phenotype')
    if probesets < 1:
        raise ValueError(f'cannot simulate {probesets} probesets: ask for at least 1')
    if differing is None:
        differing = -(-probesets // 125)

    # RandomState's stream is frozen (numpy.org/doc/stable/reference/random/legacy.html), unlike others.
    rng = np.random.RandomState(seed)
    psoriasis = max(10, samples * 9 // 20)
    in_order = ['Psoriatic Arthritis'] * (samples - psoriasis) + ['Psoriasis'] * psoriasis
    phenotypes = rng.permutation(in_order)
    mean = 5 + 7 * rng.random_sample(probesets) ** 2    # as on a microarray, most are near the low end
    deviation = 0.3 + 0.4 * rng.random_sample(probesets)
    module = rng.standard_normal((samples, -(-probesets // MODULE_SIZE)))
    matrix = rng.standard_normal((samples, probesets))
    matrix += np.repeat(module, MODULE_SIZE, axis=1)[:, :probesets]
    matrix *= deviation * np.sqrt(0.5)
    matrix += mean

    number = np.arange(differing)
    column = number * probesets // max(differing, 1)
    shift = np.zeros(probesets)
    shift[column] = np.where(number % 2 == 0, deviation[column], -deviation[column])
    matrix[phenotypes == 'Psoriatic Arthritis'] += shift

    width = max(4, len(str(probesets)))
    return phenotypes.tolist(), [f'simulated_{i:0{width}d}' for i in range(1, probesets + 1)], matrix


def write_table(path, phenotypes, names, matrix, decimals):
    """Write a line per sample, tab-separated: its phenotype, then its value of each probeset, rounded.

    An existing file is replaced only once the new one is complete. Raises OSError if that is not possible.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise FileExistsError(f'{path} is not a regular file')
    part = path.with_name(path.name + '.part')
    line = '%s' + f'\t%.{decimals}f' * len(names) + '\n'
    try:
        with open(part, 'w', encoding='utf-8', newline='\n') as file:
            file.write('\t'.join(['phenotype', *names]) + '\n')
            for phenotype, values in zip(phenotypes, matrix):
                file.write(line % (phenotype, *values.tolist()))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def main():
    parser = argparse.ArgumentParser(description='Simulate gene expression in two diseases.')
    parser.error = lambda message: sys.exit(f'simulate.py: {message}; see --help')
    parser.add_argument('--samples', type=int, default=60, help='at least 20 (default: %(default)s)')
    parser.add_argument('--probesets', type=int, default=5000, help='at least 1 (default: %(default)s)')
    parser.add_argument('--output', type=Path, default=OUTPUT, help='file to write (default: %(default)s)')
    args = parser.parse_args()
    sys.excepthook = lambda kind, error, _: sys.stderr.write(f'simulate.py: {kind.__name__}: {error}\n')
    phenotypes, names, matrix = simulate(args.samples, args.probesets)
    # Two decimals hide the last-digit differences between the maths libraries of different machines.
    write_table(args.output, phenotypes, names, matrix, decimals=2)
    print(f'Wrote {args.output}: {phenotypes.count("Psoriatic Arthritis")} Psoriatic Arthritis and '
          f'{phenotypes.count("Psoriasis")} Psoriasis samples, {args.probesets} probesets, all simulated')


if __name__ == '__main__':
    main()
