"""The README's recipes work on the scripts as they are, and keep from DCP's scheduler what they say."""
import csv
import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from urllib.parse import unquote

import pytest

from .project import PROJECT, Process, Project

README = (PROJECT / 'README.md').read_text()
DATA = (PROJECT / 'input' / 'GSE57383_ps_psa.txt').read_text()
SECTIONS = dict(re.findall(r'^### (.*?)\n(.*?)(?=^##|\Z)', README, re.MULTILINE | re.DOTALL))
CODE, INPUT, RESULTS = 'Remote work function', 'Remote input set', 'Remote results, fetched back'
SITES, PYTHON = 'Federated clusters', 'A work function in Python'
TUTORIAL = 'python3 -m tests.mock_dcp\n'


def blocks(recipe, language=''):
    """Return the texts of a recipe's code blocks in a language; with none, those of commands and output."""
    found = re.findall(r'^```(\w*)\n(.*?)^```$', SECTIONS[recipe], re.MULTILINE | re.DOTALL)
    return [text for its_language, text in found if its_language == language]


class Kitchen(Project):
    """A copy of the project with the diffs of recipes applied, and with ports of its own."""

    def __init__(self, folder, *diffs):
        super().__init__(folder)
        (folder / 'results').mkdir(exist_ok=True)    # as in a clone
        for script in ('remote-job.py', 'server.py'):
            shutil.copy(PROJECT / script, folder)    # with the README's port, for the diffs to apply
        for diff in diffs:
            subprocess.run(['git', 'apply', '-p0'], cwd=folder, input=diff, text=True, check=True)
        with socket.create_server(('127.0.0.1', 0)) as free:
            self.ports = {'5001': str(self.port), '5002': str(free.getsockname()[1])}
        for script in ('remote-job.py', 'server.py'):
            self.write(script, (folder / script).read_text())

    def localise(self, text):
        return re.sub(r'\b500[12]\b', lambda port: self.ports[port[0]], text)

    def write(self, name, text):
        (self.folder / name).write_text(self.localise(text))

    def start_block(self, block, options=''):
        """Start the commands of a block of the README, with more options for the mocked DCP."""
        commands = self.localise(block).replace('python3', f'{shlex.quote(sys.executable)} -u')
        commands = commands.replace('tests.mock_dcp', f'tests.mock_dcp --log traffic-$BASHPID {options}')
        if '&\n' in commands:
            commands = f"trap 'kill $(jobs -p) 2>/dev/null' EXIT\n{commands}"
        process = Process(['bash', '-c', commands], self.folder, {})
        self.running.append(process)
        return process

    def stop(self):
        for process in self.running:
            if process.process.poll() is None:
                process.stop(signal.SIGTERM)    # which reaches what bash has started
        super().stop()

    def rows(self, folder='.'):
        """Return the rows of the results files, by slice number, without the job's id."""
        rows = [row for path in (self.folder / 'results' / folder).glob('*.txt')
                for row in csv.DictReader(path.read_text().splitlines(), delimiter='\t')]
        return {int(row.pop('slice')): row for row in rows if row.pop('job')}

    def traffic(self):
        """Return all that DCP's scheduler heard and said, as readable as can be."""
        logs = [unquote(path.read_text()) for path in self.folder.glob('traffic-*')]
        assert logs and all(len(log) > 1000 for log in logs)
        return ''.join(logs).replace('\\', '')


def tells(traffic, texts):
    """Return those of the texts that the scheduler was told."""
    assert texts
    return [text for text in texts if text.replace('\\', '') in traffic]


PROBESETS = DATA.split('\n')[0].split('\t')[1:]
VALUES = [cell for line in DATA.split('\n')[1:4] for cell in line.split('\t')[1:] if len(cell) > 5]
SCRIPT = (PROJECT / 'remote-job.py').read_text()
WORK_FUNCTION = re.search("^work_function = r'''(.*?^})'''", SCRIPT, re.MULTILINE | re.DOTALL)[1]
CODE_LINES = [line.strip() for line in WORK_FUNCTION.splitlines() if len(line.strip()) > 25]
SCORES = ['centroid_auc', 'kernel_accuracy', 'ensemble_auc']
(ROUTE, CODE_DIFF), (LIST_DIFF, PATTERN_DIFF) = blocks(CODE, 'diff'), blocks(INPUT, 'diff')
PATIENCE = ('patience = 30', 'patience = 5')


def shipped_signatures():
    """Return the signatures that the shipped random numbers pick, as the work function's comment says."""
    random.seed(42)
    lengths = [random.randint(5, 9) for _ in range(10)]
    numbers = [[random.random() for _ in range(length)] for length in lengths]
    return [[PROBESETS[int(number * len(PROBESETS))] for number in picks] for picks in numbers]


def with_input_files(kitchen):
    """Make the files as the README does, and then others, with the signatures of the shipped job."""
    assert kitchen.run('-c', *blocks(INPUT, 'python')).status == 0
    for n, signature in enumerate(shipped_signatures(), 1):
        file = kitchen.folder / 'input' / f'signature-{n}.txt'
        assert len(set(file.read_text().split(', ')) & set(PROBESETS)) == 6
        file.write_text(', '.join(signature) + '\n')
    return kitchen


def with_sites(kitchen):
    """Make the files of two sites as the README does, and start their servers."""
    data, aggregate = blocks(SITES, 'python')
    assert kitchen.run('-c', data).status == 0
    kitchen.write('aggregate.py', aggregate)
    for block in blocks(SITES):
        if block.startswith('python3 server.py'):
            kitchen.start_block(block).wait_for('Debug mode: off')
    return kitchen


def with_score_file(kitchen):
    kitchen.write('input/score.py', *blocks(PYTHON, 'python'))
    return kitchen


def same(kitchen):
    return kitchen


NO_NEWS = "No news for 5 s: server.py refused a request: 127.0.0.1 'GET "
SLIPS = {    # how the copy is made; what is changed in it; the line that says so
    'no such slice': (with_input_files, ROUTE, LIST_DIFF, 'remote-job.py',
                      'in range(1, n_signatures', 'in range(0, n_signatures',
                      NO_NEWS + "/input/signature-0.txt' refused: 404"),
    'semicolon': (same, ROUTE, CODE_DIFF, 'remote-job.py', "\n}'''", "\n};'''",
                  '^The work function does not compile, see line 95: '),
    'content type': (same, ROUTE, CODE_DIFF, 'server.py', "'input', name, mimetype='text/plain'",
                     "'input', name, mimetype='application/json'", 'A worker failed: JSON.parse: '),
    'plain strings': (with_input_files, ROUTE, LIST_DIFF, 'remote-job.py', "pm.new('URL')(address) for", 'address for',
                      "✘ Slice 1: work function failed: 'the slice is no list of probesets of the data'"),
}


@pytest.fixture(scope='module')
def cook(tmp_path_factory):
    """Return a function that makes a copy of the project with recipes in it."""
    kitchens = []

    def cook(*diffs):
        kitchens.append(Kitchen(tmp_path_factory.mktemp('recipe') / 'project', *diffs))
        return kitchens[-1]
    yield cook
    for kitchen in kitchens:
        kitchen.stop()


@pytest.fixture(scope='module', autouse=True)
def jobs(cook):
    """Start all jobs at once, the longest first: {name: (kitchen, process)}."""
    python = with_score_file(cook(*blocks(PYTHON, 'diff')))
    jobs = {PYTHON: (python, python.start_block(TUTORIAL, '--workers 1'))}
    sites = with_sites(cook(*blocks(SITES, 'diff')))
    together, apart = [block for block in blocks(SITES) if '-m tests.mock_dcp' in block]
    jobs[SITES] = sites, sites.start_block(together)
    for name, kitchen in {'shipped': cook(), CODE: cook(ROUTE, CODE_DIFF),
                          'list': with_input_files(cook(ROUTE, LIST_DIFF)),
                          'pattern': with_input_files(cook(ROUTE, LIST_DIFF, PATTERN_DIFF)),
                          RESULTS: cook(*blocks(RESULTS, 'diff'))}.items():
        jobs[name] = kitchen, kitchen.start_block(TUTORIAL)
    jobs['refused'] = sites, sites.start_block(apart)
    for name, (change, *diffs, script, old, new, _) in SLIPS.items():
        kitchen = change(cook(*diffs))
        kitchen.edit('remote-job.py', *PATIENCE)
        kitchen.edit(script, old, new)
        jobs[name] = kitchen, kitchen.start_block(TUTORIAL, '--workers 1')
    return jobs


@pytest.fixture
def done(jobs):
    """Return a function that waits for a job, and returns its kitchen and its process."""
    def done(name):
        kitchen, process = jobs[name]
        assert process.wait() == 0 and 'Done.' in process.output, process.output
        return kitchen, process
    return done


@pytest.mark.parametrize('recipe', [CODE, INPUT, RESULTS, PYTHON])
def test_command_is_the_one_that_is_tested(recipe):
    assert TUTORIAL in blocks(recipe)


@pytest.mark.parametrize('recipe, line', [(CODE, 101), (INPUT, 99), (RESULTS, 103), (SITES, 99),
                                          (PYTHON, 99)])
def test_lines_to_edit_are_where_the_recipe_says(cook, recipe, line):
    kitchen = cook(ROUTE, *[diff for diff in blocks(recipe, 'diff') if diff != ROUTE])
    script = (kitchen.folder / 'remote-job.py').read_text().splitlines()
    assert script[25].startswith('server_url') and script[line - 1].startswith('job.computeGroups = ')
    told = ' '.join(SECTIONS[recipe].split())
    assert (f'line 99 becomes **line {line}**' in told) == (line != 99)


def test_remote_input_set_can_be_put_on_top_of_the_sites(cook):
    script = (cook(ROUTE, LIST_DIFF, *blocks(SITES, 'diff')).folder / 'remote-job.py').read_text()
    assert 'signature-{n}.txt' in script and 'sys.argv[1:]' in script


def test_scheduler_would_be_seen_to_be_told(done):
    """A check of the checks below: without recipes it is told the code and the input set."""
    kitchen, _ = done('shipped')
    random.seed(42)
    assert tells(kitchen.traffic(), CODE_LINES) == CODE_LINES
    assert re.search(r'\[0\.\d{10,}, ?0\.\d{10,}', kitchen.traffic())
    assert not tells(kitchen.traffic(), PROBESETS + VALUES + SCORES)


def test_remote_work_function_gives_the_rows_of_the_shipped_one(done):
    kitchen, job = done(CODE)
    assert kitchen.rows() == done('shipped')[0].rows() and len(kitchen.rows()) == 10
    assert not tells(kitchen.traffic(), CODE_LINES + PROBESETS + VALUES + SCORES)


@pytest.mark.parametrize('given_as', ['list', 'pattern'])
def test_remote_input_set_gives_the_rows_of_the_same_signatures(done, given_as):
    kitchen, job = done(given_as)
    assert kitchen.rows() == done('shipped')[0].rows() and len(kitchen.rows()) == 10
    assert not tells(kitchen.traffic(), PROBESETS + VALUES + SCORES)
    assert ('signature-{slice}.txt' in kitchen.traffic()) == (given_as == 'pattern')


def test_results_come_back_ranked_with_what_chance_gives(done):
    kitchen, job = done(RESULTS)
    rows = kitchen.rows().values()
    real, shuffled = [sorted(((float(row['ensemble_auc']), row['probesets']) for row in rows
                              if row['shuffled'] == which), reverse=True) for which in ('false', 'true')]
    assert [len(real), len(shuffled)] == [10, 10]
    printed = job.lines[job.lines.index('Done.'):][:5]
    assert printed[1:4] == [f'{auc} {signature}' for auc, signature in real[:3]]
    assert printed[4] == f'{shuffled[0][0]} is the best of the shuffled ones: what chance gives'
    (shown,) = [block.splitlines() for block in blocks(RESULTS) if block.startswith('Done.')]
    assert printed[:4] == shown[:4] and printed[4].split(' ', 1)[1] == shown[4].split(' ', 1)[1]
    assert not tells(kitchen.traffic(), PROBESETS + VALUES + SCORES)


def test_shuffled_labels_leave_nothing_to_be_found(cook):
    """Where the classes do differ, shuffled labels reach an AUC of 0.5 on average, and the real ones more."""
    script = (cook(*blocks(RESULTS, 'diff')).folder / 'remote-job.py').read_text()
    work_function = re.search("^work_function = r'''(.*?^})'''", script, re.MULTILINE | re.DOTALL)[1]
    rows = [[label, random.gauss(i % 2, 1), random.gauss(i % 2, 1)]
            for i, label in enumerate(['Psoriasis', 'Psoriatic Arthritis'] * 30)]
    data = '\n'.join('\t'.join(map(str, row)) for row in [['phenotype', 'a', 'b'], *rows])
    program = f"""const progress = () => {{}}, work = {work_function};
                  const data = require('fs').readFileSync(0, 'utf8');
                  const auc = (shuffled) => work({{ picks: [0.1, 0.6], shuffled }}, data).ensemble_auc;
                  const shuffled = Array.from({{ length: 200 }}, () => auc(true));
                  console.log(JSON.stringify([auc(false), ...shuffled]));"""
    node = subprocess.run(['node', '-e', program], input=data, capture_output=True, text=True)
    real, *shuffled = json.loads(node.stdout)
    assert real > 0.7 and 0.44 < sum(shuffled) / 200 < 0.52 and len(set(shuffled)) > 50


def test_python_work_function_gives_the_digits_of_the_javascript(done):
    kitchen, job = done(PYTHON)
    assert kitchen.rows() == done('shipped')[0].rows() and len(kitchen.rows()) == 10
    assert not tells(kitchen.traffic(), PROBESETS + VALUES + SCORES)


@pytest.mark.parametrize('name', SLIPS)
def test_slip_is_told_in_a_line(jobs, name):
    _, process = jobs[name]
    process.wait_for(SLIPS[name][-1])
    process.stop(signal.SIGTERM)
    assert 'Done.' not in process.lines and not re.search('Traceback|^  File', process.output, re.MULTILINE)


# Federated clusters

def test_sites_score_the_same_signatures_on_their_own_samples(done):
    kitchen, both = done(SITES)
    assert both.output.count('Done.') == 2    # perhaps amid a line of the other job
    north, south = kitchen.rows('north'), kitchen.rows('south')
    assert [len(north), len(south)] == [10, 10]
    assert [{row['samples'] for row in site.values()} for site in (north, south)] == [{'40'}, {'20'}]
    assert [row['kernel_auc'] for row in north.values()] != [row['kernel_auc'] for row in south.values()]
    assert all(north[n]['probesets'] == south[n]['probesets'] == ', '.join(names)
               for n, names in enumerate(shipped_signatures(), 1))
    (shown,) = [block.splitlines() for block in blocks(SITES) if block.startswith('worst')]
    width = len(shown[1]) - 3
    assert [line[:width] for line in both.lines[-4:]] == [line[:width] for line in shown]
    assert not tells(kitchen.traffic(), PROBESETS + VALUES + SCORES)


def test_workers_of_another_site_are_refused(done, jobs):
    """The job of the north hands out its slices to workers of the south, which may not ask for its data."""
    kitchen, _ = done(SITES)
    _, refused = jobs['refused']
    shown = '  A worker may not use your server: start it with --allow-origin http://127.0.0.1:5001\n'
    assert shown in blocks(SITES)
    refused.wait_for(kitchen.localise(shown.rstrip()) + '$')
    refused.stop(signal.SIGINT)
    assert not [line for line in refused.lines if 'Slice' in line]
    status, report, _ = kitchen.request('/dcp-results/none')
    assert status == 200 and json.loads(report)['fetches'] == 2    # those of the two workers of the north


def test_aggregate_ranks_by_the_worst_site_and_then_by_the_mean_of_all_samples(cook):
    kitchen = with_sites(cook(*blocks(SITES, 'diff')))
    tables = {
        'north/old': {'a, b': (0.1, 40)},    # of another job, an older one
        'north/new': {'a, b': (0.9, 40), 'c, d': (0.7, 40), 'e, f': (0.8, 40), 'g': (0.6, 40), 'h': (1, 40)},
        'south/new': {'a, b': (0.6, 20), 'c, d': (0.7, 20), 'e, f': (0.7, 20), 'g': (0.5, 20), 'i': (1, 20)},
    }
    for age, (name, rows) in enumerate(tables.items()):
        file = kitchen.folder / 'results' / f'{name}.txt'
        lines = [f'{name[-3:]}\t{n}\t{samples}\t{probesets}\t{auc}\n'
                 for n, (probesets, (auc, samples)) in enumerate(rows.items(), 1)]
        file.write_text(''.join(['job\tslice\tsamples\tprobesets\tensemble_auc\n', *lines]))
        os.utime(file, (age, age))
    assert kitchen.run('aggregate.py').lines == [
        'Only 4 signatures are scored at all sites. Is a job not done? Do their probesets differ?',
        'worst   mean    each site',
        '0.700   0.767   0.800   0.700   e, f',    # (40 * 0.8 + 20 * 0.7) / 60
        '0.700   0.700   0.700   0.700   c, d',
        '0.600   0.800   0.900   0.600   a, b']
