"""remote-job.py on the mocked DCP: a whole job, what leaves the building, and one line however a job ends."""
import csv
import json
import re
import socket
from signal import SIG_IGN, SIGHUP, SIGINT, SIGTERM, signal
from urllib.parse import unquote

import pytest

from . import oracle
from .project import PROJECT, Project, make_certificate

SCRIPT = (PROJECT / 'remote-job.py').read_text(encoding='utf-8')
TABLE = (PROJECT / 'input' / 'GSE57383_ps_psa.txt').read_text()
HEADER = TABLE.partition('\n')[0].split('\t')
URL, PATH, PROGRESS = "server_url = ' http://127.0.0.1:", '/GSE57383_ps_psa', 'progress();    // DCP'
NUMBER = 1 + SCRIPT.partition(PROGRESS)[0].count('\n')
CANCELLED, LOST = 'Stopped.* cancelled|cancelled.* Stopped', r'^Stopped. DCP .*: job \w{22} may still run'


@pytest.fixture(scope='module')
def running(tmp_path_factory):
    """A server with an access key, a whole job whose odd settings do no harm, and an impatient script."""
    project = Project(tmp_path_factory.mktemp('running') / 'project')
    project.edit('server.py', "access_key = ''", "access_key = 'SecretKey1'")
    project.edit('remote-job.py', f"'{project.url}'", f"' {project.url}/SecretKey1/ '")
    (project.folder / 'input' / 'utf16.txt').write_bytes(TABLE.encode('utf-16'))
    project.edit('tests/mock_dcp/faults.py', 'DELAY = 3 ', 'DELAY = 1 ')
    project.serve()
    project.whole = project.run_job('--log', 'whole.log', http_proxy='http://127.0.0.1:9')
    script = project.folder / 'remote-job.py'
    script.write_text(re.sub(r'call_later\([13]0,', 'call_later(2,', script.read_text()))
    yield project
    project.stop()


@pytest.fixture
def shared(running):
    """The same for a test that edits remote-job.py, which is put back."""
    script = running.folder / 'remote-job.py'
    text = script.read_text()
    yield running
    script.write_text(text)


def results(project, job):
    """Return the rows of a job in the results files, in the order of its slices."""
    rows = [row for path in (project.folder / 'results').glob('*.txt')
            for row in csv.DictReader(path.open(newline='', encoding='utf-8'), delimiter='\t')]
    return sorted((row for row in rows if row['job'] in job.output), key=lambda row: int(row['slice']))


def kinds(log):
    """Return the names of all messages that the scheduler has heard and said."""
    messages = map(json.loads, log.read_text().splitlines())
    return {message.get('operation') or message['event'] for message in messages}


def assert_ends(job, line, log=None):
    """Check that a job has ended with status 1 and a line that matches, and that DCP has it no more."""
    assert job.status == 1 and 'Done.' not in job.lines and 'Traceback' not in job.output, job.output
    assert re.search(line, job.errors[0]) and (len(job.errors) == 1 or 'Syntax' in job.output), job.output
    assert not log or line == LOST or 'submit@5' not in kinds(log) or kinds(log) & {'cancelJob', 'stop'}


def test_whole_job_prints_states_slices_and_done(running):
    job = running.whole
    states = ['exec', 'init', 'preauth', 'deploying', 'listeners', 'compute-groups', 'uploading', 'deployed']
    assert job.status == 0 and job.lines[-1] == 'Done.' and not job.errors, job.output
    assert job.lines[:8] == [f'State: {state}' for state in states]
    assert re.fullmatch(r'  Job ID: \w{22}\n  Job accepted, awaiting results...', '\n'.join(job.lines[8:10]))
    assert sorted(job.lines[10:-1]) == sorted(f'    ✔ Slice {i}: Result received' for i in range(1, 11))


def test_results_are_what_another_implementation_gets(running):
    rows = results(running, running.whole)
    assert [(row['slice'], row['of']) for row in rows] == [(str(i), '10') for i in range(1, 11)]
    for row in rows:
        signature = [HEADER.index(name) for name in row['probesets'].split(', ')]
        expected = oracle.score(TABLE, signature, ['Psoriasis', 'Psoriatic Arthritis'], 10)
        assert 5 <= len(signature) <= 9 and row['probesets'] == expected.pop('probesets')
        assert {name: float(row[name]) for name in expected} == expected


def test_no_data_and_no_results_leave_the_building(running):
    log = running.folder / 'whole.log'
    heard = unquote(log.read_text())
    data, scores, told, meant = [set(re.findall(r'(?<![\d.])\d+\.\d+', text)) for text in (
        TABLE, str(results(running, running.whole)), heard, SCRIPT)]
    assert not (data | scores) & (told - meant) and not [name for name in HEADER[1:] if name in heard]
    assert f'{running.url}/SecretKey1/GSE57383_ps_psa"' in heard and 'const classifiers = {' in heard
    assert kinds(log) == {'submit@5', 'addSliceData', 'closeJob', 'addJobToGroups', 'subscribeMany',
                          'requestTask', 'result', 'stop'}


def test_slices_and_arguments_arrive(shared):
    shared.edit('remote-job.py', '[slices, [classes, folds]]', '[values, [values]]')
    shared.edit('remote-job.py', '# INPUT SET', """
import numpy as np
values = [1, 2.5, (1, (2,)), np.float64(0.1), 'Köln', True, {'a': (1, [2])}, {2: []}, float('nan'), None]
# INPUT SET""")
    function = '(slice, data, others) => { progress(); return { sent: [slice, others] }; }'
    shared.edit('remote-job.py', '# JOB', f'work_function = {function!r}\n# JOB')
    rows = results(shared, shared.run_job())
    arrived = [1, 2.5, [1, [2]], 0.1, 'Köln', True, {'a': [1, [2]]}, {'2': []}, None, None]
    assert [json.loads(row['sent']) for row in rows] == [[value, arrived] for value in arrived]


def test_scheduler_does_not_answer(shared):
    with socket.create_server(('127.0.0.1', 0)) as silent:
        address = {'DCP_SCHEDULER_LOCATION': f'http://127.0.0.1:{silent.getsockname()[1]}'}
        job = shared.start('remote-job.py', **address)
        connection, _ = silent.accept()
        assert job.stop(SIGINT) == -SIGINT and job.output == ''    # Ctrl-C while dcp loads
        shared.edit('remote-job.py', 'setdefaulttimeout(10)', 'setdefaulttimeout(0.5)')
        assert_ends(shared.run('remote-job.py', **address), '^DCP: .*timed out.* Check network')
    assert_ends(shared.run('remote-job.py', **address), '^DCP: .*Connection refused.* Check network')


@pytest.mark.parametrize('old, new, line', [
    ("get('id')", "get('nobody')", "^DCP: .* keystore named 'nobody' .*ask dan@dcp.dev"),
    (URL, "server_url = 'http://127.0.0.1:1' #", '^No data at http://127.0.0.1:1/.*refused.*does server.py'),
    (URL, "server_url = 'http://127.0.0.1:abc' #", '^No data at http://127.0.0.1:abc/.*nonnumeric port'),
    (URL, "server_url = '127.0.0.1:", '^No data at 127.0.0.1:.*unknown url type'),
    ('SecretKey1/', 'WrongKey1/', '^No data at .*404.*is server_url what it has printed'),
    (PATH, '/input/utf16.txt', "^No data at .*can't decode byte"),
    ('= 5, 9  ', '= 9, 5  ', '^No slices can be made of 5000 '),
    ('n_signatures = 10', 'n_signatures = 0', '^There are no slices'),
    ('job.setResultStorage(f', 'print(f', '^Without job.setResultStorage'),
    ('job.computeGroups =', 'job.computeGroups +=', '^Without job.computeGroups'),
    ('[classes, folds]', "[__import__('numpy').ones(2)]", '^No slices can be made of'),
    ("'map-basic'", "'map-advanced'", '^Job cannot be deployed: Invalid Worktime map-advanced[.]$'),
    (PROGRESS, 'progress(;', f'^Work function: .* remote-job.py, on line {NUMBER}, column'),
    ("'dcp'}]", "'other'}]", '^Job cannot be deployed: Access Denied.*job.computeGroups right.* is cancelled.$'),
    ('Job ID: {job.id}', 'Job ID: {slip}', "^Job cannot be deployed: .*'slip' is not defined.* is cancelled"),
])
def test_slip_is_told(shared, old, new, line):
    shared.edit('remote-job.py', old, new)
    assert_ends(shared.run_job('--log', 'log'), line, shared.folder / 'log')


@pytest.mark.parametrize('options, seen, number, line', [
    ('', 'State: exec', SIGINT, 'Stopped'),
    ('--fault late', 'State: deploying', SIGTERM, CANCELLED),
    ('', 'Slice', SIGHUP, CANCELLED),
    ('--workers 0', '^  No result for 30 s', SIGINT, CANCELLED),
    ('--allow-origin http://a', r'Start the worker with --allow-origin http://127.0.0.1:\d+$', SIGINT, CANCELLED),
    ('--fault no-answer', 'State: deploying', SIGTERM, LOST),
    ('--fault lost', 'Slice', SIGHUP, LOST),
    ('--fault cancel', 'Slice', 0, '^DCP has cancelled the job: .* was told to cancel$'),    # no signal
])
def test_job_is_stopped(shared, options, seen, number, line):
    job = shared.start_job('--log', 'log', *options.split())
    job.wait_for(seen, times=2 if 'No result' in seen else 1)    # it is said again and again
    job.stop(number)
    assert_ends(job, line, shared.folder / 'log')
    assert sum('--allow-origin' in line for line in job.lines) == options.count('--allow-origin')


def test_slices_without_a_result(shared):
    shared.edit('remote-job.py', '  // TABLE:', "  if (signature[0] < 2) throw Error('no such gene');\n"
                '  if (signature[0] < 3) { progress(); return null; }\n  // TABLE:')
    shared.edit('remote-job.py', '# WORK FUNCTION', 'slices[2:4] = [1], [2]\n\n# WORK FUNCTION')
    job = shared.run_job()
    assert_ends(job, r'^2 of 10 slices have no result: \[3, 4\]')
    assert '    ✘ Slice 3: the work function failed: no such gene' in job.lines
    assert '    ✘ Slice 4: the work function returned nothing' in job.lines
    assert [row['slice'] for row in results(shared, job)] == ['1', '2', '5', '6', '7', '8', '9', '10']


def test_no_funds_a_slip_in_an_event_handler_and_a_hangup_under_nohup_are_no_end(shared):
    shared.edit('remote-job.py', 'int(event.sliceNumber)', 'int(event.slyceNumber)')
    before = signal(SIGHUP, SIG_IGN)    # which the job inherits, as from nohup
    job = shared.start_job('--fault', 'no-funds')
    signal(SIGHUP, before)
    job.wait_for('^  No funds: the job waits for 12.5 credits')
    job.stop(SIGHUP)
    assert job.status == 0 and job.lines[-1] == 'Done.' and job.output.count('  Problem: ') == 1, job.output


def test_whole_job_over_https(project):
    trusted = str(make_certificate(project.folder)[0])
    project.edit('server.py', '()                          # for https: ', '')
    project.edit('server.py', 'setdefaulttimeout(10)', 'setdefaulttimeout(1)')
    project.edit('remote-job.py', "server_url = 'http:", "server_url = 'https:")
    project.serve()
    assert_ends(project.run_job(), '^No data at https:.*certificate verify failed')
    project.url = project.url.replace('http:', 'https:')
    with socket.create_connection(('127.0.0.1', project.port)):    # a visitor who says nothing
        assert project.run_job(SSL_CERT_FILE=trusted, NODE_EXTRA_CA_CERTS=trusted).lines[-1] == 'Done.'


def test_webassembly_is_compiled_in_the_foreground(shared):    # in the background, PythonMonkey may freeze
    shared.edit('remote-job.py', '# RUN\n', """
async def compile(done):
    for _ in range(100):
        pm.eval('(f) => WebAssembly.instantiate(Uint8Array.of(0, 97, 115, 109, 1, 0, 0, 0)).then(f)')(done)
        await asyncio.sleep(0)
count = []
loop.run_until_complete(compile(count.append))
sys.exit(f'{len(count)} of 100')
""")
    shared.start_job().wait_for('^100 of 100', timeout=20)
