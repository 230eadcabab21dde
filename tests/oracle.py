"""Score random gene signatures as remote-job.py's work function promises, from the textbooks, with NumPy and SciPy.

Shapes: train (n, k) and test (m, k) for n seen samples, m held-out ones and k probesets; y holds indices of CLASSES."""
from decimal import ROUND_HALF_UP, Decimal

import numpy as np
from scipy.spatial.distance import cdist
from scipy.special import expit
from scipy.stats import norm, rankdata

CLASSES, FOLDS = ['Psoriasis', 'Psoriatic Arthritis'], 10


def splitmix32(state):
    """Yield random numbers in [0, 1): SplitMix (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195) in 32 bits,
    with a mixer found by github.com/skeeto/hash-prospector, and the highest bit flipped."""
    while True:
        state = (state + 0x9e3779b9) % 2 ** 32    # 2**32 / golden ratio
        mixed = (state ^ state >> 16) * 0x21f0aaad % 2 ** 32
        mixed = (mixed ^ mixed >> 15) * 0x735a2d97 % 2 ** 32
        yield (mixed ^ mixed >> 15 ^ 2 ** 31) / 2 ** 32


def pick(n_probesets, i, n_signatures, min_length, max_length, seed):
    """Return the ascending columns of slice i (from 1): a list of k distinct numbers from 0 to n_probesets - 1."""
    lengths = range(max(1, min(min_length, max_length, n_probesets)), min(max_length, n_probesets) + 1)
    k = lengths[min((i - 1) * len(lengths) // max(1, n_signatures - 1), len(lengths) - 1)]
    random, columns = splitmix32(seed * 0x85ebca6b + i), set()
    while len(columns) < k:
        columns.add(int(next(random) * n_probesets))
    return sorted(columns)


def lda(train, y, test):
    """Return P(class 1), shape (m,), of linear discriminant analysis (Hastie, Tibshirani and Friedman, The Elements of
    Statistical Learning, 2nd ed., eq. 4.10) with the pooled covariance divided by n, and a ridge of 0.001."""
    means = np.array([train[y == c].mean(axis=0) for c in (0, 1)])
    within = train - means[y]
    covariance = within.T @ within / len(y) + 0.001 * np.eye(train.shape[1])
    directions = np.linalg.solve(covariance, means.T)    # (k, 2)
    delta = test @ directions - (means.T * directions).sum(axis=0) / 2 + np.log(np.bincount(y) / len(y))
    return expit(delta[:, 1] - delta[:, 0])


def gnb(train, y, test):
    """Return P(class 1), shape (m,), of Gaussian naive Bayes (the same book, section 6.6.3): the product of one normal
    density per probeset, with its maximum likelihood variance + 1e-9."""
    log_p1, log_p0 = (norm.logpdf(test, group.mean(axis=0), np.sqrt(group.var(axis=0) + 1e-9))
                      for group in (train[y == 1], train[y == 0]))
    return expit(np.log(y.sum() / (1 - y).sum()) + (log_p1 - log_p0).sum(axis=1))


def knn(train, y, test):
    """Return the share of class 1, shape (m,), among the 5 nearest (Euclidean) of train, in order if equally near."""
    return y[np.argsort(cdist(test, train, 'sqeuclidean'), axis=1, kind='stable')[:, :5]].mean(axis=1)


def three_decimals(value):
    """Round as JavaScript's toFixed(3) does: the exact value of the double, ties away from zero."""
    return float(Decimal(float(value)).quantize(Decimal('0.001'), ROUND_HALF_UP))


def auc(y, p):
    """Return the area under the ROC curve of y and p, (samples,): Mann-Whitney's U per pair, so ties count half."""
    n0, n1 = np.bincount(y)
    return (rankdata(p)[y == 1].sum() - n1 * (n1 + 1) / 2) / (n0 * n1)


def cross_validate(x, y):
    """Return P(class 1), shape (4, samples), of LDA, GNB, KNN and their mean for x (samples, k), in order of class. A
    sample's fold is its number within its class modulo FOLDS; it is predicted by what the other folds teach."""
    fold = np.concatenate([np.arange(size) % FOLDS for size in np.bincount(y)])
    p = np.empty((3, len(y)))
    for held_out in (fold == f for f in range(FOLDS)):
        train = x[~held_out]
        z = (x - train.mean(axis=0)) / np.where(np.ptp(train, axis=0) == 0, 1, train.std(axis=0))
        p[:, held_out] = [learn(z[~held_out], y[~held_out], z[held_out]) for learn in (lda, gnb, knn)]
    return np.vstack([p, p.mean(axis=0)])


def score(data, i, n_signatures, min_length, max_length, seed):
    """Return the four rows (dicts of classifier, accuracy, auc, probesets) of slice i, from the text of the table."""
    header, *lines = data.splitlines()
    names = header.split('\t')[1:]
    columns = pick(len(names), i, n_signatures, min_length, max_length, seed)
    rows = sorted((line.split('\t', columns[-1] + 2) for line in lines), key=lambda row: CLASSES.index(row[0]))
    y = np.array([CLASSES.index(row[0]) for row in rows])
    p = cross_validate(np.array([[float(row[j + 1]) for j in columns] for row in rows]), y)
    return [{'classifier': classifier, 'accuracy': three_decimals(np.mean((q >= 0.5) == y)),
             'auc': three_decimals(auc(y, q)), 'probesets': ', '.join(names[j] for j in columns)}
            for classifier, q in zip(['LDA', 'GNB', 'KNN', 'Ensemble'], p)]
