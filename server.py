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
from datetime import datetime, timedelta
from pathlib import Path

from flask import Flask, abort, request, send_file, send_from_directory
from werkzeug.exceptions import HTTPException
from werkzeug.serving import WSGIRequestHandler, make_server

# SETTINGS
here = Path(__file__).resolve().parent
port = 5001
data_file = here / 'input' / 'GSE57383_ps_psa.txt'
results_folder = here / 'results'
results_name = 'GSE57383_PsA_vs_Ps'       # each results file is called this, and the time of its first result
browser_origins = ['https://dcp.work']    # the only web pages that may read data or post results
access_key = ''                           # if set, whoever comes needs it: the same as in remote-job.py
certificate = None                        # for https: (here / 'certificate.pem', here / 'private_key.pem')
max_result_size = 10_000_000              # bytes of the form that is posted; a larger one is refused

app = Flask('server', static_folder=None)
app.json.sort_keys = False    # the results page takes the last job that was heard of for the newest
app.config['MAX_CONTENT_LENGTH'] = app.config['MAX_FORM_MEMORY_SIZE'] = max_result_size
logging.basicConfig(format='%(asctime)s %(message)s', datefmt='%H:%M:%S', level=logging.INFO)
logging.getLogger('werkzeug').setLevel(logging.ERROR)    # its line per request would show the access key
log = logging.getLogger('server')
activity = {'fetches': 0, 'refusals': 0, 'last_refusal': ''}    # since the start: for remote-job.py to ask


# DATA
@app.get('/GSE57383_ps_psa')
def send_data():
    """Send the data file. Of all content types only text/plain reaches a work function as a plain string."""
    activity['fetches'] += 1
    return send_file(data_file, mimetype='text/plain')


@app.get('/health')
def health():
    """Say whether the data file is there, and where results go."""
    return {'data_file': data_file.name, 'data_file_exists': data_file.is_file(),
            'results_folder': str(results_folder)}


# RESULTS
@app.post('/dcp-results')
def receive_result():
    """Store the result of one slice, which a worker posts as a form, and answer once it is on the disk.

    The form has `element`, the slice number; `content`, what the work function returned, as JSON; and what
    remote-job.py gave to setResultStorage: `job` and `key`. DCP repeats a slice whose answer got lost.
    """
    if not re.fullmatch('[1-9][0-9]{0,15}', request.form.get('element', '')):
        abort(400, 'element is not a slice number')
    slice_number = int(request.form['element'])
    results = results_of(request.form.get('job', ''))
    result = read_content(request.form)
    if isinstance(result, dict) and {'errorCode', 'message', 'stack'} <= result.keys():    # was thrown
        message = ascii(str(result['message']))[1:-1]    # in one line
        answer = f'work function failed: {message}'[:200]    # DCP sees what is answered
        if slice_number not in results.slices:
            results.failed[slice_number] = answer
    else:
        results.store(slice_number, result)
        answer = 'Result received'
    log.info('%s slice %d: %s', request.remote_addr, slice_number, answer)
    return answer, {'Content-Type': 'text/plain'}


def read_content(form):
    """Return what the work function returned. DCP posts 0, '', false, null, NaN as error=null: None here."""
    if 'content' not in form and form.get('error') == 'null':
        return None
    try:
        return json.loads(form['content'])
    except (KeyError, ValueError, RecursionError):
        abort(400, 'content is missing, or not JSON')


@app.get('/dcp-results/<job>')
def report(job):
    """Say which slices of a job are stored and which failed, and what has happened since the start."""
    results = results_of(job)
    return {'slices': sorted(results.slices.copy()), 'failed': results.failed.copy(), **activity}


@app.get('/')
def send_page():
    """Send a web page that shows the results as they arrive. It has to ask for the access key itself."""
    return send_file(here / 'results' / 'page.html')


@app.get('/results')
def list_results():
    """List the results files for that page, the newest first."""
    files = []
    for path in sorted(results_folder.glob('*.txt'), key=os.path.getmtime, reverse=True):
        with open(path, 'rb') as file:
            header, first_line = file.readline(), file.readline()
        if first_line and header.startswith(b'job\tslice\t'):
            job = first_line.partition(b'\t')[0].decode(errors='replace')
            files.append({'name': path.name, 'job': job, 'size': path.stat().st_size})
    failed = {job: results.failed.copy() for job, results in jobs.copy().items()}
    return {'files': files, 'failed': failed, **activity, **health()}


@app.get('/results/<name>')
def send_results(name):
    """Send a results file, or only what is new in it: the part that a Range header asks for."""
    return send_from_directory(results_folder, name, mimetype='text/plain')


# WHO MAY COME IN
@app.before_request
def refuse_strangers():
    """Refuse web pages that are not on the list, and whoever does not have the access key.

    Docker and Linux workers are no web pages: they send no Origin. The results page needs no key, as it asks
    its reader for one, nor does OPTIONS, by which browsers ask what a page may do.
    """
    if 'Origin' in request.headers and request.headers['Origin'] not in browser_origins:
        abort(403, 'this web page may not use this server: see browser_origins in server.py')
    if request.path in ('/', '/health') or request.method == 'OPTIONS':
        return
    bearer = request.headers.get('Authorization', '').removeprefix('Bearer ')
    key = request.values.get('key', bearer)
    if not hmac.compare_digest(key.encode(), access_key.encode()):
        abort(403, 'wrong or missing access key: see access_key in server.py')


@app.after_request
def admit_browser_workers(response):
    """Let the listed web pages read the answers, in the way that browsers ask for (CORS)."""
    response.headers['X-Content-Type-Options'] = 'nosniff'    # browsers must not take data for a page
    response.headers['Vary'] = 'Origin'
    if request.headers.get('Origin') in browser_origins:
        response.headers['Access-Control-Allow-Origin'] = request.headers['Origin']
        response.headers['Access-Control-Allow-Methods'] = 'GET, POST'
        response.headers['Access-Control-Allow-Headers'] = 'Content-Type'
    return response


@app.errorhandler(HTTPException)
def refuse(error):
    """Answer a refused request with one line that names the problem, and log it without the access key."""
    asked = ascii(f'{request.method} {request.path}'.partition('key=')[0])[:100]
    problem = error.description.partition('. ')[0]
    note_refusal(request.remote_addr, f'{asked} refused: {error.code} {problem}')
    return f'{problem}\n', error.code, {'Content-Type': 'text/plain'}


@app.errorhandler(OSError)
@app.errorhandler(RecursionError)    # JSON that is nested too deep
def fail(error):
    """Answer 500 when the disk fails: the worker then gives the slice back, and DCP computes it again."""
    note_refusal(request.remote_addr, f'{request.method} failed: {error}')
    return 'the server cannot read or write its files: see its log\n', 500


def note_refusal(address, problem):
    log.warning('%s %s', address, problem)
    activity['refusals'] += 1
    activity['last_refusal'] = f'{address} {problem}'


# RESULTS FILES: tables with a line per slice. Only whole lines count, so that half a line does no harm.
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
    """Which slices of a job are stored, and the file that the next result goes to.

    That is a file which this server has begun since it started, and nobody has changed; or else a new one. So
    whatever happened to a file, be it a crash or a spreadsheet, the next result is safe.
    """

    def __init__(self, job):
        self.job, self.lock = job, threading.Lock()
        self.slices = stored_slices(job)
        self.failed = {}    # slice number: what its work function threw
        self.path, self.size, self.columns = None, 0, []

    def store(self, slice_number, result):
        """Return once a result of the slice is on the disk, this one or an earlier one. Raises OSError."""
        with self.lock:
            if slice_number in self.slices:
                return
            self.append(slice_number, result)
            if self.job:
                self.slices.add(slice_number)
            self.failed.pop(slice_number, None)

    def append(self, slice_number, result):
        """Append a line to the file, on the disk. If that fails, the file ends where it ended before."""
        row = result if isinstance(result, dict) and result else {'result': result}
        as_we_left_it = self.path and self.path.exists() and self.path.stat().st_size == self.size
        if not as_we_left_it:
            self.path, self.size, self.columns = new_file(), 0, list(row)
        if row.keys() == set(self.columns):
            cells = [as_cell(row[column]) for column in self.columns]
        else:
            log.warning('slice %d has other columns than the first result', slice_number)
            cells = [''] * (len(self.columns) - 1) + [json.dumps(result)]
        lines = as_line([self.job, slice_number, *cells])
        if self.size == 0:
            lines = as_line(['job', 'slice', *map(as_cell, self.columns)]) + lines
        try:
            with open(self.path, 'ab') as file:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            os.truncate(self.path, self.size)
            raise
        self.size += len(lines)


def stored_slices(job):
    """Return the slice numbers of a job in the whole lines of all results files, as a set."""
    slices = set()
    line = re.compile(rb'^%s\t([1-9][0-9]{0,15})\t[^\0\n]*\n' % job.encode(), re.MULTILINE)
    for path in results_folder.glob('*.txt'):
        numbers = line.findall(path.read_bytes())
        if job and numbers:
            with open(path, 'r+b') as file:
                os.fsync(file.fileno())    # the server may have been killed before it did that
            slices.update(map(int, numbers))
    return slices


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
    """Werkzeug's, but a malformed request makes one line in the log, and that without the access key."""

    timeout = 60    # seconds; a worker that vanished must not keep its thread for ever

    def make_environ(self):
        try:
            return super().make_environ()
        except ValueError:    # a malformed address
            self.send_error(400)
            raise ConnectionAbortedError from None    # which ends the connection

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
        sys.exit(f'Cannot write to {results_folder} ({error.strerror}): make it a folder that you may use.')
    try:
        listener = socket.create_server(('', port))
    except OSError as error:
        sys.exit(f'Cannot use port {port} ({error.strerror}): stop what uses it, or change port.')
    try:
        server = make_server('', port, app, threaded=True, request_handler=Handler, ssl_context=certificate,
                             fd=listener.fileno())
    except OSError as error:
        sys.exit(f'Cannot use the certificate {certificate} ({error.strerror}): see certificate above.')
    if certificate:
        server.socket.do_handshake_on_connect = False    # but in a thread: a slow one must not stop all
    url = f'{"https" if certificate else "http"}://{lan_address()}:{port}'
    print(f' * Serving data on: {url}')
    print(f' * DCP results endpoint: {url}/dcp-results')
    print(" * Serving Flask app 'server'")
    print(' * Debug mode: off', flush=True)
    server.serve_forever()


if __name__ == '__main__':
    main()
