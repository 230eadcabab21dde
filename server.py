"""Serve a data file to DCP workers, and store the results that they post back.

Neither passes through DCP's scheduler: the workers that compute the job fetch from here, and post to here.
"""
import csv
import hmac
import io
import json
import logging
import os
import re
import socket
import sys
import tempfile
import threading
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

from flask import Flask, abort, request, send_file
from werkzeug.exceptions import HTTPException
from werkzeug.serving import WSGIRequestHandler, make_server

# SETTINGS
here = Path(__file__).resolve().parent
port = 5001
data_file = here / 'input' / 'GSE57383_ps_psa.txt'
results_folder = here / 'results'
results_name = 'GSE57383_PsA_vs_Ps'       # each results file is called this, and the time of its first result
browser_origins = ['https://dcp.work']    # the only web pages that may read data or post results
access_key = ''                           # if set, data and results need it; remote-job.py needs the same
certificate = None                        # for https: (here / 'certificate.pem', here / 'private_key.pem')
max_result_size = 10_000_000              # bytes of the form that is posted; a larger one is refused

app = Flask('server', static_folder=None)    # serves what has a route below, and no files besides
app.config['MAX_CONTENT_LENGTH'] = app.config['MAX_FORM_MEMORY_SIZE'] = max_result_size
app.url_map.merge_slashes = False    # it redirects, and the new address would show the access key
logging.basicConfig(format='%(asctime)s %(message)s', datefmt='%H:%M:%S', level=logging.INFO)
logging.getLogger('werkzeug').setLevel(logging.ERROR)    # its line per request would show the access key
log = logging.getLogger('server')
activity = {'fetches': 0, 'last_refusal': ''}    # what remote-job.py asks for when no results come


# DATA
@app.get('/GSE57383_ps_psa')
def send_data():
    """Send the data file. Of all content types only text/plain reaches a work function as a plain string."""
    check_key(request.args.get('key', ''))
    if request.method == 'GET':
        activity['fetches'] += 1
    return send_file(data_file, mimetype='text/plain')


@app.get('/health')
def health():
    """Say whether the data file is there, and where results go."""
    return {'data_file': str(data_file), 'data_file_exists': data_file.is_file(),
            'results_folder': str(results_folder)}


# RESULTS
@app.post('/dcp-results')
def receive_result():
    """Store the result of one slice, which a worker posts as a form, and answer once it is on the disk.

    The form has `element`, the slice number; `content`, what the work function returned, as JSON; and what
    remote-job.py gave to setResultStorage: `job` and `key`. DCP repeats a slice whose answer got lost.
    """
    form = request.form
    check_key(form.get('key', ''))
    if not re.fullmatch('[1-9][0-9]{0,15}', form.get('element', '')):
        abort(400, 'element is not a slice number')
    slice_number, results = int(form['element']), results_of(form.get('job', ''))
    result = read_content(form)
    if isinstance(result, dict) and {'errorCode', 'message', 'stack'} <= result.keys():
        answer = 'work function failed: ' + ascii(str(result['message']))[1:-1]    # in one line, which DCP sees
        answer = answer[:200]
        results.failed[slice_number] = answer
    else:
        results.store(slice_number, result)
        answer = 'Result received'
    log.info('%s slice %d: %s', request.remote_addr, slice_number, answer)
    return answer, {'Content-Type': 'text/plain'}


def read_content(form):
    """Return what the work function returned. DCP posts 0, '', false, null and NaN as error=null: None here."""
    if 'content' not in form and form.get('error') == 'null':
        return None
    try:
        return json.loads(form['content'])
    except (KeyError, ValueError, RecursionError):
        abort(400, 'content is missing, or not JSON')


@app.get('/dcp-results/<job>')
def report(job):
    """Say which slices of a job are stored and which failed, and what this server has seen since it started."""
    check_key(request.args.get('key', ''))
    results = results_of(job)
    failed = {number: problem for number, problem in results.failed.copy().items() if number not in results.stored}
    return {'slices': sorted(results.stored), 'failed': failed, **activity}


# WHO MAY COME IN
def check_key(key):
    """Refuse a request without the access key, in a time that does not tell how much of the key was right."""
    if not hmac.compare_digest(key.encode(), access_key.encode()):
        abort(403, 'wrong or missing access key: see access_key in server.py')


@app.before_request
def refuse_other_web_pages():
    """Refuse web pages that are not on the list. Docker and Linux workers are no pages: they send no Origin."""
    if 'Origin' in request.headers and request.headers['Origin'] not in browser_origins:
        abort(403, 'this web page may not use this server: see browser_origins in server.py')


@app.after_request
def admit_browser_workers(response):
    """Let the listed web pages read the answers, in the way that browsers ask for (CORS)."""
    response.headers['X-Content-Type-Options'] = 'nosniff'
    response.headers['Vary'] = 'Origin'
    if request.headers.get('Origin') in browser_origins:
        response.headers['Access-Control-Allow-Origin'] = request.headers['Origin']
        response.headers['Access-Control-Allow-Methods'] = 'GET, POST'
        response.headers['Access-Control-Allow-Headers'] = 'Content-Type'
    return response


@app.errorhandler(HTTPException)
def refuse(error):
    """Answer a refused request with one line that names the problem. The log must not show the access key."""
    asked = ascii(f'{request.method} {request.path}'.partition('key=')[0])[:100]
    note_refusal(request.remote_addr, f'{asked} refused: {error.code} {error.description}')
    return f'{error.description}\n', error.code, {'Content-Type': 'text/plain'}


@app.errorhandler(OSError)
def fail(error):
    """Answer 500 when the disk fails: the worker then gives the slice back, and DCP computes it again."""
    note_refusal(request.remote_addr, f'{request.method} failed: {error}')
    return 'the server cannot read or write its files: see its log\n', 500


def note_refusal(address, problem):
    """Log a refusal, and keep it for remote-job.py to ask for."""
    log.warning('%s %s', address, problem)
    activity['last_refusal'] = f'{datetime.now():%H:%M:%S} {address} {problem}'


# RESULTS FILES: tables with a line per slice. A line counts only with its line end, so half a line does no harm.
jobs = {}    # job id: its JobResults
jobs_lock = threading.Lock()


def results_of(job):
    """Return the JobResults of a job id; of '' for results that name no job."""
    if not re.fullmatch('[A-Za-z0-9]{0,64}', job):
        abort(400, 'job is not the id of a DCP job')
    with jobs_lock:
        if job not in jobs:
            jobs[job] = JobResults(job)
        return jobs[job]


class JobResults:
    """The results of one job.

    They go to a file that this server has begun since it started, and that nobody else has changed; or else to a
    new one. So whatever happened to a file, be it a crash or a spreadsheet, the next results are safe.
    """

    def __init__(self, job):
        self.job, self.lock = job, threading.Lock()
        self.stored = stored_slices(job)     # slices that are on the disk for sure
        self.appended = set(self.stored)     # ... and those on their way to it
        self.failed = {}                     # slice number: what its work function threw
        self.path = None                     # the file that results go to

    def store(self, slice_number, result):
        """Return once a result of the slice is on the disk, this one or an earlier one. Raises OSError."""
        with self.lock:
            if slice_number in self.stored:
                return
            if slice_number not in self.appended:
                self.append(slice_number, result)
            path, size = self.path, self.size
        try:
            sync(path)    # outside the lock: results that arrive together share a sync
        except OSError:
            with self.lock, suppress(OSError):
                if path == self.path:
                    self.leave_file()
                    os.truncate(path, self.synced_size)
            raise
        with self.lock:
            if path != self.path:
                raise OSError(f'{path.name} was left before slice {slice_number} was on the disk')
            self.synced_size = max(self.synced_size, size)
            if self.job:
                self.stored.add(slice_number)

    def append(self, slice_number, result):
        """Append a line to the file. If that fails, the file ends where it ended before."""
        columns, cells = as_columns(result)
        if self.path and not (self.path.exists() and self.path.stat().st_size == self.size):
            self.leave_file()
        if not self.path:
            self.path, self.columns = new_file(), columns
            self.size = self.synced_size = 0
        if columns != self.columns:    # all of a result of another kind goes into the last column
            cells = [''] * (len(self.columns) - 1) + [json.dumps(result)]
        lines = as_line([self.job, slice_number, *cells])
        if self.size == 0:
            lines = as_line(['job', 'slice', *self.columns]) + lines
        try:
            with open(self.path, 'ab', buffering=0) as file:
                if file.write(lines) != len(lines):
                    raise OSError('no space left on the disk')
        except OSError:
            os.truncate(self.path, self.size)
            raise
        self.size += len(lines)
        if self.job:
            self.appended.add(slice_number)

    def leave_file(self):
        """Go on in a new file, and forget what is not on the disk for sure."""
        self.path = None
        self.appended = set(self.stored)


def stored_slices(job):
    """Return the numbers of the slices that a job has in the results files, as a set."""
    stored = set()
    line = re.compile(rb'^%s\t([1-9][0-9]{0,15})\t[^\0\n]*\n' % job.encode(), re.MULTILINE)
    for path in results_folder.glob('*.txt'):
        slices = {int(number) for number in line.findall(path.read_bytes())}
        if job and slices:
            sync(path)    # the server may have been killed before it did that
            stored |= slices
    return stored


def sync(path):
    """Return once all that was written to a file is on the disk. Raises OSError."""
    with open(path, 'r+b') as file:
        os.fsync(file.fileno())


def new_file():
    """Create an empty results file, named after this second or the next one that is free. Return its path."""
    results_folder.mkdir(exist_ok=True)
    when = datetime.now()
    while True:
        path = results_folder / f'{results_name}_{when:%d%m%y_%H%M%S}.txt'
        try:
            path.touch(exist_ok=False)
            return path
        except FileExistsError:
            when += timedelta(seconds=1)


def as_columns(result):
    """Return the names and the cells of a result's columns. What is not an object is a single column."""
    if not isinstance(result, dict) or not result:
        result = {'result': result}
    return [as_cell(name) for name in result], [as_cell(value) for value in result.values()]


def as_cell(value):
    """Return plain text as it is; numbers, lists, line ends, and what a spreadsheet would run, as JSON."""
    if isinstance(value, str) and value.isprintable() and not value.startswith(('=', '+', '-', '@')):
        return value
    return json.dumps(value)


def as_line(cells):
    """Return a line of tab-separated cells, as bytes."""
    line = io.StringIO()
    csv.writer(line, delimiter='\t', lineterminator='\n').writerow(cells)
    return line.getvalue().encode()


# RUN
class Handler(WSGIRequestHandler):
    """Werkzeug's, except that malformed requests are refused in a line that does not show the access key."""

    timeout = 60    # seconds; a worker that vanished must not keep its thread for ever

    def make_environ(self):
        try:
            return super().make_environ()
        except ValueError:    # a malformed address
            self.send_error(400)
            raise ConnectionAbortedError from None

    def log_request(self, *_):
        pass

    def log_error(self, *_):
        note_refusal(self.client_address[0], 'malformed or unfinished request')


def lan_address():
    """Return this machine's address in the local network, or 127.0.0.1 if it is in none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(('192.0.2.1', 9))    # chooses the network interface and sends nothing
            return probe.getsockname()[0]
        except OSError:
            return '127.0.0.1'


def main():
    try:
        data_file.open('rb').close()
    except OSError as error:
        sys.exit(f'Cannot read {data_file} ({error.strerror}): put the data there, or change data_file.')
    try:
        results_folder.mkdir(exist_ok=True)
        tempfile.TemporaryFile(dir=results_folder).close()
    except OSError as error:
        sys.exit(f'Cannot write to {results_folder} ({error.strerror}): make it a folder that you may write in.')
    try:
        listener = socket.create_server(('', port))
    except OSError as error:
        sys.exit(f'Cannot use port {port} ({error.strerror}): stop what uses it, or change port.')
    try:
        server = make_server('', port, app, threaded=True, request_handler=Handler, ssl_context=certificate,
                             fd=listener.fileno())
    except OSError as error:
        sys.exit(f'Cannot use the certificate {certificate} ({error.strerror}): see certificate in server.py.')
    if certificate:
        server.socket.do_handshake_on_connect = False    # but in a thread of its own: a slow one must not stop all
    url = f'{"https" if certificate else "http"}://{lan_address()}:{port}'
    print(f' * Serving data on: {url}')
    print(f' * DCP results endpoint: {url}/dcp-results')
    print(" * Serving Flask app 'server'")
    print(' * Debug mode: off', flush=True)
    server.serve_forever()


if __name__ == '__main__':
    main()
