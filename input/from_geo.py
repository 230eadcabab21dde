"""Turn the real series GSE57383 into the table that server.py serves, in place of the simulated one.

Download GSE57383_series_matrix.txt.gz ("Series Matrix File(s)") from
https://www.ncbi.nlm.nih.gov/geo/query/acc.cgi?acc=GSE57383, then

    python input/from_geo.py GSE57383_series_matrix.txt.gz   # rewrites input/GSE57383_ps_psa.txt
"""
import argparse
import gzip
import re
import sys
import zlib

import numpy as np

from simulate import OUTPUT, write_table

PHENOTYPES = "Psoriatic Arthritis", "Psoriasis"
SAMPLE_LINES = "!Sample_title", "!Sample_source_name_ch1", "!Sample_characteristics_ch1"


def read_series_matrix(path):
    """Return (sample_lines, names, matrix) of a GEO series matrix file, plain or gzip-compressed.

    sample_lines  list of [field, text of each sample], the lines that may tell the phenotype
    names         list of str, one per probeset
    matrix        float array (probesets, samples); a missing value (empty, NA, null, infinite) is NaN

    Raises ValueError if it is no series matrix or a damaged one; OSError, EOFError or zlib.error if it is unreadable.
    """
    with open(path, "rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"  # browsers may unpack a download and keep its name, so look inside
    sample_lines, names, rows = [], [], []
    with (gzip.open if is_gzip else open)(path, "rt", encoding="utf-8", errors="replace") as file:
        lines = ([cell.strip('"') for cell in line.rstrip("\n").split("\t")] for line in file)
        for field, *texts in lines:
            if field in SAMPLE_LINES:
                sample_lines.append([field, *texts])
            elif field == "!series_matrix_table_begin":
                break
        else:
            raise ValueError("not a GEO series matrix; download GSE57383_series_matrix.txt.gz")
        samples = len(next(lines, [])) - 1
        for name, *values in lines:
            if name == "!series_matrix_table_end":
                break
            try:
                row = [float(v) if v.lower() not in ("", "na", "null") else np.nan for v in values]
            except ValueError:
                raise ValueError(f"damaged, probeset {name} has a value that is not a number; download it again")
            if len(row) != samples:
                raise ValueError(f"damaged, probeset {name} has {len(row)} values, not {samples}; download it again")
            names.append(name)
            rows.append(np.array(row))
        else:
            raise ValueError("truncated, it has no !series_matrix_table_end line; download it again")
        file.read()  # gzip checks what it unpacked only at the end of the file
    matrix = np.array(rows)
    matrix[np.isinf(matrix)] = np.nan  # somebody took the log of 0
    if np.isnan(matrix).all():
        raise ValueError("without values, its table is empty; download GSE57383_series_matrix.txt.gz")
    return [line for line in sample_lines if len(line) == samples + 1], names, matrix


def mentioned(text):
    """Return the set of PHENOTYPES that a text mentions: in full, or as PsA, Ps or PsO, in any case."""
    rest, arthritis = re.subn(r"psoria(tic|sis)[\s_-]*arthr[a-z]*|(?<![a-z])psa(?![a-z])", "", text, flags=re.I)
    psoriasis = re.search(r"psoriasis|(?<![a-z])pso?(?![a-z])", rest, flags=re.I)
    return {phenotype for phenotype, found in zip(PHENOTYPES, (arthritis, psoriasis)) if found}


def classify(sample_lines):
    """Return (phenotypes, line): the phenotype of each sample or None, and the sample line that tells it.

    A line tells the phenotypes if some of its samples mention one, some the other and none both. Of several such
    lines the one with the most samples counts. Raises ValueError if there is none or if two contradict each other.
    """
    telling = []
    for line in sample_lines:
        # Of a characteristic such as "disease state: PsA" only the value is about the sample.
        texts = [text.split(": ", 1)[-1] for text in line[1:]] if "characteristics" in line[0] else line[1:]
        found = [mentioned(text) for text in texts]
        if set().union(*found) == set(PHENOTYPES) and max(map(len, found)) == 1:
            telling.append(([min(phenotypes, default=None) for phenotypes in found], line))
    if not telling:
        raise ValueError("not usable, no sample title, source name or characteristic tells psoriatic arthritis from "
                         "psoriasis; download GSE57383_series_matrix.txt.gz")
    best, best_line = min(telling, key=lambda candidate: candidate[0].count(None))
    for phenotypes, line in telling:
        for a, b, text, best_text in zip(phenotypes, best, line[1:], best_line[1:]):
            if a and b and a != b:
                raise ValueError(f"not usable, a sample is both '{text}' and '{best_text}'; correct one of them")
    return best, best_line


def main():
    parser = argparse.ArgumentParser(description="Turn a GEO series matrix into input/GSE57383_ps_psa.txt.")
    parser.error = lambda message: sys.exit(f"from_geo.py: {message}; see --help")
    parser.add_argument("series_matrix", help="GSE57383_series_matrix.txt or GSE57383_series_matrix.txt.gz")
    path = parser.parse_args().series_matrix
    try:
        sample_lines, names, matrix = read_series_matrix(path)
        phenotypes, line = classify(sample_lines)
        counts = [phenotypes.count(phenotype) for phenotype in PHENOTYPES]
        if min(counts) < 10:
            raise ValueError(f"too small, it has {counts[0]} psoriatic arthritis and {counts[1]} psoriasis samples; "
                             "10-fold cross-validation needs 10 of each")
        matrix = matrix[:, [phenotype is not None for phenotype in phenotypes]]
        # GEO2R's rule (its R script, www.ncbi.nlm.nih.gov/geo/info/geo2r.html) for values that are not yet log2.
        low, quarter, percentile_99, high = np.nanquantile(matrix, [0, 0.25, 0.99, 1])
        unlogged = percentile_99 > 100 or (high - low > 50 and quarter > 0)
        if unlogged:
            matrix = np.log2(np.where(matrix > 0, matrix, np.nan))
        complete = ~np.isnan(matrix).any(axis=1)
        if not complete.any():
            raise ValueError("not usable, every probeset lacks a value; download it again")
    except ValueError as error:
        sys.exit(f"from_geo.py: {path} is {error}")
    except (EOFError, zlib.error, gzip.BadGzipFile):
        sys.exit(f"from_geo.py: {path} is damaged, it does not unpack; download it again")
    except OSError as error:
        sys.exit(f"from_geo.py: cannot read {path}: {error.strerror}; name the file you downloaded from GEO")
    try:
        write_table(OUTPUT, filter(None, phenotypes), [name for name, ok in zip(names, complete) if ok],
                    matrix[complete].T, decimals=4)
    except OSError as error:
        sys.exit(f"from_geo.py: cannot write {OUTPUT}: {error.strerror}; make it writable")

    for phenotype, count in zip(PHENOTYPES, counts):
        print(f"{count} {phenotype} samples, such as '{line[1 + phenotypes.index(phenotype)]}'")
    print(f"Left out: samples of neither phenotype: {phenotypes.count(None)}, "
          f"probesets with a missing value: {(~complete).sum()}")
    if unlogged:
        print("Took log2 of the values, as GEO2R would")
    print(f"Wrote {OUTPUT}: {sum(counts)} samples, {complete.sum()} probesets")


if __name__ == "__main__":
    main()
