"""Make the simulated stand-in for GEO series GSE57383 that server.py serves.

    python input/simulate.py                                                   # rewrites input/GSE57383_ps_psa.txt
    python input/simulate.py --samples 80 --probesets 12000 --output big.txt   # any other size

No value in it was measured. For the real series, see from_geo.py.
"""
import argparse
import errno
import os
import sys
from pathlib import Path

import numpy as np

OUTPUT = Path(__file__).with_name("GSE57383_ps_psa.txt")
MODULE_SIZE = 20  # neighbouring probesets that are co-expressed


def simulate(samples=60, probesets=5000, differing=None, seed=57383):
    """Return (phenotypes, names, matrix) of a simulated study.

    phenotypes  list of str, one per sample, in random order: about 45 % 'Psoriasis', the rest 'Psoriatic Arthritis',
                and at least 10 of each, which 10-fold cross-validation needs
    names       list of str, one per probeset: 'simulated_0001', ...
    matrix      float array (samples, probesets), log2 intensities, not rounded

    Within a phenotype each probeset is normal with a standard deviation of 0.3 to 0.7; the MODULE_SIZE probesets of a
    module share half of their variance (correlation 0.5). `differing` probesets (default: 1 in 125), evenly spaced at
    columns i * probesets // differing, are one standard deviation higher (even i) or lower (odd i) in psoriatic
    arthritis; 0 makes pure noise, `probesets` makes all differ. Raises ValueError for too small a size.
    """
    if samples < 20:
        raise ValueError(f"cannot simulate {samples} samples: ask for at least 20, 10 of each phenotype")
    if probesets < 1:
        raise ValueError(f"cannot simulate {probesets} probesets: ask for at least 1")
    if differing is None:
        differing = -(-probesets // 125)

    # RandomState's stream is frozen (numpy.org/doc/stable/reference/random/legacy.html), that of default_rng() is not.
    rng = np.random.RandomState(seed)
    psoriasis = max(10, samples * 9 // 20)
    phenotypes = rng.permutation(["Psoriatic Arthritis"] * (samples - psoriasis) + ["Psoriasis"] * psoriasis)
    mean = 5 + 7 * rng.random_sample(probesets) ** 2  # as on a microarray, most probesets are near the low end
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
    matrix[phenotypes == "Psoriatic Arthritis"] += shift

    width = max(4, len(str(probesets)))
    return phenotypes.tolist(), [f"simulated_{i:0{width}d}" for i in range(1, probesets + 1)], matrix


def write_table(path, phenotypes, names, matrix, decimals):
    """Write one row per sample, tab-separated: its phenotype, then its value for each probeset, rounded to `decimals`.

    An existing file is replaced only once the new one is complete. Raises OSError if that is not possible.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    part = path.with_name(path.name + ".part")
    row_format = f"\t%.{decimals}f" * len(names) + "\n"
    try:
        with open(part, "w", encoding="utf-8", newline="\n") as file:
            file.write("\t".join(["phenotype", *names]) + "\n")
            for phenotype, values in zip(phenotypes, matrix):
                file.write(phenotype + row_format % tuple(values.tolist()))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def main():
    parser = argparse.ArgumentParser(description="Simulate gene expression in psoriatic arthritis and psoriasis.")
    parser.error = lambda message: sys.exit(f"simulate.py: {message}; see --help")
    parser.add_argument("--samples", type=int, default=60, help="at least 20 (default: %(default)s)")
    parser.add_argument("--probesets", type=int, default=5000, help="at least 1 (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="file to write (default: %(default)s)")
    args = parser.parse_args()
    try:
        phenotypes, names, matrix = simulate(args.samples, args.probesets)
        # Two decimals hide the last-digit differences between the maths libraries of different machines.
        write_table(args.output, phenotypes, names, matrix, decimals=2)
    except ValueError as error:
        sys.exit(f"simulate.py: {error}")
    except (MemoryError, OverflowError):
        sys.exit(f"simulate.py: {args.samples} samples x {args.probesets} probesets exceed the memory; ask for fewer")
    except OSError as error:
        sys.exit(f"simulate.py: cannot write {args.output}: {error.strerror}; choose another --output")
    print(f"Wrote {args.output}: {args.samples} simulated samples ({phenotypes.count('Psoriatic Arthritis')} Psoriatic "
          f"Arthritis, {phenotypes.count('Psoriasis')} Psoriasis), {args.probesets} probesets")


if __name__ == "__main__":
    main()
