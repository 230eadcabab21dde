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
from .project import Project, make_certificate

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
job = dcp.compute_for({input_set}, {work_function}, {arguments})
job.worktime = 'map-basic'
job.computeGroups = {groups}
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
DEMO = [{'joinKey': 'demo', 'joinSecret': 'dcp'}]
SITES = [{'joinKey': 'north', 'joinSecret': '1'}, {'joinKey': 'south', 'joinSecret': '2'}]
HEARD = "\njob.on('result', lambda _: print('heard'))"
STORAGE = "\njob.setResultStorage('{url}/sink', {{'elementType': 'results', 'mine': 'yes'}})"
SESSION = START + '''
for text in socket.create_connection(('127.0.0.1', int(sys.argv[1]))).makefile():
    try:
        exec(json.loads(text))
    except BaseException:
        traceback.print_exc(file=sys.stdout)
    print('--- over ---', flush=True)
'''


def job_script(work_function, input_set='[1.0, 2.0, 3.0]', arguments='[0.5]', groups=DEMO, more=''):
    if not work_function.startswith('URL('):
        work_function = repr(work_function)
    return JOB.format(work_function=work_function, input_set=input_set, arguments=arguments, groups=groups,
                      more=more)


class DataServer(ThreadingHTTPServer):
    """Serve `pages`: {path: (status, content type, text), or a list of them}; keep what is posted."""

    def __init__(self, certificate=None, key=None):
        super().__init__(('127.0.0.1', 0), DataHandler)
        self.url, self.certificate = f'http://127.0.0.1:{self.server_port}', certificate
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, key)
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
            self.url = f'https://127.0.0.1:{self.server_port}'
        self.forget()
        threading.Thread(target=self.serve_forever, args=[0.05], daemon=True).start()    # so stop() is quick

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
    """One mocked DCP for many jobs, one after the other, because to start it takes longer than most jobs.

    The compute groups have one worker each: demo's may use the servers that all may use, and those of north
    and south the one of their name, too. The certificate of one server is trusted, and another's only by the
    job script.
    """

    def __init__(self, project, servers):
        (project.folder / 'session.py').write_text(SESSION)
        allow = {name: ['--allow-origin', server.url] for name, server in servers.items()}
        options = [*allow['data'], *allow['trusted'], *allow['stranger'], '--join', 'demo,dcp',
                   '--join', 'north,1', *allow['north'], '--join', 'south,2', *allow['south'],
                   '--workers', '1', '--progress-timeout', '0.8', '--log', '/dev/stdout']
        trust = {'NODE_EXTRA_CA_CERTS': str(servers['trusted'].certificate),
                 'SSL_CERT_FILE': str(servers['stranger'].certificate)}
        with socket.create_server(('127.0.0.1', 0)) as listener:
            port = listener.getsockname()[1]
            self.process = project.start('-m', 'tests.mock_dcp', *options, 'session.py', port, **trust)
            self.jobs = listener.accept()[0]

    def play(self, text):
        start = len(self.process.lines)
        self.jobs.sendall(json.dumps(text).encode() + b'\n')
        over = lambda: '--- over ---' in self.process.lines[start:] or self.process.process.poll() is not None
        with self.process.news:
            in_time = self.process.news.wait_for(over, 30)
        if not in_time:
            self.process.stop()    # lest the next job wait for this one
        return Played(self.process.lines[start:])


@pytest.fixture(scope='module')
def all_servers(tmp_path_factory):
    servers = {name: DataServer() for name in ('data', 'north', 'south')}
    for name in ('trusted', 'stranger'):
        servers[name] = DataServer(*make_certificate(tmp_path_factory.mktemp(name)))
    yield servers
    for server in servers.values():
        server.stop()


@pytest.fixture
def servers(all_servers):
    """Data servers by name, with no page yet."""
    for server in all_servers.values():
        server.forget()
    return all_servers


@pytest.fixture
def data(servers):
    return servers['data']


@pytest.fixture(scope='module')
def start(tmp_path_factory):
    """Start a job on a mocked DCP of its own; return its process."""
    project = Project(tmp_path_factory.mktemp('own') / 'project')

    def start(script, *options):
        name = f'job-{len(project.running)}.py'
        (project.folder / name).write_text(START + script)
        return project.start('-m', 'tests.mock_dcp', '--log', '/dev/stdout', *options, name)

    yield start
    project.stop()


@pytest.fixture(scope='module', autouse=True)
def faulty(start):
    """Start a job with which all goes wrong that can. It takes seconds, so before the first test."""
    sink = DataServer()    # of its own, because the others forget all from test to test
    sink.pages['/sink'] = (200, 'text/plain', 'stored')
    script = job_script('(x) => { progress(); return x }', '[float(n) for n in range(8)]',
                        more=HEARD + STORAGE.format(url=sink.url))
    faults = [f'{name}=0.2' for name in ('die', 'return', 'twice', 'lose-answer')] + ['late', 'away']
    process = start(script, *(f'--fault={fault}' for fault in faults), '--seed', '18',    # which plays each
                    '--allow-origin', sink.url)

    def played():
        """Return what was played, when it has ended, and what was posted."""
        status = process.wait()
        return Played(process.lines, status), sink.posted

    yield played
    sink.stop()


@pytest.fixture(scope='module')
def session(tmp_path_factory, all_servers):
    project = Project(tmp_path_factory.mktemp('session') / 'project')
    yield Session(project, all_servers)
    project.stop()


@pytest.fixture
def run(session):
    """Run a small job on a mocked DCP that plays others before and after it."""
    return lambda *job, **details: session.play(job_script(*job, **details))


def results(job):
    assert job.status == 0, job.output
    printed = [line for line in job.lines if line.startswith('results ')]
    assert printed, job.output
    return json.loads(printed[0].removeprefix('results '))


def events(job):
    return [line for line in job.lines if line.startswith(('error', 'console', 'noprogress'))]


# Jobs

def test_results_come_in_order_and_the_console_is_heard(run):
    pause = 'await new Promise((go) => setTimeout(go, 5))'
    job = run(f"async (x, y) => {{ progress(); {pause}; console.log('hello', x); return x + y }}")
    assert results(job) == [1.5, 2.5, 3.5]
    assert [line.startswith('console') and '"hello"' in line for line in events(job)] == [True] * 3


def test_public_names_exec_and_wait(run):
    job = run('(x) => { progress(); return x }', 'dcp.range_object.RangeObject(1, 3)', more=EXEC_AND_WAIT)
    assert results(job) == [1, 2, 3]


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

def test_data_is_decoded_by_content_type_and_fetched_once_per_worker(run, data):
    data.pages = {'/plain': (200, 'text/plain; charset=utf-8', 'a\té'), '/csv': (200, 'text/csv', 'a,b'),
                  '/json': (200, 'application/json', '{"a": [1]}')}
    job = run('(x, ...all) => { progress(); return all.map((data) => [typeof data, data]) }', '[1.0, 2.0]',
              f"[URL('{data.url}/plain'), URL('{data.url}/csv'), URL('{data.url}/json')]")
    assert results(job) == [[['string', 'a\té'], ['object', 'a,b'], ['object', {'a': [1]}]]] * 2
    assert data.requests == {'/plain': 1, '/csv': 1, '/json': 1}


def test_failed_data_is_fetched_again_without_a_word(run, data):
    data.pages['/data'] = [(404, 'text/plain', ''), (500, 'text/plain', ''), (200, 'text/plain', 'a')]
    job = run('(x, data) => { progress(); return data }', '[1.0]', f"[URL('{data.url}/data')]")
    assert results(job) == ['a'] and not events(job)


def test_remote_work_function_and_input_set(run, data):
    """The scheduler sees their addresses, and nothing of them."""
    data.pages = {'/f.js': (200, 'text/plain', '(text, y) => { progress(); return text.length + y }'),
                  '/1.txt': (200, 'text/plain', 'secret'), '/2.txt': (200, 'text/plain', 'secret too')}
    job = run(f"URL('{data.url}/f.js')", f"[URL('{data.url}/1.txt'), URL('{data.url}/2.txt')]")
    assert results(job) == [6.5, 10.5] and not events(job)
    log = json.dumps(job.log)
    assert [text in log for text in ('/f.js', '/1.txt', 'progress()', 'secret')] == [True, True, False, False]


def test_input_set_as_a_pattern_of_addresses(run, data):
    data.pages = {'/1.txt': (200, 'text/plain', 'one'), '/2.txt': (200, 'text/plain', 'two')}
    job = run('(text) => { progress(); return text }',
              f"dcp.compute.RemoteDataPattern('{data.url}/{{slice}}.txt', 2.0)")
    assert results(job) == ['one', 'two'] and not events(job)


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


def test_thrown_error_is_heard_and_posted_and_thrown_null_is_a_null_result(run, data):
    data.pages['/sink'] = (200, 'text/plain', 'stored')
    work_function = "(x) => { progress(); throw x === 1 ? new TypeError('no gene') : null }"
    job = run(work_function, '[1.0, 2.0]', more=STORAGE.format(url=data.url))
    assert results(job) == ['stored', 'stored']
    content = json.loads(data.posted[0]['content'])
    assert list(content) == ['stack', 'message', 'errorCode', 'name']
    assert [content[key] for key in ('message', 'errorCode', 'name')] == ['no gene', 'EUNCAUGHT', 'TypeError']
    assert [re.search('"no gene".*"EUNCAUGHT"', line) is not None for line in events(job)] == [True]
    assert data.posted[1]['error'] == 'null'


def test_result_that_is_no_json_is_given_back_without_a_word(run, data):
    data.pages = {'/what': [(200, 'text/plain', 'BigInt'), (200, 'text/plain', 'text')],
                  '/sink': (200, 'text/plain', 'stored')}
    job = run("(what) => { progress(); return what === 'BigInt' ? 1n : what }", f"[URL('{data.url}/what')]",
              more=STORAGE.format(url=data.url))
    assert results(job) == ['stored'] and not events(job)
    assert [form['content'] for form in data.posted] == ['"text"']


def test_work_function_that_does_not_compile_is_given_back_without_a_word(run, data):
    """Here one of two workers gets such a work function, and the other one computes all slices."""
    good = '(x) => { progress(); return x }'
    data.pages['/f.js'] = [(200, 'text/plain', '(x) => {'), (200, 'text/plain', good)]
    job = run(f"URL('{data.url}/f.js')", '[1.0, 2.0]', groups=SITES)
    assert results(job) == [1, 2] and not events(job)
    assert {status['reason'] for status in job.messages('worker', 'status')} == {'the sandbox has ended'}


def test_progress_is_judged_as_by_the_real_worker(run, data):
    """Only progress() resets the clock: a slice that only logs is given back, and one that is slow is not."""
    data.pages['/say'] = [(200, 'text/plain', 'console.log'), (200, 'text/plain', 'progress')]
    job = run('''async (say) => {
        progress(0.25);
        for (let i = 0; i < 10; i++) {
            await new Promise((go) => setTimeout(go, 100));
            say === 'progress' ? progress() : console.log(i);
        }
        return say;
    }''', f"[URL('{data.url}/say')]")
    assert results(job) == ['progress']
    error, no_progress = [line for line in events(job) if not line.startswith('console')]
    message = 'No progress event was received in the last 0.8 seconds.'
    assert message in error and message in no_progress and '"progress":25' in no_progress
    assert job.messages('worker', 'status')[0]['reason'] == 'ENOPROGRESS'


# Workers

def test_worker_trusts_what_node_trusts(run, servers):
    """It says nothing of a certificate that it does not trust, even if the job script does."""
    trusted, stranger = servers['trusted'], servers['stranger']
    for server in (trusted, stranger):
        server.pages = {path: (200, 'text/plain', path) for path in ('/data', '/script')}
    job = run('(data) => { progress(); return data }',
              f"[URL('{stranger.url}/data'), URL('{trusted.url}/data')]",
              more=f"import urllib.request; print(urllib.request.urlopen('{stranger.url}/script').read())\n"
                   "job.on('result', lambda event: job.js_ref.cancel('enough'))" + EXEC_AND_WAIT)
    assert "b'/script'" in job.lines and not events(job)
    assert [result['slice'] for result in job.messages('worker', 'result')] == [2]
    assert {status['reason'] for status in job.messages('worker', 'status')} == {'ESLICEFETCH'}
    assert trusted.requests['/data'] and stranger.requests == {'/script': 1}


def test_allowed_origin_belongs_to_the_group_before_it(run, servers):
    """Here the workers of each of two sites fetch from their own server and from the one that all may use."""
    north, south, data = (servers[name] for name in ('north', 'south', 'data'))
    for server in (north, south, data):
        server.pages['/data'] = (200, 'text/plain', server.url)
    slices = [south.url, north.url, data.url]
    job = run('(data) => { progress(); return data }', '[URL(url + "/data") for url in %r]' % slices,
              groups=SITES)
    assert results(job) == slices
    assert any('EPERM_ORIGIN' in line for line in events(job))    # the first slice went to the north first
    workers = {message['data']['slice']: message['worker'] for message in job.log
               if message['from'] == 'worker' and message['operation'] == 'result'}
    assert workers[1] == 'south 1' and workers[2] == 'north 1'


# Faults

def test_same_seed_plays_the_same_faults():
    def played(seed, slices):
        faults = Faults({'die': 0.5}, seed)
        return {number: [faults.happens('die', number) for _ in range(3)] for number in slices}
    assert played(1, range(1, 21)) == played(1, range(20, 0, -1)) != played(2, range(1, 21))


@pytest.fixture(scope='module')
def lost(start):
    """A job that lost its scheduler, and was killed while a sandbox was in an endless loop; its sandboxes."""
    work_function = "(x) => { progress(); if (x === 3) { console.log('looping'); for (;;); } return x }"
    more = "job.on('result', lambda _: (print('heard'), job.js_ref.cancel('stopped')))"
    job = start(job_script(work_function, more=more), '--workers', '3', '--fault', 'lost')
    for sign in ('"cancelJob"', '"demo 1", "operation": "result"', '"demo 2", "operation": "result"',
                 '"demo 3", "operation": "workEmit".*looping'):
        job.wait_for(sign)
    sandboxes = output('pgrep', '-P', str(job.process.pid))
    job.stop()
    return Played(job.lines), sandboxes


def test_scheduler_is_lost(lost):
    job, _ = lost
    assert job.lines.count('heard') == 1
    first_result = next(i for i, message in enumerate(job.log) if message.get('event') == 'result')
    assert [message for message in job.log[first_result + 1:] if message['from'] == 'scheduler'] == []


def test_nothing_is_left_running(lost):
    """Not even a sandbox in an endless loop, when the job script is killed."""
    _, sandboxes = lost
    running = sandboxes
    deadline = time.monotonic() + 10
    while running and time.monotonic() < deadline:
        time.sleep(0.1)    # they are no children of this process, which could wait for those
        states = output('ps', '-o', 'stat=', '-p', ','.join(sandboxes))
        running = [state for state in states if not state.startswith('Z')]
    if running:
        output('kill', '-KILL', *sandboxes)
    assert len(sandboxes) == 3 and not running


def output(*command):
    return subprocess.run(command, capture_output=True, text=True).stdout.split()


def test_no_fault_loses_or_doubles_a_result(faulty):
    job, posted = faulty()
    assert results(job) == ['stored'] * 8 and job.lines.count('heard') == 8
    assert len([message for message in job.log if message.get('event') == 'result']) == 8
    assert len(posted) > len(job.messages('worker', 'result')) > 8    # lost answers, and repeats
    assert {status['reason'] for status in job.messages('worker', 'status')} == {
        'the sandbox has ended', 'the mocked worker was told to return it', 'the result was not stored'}


def test_scheduler_comes_back(faulty):
    job, _ = faulty()
    log = iter(job.log)
    next(message for message in log if message.get('event') == 'result')
    assert next(log)['from'] == 'worker'    # the other one, which waits as the first one does


# The command

@pytest.mark.parametrize('wrong', ['--join=demo', '--fault=earthquake', '--fault=die=often'])
def test_wrong_options_end_in_one_line(project, wrong):
    job = project.run('-m', 'tests.mock_dcp', wrong, 'remote-job.py')
    assert job.status == 2 and job.errors[-1].startswith('python -m tests.mock_dcp: error: ')
