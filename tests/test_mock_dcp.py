"""The mocked DCP keeps the rules of the real one, so that a job which runs here can be trusted there."""
import collections
import json
import re
import socket
import ssl
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

import pytest

from .mock_dcp.faults import Faults
from .project import Project

START = '''
import asyncio, json, socket, sys, traceback
import dcp
import pythonmonkey as pm
from dcp.dry.aio import blockify, loop
dcp.init()
URL = pm.new('URL')
to_json = pm.eval('(value) => JSON.stringify(value)')
dcp.identity.set(dcp.wallet.get('id'))
dcp.wallet.add(dcp.wallet.get('default'))
'''
JOB = '''
loop.set_exception_handler(lambda *_: None)
job = dcp.compute_for({input_set}, {work_function!r}, {arguments})
job.worktime = 'map-basic'
job.computeGroups = [{{'joinKey': 'demo', 'joinSecret': 'dcp'}}]
for event in ('error', 'console', 'noprogress'):
    job.on(event, lambda details, event=event: print(event, to_json(details)))
{more}
results = blockify(job.js_ref.exec)(0.1)
print('results', pm.eval('(results) => JSON.stringify(Array.from(results))')(results))
'''
EXEC_AND_WAIT = '''
def on_failure(_, told):
    loop.call_soon(sys.exit, 'not deployed: ' + str(told['exception']).splitlines()[1])
loop.set_exception_handler(on_failure)
job.on('cancel', lambda event: print('cancelled:', event.reason))
job.exec(0.1)
print('results', json.dumps(list(job.wait())))
raise SystemExit
'''
STORAGE = "job.setResultStorage('{url}/sink', {{'elementType': 'results', 'mine': 'yes'}})"
SESSION = START + '''
for text in socket.create_connection(('127.0.0.1', int(sys.argv[1]))).makefile():
    try:
        exec(json.loads(text))
    except BaseException:
        traceback.print_exc(file=sys.stdout)
    print('--- over ---', flush=True)
'''


def job_script(work_function, input_set='[1.0, 2.0, 3.0]', arguments='[0.5]', more=''):
    return JOB.format(work_function=work_function, input_set=input_set, arguments=arguments, more=more)


class DataServer(ThreadingHTTPServer):
    """Serve `pages`: {path: (status, content type, text), or a list of them}; keep what is posted."""

    def __init__(self, certificate=None):
        super().__init__(('127.0.0.1', 0), DataHandler)
        self.url = f'http://127.0.0.1:{self.server_port}'
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
            self.url = f'https://127.0.0.1:{self.server_port}'
        self.forget()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def forget(self):
        self.pages, self.posted, self.requests = {}, [], collections.Counter()

    def handle_error(self, *_):
        pass    # a client that does not trust the certificate

    def stop(self):
        self.shutdown()
        self.server_close()


class DataHandler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests[self.path] += 1
        answers = self.server.pages[self.path]
        if isinstance(answers, list):
            answers = answers.pop(0) if len(answers) > 1 else answers[0]
        status, content_type, text = answers
        self.send_response(status)
        if content_type:
            self.send_header('Content-Type', content_type)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_POST(self):
        form = self.rfile.read(int(self.headers['Content-Length'])).decode()
        fields = parse_qs(form, keep_blank_values=True)
        self.server.posted.append({name: values[0] for name, values in fields.items()})
        self.do_GET()

    def log_message(self, *_):
        pass


class Played:
    """A job that was played: its exit status, the lines that it printed, and the messages of the log."""

    def __init__(self, lines, status=0):
        self.status = status
        self.lines = [line for line in lines if not line.startswith('{"from"')]
        self.log = [json.loads(line) for line in lines if line.startswith('{"from"')]

    @property
    def output(self):
        return '\n'.join(self.lines)

    def messages(self, sender, name):
        """Return the data of what the script, a worker or the scheduler said, of an operation or event."""
        return [message['data'] for message in self.log
                if message['from'] == sender and name in (message.get('operation'), message.get('event'))]


class Session:
    """One mocked DCP for many jobs, one after the other, because to start it takes longer than most jobs."""

    def __init__(self, project, data):
        (project.folder / 'session.py').write_text(SESSION)
        with socket.create_server(('127.0.0.1', 0)) as listener:
            port = listener.getsockname()[1]
            self.process = project.start('-m', 'tests.mock_dcp', '--allow-origin', data.url, '--workers', '1',
                                         '--log', '/dev/stdout', 'session.py', port)
            self.jobs = listener.accept()[0]

    def play(self, text):
        start = len(self.process.lines)
        self.jobs.sendall(json.dumps(text).encode() + b'\n')
        over = lambda: '--- over ---' in self.process.lines[start:] or self.process.process.poll() is not None
        with self.process.news:
            assert self.process.news.wait_for(over, 60), self.process.output
        return Played(self.process.lines[start:])


@pytest.fixture(scope='module')
def data_server():
    server = DataServer()
    yield server
    server.stop()


@pytest.fixture
def data(data_server):
    data_server.forget()
    return data_server


def start_job(project, data, script, *options, **environment):
    """Start a job on a mocked DCP of its own, whose workers may use the data server; return its process."""
    name = f'job-{len(project.running)}.py'
    (project.folder / name).write_text(START + script)
    return project.start('-m', 'tests.mock_dcp', '--allow-origin', data.url, '--log', '/dev/stdout', *options,
                         name, **environment)


@pytest.fixture(scope='module', autouse=True)
def slow_jobs(tmp_path_factory, data_server):
    """Start the jobs that take seconds, mostly by waiting, before the first test. The last tests see them."""
    project = Project(tmp_path_factory.mktemp('slow') / 'project')
    yield {name: start_job(project, data_server, *job) for name, job in SLOW_JOBS.items()}
    project.stop()


@pytest.fixture(scope='module')
def session(tmp_path_factory, data_server):
    project = Project(tmp_path_factory.mktemp('session') / 'project')
    yield Session(project, data_server)
    project.stop()


@pytest.fixture
def run(session):
    """Run a small job on a mocked DCP that plays others before and after it."""
    return lambda *job, **details: session.play(job_script(*job, **details))


@pytest.fixture
def start(project, data):
    """Start such a job on a mocked DCP of its own; return its process."""
    def start(*job, options=(), environment={}, **details):
        return start_job(project, data, job_script(*job, **details), *options, **environment)
    return start


def ended(process):
    """Wait for a process to end, and return what was played."""
    status = process.wait()
    return Played(process.lines, status)


def results(job):
    assert job.status == 0, job.output
    printed = [line for line in job.lines if line.startswith('results ')]
    assert printed, job.output
    return json.loads(printed[0].removeprefix('results '))


def events(job):
    return [line for line in job.lines if line.startswith(('error', 'console', 'noprogress'))]


# Jobs

@pytest.mark.parametrize('input_set', ['[1.0, 2.0, 3.0]', 'dcp.range_object.RangeObject(1, 3)'])
def test_job_by_value_gets_its_results_in_order(run, input_set):
    assert results(run('(x, y) => { progress(); return x + y }', input_set)) == [1.5, 2.5, 3.5]


def test_async_work_function_and_its_console_are_heard(run):
    pause = 'await new Promise((go) => setTimeout(go, 5))'
    job = run(f"async (x) => {{ progress(); {pause}; console.log('hello', x); return x }}")
    assert results(job) == [1, 2, 3]
    assert [line.startswith('console') and '"hello"' in line for line in events(job)] == [True] * 3


def test_public_names_exec_and_wait(run):
    assert results(run('(x) => { progress(); return x }', more=EXEC_AND_WAIT)) == [1, 2, 3]


@pytest.mark.parametrize('slip, error', [
    ("job.computeGroups = [{'joinKey': 'demo', 'joinSecret': 'wrong'}]", 'Access Denied::Failed to add job'),
    ("job.worktime = 'map-advanced'", 'Invalid Worktime map-advanced')])
def test_refused_job_is_told_to_the_loop(run, slip, error):
    job = run('(x) => { progress(); return x }', more=slip + EXEC_AND_WAIT)
    assert f'not deployed: DCPError: {error}' in job.output
    assert not job.messages('worker', 'requestTask')


def test_job_cancels_itself(run):
    job = run('(x) => { progress(); return x }',
              more="job.on('result', lambda _: job.js_ref.cancel('enough'))" + EXEC_AND_WAIT)
    assert 'cancelled: enough' in job.lines
    assert [request['reason'] for request in job.messages('script', 'cancelJob')] == ['enough']


def test_log_holds_all_that_passes_through_the_scheduler(run):
    work_function = "(x, y) => { progress(); console.log('my-log'); return 'my-result' }"
    job = run(work_function, "['my-slice']", "['my-argument']", more="job.on('result', lambda _: None)")
    def way(word):
        return [(message['from'], message['to'], message.get('operation') or message.get('event'))
                for message in job.log if word in json.dumps(message)]
    task = ('scheduler', 'worker', 'requestTask')
    assert way('my-argument') == [('script', 'scheduler', 'submit@5'), task]
    assert way('my-slice') == [('script', 'scheduler', 'addSliceData'), task]
    assert way('my-log')[2:] == [('worker', 'scheduler', 'workEmit'), ('scheduler', 'script', 'console')]
    assert way('my-result')[2:] == [('worker', 'scheduler', 'result'), ('scheduler', 'script', 'result')]
    assert way('my-log')[:2] == way('my-result')[:2] == way('my-argument')    # in the work function


@pytest.mark.parametrize('operation', ['makeTea', 'result'])
def test_unknown_operation_is_named(run, operation):
    connection = 'new dcp.protocol.Connection(dcpConfig.scheduler.services.jobSubmit)'
    job = run('() => 1', more=f"blockify(pm.eval('() => {connection}.request(\"{operation}\", {{}})'))()")
    assert f'the mocked DCP has no operation /job-submit/{operation}' in job.output


# Data

def test_data_is_decoded_by_content_type(run, data):
    data.pages = {'/plain': (200, 'text/plain; charset=utf-8', 'a\té'), '/csv': (200, 'text/csv', 'a,b'),
                  '/json': (200, 'application/json', '{"a": [1]}')}
    job = run('(x, ...all) => { progress(); return all.map((data) => [typeof data, data]) }', '[1.0]',
              f"[URL('{data.url}/plain'), URL('{data.url}/csv'), URL('{data.url}/json')]")
    assert results(job) == [[['string', 'a\té'], ['object', 'a,b'], ['object', {'a': [1]}]]]


def test_data_is_fetched_once_per_worker(run, data):
    data.pages['/data'] = (200, 'text/plain', 'a')
    job = run('(x, data) => { progress(); return data }', '[1.0] * 9', f"[URL('{data.url}/data')]")
    assert results(job) == ['a'] * 9
    assert data.requests['/data'] == 1


def test_failed_data_is_fetched_again_without_a_word(run, data):
    data.pages['/data'] = [(404, 'text/plain', ''), (500, 'text/plain', ''), (200, 'text/plain', 'a')]
    job = run('(x, data) => { progress(); return data }', '[1.0]', f"[URL('{data.url}/data')]")
    assert results(job) == ['a'] and not events(job)


def test_remote_work_function(run, data):
    """The scheduler sees its address, and nothing of it."""
    data.pages['/f.js'] = (200, 'text/plain', '(x, y) => { progress(); return x * y }')
    job = run('', more=f"job = dcp.compute_for([1.0, 2.0], URL('{data.url}/f.js'), [0.5])\n"
              "job.worktime = 'map-basic'\njob.computeGroups = [{'joinKey': 'demo', 'joinSecret': 'dcp'}]")
    assert results(job) == [0.5, 1]
    assert 'x * y' not in json.dumps(job.log) and f'{data.url}/f.js' in json.dumps(job.log)


@pytest.mark.parametrize('input_set', ["[URL('{0}/1.txt'), URL('{0}/2.txt')]",
                                       "dcp.compute.RemoteDataSet(['{0}/1.txt', '{0}/2.txt'])",
                                       "dcp.compute.RemoteDataPattern('{0}/{{slice}}.txt', 2.0)"])
def test_remote_input_set(run, data, input_set):
    data.pages = {'/1.txt': (200, 'text/plain', 'one'), '/2.txt': (200, 'text/plain', 'two')}
    job = run('(text, y) => { progress(); return text + y }', input_set.format(data.url))
    assert results(job) == ['one0.5', 'two0.5'] and not events(job)


# Results

def test_results_are_posted_as_the_real_worker_does(run, data):
    values = ['[1,{"a":"é"}]', '"text"', '5', '0', '""', 'false', 'null', 'NaN']
    data.pages['/sink'] = (200, 'text/plain', 'stored')
    job = run(f'(i) => {{ progress(); return [{", ".join(values)}][i] }}',
              '[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]', more=STORAGE.format(url=data.url))
    assert results(job) == ['stored'] * len(values)
    posted = sorted(data.posted, key=lambda form: int(form['element']))
    for number, (form, value) in enumerate(zip(posted, values), 1):
        content = {'content': value} if number <= 3 else {'error': 'null'}    # falsy values are never posted
        assert form == {'elementType': 'results', 'mine': 'yes', 'contentType': 'application/json',
                        'element': str(number), **content}


def test_thrown_error_is_heard_and_posted(run, data):
    data.pages['/sink'] = (200, 'text/plain', 'stored')
    work_function = "() => { progress(); throw new TypeError('no gene') }"
    job = run(work_function, '[1.0]', more=STORAGE.format(url=data.url))
    assert results(job) == ['stored']
    content = json.loads(data.posted[0]['content'])
    assert list(content) == ['stack', 'message', 'errorCode', 'name']
    assert [content[key] for key in ('message', 'errorCode', 'name')] == ['no gene', 'EUNCAUGHT', 'TypeError']
    assert [re.search('"no gene".*"EUNCAUGHT"', line) is not None for line in events(job)] == [True]


def test_thrown_null_is_a_null_result(run, data):
    data.pages['/sink'] = (200, 'text/plain', 'stored')
    job = run('() => { progress(); throw null }', '[1.0]', more=STORAGE.format(url=data.url))
    assert results(job) == ['stored'] and data.posted[0]['error'] == 'null' and not events(job)


def test_result_that_is_no_json_is_given_back_without_a_word(run, data):
    data.pages = {'/what': [(200, 'text/plain', what) for what in ('BigInt', 'cycle', 'text')],
                  '/sink': (200, 'text/plain', 'stored')}
    job = run('(what) => { progress(); const cycle = {}; cycle.itself = cycle;'
              ' return { BigInt: 1n, cycle, text: what }[what] }',
              f"[URL('{data.url}/what')]", more=STORAGE.format(url=data.url))
    assert results(job) == ['stored'] and not events(job)
    assert [form['content'] for form in data.posted] == ['"text"']


def test_work_function_that_does_not_compile_is_given_back_without_a_word(start):
    job = start('(x) => {')
    job.wait_for('"operation": "status".*"the sandbox has ended"')
    assert not events(Played(job.lines))


def test_progress_is_judged_as_by_the_real_worker(start, data):
    """Only progress() resets the clock: a slice that only logs is given back, and one that is slow is not."""
    data.pages['/say'] = [(200, 'text/plain', 'console.log'), (200, 'text/plain', 'progress')]
    job = ended(start('''async (say) => {
        progress(0.25);
        for (let i = 0; i < 10; i++) {
            await new Promise((go) => setTimeout(go, 100));
            say === 'progress' ? progress() : console.log(i);
        }
        return say;
    }''', f"[URL('{data.url}/say')]", options=['--progress-timeout', '0.6', '--workers', '1']))
    assert results(job) == ['progress']
    error, no_progress = [line for line in events(job) if not line.startswith('console')]
    message = 'No progress event was received in the last 0.6 seconds.'
    assert message in error and message in no_progress and '"progress":25' in no_progress
    assert job.messages('worker', 'status')[0]['reason'] == 'ENOPROGRESS'


# Workers

def test_worker_trusts_what_node_trusts(start, data, tmp_path):
    """It says nothing of a certificate that it does not trust, even if the job script does."""
    servers = {}
    openssl = ('openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 '
               '-subj /CN=localhost -addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out cert.pem')
    for name in ('trusted', 'stranger'):
        subprocess.run(openssl.split(), cwd=tmp_path, check=True, capture_output=True)
        certificate = tmp_path / f'{name}.pem'
        certificate.write_text((tmp_path / 'cert.pem').read_text() + (tmp_path / 'key.pem').read_text())
        servers[name] = DataServer(certificate)
        servers[name].pages = {'/data': (200, 'text/plain', name), '/script': (200, 'text/plain', name)}
    trusted, stranger = servers.values()
    job = start('(data) => { progress(); return data }',
                f"[URL('{stranger.url}/data'), URL('{trusted.url}/data')]",
                more=f"import urllib.request; print(urllib.request.urlopen('{stranger.url}/script').read())",
                options=['--allow-origin', trusted.url, '--allow-origin', stranger.url, '--workers', '1'],
                environment={'NODE_EXTRA_CA_CERTS': str(tmp_path / 'trusted.pem'),
                             'SSL_CERT_FILE': str(tmp_path / 'stranger.pem')})
    job.wait_for('"worker".*"operation": "result", "data": {"job": "[^"]*", "slice": 2')
    job.wait_for('"operation": "status".*"slice": 1.*"ESLICEFETCH"')
    job.stop()
    assert "b'stranger'" in job.lines and not events(Played(job.lines))
    assert trusted.requests['/data'] and stranger.requests == {'/script': 1}
    for server in servers.values():
        server.stop()


def test_allowed_origin_belongs_to_the_group_before_it(start, data):
    """Here the workers of each of two sites fetch from their own server and from the one that all may use."""
    north, south = DataServer(), DataServer()
    for server in (north, south, data):
        server.pages['/data'] = (200, 'text/plain', server.url)
    groups = [{'joinKey': 'north', 'joinSecret': '1'}, {'joinKey': 'south', 'joinSecret': '2'}]
    slices = [south.url, north.url, data.url]
    job = ended(start('(data) => { progress(); return data }', '[URL(url + "/data") for url in %r]' % slices,
                      more=f'job.computeGroups = {groups}', options=['--workers', '1', '--join', 'north,1',
                      '--allow-origin', north.url, '--join', 'south,2', '--allow-origin', south.url]))
    assert results(job) == slices
    assert any('EPERM_ORIGIN' in line for line in events(job))    # the first slice went to the north first
    workers = {message['data']['slice']: message['worker'] for message in job.log
               if message['from'] == 'worker' and message['operation'] == 'result'}
    assert workers[1] == 'south 1' and workers[2] == 'north 1'


def output(*command):
    return subprocess.run(command, capture_output=True, text=True).stdout.split()


def test_nothing_is_left_running(start):
    """Not even a sandbox in an endless loop, when the job script is killed."""
    job = start("() => { progress(); console.log('looping'); for (;;); }")
    job.wait_for('^console')
    sandboxes = output('pgrep', '-P', str(job.process.pid))
    job.stop()
    running = sandboxes
    deadline = time.monotonic() + 10
    while running and time.monotonic() < deadline:
        states = output('ps', '-o', 'stat=', '-p', ','.join(sandboxes))
        running = [state for state in states if not state.startswith('Z')]
    if running:
        output('kill', '-KILL', *sandboxes)
    assert sandboxes and not running


# Faults

def test_same_seed_plays_the_same_faults():
    def played(seed, slices):
        faults = Faults({'die': 0.5}, seed)
        return {number: [faults.happens('die', number) for _ in range(3)] for number in slices}
    assert played(1, range(1, 21)) == played(1, range(20, 0, -1)) != played(2, range(1, 21))


def test_scheduler_is_lost(start):
    job = start('(x) => { progress(); return x }', options=['--fault', 'lost'],
                more="job.on('result', lambda _: (print('heard'), job.js_ref.cancel('stopped')))")
    for sign in ('"cancelJob"', '"demo 1", "operation": "result"', '"demo 2", "operation": "result"'):
        job.wait_for(sign)
    job.stop()
    assert job.lines.count('heard') == 1
    log = Played(job.lines).log
    first_result = next(i for i, message in enumerate(log) if message.get('event') == 'result')
    assert [message for message in log[first_result + 1:] if message['from'] == 'scheduler'] == []


# The command

@pytest.mark.parametrize('wrong', ['--join=demo', '--fault=earthquake', '--fault=die=often', '--workers=x'])
def test_wrong_options_end_in_one_line(project, wrong):
    job = project.run('-m', 'tests.mock_dcp', wrong, 'remote-job.py')
    assert job.status == 2 and job.errors[-1].startswith('python -m tests.mock_dcp: error: ')


# Jobs that take seconds

PYTHON = '''
import sys
import dcp
def score(number):
    dcp.progress()
    return number + sys.argv[-1]
dcp.set_slice_handler(score)
'''
CANCEL_EARLY = '''
def on_state(state):
    if state == 'deploying':
        loop.call_later(0.2, lambda: job.js_ref.cancel('stopped'))
    if state == 'deployed':
        loop.call_later(0.3, sys.exit)
job.on('readystatechange', on_state)
'''
SINK = DataServer()    # of its own, because the other one forgets all from test to test
SINK.pages['/sink'] = (200, 'text/plain', 'stored')
COUNT = '(x) => { progress(); return x }'
HEAR = "\njob.on('result', lambda _: print('heard'))"
STORE = STORAGE.format(url=SINK.url)
SLOW_JOBS = {    # name: script, options
    'Pyodide': (job_script(PYTHON, '[1.0, 2.0]', '[1.0, 0.5]', "job.worktime = 'pyodide'"), '--workers', '1'),
    'late answer': (job_script(COUNT, more=CANCEL_EARLY), '--fault', 'late-answer'),
    'scheduler away': (job_script(COUNT, more=HEAR), '--fault', 'away'),
    'bad workers': (job_script(COUNT, '[float(n) for n in range(8)]', more=STORE + HEAR),
                    *(f'--fault={name}=0.2' for name in ('die', 'return', 'twice', 'lose-answer')),
                    '--seed', '18', '--allow-origin', SINK.url),    # this seed plays each of them
}


def test_no_fault_of_a_worker_loses_or_doubles_a_result(slow_jobs):
    job = ended(slow_jobs['bad workers'])
    assert results(job) == ['stored'] * 8
    assert len([message for message in job.log if message.get('event') == 'result']) == 8
    assert len(SINK.posted) > 8
    assert {status['reason'] for status in job.messages('worker', 'status')} == {
        'the sandbox has ended', 'the mocked worker was told to return it', 'the result was not stored'}


def test_scheduler_comes_back(slow_jobs):
    job = ended(slow_jobs['scheduler away'])
    assert results(job) == [1, 2, 3] and job.lines.count('heard') == 3
    log = iter(job.log)
    next(message for message in log if message.get('event') == 'result')
    assert next(log)['from'] == 'worker'    # the other one, which waits as the first one does


def test_job_can_be_cancelled_before_the_answer_to_submit(slow_jobs):
    job = ended(slow_jobs['late answer'])
    assert job.status == 0, job.output
    said = [(message['from'], message.get('operation')) for message in job.log]
    assert said[:4] == [('script', 'submit@5'), ('script', 'cancelJob'), ('scheduler', 'cancelJob'),
                        ('scheduler', 'submit@5')]
    assert 'worker' not in dict(said)


def test_python_work_function_as_text(slow_jobs):
    assert results(ended(slow_jobs['Pyodide'])) == [1.5, 2.5]
