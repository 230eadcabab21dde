"""The mocked DCP keeps the rules of the real one, so that a job which runs here can be trusted there."""
import itertools
import json
import os
import select
import subprocess
import threading
from collections import defaultdict

import pytest
from flask import Flask, Response, request
from werkzeug.serving import make_server

from .project import Project, make_certificate

START = '''
import asyncio, itertools, json, os, sys, traceback
import dcp, numpy
import pythonmonkey as pm
dcp.init()
URL = pm.new('URL')
to_json = pm.eval('(value) => JSON.stringify(value)')
loop = asyncio.get_event_loop()
'''
SESSION = '''
for number in itertools.count():
    print('ready', number, flush=True)
    for script in open(os.environ['JOBS']).read(), 'loop.run_until_complete(asyncio.sleep(0.01))':
        try:
            exec(script)
        except BaseException:
            traceback.print_exc(file=sys.stdout)
'''
PYTHON_JOBS = '''
def count(letters, extra):
    import collections
    dcp.progress()
    return dict(collections.Counter(letters), extra=extra)
for slices in ['abba', ['c']], numpy.ones((2, 2)):
    job = dcp.compute_for(slices, count, [[0.5, None]])
    job.exec()
    print(job.wait())
'''
SERVER = '''
import http.server, os, time
print('one', 'two', 'three', os.getpid(), sep='\\n', flush=True)
time.sleep(0.5)    # Flask, too, prints its lines before it listens
http.server.test(http.server.SimpleHTTPRequestHandler, port=PORT)
'''
IDENTITY = '(x) => { progress(); return x }'
SITES = "job.computeGroups = [dict(joinKey='north', joinSecret='1'), dict(joinKey='south', joinSecret='2')]\n"
STORAGE = "job.setResultStorage('{}/{}', {{'mine': 'yes'}})\n"


def job_script(work_function, slices='[1.0, 2.0]', arguments='[0.5]', more='', listen=True):
    work_function = work_function if work_function.startswith('URL(') else repr(work_function)
    return f'''
job = dcp.compute_for({slices}, {work_function}, {arguments})
job.worktime = 'map-basic'
for event in ('error', 'console', 'noprogress') if {listen} else ():
    job.on(event, lambda details, event=event: print(event, to_json(details)))
{more}
job.exec()
print('results', to_json(job.wait()))
'''


class Played:
    """What a job printed (lines, of them events, and results), the messages of the log, and the process."""
    def __init__(self, lines, process):
        self.log = [json.loads(line) for line in lines if line.startswith('{"from"')]
        self.lines = [line for line in lines if not line.startswith('{"from"')]
        self.events = [line for line in self.lines if line.startswith(('error', 'console', 'noprogress'))]
        results = [json.loads(line[8:]) for line in self.lines if line.startswith('results ')]
        self.results, self.process = results[0] if results else self.lines, process

    def said(self, operation):    # by workers
        return [message['data'] for message in self.log
                if message['from'] == 'worker' and message['operation'] == operation]


class Web:
    """Four addresses that serve `pages`, {path: list of answers, the last one stays}, or 'stored'."""
    def __init__(self, certificate):
        self.urls, self.pages, self.forms, self.certificate = {}, {}, defaultdict(list), str(certificate[0])
        app = Flask('web')
        app.add_url_rule('/<path>', view_func=self.answer, methods=['GET', 'POST'])
        for name in ('data', 'north', 'south', 'stranger'):
            context = certificate if name == 'stranger' else None
            server = make_server('127.0.0.1', 0, app, threaded=True, ssl_context=context)
            self.urls[name] = f'{"https" if context else "http"}://127.0.0.1:{server.port}'
            threading.Thread(target=server.serve_forever, daemon=True).start()

    def answer(self, path):
        self.forms[path].append(request.form.to_dict())
        answers = self.pages.get(path, ['stored'])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        return answer if isinstance(answer, Response) else Response(answer, mimetype='text/plain')


@pytest.fixture(scope='module')
def web(tmp_path_factory):
    return Web(make_certificate(tmp_path_factory.mktemp('certificate')))


@pytest.fixture(scope='module')
def start(tmp_path_factory):
    """Start a job on a mocked DCP of its own; return its process."""
    project = Project(tmp_path_factory.mktemp('own') / 'project')
    def start(script, *options, **environment):
        path = project.folder / f'job-{len(project.running)}.py'
        path.write_text(START + script)
        command = ['-m', 'tests.mock_dcp', '--log', '/dev/stdout', *options, path]
        return project.start(*command, **environment)
    yield start
    project.stop()


@pytest.fixture(scope='module', autouse=True)
def slow(start, web):
    """Start the jobs that take seconds, before the first test. (Seed 18 plays each fault.)"""
    url = web.urls['data']
    faulty = job_script(IDENTITY, '[float(n) for n in range(8)]', more=STORAGE.format(url, 'faulty'))
    faults = ['--seed=18', *(f'--fault={name}=0.2' for name in ('die', 'return', 'twice', 'lose-answer'))]
    return {'python': start(PYTHON_JOBS, '--workers', '1'),
            'refused': start(job_script(IDENTITY, f"[URL('{url}/1.txt')]")),
            'faulty': start(faulty, *faults, '--fault=late', '--fault=away', f'--allow-origin={url}')}


@pytest.fixture(scope='module')
def run(start, web, tmp_path_factory):
    """Play a job on a mocked DCP that plays many, as to start one takes longer than most of the jobs."""
    jobs, numbers = tmp_path_factory.mktemp('session') / 'jobs', itertools.count()
    os.mkfifo(jobs)
    allow = {name: f'--allow-origin={url}' for name, url in web.urls.items()}
    process = start(SESSION, allow['data'], allow['stranger'], '--join=north,1', allow['north'],
                    '--join=south,2', allow['south'], '--workers=1', '--progress-timeout=0.8',
                    JOBS=str(jobs), SSL_CERT_FILE=web.certificate, NODE_EXTRA_CA_CERTS='')
    def run(*job, **details):
        number = next(numbers)
        process.wait_for(f'^ready {number}$')
        seen = len(process.lines)
        jobs.write_text(job_script(*job, **details))
        process.wait_for(f'^ready {number + 1}$', timeout=30)
        return Played(process.lines[seen:], process)
    return run


def test_results_come_in_order_and_the_console_is_heard_and_nothing_may_be_fetched(run):
    refused = "await fetch('http://a.example/').catch((error) => error.message)"
    job = run(f"async (x, y) => {{ progress(); console.log('hello', x); return [x + y, {refused}] }}",
              'dcp.range_object.RangeObject(1, 3)')
    assert job.results == [[x, "Not allowed to fetch from 'http://a.example/'"] for x in (1.5, 2.5, 3.5)]
    assert ['"hello"' in line for line in job.events] == [True] * 3
    assert {message['worker'] for message in job.log if message['from'] == 'worker'} == {'public 1'}


def test_asyncio_decorator_open_job_and_fetched_results(run):
    job = run(IDENTITY, '[1.0]', more='''
job.autoClose = False
@job.on('result')
def on_result(event):
    event.sliceNumber == 2 and job.js_ref.close()
async def main():
    await job.aio.exec()
    dcp.job.addSlices([5.0], job.id)
    print('results', to_json(await job.aio.wait()))
loop.run_until_complete(main())
print('fetched', sorted(result['value'] for result in dcp.job.fetchResults(job.id)))
sys.exit()''')
    assert job.results == [1, 5] and 'fetched [1.0, 5.0]' in job.lines


@pytest.mark.parametrize('slip, line', [
    (SITES.replace('1', '0').replace('2', '0'), 'SystemExit: DCPError: Access Denied::Failed to add job'),
    ("job.worktime = 'map-advanced'", 'SystemExit: DCPError: Invalid Worktime map-advanced'),
    ('dcp.compute.status(job)', 'Error: the mocked DCP has no operation /pheme/listJobs')])
def test_job_that_is_refused_ends_the_script(run, slip, line):
    job = run(IDENTITY, more=slip)
    assert any(printed.startswith(line) for printed in job.lines), job.lines


def test_what_dcp_would_not_say_is_told_in_a_line(run):
    job = run("() => { progress(); throw Error('a gene\\nis missing') }", '[1]', listen=False)
    for line in ('^A worker: is missing$', '^dcp gives .* no ints .*: use floats and lists.$'):
        job.process.wait_for(line)


def test_log_holds_all_that_passes_through_the_scheduler(run):
    work_function = "(x, y) => { progress(); console.log('my-log'); return 'my-result' }"
    job = run(work_function, "['my-slice']", "['my-data']")
    for word, ways in {'my-data': ['submit@5', 'requestTask'], 'my-slice': ['addSliceData', 'requestTask'],
                       'my-log': ['submit@5', 'requestTask', 'workEmit', 'console'],
                       'my-result': ['submit@5', 'requestTask', 'result', 'result']}.items():
        messages = [message for message in job.log if word in json.dumps(message)]
        assert [message.get('operation') or message.get('event') for message in messages] == ways


def test_data_is_decoded_by_content_type_and_fetched_once_per_worker(run, web):
    pages = {'plain': ['a\té'], 'bom': ['\ufeffé'], 'latin1': ['é\n'.encode('latin-1')],
             'csv': [Response('a,b', mimetype='text/csv')],
             'json': [Response('{"a": [1]}', mimetype='application/json')]}
    web.pages.update(pages)
    job = run('(x, ...all) => { progress(); return all.map((data) => [typeof data, data]) }', '[1.0, 2.0]',
              f"[URL('{web.urls['data']}/' + path) for path in {list(pages)}]")
    assert job.results == 2 * [[['string', 'a\té'], ['string', 'é'], ['string', '\ufffd\n'],
                                ['object', 'a,b'], ['object', {'a': [1]}]]]
    assert [len(web.forms[path]) for path in pages] == [1] * 5


def test_of_remote_work_function_and_input_set_the_scheduler_sees_addresses(run, web):
    web.pages.update({'f.js': ['(x) => { progress(); return x.length }'], '1.txt': ['secret']})
    url = web.urls['data']
    job = run(f"URL('{url}/f.js')", f"dcp.compute.RemoteDataPattern('{url}/{{slice}}.txt', 1.0)")
    assert job.results == [6] and not job.events
    log = json.dumps(job.log)
    assert [text in log for text in ('/f.js', '.txt', 'progress()', 'secret')] == [True, True, False, False]


@pytest.mark.parametrize('answers', [[Response('', 404), Response('', 500)], ['(x) => {'],
                                     ['(x) => { progress(); return 1n }']], ids=['none', 'wrong', 'no JSON'])
def test_slice_is_given_back_without_a_word(run, web, answers):
    web.pages['f.js'] = answers + [IDENTITY]    # only one of two workers gets what is no good
    job = run(f"URL('{web.urls['data']}/f.js')", more=SITES + STORAGE.format(web.urls['data'], 'back'))
    assert job.results == ['stored', 'stored'] and not job.events and job.said('status')
    assert sorted(form['content'] for form in web.forms['back'][-2:]) == ['1', '2']


def test_results_and_errors_are_posted_as_by_the_real_worker(run, web):
    values = ['[1,{"a":"é"}]', '"text"', '5', '0', '""', 'false', 'null', 'NaN']
    job = run(f"(i) => {{ progress(); if (i < 8) return [{', '.join(values)}][i];"
              "throw i === 8 ? null : new TypeError('no gene') }", '[float(i) for i in range(10)]',
              more=STORAGE.format(web.urls['data'], 'sink'))
    assert job.results == ['stored'] * 10
    *posted, error = sorted(web.forms['sink'], key=lambda form: int(form['element']))
    contents = [{'content': value} for value in values[:3]] + [{'error': 'null'}] * 6    # of all falsy values
    assert posted == [{'mine': 'yes', 'contentType': 'application/json', 'element': str(number), **content}
                      for number, content in enumerate(contents, 1)]
    assert list(json.loads(error['content']).items())[1:] == [    # after the stack
        ('message', 'no gene'), ('errorCode', 'EUNCAUGHT'), ('name', 'TypeError')]
    assert ['"no gene"' in event and '"EUNCAUGHT"' in event for event in job.events] == [True]


def test_progress_is_judged_as_by_the_real_worker(run, web):
    """Only progress() resets the clock: a slice that only logs is given back, and one that is slow is not."""
    web.pages['say'] = ['nothing', 'log', 'progress']
    job = run("async (say) => { if (say === 'nothing') return; progress(0.25); for (let i = 0; i < 10; i++) {"
              "await new Promise((go) => setTimeout(go, 100)); say === 'log' ? console.log(i) : progress() }"
              "return say }", f"[URL('{web.urls['data']}/say')]")
    assert job.results == ['progress']
    never, _, error, no_progress = [line for line in job.events if not line.startswith('console')]
    message = 'No progress event was received in the last 0.8 seconds.'
    assert 'Sandbox never emitted a progress event.' in never
    assert message in error and message in no_progress and '"progress":25' in no_progress


def test_certificate_that_workers_do_not_trust_is_told(run, web):
    """The job script, which trusts it by its SSL_CERT_FILE, hears nothing, as from real workers."""
    job = run(IDENTITY, f"[URL('{web.urls['stranger']}/some'), URL('{web.urls['data']}/some')]",
              more="job.on('result', lambda event: job.js_ref.cancel('enough'))")
    assert 'enough' in job.results and not job.events
    assert [result['slice'] for result in job.said('result')] == [2]
    job.process.wait_for(f"^A worker does not trust the certificate of {web.urls['stranger']}: ")


def test_allowed_origin_belongs_to_the_group_before_it(run, web):
    slices = [web.urls[name] for name in ('south', 'north', 'data')]
    job = run(IDENTITY, f'[URL(url + "/stored") for url in {slices}]', more=SITES)
    assert job.results == ['stored'] * 3
    assert any('EPERM_ORIGIN' in line for line in job.events)    # the first slice went to the north first
    workers = {message['data']['slice']: message['worker'] for message in job.log
               if message['from'] == 'worker' and message['operation'] == 'result'}
    assert workers[1] == 'south 1' and workers[2] == 'north 1'    # and the third one to either


def test_job_that_no_worker_may_compute_ends_in_a_line(slow, web):
    assert slow['refused'].wait() == 1
    assert slow['refused'].errors == [f"Not allowed to fetch from the origin '{web.urls['data']}': "
                                      'no worker here is, see --allow-origin']


def test_python_work_function_runs_unless_it_needs_numpy(slow):
    assert slow['python'].wait() == 1
    assert [line[:27] for line in slow['python'].errors] == ['the mocked DCP has no NumPy']
    results = [{'a': 2, 'b': 2, 'extra': [0.5, None]}, {'c': 1, 'extra': [0.5, None]}]
    assert str(results) in slow['python'].lines


def test_no_fault_loses_or_doubles_a_result(slow, web):
    assert slow['faulty'].wait() == 0, slow['faulty'].output
    job = Played(slow['faulty'].lines, slow['faulty'])
    assert job.results == ['stored'] * 8 and [said.get('event') for said in job.log].count('result') == 8
    assert sorted(status['slice'] for status in job.said('status')) == [1, 2, 7, 7]    # by its seed
    assert len(web.forms['faulty']) > len(job.said('result')) > 8    # lost answers, and repeats
    assert {status['reason'] for status in job.said('status')} == {
        'the sandbox has ended', 'the mocked worker was told to return it', 'the result was not stored'}


def test_tutorial_starts_a_server_or_names_the_one_that_runs_and_killed_leaves_nothing_running(project):
    def write_job(*job):
        script = f"server_url = '{project.url}/key'\n" + START + job_script(*job)
        (project.folder / 'remote-job.py').write_text(script)
    (project.folder / 'server.py').write_text(SERVER.replace('PORT', str(project.port)))
    (project.folder / 'key').mkdir()
    (project.folder / 'key' / 'health').write_text('{"data_file": "a file", "results_folder": "its folder"}')
    proxies = {'HTTP_PROXY': 'http://127.0.0.1:9', 'http_proxy': 'http://127.0.0.1:9'}    # not to be asked
    write_job("() => { progress(); console.log('looping'); for (;;); }")
    job = project.start('-m', 'tests.mock_dcp', **proxies)
    job.wait_for('console.*looping')
    write_job(IDENTITY, "[URL(f'{server_url}/health')]")
    other = project.run('-m', 'tests.mock_dcp', **proxies)
    assert other.status == 0 and 'a file' in other.lines[-1], other.output
    assert other.errors == [f'A server.py runs already at {project.url}/key: results go to its folder.']
    left = subprocess.check_output(['pgrep', '-P', str(job.process.pid)], text=True).split()
    processes = [os.pidfd_open(int(pid)) for pid in left]
    job.stop()
    assert len(left) == 3 and job.lines[3] in left    # the server, and two sandboxes, one in an endless loop
    assert all(select.select([process], [], [], 10)[0] for process in processes)    # all of them end
