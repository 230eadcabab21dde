"""Score a signature as remote-job.py's work function promises, from the textbooks, with NumPy and SciPy.

Shapes: rows (m, k) and known (n, k) for m samples to classify, n known ones of a class and k probesets;
y (samples,) holds indices of CLASSES."""
from decimal import ROUND_HALF_UP, Decimal

import numpy as np
from scipy.spatial.distance import cdist
from scipy.special import expit
from scipy.stats import norm, rankdata

CLASSES = ['Psoriasis', 'Psoriatic Arthritis']
FOLDS = 10


def pick(n_probesets, numbers):
    """Return k different columns, from 0: each of k numbers in [0, 1) chooses one of those that are left."""
    left = list(range(n_probesets))
    return [left.pop(int(number * len(left))) for number in numbers]


def variance(values):
    """Return the maximum likelihood variance of each column (k,), and 1e-9 more, which keeps it above 0."""
    return values.var(axis=0) + 1e-9


def centroid(rows, known):
    """Return the log-likelihood (m,) of a normal distribution around the mean of the class, with variance 1:
    nearest centroid (Hastie, Tibshirani, Friedman: The Elements of Statistical Learning, 2nd ed., 18.2)."""
    return norm.logpdf(rows, known.mean(axis=0)).sum(axis=1)


def bayes(rows, known):
    """Return the log-likelihood (m,) of a normal distribution for each probeset, with the class's own means
    and variances: Gaussian naive Bayes (the same book, 6.6.3)."""
    return norm.logpdf(rows, known.mean(axis=0), np.sqrt(variance(known))).sum(axis=1)


def neighbour(rows, known):
    """Return the log-likelihood (m,), but for a constant, of a normal distribution around the nearest known
    sample of the class, with variances of 1: one nearest neighbour, Euclidean (the same book, 13.3)."""
    return -cdist(rows, known, 'sqeuclidean').min(axis=1) / 2


CLASSIFIERS = {'centroid': centroid, 'bayes': bayes, 'neighbour': neighbour}


def cross_validate(x, y):
    """Return the probability of class 1, as {classifier: (samples,)}, for x (samples, k), by Bayes' theorem
    with equal priors. A sample's fold is its number within its class modulo FOLDS; the others classify it."""
    fold = np.empty_like(y)
    for label in (0, 1):
        fold[y == label] = np.arange((y == label).sum()) % FOLDS
    p = {name: np.empty(len(y)) for name in CLASSIFIERS}
    for held_out in (fold == f for f in range(FOLDS)):
        first, second = (x[~held_out & (y == label)] for label in (0, 1))
        for name, fit in CLASSIFIERS.items():
            p[name][held_out] = expit(fit(x[held_out], second) - fit(x[held_out], first))
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
