"""A copy of the project to edit and run as a user would: its server, and its job on the mocked DCP.

Also the two parts of remote-job.py that run without DCP: its input set and its work function."""
import ast
import csv
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from functools import partial
from pathlib import Path

from input.simulate import simulate

PROJECT = Path(__file__).resolve().parents[1]
SCORES = {'probesets': '1007_s_at, 1053_at', 'centroid AUC': 0.8, 'ensemble AUC': 0.85}
RECEIVED = (200, 'Result received')
EMPTY = (200, 'Result received, but it is empty: return an object')
RESERVED_COLUMN = (200, 'Result received, but the file has columns job and slice already: rename its own')
OTHER_COLUMNS = (200, 'Result received, but its columns are not those of the first result')


class Server:
    """What tests ask of a server. Subclasses have `request`, and `folder`, where the folder of results is."""

    def post(self, slice_number, result, job='job1', **fields):
        """Post a result as a DCP worker does: what JavaScript takes for false as error=null.

        Other fields replace those of the form; None leaves a field out. Return status and text of the answer.
        """
        falsy = result is None or result in ('', 0, False)
        content = {'error': 'null'} if falsy else {'content': json.dumps(result)}
        form = {'element': slice_number, 'contentType': 'application/json', 'elementType': 'results',
                **content, 'job': job, 'key': '', **fields}
        form = {name: value for name, value in form.items() if value is not None}
        return self.request('/dcp-results', form)[:2]

    def report(self, job='job1'):
        return json.loads(self.request(f'/dcp-results/{job}')[1])

    def stored(self, job='job1'):
        return self.report(job)['slices']

    def results(self):
        """Return the results files, the oldest first."""
        return sorted((self.folder / 'results').glob('*.txt'))

    def rows(self, job='job1'):
        """Return a job's rows of all results files. Half a line at the end of a file is none."""
        rows = []
        csv.field_size_limit(10 ** 7)
        for path in self.results():
            with open(path, newline='', encoding='utf-8') as file:
                whole_lines = [line for line in file if line.endswith('\n')]
            rows += csv.DictReader(whole_lines, delimiter='\t')
        return [row for row in rows if row.get('job') == job]    # other tables may lie there, too


class ServerModule(Server):
    """server.py as a module of this process, where its disk can be made to fail; results are in a given folder."""

    def __init__(self, folder):
        self.folder = folder
        self.restart()

    def restart(self):
        """Import server.py afresh: as after a kill, it knows nothing but its files."""
        spec = importlib.util.spec_from_file_location('server', PROJECT / 'server.py')
        self.module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.module)
        self.module.results_folder = self.folder / 'results'

    def request(self, path, data=None, method=None, headers={}):
        method = method or ('GET' if data is None else 'POST')
        answer = self.module.app.test_client().open(path, method=method, data=data, headers=headers)
        return answer.status_code, answer.text, answer.headers


class Project(Server):
    """A copy of the project's scripts and data in a folder of its own, on a port of its own."""

    def __init__(self, folder):
        folder.mkdir()
        self.folder, self.running = folder, []
        for name in ('server.py', 'remote-job.py', 'input', 'tests'):
            source = PROJECT / name
            shutil.copytree(source, folder / name) if source.is_dir() else shutil.copy(source, folder / name)
        with socket.create_server(('127.0.0.1', 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f'http://127.0.0.1:{self.port}'
        self.edit('server.py', 'port = 5001', f'port = {self.port}')
        self.edit('remote-job.py', "server_url = 'http://127.0.0.1:5001'", f'server_url = {self.url!r}')

    def edit(self, script, old, new):
        """Change a script as the README tells its reader to."""
        text = (self.folder / script).read_text()
        assert text.count(old) == 1, f'{old!r} is not once in {script}'
        (self.folder / script).write_text(text.replace(old, new))

    def start(self, *arguments, **environment):
        """Start a Python command in the project's folder; its output is read as it comes."""
        process = Process([sys.executable, '-u', *map(str, arguments)], self.folder, environment)
        self.running.append(process)
        return process

    def run(self, *arguments, **environment):
        """Run a Python command in the project's folder to its end."""
        process = self.start(*arguments, **environment)
        process.wait()
        return process

    def serve(self):
        """Start server.py and return when it answers."""
        server = self.start('server.py')
        server.wait_for(' * Debug mode: off')
        return server

    def wait_until_reached(self):
        """Return when the server's port takes connections, for servers that do not say when."""
        until = time.monotonic() + 20
        while True:
            try:
                return socket.create_connection(('127.0.0.1', self.port)).close()
            except ConnectionRefusedError:
                assert time.monotonic() < until, 'the server does not start'
                time.sleep(0.02)

    def run_job(self, *options, **environment):
        """Run remote-job.py on the mocked DCP, with workers that may use the server unless told otherwise."""
        return self.run(*self.job_command(*options), **environment)

    def start_job(self, *options, **environment):
        return self.start(*self.job_command(*options), **environment)

    def job_command(self, *options):
        allowed = [] if '--allow-origin' in options else ['--allow-origin', self.url]
        return ['-m', 'tests.mock_dcp', *allowed, *options, 'remote-job.py']

    def stop(self):
        """End all that still runs."""
        for process in self.running:
            if process.process.poll() is None:
                process.stop()
            process.process.stdout.close()
            process.process.stderr.close()

    def request(self, path, data=None, method=None, headers={}):
        """Send a request straight to the server. Return status, text and headers of the answer, whatever they are."""
        body = urllib.parse.urlencode(data).encode() if isinstance(data, dict) else data
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(urllib.request.Request(self.url + path, body, headers, method=method)) as answer:
                return answer.status, answer.read().decode(), answer.headers
        except urllib.error.HTTPError as answer:
            return answer.code, answer.read().decode(), answer.headers


class Process:
    """A running command whose output (and errors) can be waited for, line by line."""

    def __init__(self, command, folder, environment):
        environment, self.started = {**os.environ, **environment}, time.monotonic()
        heed_interrupt = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)    # a background shell ignores it
        self.process = subprocess.Popen(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding='utf-8',
                                        preexec_fn=heed_interrupt if os.name == 'posix' else None)
        self.lines, self.errors, self.news = [], [], threading.Condition()
        self.readers = [threading.Thread(target=self.read, args=pair, daemon=True) for pair in
                        ((self.process.stdout, self.lines), (self.process.stderr, self.errors))]
        for reader in self.readers:
            reader.start()

    def read(self, stream, lines):
        for line in stream:
            with self.news:
                lines.append(line.rstrip('\n'))
                self.news.notify_all()
        with self.news:
            self.news.notify_all()

    def wait_for(self, pattern, timeout=60):
        """Return the first line of output or errors that matches a regular expression, as soon as there is one."""
        def found():
            return next((line for line in self.lines + self.errors if re.search(pattern, line)), None)
        with self.news:
            over = lambda: found() is not None or not any(reader.is_alive() for reader in self.readers)
            self.news.wait_for(over, timeout)
            assert found() is not None, f'no line {pattern!r} in:\n{self.output}'
            return found()

    def wait(self, timeout=120):
        """Return the exit status, and all the output in `lines` and `errors`."""
        status = self.process.wait(timeout)
        for reader in self.readers:
            reader.join()
        return status

    def stop(self, with_signal=signal.SIGKILL):
        self.process.send_signal(with_signal)
        return self.wait()

    @property
    def status(self):
        return self.process.returncode

    @property
    def output(self):
        return '\n'.join(self.lines + self.errors)


def make_certificate(folder):
    """Make a certificate of 127.0.0.1, and its private key, in a folder. Return the paths of both."""
    openssl = ('openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=test'
               ' -addext subjectAltName=IP:127.0.0.1 -out certificate.pem -keyout private_key.pem')
    subprocess.run(openssl.split(), cwd=folder, check=True, capture_output=True)
    return folder / 'certificate.pem', folder / 'private_key.pem'


JOB_SCRIPT = (PROJECT / 'remote-job.py').read_text(encoding='utf-8')
INPUT_SET = re.search('^# INPUT SET.*?(?=^# WORK FUNCTION)', JOB_SCRIPT, re.MULTILINE | re.DOTALL)[0]
WORK_FUNCTION = next(node.value.value for node in ast.parse(JOB_SCRIPT).body
                     if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == 'work_function')
DRIVER = '''(task) => {
  const { source, data, slices, laterData } = JSON.parse(task);
  const workFunction = Function(`return ${source}`)();
  const outcomes = slices.map((slice, number) => {
    const progress = [];
    globalThis.progress = (done) => progress.push(done);
    try {
      return { result: workFunction(slice, number ? laterData : data), progress };
    } catch (error) {
      return { error: error.message, isError: error instanceof Error };
    }
  });
  return JSON.stringify(outcomes);
}'''
ENGINES = {
    'V8': ['node', '-e', f"console.log(({DRIVER})(require('fs').readFileSync(0, 'utf8')))"],
    'SpiderMonkey': [sys.executable, '-c', 'import sys, pythonmonkey\n'
                                           f'print(pythonmonkey.eval({DRIVER!r})(sys.stdin.read()))'],
}


def input_set(n_signatures=10, min_length=5, max_length=9, seed=42):
    """Return the slices that remote-job.py makes with these settings."""
    code = INPUT_SET
    for old, new in {'n_signatures = 10': f'n_signatures = {n_signatures}',
                     'max_length = 5, 9': f'max_length = {min_length}, {max_length}',
                     'seed(42)': f'seed({seed})'}.items():
        assert code.count(old) == 1, f'{old!r} is not once in remote-job.py'
        code = code.replace(old, new)
    variables = {'random': random}
    exec(code, variables)
    return variables['slices']


def table(samples=60, probesets=40, differing=0, change=None):
    """Return the text of simulated data; change(phenotypes, matrix) edits them in place."""
    phenotypes, names, matrix = simulate(samples, probesets, differing, seed=1)
    if change:
        change(phenotypes, matrix)
    rows = [[phenotype, *(f'{value:.6f}' for value in row)] for phenotype, row in zip(phenotypes, matrix)]
    return ''.join('\t'.join(row) + '\n' for row in [['phenotype', *names], *rows])


def compute(data, slices, engine='V8', source=WORK_FUNCTION, later_data=None):
    """Let the work function compute slices one after the other, in one new sandbox. Return a dict of each:
    its `result` and all `progress` that it reported, or its `error`. Later slices may get other data."""
    task = {'source': source, 'slices': slices, 'data': data,
            'laterData': data if later_data is None else later_data}
    process = subprocess.run(ENGINES[engine], input=json.dumps(task), stdout=subprocess.PIPE, text=True,
                             timeout=100, check=True)
    return json.loads(process.stdout)
