"""Score a signature as remote-job.py's work function promises, from the textbooks, with NumPy and SciPy.

Shapes: rows (m, k) and known (n, k) for m samples to classify, n known ones of a class and k probesets;
y (samples,) holds indices of CLASSES."""
from decimal import ROUND_HALF_UP, Decimal

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import rankdata

CLASSES = ['Psoriasis', 'Psoriatic Arthritis']
FOLDS = 10


def pick(n_probesets, places):
    """Return columns, from 0: the table has k of equal width between 0 and 1, and each of the places lies in one of
    them. A column that has several is returned once, where the first of them is."""
    columns = np.searchsorted(np.arange(1, n_probesets) / n_probesets, places, side='right')
    return list(dict.fromkeys(columns.tolist()))


def similarity(rows, known):
    """Return the similarities (m, n) of each of the rows to each of the known ones: a Cauchy kernel, not normalised,
    of the root mean square of their k differences."""
    return 1 / (1 + cdist(rows, known, 'sqeuclidean') / rows.shape[1])


def centroid(rows, known):
    """Return the similarities (m,) to the mean of the class: nearest centroid (Hastie, Tibshirani, Friedman: The
    Elements of Statistical Learning, 2nd ed., 18.2)."""
    return similarity(rows, known.mean(axis=0, keepdims=True))[:, 0]


def neighbour(rows, known):
    """Return the similarities (m,) to the nearest known sample of the class: one nearest neighbour (the same book,
    13.3)."""
    return similarity(rows, known).max(axis=1)


def kernel(rows, known):
    """Return the class's density (m,), not normalised: kernel density classification (the same book, 6.6.2)."""
    return similarity(rows, known).mean(axis=1)


CLASSIFIERS = {'centroid': centroid, 'neighbour': neighbour, 'kernel': kernel}


def cross_validate(x, y):
    """Return scores from 0 to 1, as {classifier: (samples,)}, for x (samples, k): how well class 1 fits, as a part
    of how well both fit. A sample's fold is its number within its class modulo FOLDS; the others score it."""
    fold = np.empty_like(y)
    for label in (0, 1):
        fold[y == label] = np.arange((y == label).sum()) % FOLDS
    p = {name: np.empty(len(y)) for name in CLASSIFIERS}
    for held_out in (fold == f for f in range(FOLDS)):
        first, second = (x[~held_out & (y == label)] for label in (0, 1))
        for name, fit in CLASSIFIERS.items():
            fits = np.array([fit(x[held_out], first), fit(x[held_out], second)])
            p[name][held_out] = (fits / fits.sum(axis=0))[1]
    return p


def auc(y, p):
    """Return the area under the ROC curve of y and p, (samples,): Mann-Whitney's U per pair (ties: half)."""
    n0, n1 = np.bincount(y)
    return (rankdata(p)[y == 1].sum() - n1 * (n1 + 1) / 2) / (n0 * n1)


def three_decimals(value):
    """Round as JavaScript's toFixed(3) does: the exact value of the double, ties away from zero."""
    return float(Decimal(float(value)).quantize(Decimal('0.001'), ROUND_HALF_UP))


def read(data):
    """Return the parts of a table: the names of its probesets, x (samples, probesets) and y (samples,)."""
    header, *rows = [line.split('\t') for line in data.splitlines()]
    x = np.array([row[1:] for row in rows], float)
    y = np.array([CLASSES.index(row[0]) for row in rows])
    return header[1:], x, y


def score(table, numbers):
    """Return the result of a slice, a dict, from the three parts of a table."""
    names, x, y = table
    columns = pick(len(names), numbers)
    p = cross_validate(x[:, columns], y)
    p['ensemble'] = np.mean(list(p.values()), axis=0)
    result = {'probesets': ', '.join(names[column] for column in columns)}
    for name, scores in p.items():
        result[f'{name}_accuracy'] = three_decimals(np.mean((scores >= 0.5) == y))
        result[f'{name}_auc'] = three_decimals(auc(y, scores))
    return result
