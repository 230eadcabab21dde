"""Serve data to DCP workers, and store the results that they post: neither passes through DCP's scheduler."""
import csv, json, logging, os, socket, threading
from datetime import datetime, timedelta
from pathlib import Path

from flask import Flask, abort, request, send_file, send_from_directory
from werkzeug.exceptions import HTTPException
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.serving import BaseWSGIServer

# SETTINGS. Paths begin in the folder of this file, or at the root (/).
port = 5001
data_file = 'input/GSE57383_ps_psa.txt'
results_folder = 'results'
results_name = 'GSE57383_PsA_vs_Ps'       # results files are called this, with the time of their first result
browser_origins = ['https://dcp.work']    # the only web pages that may read data or post results
access_key = ''                           # letters and digits: if set, every address begins with it
certificate = ()                          # for https: ('certificate.pem', 'private_key.pem')
max_result_size = 1_000_000               # bytes: larger posts are refused

here = Path(__file__).resolve().parent
data_file, results_folder = here / data_file, here / results_folder    # a path from the root stays as it is
app = Flask('server', static_folder=None)
app.config.update(MAX_CONTENT_LENGTH=max_result_size, MAX_FORM_MEMORY_SIZE=max_result_size)
logging.basicConfig(format='%(asctime)s %(message)s', datefmt='%H:%M:%S', level=logging.INFO)
logging.getLogger('werkzeug').setLevel(logging.CRITICAL)    # its own lines would show the access key
BaseWSGIServer.handle_error = lambda *_: app.logger.warning('a malformed request')    # else a traceback


# DATA
@app.get('/GSE57383_ps_psa')
def send_data():
    """Send the data file, as text/plain, which the work function gets as a string."""
    app.logger.info('%s fetches the data', request.remote_addr)
    return send_file(data_file, mimetype='text/plain')


@app.get('/input/<path:name>')
def send_input(name):
    """Send any file of the folder input/, such as a second table, or confidential slices."""
    app.logger.info('%s fetches %r', request.remote_addr, request.path)
    return send_from_directory(here / 'input', name, mimetype='text/plain')


@app.get('/health')
def health():
    """Say whether the data file is there."""
    return {'data_file': data_file.name, 'data_file_exists': data_file.is_file()}


# RESULTS
@app.post('/dcp-results')
def receive_result():
    """Store a slice's result, and answer once it is on the disk: remote-job.py prints the answer.

    Form fields: `element`, the slice's number; `content`, JSON; `job`, its id; `of`, the number of slices."""
    job, slice_number, of = [request.form.get(name, '') for name in ('job', 'element', 'of')]
    if not (job.isalnum() and slice_number.isdecimal()):
        abort(400, 'job or element is malformed')
    try:
        result = json.loads(request.form.get('content', 'null'))    # DCP omits 0, '', false, null
        row = as_row(result)
    except (ValueError, RecursionError):
        abort(400, 'content is not JSON')
    if result is None:
        answer = 'the work function returned nothing'
    elif 'errorCode' in row and 'stack' in row:    # an error, which DCP posts like a result
        answer = f'the work function failed: {row.get("message")}'[:200]
    else:
        store(job, slice_number, {'of': as_cell(of), **row} if of else row)
        answer = 'Result received'
    app.logger.info('%s slice %s: %s', request.remote_addr, slice_number, answer)
    return answer, {'Content-Type': 'text/plain'}


def as_row(result):
    """Return a result as {column: cell}. If it is no dict, or an empty one, its column is `result`."""
    row = result if isinstance(result, dict) and result else {'result': result}
    new_names = {'job': 'job_', 'slice': 'slice_', 'of': 'of_'}    # the results file has its own
    return {as_cell(new_names.get(name, name)): as_cell(value) for name, value in row.items()}


def as_cell(value):
    """Return plain text as it is. All else becomes JSON, and so does text that a spreadsheet would run."""
    is_plain = isinstance(value, str) and value.isprintable() and not value.startswith(('=', '+', '-', '@'))
    return value if is_plain else json.dumps(value)


stored = {}    # {job: set of the slices that are on the disk}: DCP may have a slice computed twice
files = {}     # {(job, columns): (path of their results file, its size after the last line)}
lock = threading.Lock()    # stores one result at a time: each request has a thread of its own


def store(job, slice_number, row):
    """Store a slice's result, once. Return when it is on the disk."""
    with lock:
        # If append() fails, `stored` lacks the job, so the next post reads its slices from the files again.
        slices = stored.pop(job, None) or stored_slices(job)
        if slice_number not in slices:
            append(job, slice_number, row)
            slices.add(slice_number)
        stored[job] = slices


def append(job, slice_number, row):
    """Append a line to the results file of this job and these columns. Begin a new one if it was edited."""
    columns = tuple(row)
    if (job, columns) not in files:
        files[job, columns] = new_path(), 0
    path, last_size = files[job, columns]
    size = path.stat().st_size if path.exists() else 0
    if size != last_size:    # somebody has edited it, or a full disk has cut its last line
        app.logger.warning('%s has changed: results go on in a new file', path.name)
        path, size = new_path(), 0
        files[job, columns] = path, size
    results_folder.mkdir(parents=True, exist_ok=True)
    with open(path, 'a', newline='', encoding='utf-8') as file:
        writer = csv.writer(file, delimiter='\t', lineterminator='\n')
        if size == 0:
            writer.writerow(['job', 'slice', *columns])
        writer.writerow([job, slice_number, *row.values()])
        file.flush()
        os.fsync(file.fileno())    # on the disk, not only on the way to it
    files[job, columns] = path, path.stat().st_size    # not reached if writing fails: then the sizes differ


def new_path():
    """Return the path of a new results file, named after this second or the next one that is free."""
    when = datetime.now()
    while (path := results_folder / f'{results_name}_{when:%d%m%y_%H%M%S}.txt').exists():
        when += timedelta(seconds=1)
    return path


def stored_slices(job):
    """Return the slices of a job that the results files have. Half a line at the end does not count."""
    slices, prefix = set(), f'{job}\t'.encode()
    for name in list_results():
        with open(results_folder / name, 'rb') as file:
            if os.name != 'nt':    # Windows cannot sync what is only read
                os.fsync(file.fileno())    # an earlier run may have been killed before its fsync
            whole_lines = (line for line in file if line.startswith(prefix) and line.endswith(b'\n'))
            slices.update(line.split(b'\t')[1].decode() for line in whole_lines)
    return slices


@app.get('/results')
def list_results():
    """List the names of the results files, the one that changed last first."""
    paths = [path for path in results_folder.glob('*.txt') if path.is_file()]
    return [path.name for path in sorted(paths, key=os.path.getmtime, reverse=True)]


@app.get('/results/<name>')
def send_results(name):
    """Send a results file."""
    return send_from_directory(results_folder, name, mimetype='text/plain')


@app.get('/')
def send_page():
    """Send a web page that shows the results as they arrive."""
    return send_file(here / 'results' / 'page.html')    # it stays there if results_folder does not


# WHO MAY COME IN
@app.before_request
def check_request():
    """Refuse web pages that are not on the list, and posts of unknown length."""
    if request.origin not in (None, *browser_origins):    # programs send none, nor does our page
        abort(403, 'this web page may not use this server: see browser_origins in server.py')
    if request.method == 'POST' and request.content_length is None:
        abort(411)    # without a length, Flask would silently cut a form at max_result_size


@app.after_request
def admit_browser_workers(response):
    """Let the listed web pages read the answers (CORS). Browsers ask by OPTIONS first: Flask answers that."""
    response.headers['X-Content-Type-Options'] = 'nosniff'    # browsers must not take data for a page
    response.vary.add('Origin')    # caches must keep the answers to different pages apart
    if request.origin and request.origin in browser_origins:
        response.access_control_allow_origin = request.origin
        response.access_control_allow_headers = ['Content-Type']
    return response


@app.errorhandler(HTTPException)
@app.errorhandler(OSError)    # the disk failed, or is full: DCP has the slice computed again
def refuse(error):
    """Answer in one line, and log it."""
    app.logger.warning('%s %r refused: %s', request.remote_addr, f'{request.method} {request.path}', error)
    if isinstance(error, OSError):
        return 'the server cannot use its files: see its log', 500, {'Content-Type': 'text/plain'}
    return error.description, error.code, {'Content-Type': 'text/plain'}


if access_key:    # mount the app at /key. All else goes to an app without routes, which answers 404
    outside = Flask('outside', static_folder=None)
    outside.register_error_handler(HTTPException, refuse)    # refuse() logs it
    app.wsgi_app = DispatcherMiddleware(outside.wsgi_app, {f'/{access_key}': app.wsgi_app})


# RUN
if __name__ == '__main__':
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect_ex(('192.0.2.1', port))    # UDP: sends nothing, but tells which address leads out
            address = probe.getsockname()[0].replace('0.0.0.0', '127.0.0.1')    # 0.0.0.0: there is no network
        url = f'{"https" if certificate else "http"}://{address}:{port}/{access_key}'.rstrip('/')
        certificate = tuple(here / path for path in certificate)
        for path in (data_file, *certificate):
            open(path).close()    # can it be read? Else end here, not at the first worker
        print(f' * Serving data on: {url}\n * DCP results endpoint: {url}/dcp-results', flush=True)
        app.logger.info('That address is a guess: if workers cannot reach it, try another of this machine.')
        if not access_key:
            app.logger.warning('Whoever reaches it may read data and results: see access_key.')
        socket.setdefaulttimeout(10)    # drop a client that says nothing: with TLS, it would block all
        app.run('0.0.0.0', port, debug=False, ssl_context=certificate or None)
    except Exception as error:    # a file is missing, a certificate is bad, the port is no number ...
        raise SystemExit(f'server.py cannot run with these settings: {error}')
