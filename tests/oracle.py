"""Score a signature as remote-job.py's work function promises, from the textbooks, with NumPy and SciPy.

Shapes: rows (m, k) and known (n, k) for m samples to classify, n known ones of a class and k probesets;
x (samples, k), and y (samples,), which is 0 or 1 for the two classes. The book: Hastie, Tibshirani, Friedman:
The Elements of Statistical Learning, 2nd ed."""
from decimal import ROUND_HALF_UP, Decimal

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import rankdata


def similarity(rows, known):
    """Return the similarities (m, n) of rows and known samples: a Cauchy kernel, not normalised, of the root
    mean square of their k differences."""
    return 1 / (1 + cdist(rows, known, 'sqeuclidean') / rows.shape[1])


def centroid(rows, known):
    """Return the similarities (m,) to the mean of the class: nearest centroid (the book, 18.2)."""
    return similarity(rows, known.mean(axis=0, keepdims=True))[:, 0]


def neighbour(rows, known):
    """Return the similarities (m,) to the nearest known sample: one nearest neighbour (the book, 13.3)."""
    return similarity(rows, known).max(axis=1)


def kernel(rows, known):
    """Return the class's density (m,), not normalised: kernel density classification (the book, 6.6.2)."""
    return similarity(rows, known).mean(axis=1)


CLASSIFIERS = {'centroid': centroid, 'neighbour': neighbour, 'kernel': kernel}


def cross_validate(x, y, folds):
    """Return scores from 0 to 1, as {classifier: (samples,)}: how well class 1 fits, as a part of how well
    both fit. A sample's fold is its number within its class modulo folds; samples of other folds score it."""
    fold = np.empty_like(y)
    for label in (0, 1):
        fold[y == label] = np.arange((y == label).sum()) % folds
    scores = {name: np.empty(len(y)) for name in CLASSIFIERS}
    for held_out in (fold == f for f in np.unique(fold)):
        first, second = (x[~held_out & (y == label)] for label in (0, 1))
        for name, fit in CLASSIFIERS.items():
            fits = np.array([fit(x[held_out], first), fit(x[held_out], second)])
            scores[name][held_out] = (fits / fits.sum(axis=0))[1]
    return scores


def auc(y, scores):
    """Return the area under the ROC curve: Mann-Whitney's U per pair (ties: half)."""
    n0, n1 = np.bincount(y)
    return (rankdata(scores)[y == 1].sum() - n1 * (n1 + 1) / 2) / (n0 * n1)


def three_decimals(value):
    """Round as JavaScript's toFixed(3) does: the exact value of the double, ties away from zero."""
    return float(Decimal(float(value)).quantize(Decimal('0.001'), ROUND_HALF_UP))


def score(data, signature, classes, folds):
    """Return the result of a slice, from the text of the table and column numbers (column 0: the labels)."""
    header, *rows = [line.split('\t') for line in data.splitlines()]
    x = np.array([[float(row[column]) for column in signature] for row in rows])
    y = np.array([[str(label) for label in classes].index(row[0]) for row in rows])
    scores = cross_validate(x, y, folds)
    scores['ensemble'] = np.mean(list(scores.values()), axis=0)
    result = {'probesets': ', '.join(header[column] for column in signature), 'samples': len(rows)}
    for name, values in scores.items():
        result[f'{name}_accuracy'] = three_decimals(np.mean((values >= 0.5) == y))
        result[f'{name}_auc'] = three_decimals(auc(y, values))
    return result
