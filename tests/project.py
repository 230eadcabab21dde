"""A copy of the project to edit and run as a user would: its server, and its job on the mocked DCP."""
import csv
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from urllib.parse import urlencode, urlsplit

csv.field_size_limit(10 ** 7)
PROJECT = Path(__file__).resolve().parents[1]
signal.signal(signal.SIGINT, signal.default_int_handler)    # what a background shell starts would ignore it


class Project:
    """A copy of the project's scripts and data in a folder of its own, on a port of its own."""

    def __init__(self, folder):
        for name in ('input', 'tests'):
            shutil.copytree(PROJECT / name, folder / name)
        (folder / 'results').mkdir()
        for name in ('server.py', 'remote-job.py', 'results/page.html'):
            shutil.copy(PROJECT / name, folder / name)
        with socket.create_server(('127.0.0.1', 0)) as free:
            self.port = free.getsockname()[1]
        self.folder, self.running, self.url = folder, [], f'http://127.0.0.1:{self.port}'
        for script, name, value in (    # which the user may have changed
                ('server.py', 'port', self.port), ('remote-job.py', 'server_url', self.url),
                ('remote-job.py', 'job.computeGroups', [{'joinKey': 'demo', 'joinSecret': 'dcp'}])):
            line = re.search(f'(?m)^{name} = .*', (folder / script).read_text(encoding='utf-8'))[0]
            self.edit(script, line, f'{name} = {value!r}')

    def edit(self, script, old, new):
        """Change a script as the README tells its reader to."""
        text = (self.folder / script).read_text(encoding='utf-8')
        assert text.count(old) == 1, f'{old!r} is not once in {script}'
        (self.folder / script).write_text(text.replace(old, new), encoding='utf-8')

    def start(self, *arguments, **environment):
        """Start a Python command in the project's folder; its output is read as it comes."""
        self.running.append(Process([sys.executable, '-u', *map(str, arguments)], self.folder, environment))
        return self.running[-1]

    def run(self, *arguments, **environment):
        """Run a Python command in the project's folder to its end."""
        process = self.start(*arguments, **environment)
        process.wait()
        return process

    def serve(self, *command, **environment):
        """Start server.py, or a command that serves in its place, and return when it takes connections."""
        server, deadline = self.start(*(command or ['server.py']), **environment), time.monotonic() + 20
        while not self.is_reached():    # what it prints comes before it listens
            assert server.process.poll() is None and time.monotonic() < deadline, server.output
            time.sleep(0.02)
        return server

    def is_reached(self):
        with socket.socket() as visitor:
            return visitor.connect_ex(('127.0.0.1', self.port)) == 0

    def run_job(self, *options, **environment):
        """Run remote-job.py on the mocked DCP. Unless told otherwise, its workers may use the server."""
        return self.run(*self.job_command(*options), **environment)

    def start_job(self, *options, **environment):
        return self.start(*self.job_command(*options), **environment)

    def job_command(self, *options):
        allowed = [] if '--allow-origin' in options else ['--allow-origin', self.url]
        return ['-m', 'tests.mock_dcp', *allowed, *options, 'remote-job.py']

    def stop(self):
        """End all that still runs."""
        for process in self.running:
            process.stop()

    def request(self, path, data=None, method=None, headers={}):
        """Send a request straight to the server. Return status, text and headers of whatever it answers."""
        url, form = urlsplit(self.url), data and urlencode(data)
        connection = (HTTPSConnection if url.scheme == 'https' else HTTPConnection)(url.netloc, timeout=30)
        headers = {'Content-Type': 'application/x-www-form-urlencoded', **headers}
        connection.request(method or ('POST' if form else 'GET'), url.path + path, form, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), answer.headers

    def post(self, slice_number, result, job='job1', **fields):
        """Post a result as a DCP worker does, or other fields. Return status and text of the answer."""
        is_false = result in (None, 0, '')    # in JavaScript, as is False
        content = {'error': 'null'} if is_false else {'content': json.dumps(result)}
        form = {'element': slice_number, 'contentType': 'application/json', **content, 'job': job, **fields}
        return self.request('/dcp-results', form)[:2]

    def results(self):
        """Return the results files, the oldest first."""
        return sorted((self.folder / 'results').glob('*.txt'))

    def rows(self, job='job1'):
        """Return a job's rows of all results files. Half a line at the end of a file is none."""
        tables = [path.read_text(encoding='utf-8').split('\n')[:-1] for path in self.results()]
        rows = [row for lines in tables for row in csv.DictReader(lines, delimiter='\t')]
        return [row for row in rows if row.get('job') == job]


class ServerModule(Project):
    """A project whose server.py is a module of this process, where its disk can be made to fail."""

    def restart(self):
        """Import server.py afresh: as after a kill, it knows nothing but its files."""
        spec = importlib.util.spec_from_file_location('server', self.folder / 'server.py')
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.app = module.app

    def request(self, path, data=None, method=None, headers={}):
        method = method or ('GET' if data is None else 'POST')
        answer = self.app.test_client().open(path, method=method, data=data, headers=headers)
        return answer.status_code, answer.text, answer.headers


class Process:
    """A running command whose output (and errors) can be waited for, line by line."""

    def __init__(self, command, folder, environment):
        pipe, environment = subprocess.PIPE, {**os.environ, **environment}
        self.process = subprocess.Popen(command, cwd=folder, env=environment, encoding='utf-8',
                                        stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe)
        self.lines, self.errors, self.status, self.news = [], [], None, threading.Condition()
        self.readers = [threading.Thread(target=self.read, args=pair, daemon=True) for pair in
                        ((self.process.stdout, self.lines), (self.process.stderr, self.errors))]
        for reader in self.readers:
            reader.start()

    def read(self, stream, lines):
        with stream:
            for line in stream:
                with self.news:
                    lines.append(line.rstrip('\n'))
                    self.news.notify_all()

    def wait_for(self, pattern, timeout=60, times=1):
        """Return the first line of output or errors that matches a regular expression, once so many do."""
        found = lambda: [line for line in self.lines + self.errors if re.search(pattern, line)]
        with self.news:
            is_there = self.news.wait_for(lambda: len(found()) >= times, timeout)
            assert is_there, f'no line {pattern!r} in:\n{self.output}'
            return found()[0]

    def wait(self, timeout=120):
        """Return the exit status, and all the output in `lines` and `errors`."""
        self.status = self.process.wait(timeout)
        for reader in self.readers:
            reader.join()
        return self.status

    def stop(self, with_signal=signal.SIGKILL):
        self.process.send_signal(with_signal)
        return self.wait()

    @property
    def output(self):
        return '\n'.join(self.lines + self.errors)


def make_certificate(folder):
    """Make a certificate of 127.0.0.1, and its private key, in a folder. Return the paths of both."""
    openssl = ('openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=test'
               ' -addext subjectAltName=IP:127.0.0.1 -out certificate.pem -keyout private_key.pem')
    subprocess.run(openssl.split(), cwd=folder, check=True, capture_output=True)
    return folder / 'certificate.pem', folder / 'private_key.pem'
