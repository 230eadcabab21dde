"""Serve the data to DCP workers and store the results that they post back: neither passes through DCP's scheduler."""
import csv
import hmac
import io
import json
import logging
import os
import queue
import re
import socket
import sys
import tempfile
import threading
from concurrent.futures import Future
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from flask import Flask, abort, g, request, send_file
from werkzeug.exceptions import HTTPException, TooManyRequests
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wsgi import FileWrapper

# SETTINGS
here = Path(__file__).resolve().parent
port = 5001
data_file = here / 'input' / 'GSE57383_ps_psa.txt'
results_folder = here / 'results'
browser_origins = ['https://dcp.work']    # the only web pages that may read data or post results
access_key = ''                           # if set, data and results need it; remote-job.py needs the same
certificate = None                        # (here / 'certificate.pem', here / 'private_key.pem') to serve https
max_result_size = 10_000_000              # bytes of the form that is posted; a larger one is refused
max_jobs = 1000                           # a new job beyond these is refused until old results files are moved away

names_file = results_folder / '.jobs.json'   # which results file is which job's
no_job = f'{datetime.now():%d%m%y%H%M%S}'    # the job of results that name none, until the next start
app = Flask('server')
app.config['MAX_CONTENT_LENGTH'] = max_result_size
app.url_map.merge_slashes = False    # its redirects would show the access key
logging.basicConfig(format='%(asctime)s %(message)s', datefmt='%H:%M:%S', level=logging.INFO)
logging.getLogger('werkzeug').setLevel(logging.ERROR)    # its line per request would show the access key
log = logging.getLogger('server')


# ROUTES
@app.get('/GSE57383_ps_psa')
def send_data():
    """Stream the data file. Only text/plain reaches a work function as a plain JavaScript string."""
    check_key(request.args.get('key', ''))
    request.environ['wsgi.file_wrapper'] = lambda file, _: FileWrapper(file, 2 ** 18)    # bytes: 8 kB are half as fast
    return send_file(data_file, mimetype='text/plain')


@app.post('/dcp-results')
def receive_result():
    """Store one slice's result, posted as a form by a DCP worker. DCP may deliver a result more than once."""
    form = read_form()
    check_key(form.get('key', ''))
    job, g.slice = form.get('job', no_job), form.get('element', '')
    if not re.fullmatch('[1-9][0-9]{0,15}', g.slice):
        abort(400, 'element is not a slice number')
    if not re.fullmatch('[A-Za-z0-9]{1,64}', job):
        abort(400, 'job is not the id of a DCP job')
    result = read_result(form)
    if isinstance(result, dict) and {'errorCode', 'message', 'stack'} <= result.keys():
        answer = ascii(f'work function failed: {result["message"]}')[1:-1]    # one line of ASCII, for DCP and the log
    else:
        arrival = Arrival(job, int(g.slice), result)
        arrivals.put(arrival)
        arrival.stored.result()
        answer = 'Result received'
    log.info('%s slice %s: %s', request.remote_addr, g.slice, answer)
    return answer, {'Content-Type': 'text/plain; charset=utf-8'}


@app.get('/dcp-results/<job>')
def list_slices(job):
    """Return the numbers of the slices of a job whose results are stored."""
    check_key(request.args.get('key', ''))
    name = read_names().get(job)
    return sorted(ResultsFile(results_folder / name).slices) if name else []


@app.get('/health')
def health():
    """Say whether the data file is there and where results go."""
    return {'data_file': data_file.name, 'data_file_exists': data_file.is_file(), 'results_folder': str(results_folder)}


# WHO MAY COME IN, AND WITH WHAT
@app.before_request
def refuse_other_web_pages():
    """Refuse web pages that are not on the list. Docker and Linux workers are no web pages and send no Origin."""
    if 'Origin' in request.headers and request.headers['Origin'] not in browser_origins:
        abort(403, 'this web page may not use this server: see browser_origins in server.py')


@app.after_request
def admit_browser_workers(response):
    """Let the listed web pages read the answers (CORS), from a public page to a private network too."""
    response.headers['Vary'] = 'Origin'
    if request.headers.get('Origin') in browser_origins:
        response.headers['Access-Control-Allow-Origin'] = request.headers['Origin']
        if request.method == 'OPTIONS':
            response.headers['Access-Control-Allow-Methods'] = 'GET, POST'
            response.headers['Access-Control-Allow-Headers'] = 'Content-Type'
            response.headers['Access-Control-Allow-Private-Network'] = 'true'
    return response


def check_key(key):
    """Refuse a request without the access key, comparing in constant time."""
    if not hmac.compare_digest(key.encode(), access_key.encode()):
        abort(403, 'wrong or missing access key: see access_key in server.py')


def read_form():
    """Return the fields of the posted form, as {name: value}."""
    if request.content_length is None:
        abort(411, 'the form has no Content-Length')    # Werkzeug cuts what comes in chunks
    try:
        return dict(parse_qsl(request.get_data().decode('ascii'), keep_blank_values=True, strict_parsing=True,
                              errors='strict', max_num_fields=100))
    except ValueError:
        abort(400, 'the body is not a urlencoded form')


def read_result(form):
    """Return what the work function returned. DCP posts 0, '', false, null and NaN alike, as error=null: None here."""
    content_type = form.get('contentType', 'application/json').partition(';')[0]
    if 'content' not in form and form.get('error') == 'null':
        return None
    if 'content' not in form:
        abort(400, 'the form has no content')
    if content_type.startswith('text/'):
        return form['content']
    if content_type != 'application/json':
        abort(415, 'contentType is neither application/json nor text/...')
    try:
        result = json.loads(form['content'])
        json.dumps(result, allow_nan=False)    # refuses NaN and Infinity, which are not JSON
        return result
    except (ValueError, RecursionError):
        abort(400, 'content is not JSON, but contentType says so')


@app.errorhandler(HTTPException)
def refuse(error):
    """Answer a refused request with one line that names the problem, and log it."""
    log.warning('%s slice %.20r: %.10r %.80r refused: %d %s', request.remote_addr, g.get('slice', '-'), request.method,
                request.path.partition('key=')[0], error.code, error.description)
    response = error.get_response()
    response.data, response.content_type = f'{error.description}\n', 'text/plain; charset=utf-8'
    return response


@app.errorhandler(OSError)
def fail(error):
    """Answer 500 when the disk fails: the worker then gives the slice back, and DCP computes it again."""
    log.error('%s slice %.20r: failed: %s', request.remote_addr, g.get('slice', '-'), error)
    return 'the server cannot read or write its files: see its log\n', 500


# RESULTS FILES
arrivals = queue.SimpleQueue()


class Arrival:
    """A result on its way to the disk. `stored` is done when it is there, or says why it is not."""

    def __init__(self, job, slice_number, result):
        self.job, self.slice, self.result, self.stored = job, slice_number, result, Future()


def store_arrivals():
    """Append results to their files. Only this thread does; all that arrives while it syncs shares the next sync."""
    files = {}
    while True:
        batch = [arrivals.get()]
        while not arrivals.empty():
            batch.append(arrivals.get())
        for job in {arrival.job for arrival in batch}:
            group = [arrival for arrival in batch if arrival.job == job]
            try:
                path = results_path(job)
                if path not in files:
                    files[path] = ResultsFile(path)
                files[path].append(group)
            except Exception as error:
                for arrival in group:
                    arrival.stored.set_exception(error)
            else:
                for arrival in group:
                    arrival.stored.set_result(None)


class ResultsFile:
    """The results of one job: a table with a header row, a row per slice and classifier, and no slice twice."""

    def __init__(self, path):
        # What follows the last line end, or a zero byte (see append), was cut short by a crash and never answered.
        content = path.read_bytes() if path.exists() else b''
        whole = content.partition(b'\0')[0]
        whole = whole[:whole.rfind(b'\n') + 1]
        self.path, self.size = path, len(whole)
        header = whole.partition(b'\n')[0].decode(errors='replace')
        self.columns = next(csv.reader([header], delimiter='\t'))[1:]
        self.slices = {int(number) for number in re.findall(rb'^(\d+)\t', whole, re.MULTILINE)}

    def append(self, arrivals):
        """Write those results whose slices are not there yet, and return when all are on disk, or raise OSError."""
        if (self.path.stat().st_size if self.path.exists() else 0) != self.size:
            self.__init__(self.path)
        try:
            text = io.StringIO()
            writer = csv.writer(text, delimiter='\t', lineterminator='\n')
            for arrival in arrivals:
                columns, rows = as_table(arrival.result)
                if not self.columns:
                    self.columns = columns
                    writer.writerow(['slice', *columns])
                if columns != self.columns:
                    rows = [[''] * (len(self.columns) - 1) + [json.dumps(arrival.result)]]    # in the last column
                key = arrival.slice if arrival.job != no_job else (arrival.slice, str(rows))
                if key not in self.slices:
                    self.slices.add(key)
                    writer.writerows([arrival.slice, *row] for row in rows)
            data = text.getvalue().encode()
            with open(self.path, 'r+b' if self.path.exists() else 'w+b', buffering=0) as file:
                file.truncate(self.size)
                # The first byte goes in last. Until then it reads as zero, so a crash leaves all of this or nothing.
                write_at(file, self.size + 1, data[1:])
                if self.size // 4096 != (self.size + len(data)) // 4096:
                    os.fsync(file.fileno())    # more than one page: the first byte must come last on the disk, too
                write_at(file, self.size, data[:1])
                os.fsync(file.fileno())
            self.size += len(data)
        except Exception:
            with suppress(OSError):
                os.truncate(self.path, self.size)
            self.size = None    # what is in the file is no longer known: read it again before the next append
            raise


def as_table(result):
    """Return the columns and rows of a result. A list of objects with the same keys is a table; all else one value."""
    if isinstance(result, list) and result and all(isinstance(row, dict) and row for row in result):
        if all(list(row) == list(result[0]) for row in result) and len(str(result[0].keys())) < 10_000:    # csv's limit
            return [as_cell(name) for name in result[0]], [[as_cell(value) for value in row.values()] for row in result]
    return ['result'], [[json.dumps(result)]]


def as_cell(value):
    """Return plain text as it is, and anything else (numbers, tabs, line ends, lists) as JSON."""
    return value if isinstance(value, str) and value.isprintable() else json.dumps(value)


def write_at(file, position, data):
    """Write all the bytes at a position of an unbuffered file, or raise OSError."""
    file.seek(position)
    if file.write(data) != len(data):
        raise OSError('no space left on the disk')


def results_path(job):
    """Return the path of a job's results file: a new name for a new job, which is remembered across restarts."""
    names = read_names()
    if job not in names:
        if len(names) >= max_jobs:
            raise TooManyRequests(f'there are {max_jobs} jobs: move old results files and {names_file.name} away')
        when = datetime.now()
        taken = {*names.values(), *os.listdir(results_folder)}
        while (name := f'GSE57383_PsA_vs_Ps_{when:%d%m%y_%H%M%S}.txt') in taken:
            when += timedelta(seconds=1)
        names[job] = name
        new_file = names_file.with_suffix('.new')
        with open(new_file, 'w') as file:
            json.dump(names, file)
            file.flush()
            os.fsync(file.fileno())
        new_file.replace(names_file)
    return results_folder / names[job]


def read_names():
    """Return {job id: name of its results file}."""
    return json.loads(names_file.read_text()) if names_file.exists() else {}


# RUN
class Handler(WSGIRequestHandler):
    timeout = 60    # seconds; a worker that vanished must not keep its thread for ever
    error_message_format, error_content_type = '%(message)s\n', 'text/plain'

    def send_error(self, code, *_):
        """Refuse a request that is not even HTTP, without its text."""
        super().send_error(code)

    def run_wsgi(self):
        """Refuse a malformed URL, on which Werkzeug would fail."""
        try:
            urlsplit(self.path)
        except ValueError:
            self.send_error(400)
        else:
            super().run_wsgi()

    def log_request(self, *_):
        """Log nothing: Flask's routes do, and without the access key."""

    def log_error(self, *_):
        """Log a request that is not even HTTP, without its text, which may hold the access key."""
        log.warning('%s slice -: malformed or unfinished request refused', self.client_address[0])


def lan_address():
    """Return the address that other machines of the local network reach this one at; 127.0.0.1 if there is none."""
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
        sys.exit(f'Cannot read {data_file} ({error.strerror}): put the data there, or change data_file in server.py.')
    try:
        results_folder.mkdir(exist_ok=True)
        tempfile.TemporaryFile(dir=results_folder).close()
    except OSError as error:
        sys.exit(f'Cannot write to {results_folder} ({error.strerror}): make it a folder that you may write to.')
    try:
        listener = socket.create_server(('', port))
    except OSError as error:
        sys.exit(f'Cannot use port {port} ({error.strerror}): stop what uses it, or change port in server.py.')
    try:
        server = make_server('', port, app, threaded=True, request_handler=Handler, ssl_context=certificate,
                             fd=listener.fileno())
    except OSError as error:
        sys.exit(f'Cannot use the certificate {certificate} ({error.strerror}): see certificate in server.py.')
    url = f'{"https" if certificate else "http"}://{lan_address()}:{port}'
    print(f' * Serving data on: {url}', f' * DCP results endpoint: {url}/dcp-results', " * Serving Flask app 'server'",
          ' * Debug mode: off', sep='\n', flush=True)
    if certificate:
        server.socket.do_handshake_on_connect = False    # in the request's own thread: one client must not stop all
    threading.Thread(target=store_arrivals, daemon=True).start()
    server.serve_forever()


if __name__ == '__main__':
    main()
