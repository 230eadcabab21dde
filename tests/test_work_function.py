"""Input set and work function: which signatures, their scores, what is said of a table that is no use."""
import json
import random
import re
import subprocess
import sys
from functools import cache

import numpy as np
import pytest

from . import oracle
from .project import PROJECT

JOB_SCRIPT = (PROJECT / 'remote-job.py').read_text(encoding='utf-8')
INPUT_SET = re.search('^# INPUT SET.*?(?=^# WORK FUNCTION)', JOB_SCRIPT, re.MULTILINE | re.DOTALL)[0]
WORK_FUNCTION = re.search("^work_function = r'''(.*?)'''", JOB_SCRIPT, re.MULTILINE | re.DOTALL)[1]
SHIPPED = (PROJECT / 'input' / 'GSE57383_ps_psa.txt').read_text()
PS, PSA = CLASSES = ['Psoriasis', 'Psoriatic Arthritis']
DRIVER = '''(task) => {
  const { source, tables, calls } = eval(`(${task})`);
  return JSON.stringify(calls.map(([table, signature, ...settings]) => {
    let reports = 0;
    globalThis.progress = () => { reports += 1; };
    try {
      return { result: eval(source)(signature, tables[table], ...settings), reports };
    } catch (error) {
      return { error: error.message };
    }
  }));
}'''
ENGINES = {
    'V8': ['node', '-e', f"console.log(({DRIVER})(require('fs').readFileSync(0, 'utf8')))"],
    'SpiderMonkey': [sys.executable, '-c', 'import sys, pythonmonkey\n'
                                           f'print(pythonmonkey.eval({DRIVER!r})(sys.stdin.read()))'],
}


def compute(calls, source=WORK_FUNCTION, engine='V8'):
    """Compute calls (data, signature, classes, folds) in one sandbox: {result, reports} or {error} each."""
    tables = list({data: None for data, *_ in calls})
    calls = [[tables.index(data), *arguments] for data, *arguments in calls]
    task = json.dumps({'source': source, 'tables': tables, 'calls': calls})
    return json.loads(subprocess.check_output(ENGINES[engine], input=task, text=True, timeout=100))


def test_signatures_are_as_many_and_as_long_as_the_settings_say():
    settings = {'n_signatures': 3000, 'min_length': 3, 'max_length': 12, 'header': 50 * '\t'}
    exec(INPUT_SET, variables := {'random': random.Random(1), 'json': json, 'classes': [], 'folds': 2, **settings})
    slices = variables['slices']
    assert len(slices) == 3000 and {len(signature) for signature in slices} == set(range(3, 13))
    assert all(len(set(signature)) == len(signature) for signature in slices)
    columns = np.concatenate(slices)
    assert (columns.min(), columns.max()) == (1, 50) and abs(columns.mean() - 25.5) < 1


def simulated(samples=40, probesets=30, share=0.5, change=lambda x: x):
    """Return a table of noise. A share of the samples, the first rows of x, is of the first class."""
    rng = np.random.RandomState(samples)
    x = change(rng.normal(7, 1, (samples, probesets)))
    labels = [CLASSES[i >= max(2, samples * share)] for i in range(samples)]
    rows = [[labels[i], *(f'{value:.6f}' for value in x[i])] for i in rng.permutation(samples)]
    header = ['phenotype', *(f'probeset{i}_at' for i in range(1, probesets + 1))]
    return ''.join('\t'.join(row) + '\n' for row in [header, *rows])


row = np.arange(40)[:, None]
DATA = {    # table, classes, folds
    'shipped file': (SHIPPED, CLASSES, 10),
    '400 pairs': (simulated(), CLASSES, 10),    # areas like 0.0175, halfway between two printed numbers
    'signal': (simulated(change=lambda x: x + (row >= 20) / 2), CLASSES, 10),
    'reversed classes': (simulated(change=lambda x: x + (row >= 20) / 2), CLASSES[::-1], 10),
    'two folds': (simulated(share=0.4), CLASSES, 2),
    'two samples in each fold': (simulated(), CLASSES, 1000),
    'one class six times as large': (simulated(70, share=1 / 7), CLASSES, 10),
    'two of one class': (simulated(20, share=0), CLASSES, 10),    # most folds have none of it
    'raw intensities': (simulated(change=lambda x: 2 ** x), CLASSES, 10),    # most scores are near 0 or 1
    'ties': (simulated(change=lambda x: np.tile(x[:20], (2, 1))), CLASSES, 10),    # each is in both classes
    'one far off': (simulated(change=lambda x: x + 1e6 * (row == 3)), CLASSES, 10),
    'constant': (simulated(change=lambda x: np.hstack([x[:, :2], 0 * x[:, 2:] + 7.31])), CLASSES, 10),
}


def calls_of(name, n=5, seed=1):
    """Return calls with n random signatures, of 5 to 9 probesets for the shipped file, else also of fewer.

    (Where both classes fit equally well, rounding errors decide: so it is with one probeset of two decimals.)
    """
    rng = np.random.RandomState(seed)
    data, *settings = DATA[name]
    width = data.partition('\n')[0].count('\t')
    lengths = rng.randint(5 if data == SHIPPED else 1, 10, n)
    return [(data, (rng.permutation(width)[:length] + 1).tolist(), *settings) for length in lengths]


@cache
def outcomes(engine):
    """Compute all of it in one sandbox, in which nothing of one table may be left when the next one comes."""
    calls = {name: calls_of(name) for name in DATA}
    computed = iter(compute(sum(calls.values(), []), engine=engine))
    return {name: [(call, next(computed)) for call in calls[name]] for name in DATA}


@pytest.mark.parametrize('engine', ENGINES)
@pytest.mark.parametrize('name', DATA)
def test_every_printed_digit_is_what_another_implementation_gets(name, engine):
    """The oracle learns from the other folds alone, so that a leak would show here."""
    for call, outcome in outcomes(engine)[name]:
        assert outcome.get('result') == oracle.score(*call), (outcome, call[1:])


def test_sample_is_never_compared_with_itself_whatever_its_fold():
    edits = ('group.length %', 'group.lenght %'), (' && other.fold !== sample.fold', '')
    slip, leave_one_out = [compute(calls_of('signal'), WORK_FUNCTION.replace(*edit)) for edit in edits]
    assert slip == leave_one_out


def test_progress_is_reported_for_each_sample():
    """DCP takes a slice back if nothing is heard of it for 30 s."""
    assert [outcome['reports'] for _, outcome in outcomes('V8')['shipped file']] == [60] * 5


TABLE = simulated(24, 3)
CELL = TABLE.splitlines()[7].split('\t')[2]    # of line 8


@pytest.mark.parametrize('old, new', [
    ('\n', '\r\n'), (r'\n\Z', ''), (r'\Z', '\n\r\n \n'), (r'\A', '\ufeff'), (CELL, 'NA'),
], ids=['CR LF', 'no line end at the end', 'blank lines at the end', 'byte order mark', 'NA, not asked for'])
def test_table_as_other_programs_write_it_gives_the_same(old, new):
    variant = re.sub(old, new, TABLE)
    plain, same = compute([(data, [1, 3], CLASSES, 10) for data in (TABLE, variant)])
    assert variant != TABLE and 'result' in plain and plain == same


def error(data=TABLE, signature=(1, 2, 3), classes=CLASSES, folds=10, source=WORK_FUNCTION):
    """Return the message of the error thrown. It passes through DCP's scheduler, so it quotes no cell."""
    (outcome,) = compute([(data, signature, classes, folds)], source)
    assert 'error' in outcome, outcome
    cells = {cell.strip() for cell in re.split(r'[\t\r\n]', data)} - set(CLASSES)
    assert not [cell for cell in cells if len(cell) > 1 and cell in outcome['error']]
    return outcome['error']


@pytest.mark.parametrize('old, new, words', [
    *[(CELL, cell, 'line 8 of the table: no number in a column of 1,2,3')
      for cell in ('', ' ', 'NA', 'NaN', 'Inf', 'Infinity', '1e999', '7,1234', '7.1234x', '#N/A', 'TRUE')],
    (r'\.', ',', 'line 2 of the table: no number in a column of 1,2,3'),
    (CELL + '\t', '', 'line 8 of the table has not as many cells as the first'),
    ('phenotype\t', '', 'line 2 of the table has not as many cells as the first'),    # R
    ('(?m)^', '0\t', 'must begin with Psoriasis or Psoriatic Arthritis'),             # the index of pandas
    ('(?m)^([^\t\n]+)', r'"\1"', 'must begin with Psoriasis or Psoriatic Arthritis'),    # R quotes texts
    *[(PSA, label, 'must begin with Psoriasis or Psoriatic Arthritis')
      for label in ('healthy', 'psoriatic arthritis', 'Psoriatic Arthritis ', '')],
    (r'\nPsoriasis.*', '', 'too few samples'),
    (r'\nPsoriasis.*(?=[^§]*Psoriasis)', '', 'too few samples'),    # all but one
    ('\n', '\r', 'too few samples'),
    (r'\A.*\n', '', 'the first line must name the columns'),    # else a sample would do, and its values be told
    ('[^§]+', '<html>\n<p>Not found</p>\n', 'must begin with'),
])
def test_table_that_is_no_use_is_told(old, new, words):
    broken = re.sub(old, new, TABLE)
    assert broken != TABLE and words in error(broken)


def with_classifier(code):
    """Return the work function with a fourth classifier, added as a reader would."""
    return WORK_FUNCTION.replace('    centroid: ', f'    {code},\n    centroid: ')


@pytest.mark.parametrize('slip, words', [
    *[({'folds': folds}, 'too few samples/folds') for folds in (0, 1, 2.5, -2, None, float('nan'), 'ten')],
    *[({'signature': signature}, '') for signature in ([], [0, 1], [1, 4], [1.5], ['probeset1_at'])],
    *[({'classes': classes}, '') for classes in ([PS], [0, 1], ['healthy', PS, PSA], [PS, PS])],
    *[({'source': with_classifier(f'newest: () => {body}')}, 'newest gave no number > 0')
      for body in ('{ 1; }', 'NaN', 'Infinity', "'near'", 'null', '-1', '0')],
    ({'source': with_classifier('ensemble: () => 1')}, 'ensemble is the mean'),
])
def test_change_that_is_no_use_is_told(slip, words):
    assert words in error(**slip)


def test_fourth_classifier_is_scored_and_takes_part_in_the_ensemble(monkeypatch):
    source = with_classifier('far: (values, known) => Math.min(...known.map((x) => similarity(values, x)))')
    far = {'far': lambda rows, known: oracle.similarity(rows, known).min(axis=1)}
    monkeypatch.setattr(oracle, 'CLASSIFIERS', far | oracle.CLASSIFIERS)
    call = (TABLE, [1, 2], CLASSES, 5)
    assert compute([call], source)[0]['result'] == oracle.score(*call)
