"""Search random gene signatures that tell psoriatic arthritis from psoriasis: on DCP, with remote data."""
import asyncio, random, signal, sys

# To start on any machine (on a first reading, skip to KEYS)
if not (3, 10) <= sys.version_info < (3, 15):
    print('Tried on Python 3.10 to 3.14 only: README.md shows how to make a venv with one.', file=sys.stderr)
    if sys.version_info < (3, 10):
        sys.exit(1)
signal.signal(signal.SIGINT, signal.SIG_DFL)    # Ctrl-C just ends this, until there is a job to cancel
import nest_asyncio2
sys.modules['nest_asyncio'] = nest_asyncio2     # dcp 3.4.3 imports nest_asyncio, which fails on Python 3.14
import dcp
import pythonmonkey as pm
asyncio.get_event_loop().set_exception_handler(lambda *_: None)    # no JavaScript stacks: errors are raised

# KEYS
try:
    dcp.init()
    dcp.identity.set(dcp.wallet.get('id'))       # owns the job: ~/.dcp/id.keystore
    dcp.wallet.add(dcp.wallet.get('default'))    # pays for it: ~/.dcp/default.keystore
except pm.SpiderMonkeyError as error:
    sys.exit(f'DCP: {error.jsError["message"].splitlines()[0]} Check network, keystores (ask dan@dcp.dev).')

# DATA
access_key = ''    # the one of server.py, in letters and digits
server_url = 'http://127.0.0.1:5001'
if not server_url.startswith('http'):
    sys.exit('server_url on line 26 must begin with http:// or https://')
data = pm.new('URL')(f'{server_url}/GSE57383_ps_psa?key={access_key}')    # <<<<<< a URL: workers fetch it

# INPUT SET: one slice per signature: a list of random numbers, each of which picks a probeset of the data.
n_signatures = 10
min_length, max_length = 5, 9
random.seed(42)
lengths = [random.randint(min_length, max_length) for _ in range(n_signatures)]
slices = [[random.random() for _ in range(length)] for length in lengths]

# WORK FUNCTION, JavaScript: for each slice a worker calls work_function(slice, *arguments). There `data` is
# no URL, but the text of the file. Errors pass through DCP's scheduler: put no data in them.
work_function = r'''(slice, data) => {
  const classes = ['Psoriasis', 'Psoriatic Arthritis'];    // the two phenotypes to tell apart
  const folds = 10;
  const assert = (condition, problem) => { if (!condition) throw Error(problem); };
  // A worker keeps globalThis from one slice of a job to the next, so it splits the text only once.
  globalThis.table ??= data.trimEnd().split('\n').map((line) => line.trimEnd().split('\t'));
  const [header, ...samples] = globalThis.table;
  // The signature, as column numbers: each random number takes one of those left (splice is Python's pop).
  const left = [...header.keys()].slice(1);    // without column 0, the phenotype
  const signature = slice.map((number) => left.splice(Math.floor(number * left.length), 1)[0]);
  // x[s]: the values of sample s in these columns. y[s]: its class, 0 or 1.
  const toNumber = (cell) => (/\d/.test(cell) ? Number(cell) : NaN);    // Number('') would be 0
  const x = samples.map((sample) => signature.map((column) => toNumber(sample[column])));
  const y = samples.map((sample) => classes.indexOf(sample[0]));
  const sizes = classes.map((_, label) => y.filter((other) => other === label).length);
  assert(x.flat().every(Number.isFinite), 'a sample has no number for a probeset of the signature');
  assert(sizes.length === 2 && !y.includes(-1) && Math.min(...sizes) > 1, `samples must be ${classes}`);
  // Classifiers: each tells how well a row of values fits among the rows of a class, as a log-likelihood.
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const mean = (values) => sum(values) / values.length;
  const variance = (values) => Math.max(mean(values.map((v) => v ** 2)) - mean(values) ** 2, 1e-9);    // > 0
  const distance = (a, b) => sum(a.map((value, j) => (value - b[j]) ** 2));
  const transpose = (rows) => rows[0].map((_, j) => rows.map((row) => row[j]));
  const logDensity = (v, all) => -((v - mean(all)) ** 2 / variance(all) + Math.log(variance(all))) / 2;
  const classifiers = {
    centroid: (row, rows) => -distance(row, transpose(rows).map(mean)) / 2,
    bayes: (row, rows) => sum(transpose(rows).map((group, j) => logDensity(row[j], group))),
    neighbour: (row, rows) => -Math.min(...rows.map((other) => distance(row, other))) / 2,
  };
  // Cross-validation: each class is dealt out over the folds like cards, and the others classify each fold.
  const fold = y.map((label, s) => y.slice(0, s).filter((other) => other === label).length % folds);
  const p = Object.fromEntries(Object.keys(classifiers).map((name) => [name, []]));
  for (let f = 0; f < folds; f++) {
    const known = transpose(x.filter((_, s) => fold[s] !== f));
    const [centre, width] = [known.map(mean), known.map(variance).map(Math.sqrt)];
    const z = x.map((row) => row.map((value, j) => (value - centre[j]) / width[j]));
    const [first, second] = [0, 1].map((label) => z.filter((_, s) => y[s] === label && fold[s] !== f));
    for (const [name, fit] of Object.entries(classifiers)) {
      const probability = (row) => 1 / (1 + Math.exp(fit(row, first) - fit(row, second)));    // of class 1
      z.forEach((row, s) => { if (fold[s] === f) p[name][s] = probability(row); });
    }
    progress((f + 1) / folds);    // DCP demands it, at least once per slice, and every 30 s
  }
  p.ensemble = samples.map((_, s) => mean(Object.values(p).map((each) => each[s])));
  // Accuracy, and area under the ROC curve (AUC): how often class 1 scores higher than class 0, of all pairs.
  const result = { probesets: signature.map((column) => header[column]).join(', ') };
  for (const [name, scores] of Object.entries(p)) {
    assert(scores.every((score) => score >= 0 && score <= 1), `classifier ${name} returned no number`);
    const correct = scores.map((score, s) => (score < 0.5 ? 0 : 1) === y[s]);
    const [first, second] = [0, 1].map((label) => scores.filter((_, s) => y[s] === label));
    const inOrder = second.flatMap((b) => first.map((a) => (b > a) + (b === a) / 2));    // a tie counts half
    result[`${name}_accuracy`] = Number(mean(correct).toFixed(3));
    result[`${name}_auc`] = Number(mean(inOrder).toFixed(3));
  }
  return result;
}'''

# JOB
job = dcp.compute_for(slices, work_function, [data])
job.computeGroups = [{'joinKey': 'demo', 'joinSecret': 'dcp'}]
job.worktime = 'map-basic'    # what runs the work function: this for JavaScript, 'pyodide' for Python
job.setResultStorage(f'{server_url}/dcp-results', {'job': job.id, 'key': access_key})    # <<<<<< posted there

# PUBLIC INFO
job.public.name = 'PsA signature search'
job.public.description = 'Scores random gene signatures that tell psoriatic arthritis from psoriasis'
job.public.link = 'https://www.ncbi.nlm.nih.gov/geo/query/acc.cgi?acc=GSE57383'

# EVENTS
state = 'new'    # then what DCP says, 'running', and perhaps 'refused' or 'cancelled'


@job.on('readystatechange')
def on_state(new_state):
    global state
    state = new_state
    print('State:', state)


@job.on('accepted')
def on_accepted(_):
    print(f'  Job ID: {job.id}')
    print('  Job accepted, awaiting results...')


@job.on('result')
def on_result(event):
    """Print your server's answer to the worker that posted the result: no more of it passes through DCP."""
    mark = '✔' if event.result == 'Result received' else '✘'
    print(f'    {mark} Slice {int(event.sliceNumber)}: {event.result}')


@job.on('error')
def on_error(error):
    if error.code == 'EPERM_ORIGIN':
        print_once(f'  A worker may not use your server: start it with --allow-origin {server_url}')
    elif error.code == 'ENOPROGRESS':
        print_once('  The work function must call progress(): at least once per slice, and every 30 s.')
    elif 'EUNCAUGHT' not in (error.code, error.errorCode):    # on_result tells what a work function throws
        print_once(f'  A worker failed: {error.message}')


@job.on('nofunds')
def on_no_funds(event):
    print_once(f'  No funds: the job waits until the account has {event.fundsRequired} more compute credits.')


@job.on('cancel')
def on_cancel(event):
    global state
    state = 'cancelled'
    end(event.reason)


# RUN: the last lines of this script call these two
def run():
    global state
    job.exec()    # returns when DCP has accepted the job; exec(0.1) would offer 0.1 compute credits per slice
    state = 'running'
    job.wait()    # returns when every slice is done


def check_results():
    n_slices = len(slices)
    missing = sorted(set(range(1, n_slices + 1)) - set(ask_server()['slices']))
    if missing:
        sys.exit(f'{len(missing)} of {n_slices} slices have no result: {missing[:20]}')
    print('Done.')


# GUARDS: whatever goes wrong ends in one line that says what to do. A first reader may stop here.
import contextlib
import json
import os
import threading
import time
import urllib.request

patience = 30    # seconds without news from DCP until this script asks why
news = threading.Event()
ending = threading.Event()
loop = asyncio.get_event_loop()
job_id, join_key = job.id, job.computeGroups[0]['joinKey']    # only the main thread may ask the job
printed = set()
not_deployed = ('new', 'exec', 'init', 'preauth', 'refused')    # DCP can't have the job in these states


def print_once(line):
    """Print a line that was not printed before: each worker makes the same complaint."""
    if line not in printed:
        printed.add(line)
        print(line)


def ask_server():
    """Return server.py's report on this job, or end with the reason why there is none."""
    address = f'{server_url}/dcp-results/{job_id}?key={access_key}'
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))    # no proxy behind your firewall
    try:
        return json.load(direct.open(address, timeout=10))
    except Exception as error:
        if 'CERTIFICATE_VERIFY_FAILED' in str(error):
            sys.exit(f'The certificate of {server_url} is not trusted: set SSL_CERT_FILE to its file.')
        if 'Error 403' in str(error):
            sys.exit('server.py refuses this script: set access_key to the same in both scripts.')
        sys.exit(f'server.py does not answer at {server_url} ({error}): start it, or correct line 26.')


def watch():
    """Say so when there is no news. This runs in a thread of its own, in case DCP's event loop is stuck."""
    while True:
        if news.wait(patience):
            news.clear()
        elif state == 'running':
            print_once(f'  No news for {patience} s: {likely_cause()} Still waiting...')
        elif state == 'uploading':
            print_once('  Still uploading the input set...')
        elif state not in ('new', 'exec'):    # in these it may wait for a passphrase
            end(f'no news from DCP for {patience} s. Check your network, and install requirements.txt again.')


def likely_cause():
    """Name the first step on the way from the data to the results that was not taken."""
    try:
        report = ask_server()
    except SystemExit as problem:
        return str(problem)
    if report['refusals'] > first_report['refusals']:
        return f'server.py refused a request: {report["last_refusal"]}.'
    if report['fetches'] == first_report['fetches']:
        return (f'no worker has fetched the data. Is one in compute group {join_key!r}, was it started with '
                f'--allow-origin {server_url}, and does it trust your certificate (NODE_EXTRA_CA_CERTS)?')
    return 'workers have fetched the data, but posted no result. Does a slice take that long?'


def on_failure(_, context):
    """Hear what DCP fails at. Otherwise job.exec() would wait for ever for a job that DCP refuses."""
    global state
    if not isinstance(context.get('exception'), pm.SpiderMonkeyError):
        return
    error = context['exception'].jsError
    problem = ' '.join(error['message'].split())    # in one line, with its place if it is a slip above
    if error['code'] == 'DCPL-1100':
        problem = 'DCP does not know this joinKey and joinSecret: check line 99.'
    if state == 'deploying' or error['code'] == 'DCPL-1100':
        state = 'refused'    # so there is nothing to cancel
    if state != 'running' or 'BrokenPipeError' in problem:    # that is `| head`: nobody listens any more
        end(problem)
    elif problem.startswith('Python'):
        print_once(f'  Problem: {problem}')


def end(problem):
    """End run(), after which the job is cancelled. Any thread may call this."""
    if not ending.is_set():
        ending.set()
        loop.call_soon_threadsafe(sys.exit, problem)    # raises SystemExit inside job.exec() or job.wait()
        threading.Thread(target=give_up, args=[problem], daemon=True).start()


def give_up(problem):
    """End this script 10 s later even so, if DCP does not answer or its event loop is stuck."""
    time.sleep(10)
    try:
        print(f'{fate()}: {problem}', file=sys.stderr, flush=True)
    finally:
        os._exit(1)


def cancel():
    """Cancel the job if DCP may have it. It costs money even if nobody waits for it."""
    global state
    while state == 'deploying':    # DCP can't cancel a job before it has it
        loop.run_until_complete(asyncio.sleep(0.1))
    if state not in not_deployed and state != 'cancelled':
        with contextlib.suppress(pm.SpiderMonkeyError):
            job.cancel('stopped by its owner')
            state = 'cancelled'


def fate():
    """Say what has become of the job."""
    if state in not_deployed:
        return 'Job not deployed'
    return 'Job cancelled' if state == 'cancelled' else f'Job {job_id} may still run'


for name in ('SIGINT', 'SIGTERM', 'SIGHUP'):
    number = getattr(signal, name, None)    # Windows has no SIGHUP
    if number and signal.getsignal(number) != signal.SIG_IGN:    # nohup lets SIGHUP be ignored
        signal.signal(number, lambda *_: end('stopped by its owner.'))
for event in ('readystatechange', 'result'):
    job.on(event, lambda _: news.set())
loop.set_exception_handler(on_failure)
threading.Thread(target=watch, daemon=True).start()

# PythonMonkey 1.4.1 may freeze while dcp compiles WebAssembly in the background, to sign: compile it at once.
pm.eval("""WebAssembly.instantiate = async (bytes, imports) => {
    const module = new WebAssembly.Module(bytes);
    return { module, instance: new WebAssembly.Instance(module, imports) };
}""")
try:
    pm.eval(f'({work_function})')
except pm.SpiderMonkeyError as error:
    lines_above = open(__file__, encoding='utf-8').read().partition(work_function)[0].count('\n')
    line = lines_above + int(error.jsError['lineNumber'])
    sys.exit(f'The work function does not compile, see line {line}: {error.jsError["message"]}')

first_report = ask_server()
try:
    run()
except SystemExit as problem:    # from end()
    cancel()
    sys.exit(f'{fate()}: {problem}')
check_results()
