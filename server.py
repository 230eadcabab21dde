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
results_name = 'GSE57383_PsA_vs_Ps'       # a results file is called this, with the time of its first result
browser_origins = ['https://dcp.work']    # the only web pages that may read data or post results
access_key = ''                           # if set, every request must carry it: the same as in remote-job.py
certificate = None                        # for https: (here / 'certificate.pem', here / 'private_key.pem')
max_result_size = 10_000_000              # bytes of the form that is posted; a larger one is refused

# APP (no need to change it)
app = Flask('server', static_folder=None)
app.json.sort_keys = False    # /results keeps the order of the jobs: its page shows the last one
app.config['MAX_CONTENT_LENGTH'] = max_result_size
app.config['MAX_FORM_MEMORY_SIZE'] = max_result_size    # otherwise 500 kB
logging.basicConfig(format='%(asctime)s %(message)s', datefmt='%H:%M:%S', level=logging.INFO)
logging.getLogger('werkzeug').setLevel(logging.ERROR)    # its line per request would show the access key
log = logging.getLogger('server')
activity = {'fetches': 0, 'refusals': 0, 'last_refusal': ''}    # since the start, for remote-job.py to ask
activity_lock = threading.Lock()    # each request has a thread of its own


# DATA
@app.get('/GSE57383_ps_psa')
def send_data():
    """Send the data file, as text/plain, which the work function gets as a plain string."""
    with activity_lock:
        activity['fetches'] += 1
    return send_file(data_file, mimetype='text/plain')


@app.get('/health')
def health():
    """Say whether the data file is there. Anybody may ask this."""
    return {'data_file': data_file.name, 'data_file_exists': data_file.is_file()}


# RESULTS
@app.post('/dcp-results')
def receive_result():
    """Store the result of one slice, which a worker posts as a form, and answer once it is on the disk.

    The form has `element`, the slice number; `content`, what the work function returned, as JSON; and `job`
    and `key`, which remote-job.py gave to setResultStorage. If the work function threw, `content` is an
    object with errorCode, message and stack. If the answer gets lost, DCP repeats the slice: that is
    answered, but not stored again.
    """
    if not re.fullmatch('[1-9][0-9]{0,15}', request.form.get('element', '')):
        abort(400, 'element is not a slice number')
    slice_number = int(request.form['element'])
    result = read_content(request.form)
    results = results_of(checked(request.form.get('job', '')))
    if isinstance(result, dict) and {'errorCode', 'message', 'stack'} <= result.keys():
        answer = f'work function failed: {result["message"]!r}'[:200]    # short, as DCP sees the answer
        results.note_failure(slice_number, answer)
    else:
        answer = results.store(slice_number, result)
    log.info('%s slice %d: %s', request.remote_addr, slice_number, answer)
    return answer, {'Content-Type': 'text/plain'}


def read_content(form):
    """Return what the work function returned. For 0, '', false, null and NaN, DCP posts only `error=null`."""
    if 'content' not in form and form.get('error') == 'null':
        return None
    try:
        return json.loads(form['content'])
    except (KeyError, ValueError, RecursionError):
        abort(400, 'content is missing, or not JSON')


def checked(job):
    """Return the id of a job, or refuse what cannot be one."""
    if not re.fullmatch('[A-Za-z0-9]{0,64}', job):
        abort(400, 'job is not the id of a DCP job')
    return job


@app.get('/dcp-results/<job>')
def report(job):
    """Say which slices of a job are stored and which failed, and what has happened since the start."""
    results = jobs.get(job) or JobResults(checked(job))    # unknown since the start: look into the files
    # Copies, because other threads may be adding to these.
    return {'slices': sorted(results.slices.copy()), 'failed': results.failed.copy(), **activity}


# WHO MAY COME IN
@app.before_request
def refuse_strangers():
    """Refuse web pages that are not on the list, and whoever does not have the access key.

    Browsers say in Origin which web page asks. Other workers send none, nor does the results page, because
    it comes from here. Three things need no key: that page, /health, and OPTIONS, by which browsers ask what
    they may do.
    """
    if 'Origin' in request.headers and request.headers['Origin'] not in browser_origins:
        abort(403, 'this web page may not use this server: see browser_origins in server.py')
    if request.path in ('/', '/health') or request.method == 'OPTIONS':
        return
    key = request.values.get('key')    # from workers and remote-job.py: in the address, or in the form
    if key is None:
        key = request.headers.get('Authorization', '').partition('Bearer ')[2]    # from the results page
    if not hmac.compare_digest(key.encode(), access_key.encode()):
        abort(403, 'wrong or missing access key: see access_key in server.py')


@app.after_request
def admit_browser_workers(response):
    """Let the listed web pages read the answers, in the way that browsers ask for (CORS)."""
    response.headers['X-Content-Type-Options'] = 'nosniff'    # browsers must not take data for a page
    response.vary.add('Origin')
    if request.headers.get('Origin') in browser_origins:
        response.headers['Access-Control-Allow-Origin'] = request.headers['Origin']
        response.headers['Access-Control-Allow-Methods'] = 'GET, POST'
        response.headers['Access-Control-Allow-Headers'] = 'Content-Type'
    return response


@app.errorhandler(HTTPException)
def refuse(error):
    """Answer a refused request with one line that names the problem, and log it without the access key."""
    asked = f'{request.method} {request.path}'.partition('key=')[0]    # if a client wrote &key= for ?key=
    problem = error.description.partition('. ')[0].removesuffix('.')    # only the first sentence
    if error.code != 416:    # that only says: there is nothing new in a results file
        note_refusal(request.remote_addr, f'{asked[:100]!r} refused: {error.code} {problem}')
    answer = error.get_response()
    answer.data = f'{problem}\n'
    answer.content_type = 'text/plain'
    return answer


@app.errorhandler(OSError)
def fail(error):
    """Answer 500 when the disk fails: the worker then gives the slice back, and DCP computes it again."""
    note_refusal(request.remote_addr, f'{request.method} failed: {error}')
    return 'the server cannot read or write its files: see its log\n', 500, {'Content-Type': 'text/plain'}


def note_refusal(address, problem):
    log.warning('%s %s', address, problem)
    with activity_lock:
        activity['refusals'] += 1
        activity['last_refusal'] = f'{address} {problem}'


# RESULTS PAGE (to store results it is not needed)
@app.get('/')
def send_page():
    """Send a web page that shows the results as they arrive."""
    return send_file(here / 'results' / 'page.html')    # there, wherever results_folder is


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


# RESULTS FILES (on a first reading, skip to RUN): tables with a line per slice. A line that a crash cut in
# half does not count: DCP got no answer, so it computes that slice again.
jobs = {}    # job id: its JobResults


def results_of(job):
    """Return the JobResults of a job id. '' stands for no job: its results are all stored, repeats too."""
    if job not in jobs:
        jobs.setdefault(job, JobResults(job))    # if two threads get here at once, both use the first one's
    return jobs[job]


class JobResults:
    """Which slices of a job are stored, and the file that the next result goes to.

    The server appends only to a file that it has begun since it started, and that has the size that it left
    it with. Otherwise it begins a new one, so it never has to repair a file.
    """

    def __init__(self, job):
        self.job = job
        self.lock = threading.Lock()         # one result after the other
        self.slices = stored_slices(job)     # set of int: the slices that have a result
        self.failed = {}                     # slice number: what its work function threw
        self.path = None                     # the file, when there is one
        self.size = 0                        # how many bytes this server has written to it
        self.columns = []                    # its columns, without job and slice

    def store(self, slice_number, result):
        """Store a result, unless its slice has one, and return the answer once it is on the disk.

        The answer is 'Result received', for which remote-job.py prints a tick, or also says what is odd
        about the result. Raises OSError.
        """
        with self.lock:
            if slice_number in self.slices:
                return 'Result received'
            fits = self.append(slice_number, result)
            if self.job:
                self.slices.add(slice_number)
            self.failed.pop(slice_number, None)
        if result is None:
            return 'Result received, but it is empty: return an object'
        if isinstance(result, dict) and result.keys() & {'job', 'slice'}:
            return 'Result received, but the file has columns job and slice already: rename its own'
        if not fits:
            return 'Result received, but its columns are not those of the first result'
        return 'Result received'

    def note_failure(self, slice_number, problem):
        """Remember what the work function threw, unless a result of the slice is stored."""
        with self.lock:
            if slice_number not in self.slices:
                self.failed[slice_number] = problem

    def append(self, slice_number, result):
        """Append a result to the file, as a line, and return whether it has the file's columns."""
        row = as_row(result)
        untouched = self.path and self.path.exists() and self.path.stat().st_size == self.size
        if not untouched:
            self.path = new_file()
            self.size = 0
        added = b''
        if self.size == 0:
            self.columns = list(row)
            added += as_line(['job', 'slice', *map(as_cell, self.columns)])
        fits = row.keys() == set(self.columns)
        if fits:
            cells = [as_cell(row[column]) for column in self.columns]
        else:
            cells = [''] * (len(self.columns) - 1) + [json.dumps(result)]    # all of it in the last column
        added += as_line([self.job, slice_number, *cells])
        self.write(added)
        return fits

    def write(self, added):
        """Add bytes to the end of the file. If the disk fails, it ends where it ended before."""
        try:
            with open(self.path, 'ab') as file:
                file.write(added)
                file.flush()
                os.fsync(file.fileno())    # returns when the disk has it
        except OSError:
            os.truncate(self.path, self.size)    # take back what may be half written
            raise
        self.size += len(added)


def stored_slices(job):
    """Return the slice numbers of a job in the whole lines of all results files, as a set."""
    slices = set()
    if not job:
        return slices
    for path in results_folder.glob('*.txt'):
        with open(path, 'rb') as file:
            lines = [line for line in file if line.startswith(f'{job}\t'.encode())]
        if lines:
            with open(path, 'r+b') as file:
                os.fsync(file.fileno())    # a server that was killed may have left these without fsync
        for line in lines:
            number = line.split(b'\t')[1]
            is_whole = line.endswith(b'\n') and b'\0' not in line    # a crash leaves half a line or zeros
            if is_whole and number.isdigit():
                slices.add(int(number))
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


def as_row(result):
    """Return a result as {column: value}: an object as it is, anything else in the column `result`.

    There, too, goes an object with a `job` or a `slice` of its own: the file has these columns already.
    """
    if isinstance(result, dict) and result and not result.keys() & {'job', 'slice'}:
        return result
    return {'result': result}


def as_cell(value):
    """Return plain text as it is. All else is JSON, as is text that a spreadsheet would run as a formula."""
    if isinstance(value, str) and value.isprintable() and not value.startswith(('=', '+', '-', '@')):
        return value
    return json.dumps(value)


def as_line(cells):
    """Return a line of tab-separated cells, as bytes."""
    line = io.StringIO()
    csv.writer(line, delimiter='\t', lineterminator='\n').writerow(cells)
    return line.getvalue().encode()


# MALFORMED REQUESTS (on a first reading, skip to RUN)
class Handler(WSGIRequestHandler):
    """Reads requests as Werkzeug does, but logs a malformed one in a single line, without the access key."""

    timeout = 60    # seconds; a worker that vanished must not keep its thread for ever

    def make_environ(self):
        """Refuse a malformed address, which Werkzeug would answer with a traceback in the log."""
        try:
            return super().make_environ()
        except ValueError:
            self.send_error(400)    # calls log_error()
            raise ConnectionAbortedError from None    # Werkzeug passes over this error in silence

    def log_request(self, *_):
        """Log nothing here: Werkzeug's own fails at a malformed address."""

    def log_error(self, template, *_):
        """Log one line, but none for a connection that was never used, as browsers leave some."""
        if 'timed out' not in template:    # Werkzeug's "Request timed out: ..."
            note_refusal(self.client_address[0], 'malformed request')


# RUN
def main():
    """Check what can be checked beforehand, say where the server is, and serve until Ctrl-C."""
    if not data_file.is_file():
        sys.exit(f'There is no {data_file}: put the data there, or change data_file.')
    try:
        results_folder.mkdir(exist_ok=True)
        tempfile.TemporaryFile(dir=results_folder).close()    # can results be written there?
    except OSError as error:
        sys.exit(f'Cannot write to {results_folder} ({error.strerror}): make it a folder that you may use.')
    try:
        server = make_server('0.0.0.0', port, app, threaded=True, request_handler=Handler,
                             ssl_context=certificate)
    except OSError as error:    # the certificate's: if the port is in use, make_server() says so, and exits
        sys.exit(f'Cannot use the certificate {certificate}: {error.strerror}')
    if certificate:    # each request's thread does its own TLS handshake: a slow client must not stop others
        server.socket.do_handshake_on_connect = False
    if not access_key:
        log.warning('no access_key is set: anybody who reaches this server may read the data')
    url = f'{"https" if certificate else "http"}://{lan_address()}:{port}'
    print(f' * Serving data on: {url}')
    print(f' * DCP results endpoint: {url}/dcp-results')
    print(" * Serving Flask app 'server'")    # as Flask does when it is started by `flask run`
    print(' * Debug mode: off', flush=True)
    server.serve_forever()


def lan_address():
    """Return this machine's address in the local network, or 127.0.0.1 if it is in none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(('192.0.2.1', 9))    # chooses the network interface and sends nothing
            return probe.getsockname()[0]
        except OSError:
            return '127.0.0.1'


if __name__ == '__main__':
    main()
