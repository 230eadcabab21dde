"""The work function: what it picks, how it scores it, and what it says of data that it cannot use."""
import ast
import json
import subprocess
import sys
from functools import cache
from itertools import combinations
from threading import Timer

import numpy as np
import pytest
from scipy import stats

from input.simulate import simulate

from .oracle import score
from .project import PROJECT

PSA, PS = 'Psoriatic Arthritis', 'Psoriasis'
SHIPPED = (PROJECT / 'input' / 'GSE57383_ps_psa.txt').read_text()
WORK_FUNCTION = next(node.value.value for node in ast.parse((PROJECT / 'remote-job.py').read_text()).body
                     if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == 'work_function')
DRIVER = '''(job) => {
  const { source, data, calls } = JSON.parse(job), work = Function(`'use strict'; return ${source}`)();
  return JSON.stringify(calls.map((call) => {
    const progress = [];
    globalThis.progress = (done) => progress.push(done);
    try {
      return { rows: work(...call, data), progress };
    } catch (error) {
      return { error: error.message, isError: error instanceof Error };
    }
  }));
}'''
ENGINES = {    # each answers a line with a line
    'V8': ['node', '-e', "require('readline').createInterface({ input: process.stdin }).on('line', (line) =>"
                         f'console.log(({DRIVER})(line)))'],
    'SpiderMonkey': [sys.executable, '-c', 'import sys, pythonmonkey as pm\n'
                                           f'for line in sys.stdin: print(pm.eval({DRIVER!r})(line), flush=True)'],
}
running = {}


@pytest.fixture(scope='module', autouse=True)
def engines():
    for name, command in ENGINES.items():
        running[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield
    for process in running.values():
        process.communicate()    # closes its input, and so ends it


@cache
def run(data, calls, engine='V8'):
    """Return what the work function does for each (i, n_signatures, min_length, max_length, seed)."""
    job = json.dumps({'source': WORK_FUNCTION, 'data': data, 'calls': calls})
    watchdog = Timer(60, running[engine].kill)    # of an endless loop
    watchdog.start()
    print(job, file=running[engine].stdin, flush=True)
    answer = running[engine].stdout.readline()
    watchdog.cancel()
    return json.loads(answer)


def results(data, calls):
    """Return the rows of each call, all of which succeed."""
    outcomes = run(data, calls)
    assert [outcome['error'] for outcome in outcomes if 'error' in outcome] == []
    return [outcome['rows'] for outcome in outcomes]


def signatures(data, calls):
    """Return the names of the probesets of each call."""
    return [rows[0]['probesets'].split(', ') for rows in results(data, calls)]


def sweep(n_signatures, min_length, max_length, seeds=(42,)):
    """Return the calls of whole jobs, one for each seed."""
    slices = range(1, n_signatures + 1)
    return tuple((i, n_signatures, min_length, max_length, seed) for seed in seeds for i in slices)


def table(samples=60, probesets=40, differing=0, change=None):
    """Return the text of simulated data; change(phenotypes, matrix) edits them in place."""
    phenotypes, names, matrix = simulate(samples, probesets, differing, seed=1)
    if change:
        change(phenotypes, matrix)
    lines = [['phenotype', *names]] + [[name, *(f'{v:.6f}' for v in row)] for name, row in zip(phenotypes, matrix)]
    return ''.join('\t'.join(line) + '\n' for line in lines)


# ---- scores ----

def constant(phenotypes, matrix):
    phenotypes[:] = [PSA, *[PS, PSA] * 20]    # as many of each but in the first fold: the odds there are 1 to 1
    matrix[:, 2] = 7.31    # whose mean is another double


def constant_but_for_one_sample(phenotypes, matrix):
    matrix[:, 2] = 7.31
    matrix[11, 2] = 8


def two_identical_probesets(phenotypes, matrix):
    matrix[:, 4] = matrix[:, 1]


def every_sample_twice(phenotypes, matrix):
    matrix[1::2] = matrix[::2]    # equally near, often of the other class


def one_sample_far_off(phenotypes, matrix):
    matrix[3] += 1e6    # dwarfs the others if it standardises them while it is held out


def six_times_as_much_arthritis(phenotypes, matrix):
    phenotypes[:] = [PS, *[PSA] * 6] * 10


def as_much_of_each(phenotypes, matrix):
    phenotypes[:] = [PS, PSA] * 20    # of 400 pairs: areas like 0.0175, halfway between two printed numbers


# Values of two decimals lie equally far to either side of another in signatures of one probeset, and rounding errors
# choose the fifth neighbour: signatures of the shipped file are longer here, and other data has more decimals.
DATA = {
    'the shipped file': (SHIPPED, sweep(40, 5, 9, [42, 7])),
    'noise': (table(60, 200), sweep(30, 1, 9, [42, 0, -5, 2 ** 31 + 3])),
    'planted signal': (table(60, 200, 200), sweep(50, 5, 25)),
    'short signatures': (table(60, 200, 20), sweep(80, 1, 3, [42, 7])),
    '20 samples': (table(20), sweep(100, 1, 6)),
    **{change.__name__: (table(samples, probesets, 2, change), sweep(30, 1, 6, [1, 2]))
       for change, samples, probesets in (
           (constant, 41, 6), (constant_but_for_one_sample, 60, 6), (two_identical_probesets, 60, 6),
           (every_sample_twice, 60, 40), (one_sample_far_off, 60, 40), (six_times_as_much_arthritis, 70, 40),
           (as_much_of_each, 40, 40))},
}


@pytest.mark.parametrize('name', DATA)
def test_every_printed_digit_is_what_another_implementation_gets(name):
    """Compare with the oracle, which standardises and learns on the training folds alone: a leak would show here."""
    data, calls = DATA[name]
    for call, rows in zip(calls, results(data, calls)):
        assert rows == score(data, *call), f'(i, n_signatures, min_length, max_length, seed) = {call}'


@pytest.mark.parametrize('name', ['the shipped file', 'short signatures', 'constant_but_for_one_sample'])
def test_results_are_the_same_in_another_engine(name):
    assert run(*DATA[name], 'SpiderMonkey') == run(*DATA[name], 'V8')


@pytest.mark.parametrize('name, auc, accuracy', [('noise', (0.45, 0.55), (0.45, 0.6)),
                                                 ('planted signal', (0.95, 1), (0.9, 1))])
def test_signal_is_found_where_there_is_one_and_only_there(name, auc, accuracy):
    rows = np.array(results(*DATA[name]))
    assert [row['classifier'] for row in rows[0]] == ['LDA', 'GNB', 'KNN', 'Ensemble']
    for key, (low, high) in {'auc': auc, 'accuracy': accuracy}.items():
        mean = np.vectorize(lambda row: row[key])(rows).mean(axis=0)    # of each classifier
        assert (low < mean).all() and (mean < high).all(), f'{key}: {mean}'


def test_scores_do_not_depend_on_which_disease_is_called_the_first():
    data, calls = DATA['noise']
    swapped = data.replace(PSA, 'PSA').replace(PS, PSA).replace('PSA', PS)
    assert swapped != data and results(swapped, calls) == results(data, calls)


# ---- signatures ----

@pytest.mark.parametrize('min_length, max_length, lengths', [
    (5, 9, range(5, 10)), (4, 4, [4]), (0, 3, range(1, 4)), (7, 30, range(7, 11)), (15, 30, [10]),    # there are 10
])
@pytest.mark.parametrize('n_signatures', [1, 2, 3, 10, 1000])
def test_lengths_sweep_evenly_from_min_to_max(n_signatures, min_length, max_length, lengths):
    found = [len(names) for names in signatures(table(20, 10), sweep(n_signatures, min_length, max_length))]
    counts = [found.count(length) for length in lengths]
    assert found == sorted(found) and sum(counts) == n_signatures and max(counts) - min(counts) <= 1
    assert found[0] == lengths[0] and (n_signatures == 1 or found[-1] == lengths[-1])


@pytest.mark.parametrize('probesets, length', [(100, 1), (6, 2), (5, 4)])
@pytest.mark.parametrize('vary', ['slice', 'seed'])
def test_every_combination_of_probesets_is_equally_likely(vary, probesets, length):
    data, number = table(20, probesets), range(1, 1001)
    calls = tuple((k, 1000, length, length, 42) if vary == 'slice' else (1, 1000, length, length, k) for k in number)
    found = [tuple(names) for names in signatures(data, calls)]
    counts = [found.count(names) for names in combinations(data.split('\n')[0].split('\t')[1:], length)]
    assert sum(counts) == len(found)    # none has a probeset twice
    assert 0.001 < stats.chisquare(counts).pvalue < 0.999    # neither uneven, nor dealt out in turn


def test_every_slice_of_every_seed_has_its_own_signature_with_no_more_overlap_than_chance():
    seeds, slices = range(30), range(1, 31)
    calls = tuple((i, 30, 10, 10, seed) for seed in seeds for i in slices)
    found = np.reshape([set(names) for names in signatures(table(20, 40), calls)], (30, 30))
    assert len({frozenset(names) for names in found.flat}) == found.size
    chance = stats.hypergeom(40, 10, 10)
    for first, second in ((found[:, 1:], found[:, :-1]), (found[1:], found[:-1]), (found[1:, 1:], found[:-1, :-1]),
                          (found[1:, :-1], found[:-1, 1:])):    # neighbouring slices, seeds, and both
        overlap = [len(one & other) for one, other in zip(first.flat, second.flat)]
        assert abs(np.mean(overlap) - chance.mean()) < 4 * chance.std() / len(overlap) ** 0.5


def test_same_slice_and_seed_give_the_same_result_whatever_ran_before():
    data, calls = DATA['short signatures']
    assert run(data, calls[::-1]) == run(data, calls)[::-1]


# ---- reading ----

@pytest.mark.parametrize('rest', [[], [''], ['NA', '', 'garbage']])
def test_nothing_is_read_behind_the_last_picked_probeset(rest):
    data, call = table(), (3, 10, 2, 6, 42)
    header, *lines = [line.split('\t') for line in data.splitlines()]
    last = header.index(signatures(data, (call,))[0][-1])
    assert last < len(header) - 1
    cut = [header] + [line[:last + 1] + rest for line in lines]
    assert results('\n'.join('\t'.join(line) for line in cut), (call,)) == results(data, (call,))


@pytest.mark.parametrize('change', [
    lambda data: data.replace('\n', '\r\n'),
    lambda data: data.removesuffix('\n'),
    lambda data: data.replace('\n', '\r\n').removesuffix('\r\n'),
    lambda data: data.replace('\n', ' \n'),
    lambda data: data.replace('\n', '\t\n'),
    lambda data: data + '\n',
    lambda data: data + ' \r\n\t',
], ids=['CRLF', 'no final newline', 'CRLF, none at the end', 'space', 'tab', 'blank last line', 'blank last lines'])
def test_line_ends_and_trailing_blanks_make_no_difference(change):
    data, calls = table(20, 6, 2), sweep(10, 1, 6)
    assert results(change(data), calls) == results(data, calls)


@pytest.mark.parametrize('name', ['20 samples', 'noise'])
def test_progress_is_reported_in_each_fold(name):
    for outcome in run(*DATA[name]):
        progress = outcome['progress']
        assert len(progress) >= 10 and progress == sorted(set(progress))
        assert 0 <= progress[0] and progress[-1] <= 1


# ---- data that it cannot use ----

@pytest.fixture
def cells():
    """20 samples of three probesets with names that are numbers, as cells to break; all three are picked."""
    values = np.random.RandomState(1).normal(8, 1, (20, 3)).round(2).astype(str).tolist()
    return [['phenotype', '1001', '1002', '1003']] + [[label, *row] for label, row in zip([PS, PSA] * 10, values)]


ALL, LAST = (1, 1, 3, 3, 42), (1, 1, 1, 1, 0)    # calls that pick all three, and only the last


def error(cells_or_text, end='', call=ALL):
    """Return the message of the Error that the work function throws for this data."""
    if isinstance(cells_or_text, list):
        cells_or_text = '\n'.join('\t'.join(line) for line in cells_or_text) + end
    (outcome,) = run(cells_or_text, (call,))
    assert outcome.get('isError') and '\n' not in outcome['error'], outcome
    return outcome['error']


def test_whole_table_is_no_error(cells):
    text = '\n'.join('\t'.join(line) for line in cells)
    assert signatures(text, (ALL, LAST)) == [cells[0][1:], cells[0][3:]]


@pytest.mark.parametrize('text', ['', '\n', 'phenotype', 'phenotype\n', f'phenotype\n{PS}\n', 'disease\t1001\n',
                                  f'{PS}\t7.1\n', '<html>\n<p>Not found\n'])
def test_text_without_a_phenotype_column_or_probesets_is_an_error(text):
    assert 'no phenotype column or no probesets' in error(text)


@pytest.mark.parametrize('psoriasis, arthritis', [(0, 0), (0, 10), (10, 0), (9, 10), (10, 9), (9, 30)])
def test_too_few_samples_of_a_class_are_counted(cells, psoriasis, arthritis):
    labels = [PS] * psoriasis + [PSA] * arthritis
    message = error(cells[:1] + [[label, '1', '2', '3'] for label in labels])
    assert 'needs 10 samples' in message and f'{psoriasis} and {arthritis}' in message


@pytest.mark.parametrize('sample', [1, 20])
@pytest.mark.parametrize('label', ['healthy', 'psoriasis', 'Psoriatic', ''])
def test_sample_of_unknown_phenotype_is_named_but_not_its_data(cells, sample, label):
    cells[sample][0] = label
    assert error(cells) == f'sample {sample} is neither {PS} nor {PSA}'


@pytest.mark.parametrize('sample, probeset', [(1, 1), (7, 3), (20, 2), (20, 3)])
@pytest.mark.parametrize('value', ['', ' ', 'NA', '7.1x', '7,1', 'Infinity', '1e999'])
def test_value_that_is_no_number_is_named_with_its_sample_and_probeset(cells, sample, probeset, value):
    cells[sample][probeset] = value
    message = error(cells)
    assert f'sample {sample} ' in message and f'100{probeset}' in message


@pytest.mark.parametrize('end', ['', '\n', '\r\n'])
@pytest.mark.parametrize('sample', [1, 19, 20])
@pytest.mark.parametrize('length', [1, 2, 3])
def test_short_row_is_named_with_the_first_picked_probeset_that_it_lacks(cells, sample, length, end):
    del cells[sample][length:]
    for call, probeset in ((ALL, f'100{length}'), (LAST, '1003')):
        message = error(cells, end, call)
        assert f'sample {sample} ' in message and probeset in message
