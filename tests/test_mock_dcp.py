"""The mocked DCP keeps the rules of the real one, so that a job which runs here can be trusted to run there."""
import collections
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

import pytest

JOB = '''
import json, sys
import dcp
import pythonmonkey as pm
from dcp.dry.aio import blockify, loop
loop.set_exception_handler(lambda *_: None)
dcp.init()
URL = pm.new('URL')
dcp.identity.set(dcp.wallet.get('id'))
dcp.wallet.add(dcp.wallet.get('default'))
job = dcp.compute_for({input_set}, {work_function!r}, {arguments})
job.worktime = 'map-basic'
job.computeGroups = [{{'joinKey': 'demo', 'joinSecret': 'dcp'}}]
for event in ('error', 'console', 'noprogress'):
    job.on(event, lambda details, event=event: print(event, json.dumps(details, indent=1).replace(chr(10), '')))
{more}
results = blockify(job.js_ref.exec)(0.1)
print('results', pm.eval('(results) => JSON.stringify(Array.from(results))')(results))
'''


class DataServer(ThreadingHTTPServer):
    """Serve `pages`: {path: (status, content type, text), or a list of them}; keep what is posted."""

    def __init__(self):
        super().__init__(('127.0.0.1', 0), DataHandler)
        self.pages, self.posted, self.requests = {}, [], collections.Counter()
        self.url = f'http://127.0.0.1:{self.server_port}'


class DataHandler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests[self.path] += 1
        answers = self.server.pages[self.path]
        status, content_type, text = answers.pop(0) if isinstance(answers, list) else answers
        self.send_response(status)
        if content_type:
            self.send_header('Content-Type', content_type)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_POST(self):
        form = self.rfile.read(int(self.headers['Content-Length'])).decode()
        self.server.posted.append({name: values[0] for name, values in parse_qs(form, keep_blank_values=True).items()})
        self.do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def data():
    server = DataServer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def start(project, data):
    """Start a small job on the mocked DCP, with workers that may use the data server; return its process."""
    def start(work_function, input_set='[1.0, 2.0, 3.0]', arguments='[0.5]', more='', options=()):
        script = JOB.format(work_function=work_function, input_set=input_set, arguments=arguments, more=more)
        (project.folder / 'job.py').write_text(script)
        return project.start('-m', 'tests.mock_dcp', '--allow-origin', data.url, *options, 'job.py')
    return start


@pytest.fixture
def run(start):
    """Run such a job to its end."""
    def run(*arguments, **options):
        job = start(*arguments, **options)
        job.wait()
        return job
    return run


def results(job):
    assert job.status == 0, job.output
    return json.loads(next(line for line in job.lines if line.startswith('results')).removeprefix('results '))


@pytest.mark.parametrize('input_set', ['[1.0, 2.0, 3.0]', "dcp.range_object.RangeObject(1, 3)"])
def test_job_by_value_gets_its_results_in_order(run, input_set):
    assert results(run('(x, y) => { progress(); return x + y }', input_set)) == [1.5, 2.5, 3.5]


def test_async_work_function_and_its_console_are_heard(run):
    job = run("async (x) => { progress(); await new Promise((go) => setTimeout(go, 5)); console.log('hello', x); return x }")
    assert results(job) == [1, 2, 3]
    assert sum(line.startswith('console') and '"hello"' in line for line in job.lines) == 3


def test_data_is_decoded_by_content_type(run, data):
    data.pages = {'/plain': (200, 'text/plain; charset=utf-8', 'a\té'), '/csv': (200, 'text/csv', 'a,b'),
                  '/json': (200, 'application/json', '{"a": [1]}')}
    job = run('(x, ...all) => { progress(); return all.map((data) => [typeof data, data]) }', '[1.0]',
              f"[URL('{data.url}/plain'), URL('{data.url}/csv'), URL('{data.url}/json')]")
    assert results(job) == [[['string', 'a\té'], ['object', 'a,b'], ['object', {'a': [1]}]]]


def test_data_is_fetched_once_per_worker(run, data):
    data.pages['/data'] = (200, 'text/plain', 'a')
    job = run('(x, data) => { progress(); return data }', '[1.0] * 20', f"[URL('{data.url}/data')]",
              options=['--workers', '3'])
    assert results(job) == ['a'] * 20
    assert 1 <= data.requests['/data'] <= 3


def test_failed_data_is_fetched_again_without_a_word(run, data):
    data.pages['/data'] = [(404, 'text/plain', ''), (500, 'text/plain', ''), (200, 'text/plain', 'a')]
    job = run('(x, data) => { progress(); return data }', '[1.0]', f"[URL('{data.url}/data')]",
              options=['--workers', '1'])
    assert results(job) == ['a']
    assert not any(line.startswith('error') for line in job.lines)


STORAGE = "job.setResultStorage('{url}/sink', {{'elementType': 'results', 'mine': 'yes'}})"


def test_results_are_posted_as_the_real_worker_does(run, data):
    values = ['[1,{"a":"é"}]', '"text"', '5', '0', '""', 'false', 'null', 'NaN']
    data.pages['/sink'] = (200, 'text/plain', 'stored')
    job = run(f'(i) => {{ progress(); return [{", ".join(values)}][i] }}', '[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]',
              more=STORAGE.format(url=data.url))
    assert results(job) == ['stored'] * len(values)
    posted = sorted(data.posted, key=lambda form: int(form['element']))
    for number, (form, value) in enumerate(zip(posted, values), 1):
        content = {'content': value} if number <= 3 else {'error': 'null'}    # falsy values are never posted
        assert form == {'elementType': 'results', 'mine': 'yes', 'contentType': 'application/json',
                        'element': str(number), **content}


def test_thrown_error_is_heard_and_posted(run, data):
    data.pages['/sink'] = (200, 'text/plain', 'stored')
    job = run("() => { progress(); throw new TypeError('no gene') }", '[1.0]', more=STORAGE.format(url=data.url))
    assert results(job) == ['stored']
    content = json.loads(data.posted[0]['content'])
    assert list(content) == ['stack', 'message', 'errorCode', 'name']
    assert (content['message'], content['errorCode'], content['name']) == ('no gene', 'EUNCAUGHT', 'TypeError')
    assert any(line.startswith('error') and 'EUNCAUGHT' in line and 'no gene' in line for line in job.lines)


def test_work_function_that_does_not_compile_ends_its_sandbox(start):
    start('(x) => {', options=['--log', '/dev/stdout']).wait_for('"reason": "the sandbox has ended"')


@pytest.mark.parametrize('operation', ['makeTea', 'result'])
def test_unknown_operation_is_named(run, operation):
    request = f"new dcp.protocol.Connection(dcpConfig.scheduler.services.jobSubmit).request('{operation}', {{}})"
    job = run('() => 1', more=f'blockify(pm.eval("() => {request}"))()')
    assert job.status == 1 and f'the mocked DCP has no operation /job-submit/{operation}' in job.output


@pytest.mark.parametrize('wrong', ['--join=demo', '--fault=earthquake', '--fault=die=often', '--workers=x'])
def test_wrong_options_end_in_one_line(project, wrong):
    job = project.run('-m', 'tests.mock_dcp', wrong, 'remote-job.py')
    assert job.status == 2 and job.errors[-1].startswith('python -m tests.mock_dcp: error: ')


# Faults

def posts(project):
    """Count how often the result of each slice was posted, as the server's log tells."""
    return collections.Counter(re.search(r'slice (\d+): Result received', line)[1] for line in project.server.errors)


@pytest.mark.parametrize('fault', ['die=0.4', 'return=0.5', 'twice=0.5', 'lose-answer=0.5'])
def test_no_fault_of_a_worker_loses_or_doubles_a_result(served, fault):
    job = served.run_job('--fault', fault)
    assert job.status == 0 and job.lines[-1] == 'Done.', job.output
    (path,) = served.results()
    slices = collections.Counter(line.split('\t')[0] for line in path.read_text().splitlines()[1:])
    assert slices == {str(i): 4 for i in range(1, 11)}
    if fault.startswith(('twice', 'lose')):
        assert posts(served).total() > 10


def test_same_seed_plays_the_same_faults(served):
    played = []
    for seed in (1, 1, 2):
        served.server.errors.clear()
        served.run_job('--fault', 'twice=0.5', '--fault', 'lose-answer=0.1', '--seed', seed)
        played.append(posts(served))
    assert played[0] == played[1] != played[2]
