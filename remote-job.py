"""Score random gene signatures, to tell psoriatic arthritis from psoriasis: on DCP, with remote data."""
import asyncio, random, signal, sys

# START (on a first reading, skip to KEYS)
if not (3, 10) <= sys.version_info < (3, 15):    # an older one cannot run this, a newer one may
    print('Tried on Python 3.10 to 3.14 only: README.md shows how to make a venv with one.', file=sys.stderr)
    if sys.version_info < (3, 10):
        sys.exit(1)
signal.signal(signal.SIGINT, signal.SIG_DFL)    # Ctrl-C ends this without a traceback, until GUARDS
import nest_asyncio2
sys.modules['nest_asyncio'] = nest_asyncio2     # dcp 3.4.3 imports nest_asyncio, which fails on Python 3.14
import dcp
import pythonmonkey as pm                       # runs JavaScript, which most of dcp is written in
asyncio.get_event_loop().set_exception_handler(lambda *_: None)    # no JavaScript tracebacks, until GUARDS

# KEYS
try:
    dcp.init()
    dcp.identity.set(dcp.wallet.get('id'))       # owns the job: ~/.dcp/id.keystore
    dcp.wallet.add(dcp.wallet.get('default'))    # pays for it: ~/.dcp/default.keystore
except pm.SpiderMonkeyError as error:
    sys.exit(f'DCP: {error.jsError["message"].splitlines()[0]} Check network, keystores (ask dan@dcp.dev).')

# DATA: if a job argument is a JavaScript URL, workers fetch what is there. DCP sees only the URL.
access_key = ''    # the same as in server.py: letters and digits only
server_url = 'http://127.0.0.1:5001'
if not server_url.startswith(('http://', 'https://')) or server_url.endswith('/'):
    sys.exit('server_url must begin with http:// or https://, and have no / at its end.')
data = pm.new('URL')(f'{server_url}/GSE57383_ps_psa?key={access_key}')    # <<<<<< fetched from your server

# INPUT SET: a slice is a signature, as numbers from 0 to 1, each of which SIGNATURE turns into a probeset.
n_signatures = 10
min_length, max_length = 5, 9
random.seed(42)
lengths = [random.randint(min_length, max_length) for _ in range(n_signatures)]
slices = [[random.random() for _ in range(length)] for length in lengths]

# WORK FUNCTION: workers call work_function(slice, *arguments) for each slice. `data` is the text of the file.
# In JavaScript, `list.map((a, i) => a + i)` is Python's `[a + i for i, a in enumerate(list)]`: see README.md.
work_function = r'''(slice, data) => {
  const classes = ['Psoriasis', 'Psoriatic Arthritis'];    // the phenotypes to tell apart: class 0, class 1
  const folds = 10;
  // TABLE: rows of cells, kept in globalThis for a job's next slices. `a ||= b` is `a = a or b`.
  globalThis.table ||= data.replace(/[\r\n]+$/, '').split(/\r?\n/).map((line) => line.split('\t'));
  const [header, ...samples] = globalThis.table;
  if (!samples.every((row) => row.length === header.length)) throw Error('lines differ in number of cells');

  // SIGNATURE: each number takes out one of the remaining columns: splice(i, 1)[0] is Python's pop(i).
  const remaining = [...header.keys()].slice(1);    // columns 1, 2, 3 and so on: column 0 is the phenotype
  const columns = slice.map((number) => remaining.splice(Math.floor(number * remaining.length), 1)[0]);

  // SAMPLES: y has the class of each, 0 or 1; x has a row for each, with its values (log2) of the signature.
  const y = samples.map((row) => classes.indexOf(row[0]));
  const count = (label, list) => list.filter((item) => item === label).length;    // list.count(label)
  const usable = count(0, y) > 1 && count(1, y) > 1 && count(0, y) + count(1, y) === y.length;
  if (!usable) throw Error(`samples must be of two classes, two or more of each: ${classes}`);
  const toNumber = (cell) => (/\d/.test(cell) ? Number(cell) : NaN);    // Number('') would be 0
  const x = samples.map((row) => columns.map((column) => toNumber(row[column])));
  if (!x.flat().every(Number.isFinite)) throw Error('too few probesets, or one without a number');

  // CLASSIFIERS: each tells how well a row fits the known rows of a class: the higher, the better.
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const mean = (values) => sum(values) / values.length;
  const transpose = (rows) => rows[0].map((_, j) => rows.map((row) => row[j]));    // Python's zip(*rows)
  const distance = (a, b) => sum(a.map((value, j) => (value - b[j]) ** 2));    // Euclidean, squared
  const classifiers = {
    centroid: (row, rows) => -distance(row, transpose(rows).map(mean)),
    neighbour: (row, rows) => -Math.min(...rows.map((other) => distance(row, other))),
    kernel: (row, rows) => row.length * Math.log(mean(rows.map((other) => 1 / (1 + distance(row, other))))),
  };

  // CROSS-VALIDATION: each class is dealt to folds like cards. A sample is scored by the other folds only.
  const fold = y.map((label, s) => count(label, y.slice(0, s)) % folds);    // n-th of its class: n % folds
  const scores = {};    // of each classifier, for each sample: near 0 if it is like class 0, near 1 if like 1
  for (const [name, fit] of Object.entries(classifiers)) {
    scores[name] = x.map((row, s) => {
      const known = (label) => x.filter((_, t) => y[t] === label && fold[t] !== fold[s]);
      return 1 / (1 + Math.exp(fit(row, known(0)) - fit(row, known(1))));    // over 0.5: class 1 fits better
    });
    progress();    // DCP demands this call: at least once per slice, and every 30 s
  }
  scores.ensemble = y.map((_, s) => mean(Object.values(scores).map((p) => p[s])));    // of those above

  // RESULT: accuracy, and AUC (area under the ROC curve): of all pairs, in how many class 1 scores higher.
  const result = { probesets: columns.map((column) => header[column]).join(', ') };
  for (const [name, p] of Object.entries(scores)) {
    if (p.some(Number.isNaN)) throw Error(`classifier ${name} returned no number`);
    const correct = p.map((score, s) => (score >= 0.5) === (y[s] === 1));    // true counts as 1
    const [zeros, ones] = [0, 1].map((label) => p.filter((_, s) => y[s] === label));
    const inOrder = ones.flatMap((b) => zeros.map((a) => (b > a) + (b === a) / 2));    // a tie counts half
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
state = 'new'    # then DCP's: 'exec' ... 'deployed'. Set by this script: 'running', 'refused', 'cancelled'


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
    mark = '✔' if str(event.result).startswith('Result received') else '✘'    # as receive_result() says
    print(f'    {mark} Slice {int(event.sliceNumber)}: {event.result}')


@job.on('error')
def on_error(error):
    if error.code == 'EPERM_ORIGIN':
        print_once(f'  A worker may not use your server: start it with --allow-origin {server_url}')
    elif error.code == 'ENOPROGRESS':
        print_once('  The work function must call progress(): at least once per slice, and every 30 s.')
    elif 'EUNCAUGHT' not in (error.code, error.errorCode):    # that was thrown: on_result tells of it
        print_once(f'  A worker failed: {error.message}')


@job.on('nofunds')
def on_no_funds(event):
    print_once(f'  No funds: the job waits until the account has {event.fundsRequired} more compute credits.')


@job.on('cancel')
def on_cancel(event):
    global state
    state = 'cancelled'
    stop(event.reason)


# RUN
def main():
    global state
    check_settings()
    check_work_function()
    first_report = ask_server()    # or end here, if it does not answer
    start_guards(first_report)
    try:
        job.exec()    # returns when DCP has the job; exec(0.1) would offer 0.1 compute credits per slice
        state = 'running'
        job.wait()    # returns when every slice is done
    except SystemExit as problem:    # stop() lets exec() or wait() raise it
        outcome = cancel_job()
        sys.exit(f'{outcome}: {problem}')
    n_slices = len(slices)
    stored = set(ask_server()['slices'])
    missing = [number for number in range(1, n_slices + 1) if number not in stored]
    if missing:
        sys.exit(f'{len(missing)} of {n_slices} slices have no result: {missing[:20]}')
    print('Done.')


# GUARDS: whatever goes wrong ends in one line that says what to do. No need to read on to change the rest.
import json    # here and not at the top, to leave lines 26 and 99 where README.md says
import os
import threading
import urllib.request

patience = 30    # seconds without news from DCP until this script asks why
news = threading.Event()
stopped = threading.Lock()    # the first stop() takes it, for good
loop = asyncio.get_event_loop()    # dcp's, which job.exec() and job.wait() run
job_id = job.id    # threads may not ask the job itself
printed = set()


def print_once(line):
    """Print a line, but not again: all workers make the same complaint."""
    if line not in printed:
        printed.add(line)
        print(line)


def check_settings():
    """End if one of them would go wrong without a word."""
    if access_key and not (access_key.isascii() and access_key.isalnum()):
        sys.exit('access_key must be of letters and digits.')
    for each in slices if isinstance(slices, (list, tuple, range)) else []:
        if type(each) is int or '__pythonmonkey_guard' in str(each):    # which compute_for makes of an int
            sys.exit('Python ints do not arrive as numbers: use floats as slices, such as 1.0.')


def check_work_function():
    """End with the line of this file where the work function does not compile."""
    try:
        pm.eval(f'({work_function})')
    except pm.SpiderMonkeyError as error:
        with open(__file__, encoding='utf-8') as this_file:
            lines_above = this_file.read().partition('work_function = ')[0].count('\n')
        line = lines_above + int(error.jsError['lineNumber'])
        sys.exit(f'The work function does not compile, see line {line}: {error.jsError["message"]}')


def ask_server():
    """Return server.py's report on this job, or end with the reason why there is none."""
    no_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))    # it is in your own network
    try:
        return json.load(no_proxy.open(f'{server_url}/dcp-results/{job_id}?key={access_key}', timeout=10))
    except Exception as error:
        if 'CERTIFICATE_VERIFY_FAILED' in str(error):
            sys.exit(f'The certificate of {server_url} is not trusted: set SSL_CERT_FILE to its file.')
        if getattr(error, 'code', None) == 403:
            sys.exit('server.py refuses this script: set access_key to the same in both scripts.')
        sys.exit(f'server.py does not answer at {server_url} ({error}): start it, or correct server_url.')


def start_guards(first_report):
    """See to it that stop() is called when something goes wrong from now on."""
    def on_signal(number, frame):
        stop('stopped by its owner.')

    signal.signal(signal.SIGINT, on_signal)     # Ctrl-C
    signal.signal(signal.SIGTERM, on_signal)    # kill
    if hasattr(signal, 'SIGHUP') and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:    # nohup ignores it
        signal.signal(signal.SIGHUP, on_signal)    # the terminal is closed
    loop.set_exception_handler(on_failure)
    for event in ('readystatechange', 'result'):
        job.on(event, lambda _: news.set())
    threading.Thread(target=watch, args=[first_report], daemon=True).start()


def stop(problem):
    """Let job.exec() or job.wait() raise SystemExit, in main(). Any thread may call this."""
    if stopped.acquire(blocking=False):    # only the first call counts: many press Ctrl-C twice
        # Both run the loop, in which this raises SystemExit. asyncio lets that out to main(), and no other.
        loop.call_soon_threadsafe(sys.exit, problem)
        last_resort = threading.Timer(10, give_up, [problem])    # in 10 s, in a thread of its own
        last_resort.daemon = True    # it does not keep this script alive
        last_resort.start()


def give_up(problem):
    """End this script although the job could not be cancelled, because DCP does not answer."""
    try:
        print(f'Job {job_id} may still run: {problem}', file=sys.stderr, flush=True)
    finally:    # even if the terminal is closed
        os._exit(1)    # sys.exit() would end only this thread


def cancel_job():
    """Cancel the job if DCP has it: it costs money, and nobody waits for it. Return what has become of it."""
    while state == 'deploying':    # too early to cancel it. If this takes long, give_up() ends it
        loop.run_until_complete(asyncio.sleep(0.1))
    if state in ('new', 'exec', 'init', 'preauth', 'refused'):    # the states before 'deploying', or instead
        return 'Job not deployed'
    if state == 'cancelled':
        return 'Job cancelled'
    try:
        job.cancel('its script has ended')
        return 'Job cancelled'
    except pm.SpiderMonkeyError:
        return f'Job {job_id} may still run'


def on_failure(_, context):
    """Hear of an error in DCP's event loop.

    Before the job runs this ends the script: job.exec() would wait for ever for a job that DCP refuses. Later
    it is a slip in an event handler above, or the loss of an event. The results arrive all the same.
    """
    global state
    error = context.get('exception')
    if not isinstance(error, pm.SpiderMonkeyError):    # not DCP's, but asyncio's: a task left at the end
        return
    message, _, _ = error.jsError['message'].partition('JS Stack Trace')
    problem = ' '.join(message.split())    # in one line
    if error.jsError['code'] == 'DCPL-1100':
        problem = 'DCP does not know this joinKey and joinSecret: check job.computeGroups.'
    if state == 'running':    # go on: the results arrive all the same
        print_once(f'  Problem: {problem}')
        return
    if state == 'deploying':
        state = 'refused'    # so there is no job to cancel
    stop(problem)


def watch(first_report):
    """Say so when there is no news. This runs in a thread of its own, in case DCP's event loop is stuck."""
    while True:
        if news.wait(patience):
            news.clear()
        elif state == 'running':
            print_once(f'  No news for {patience} s: {likely_cause(first_report)} Still waiting...')
        elif state in ('new', 'exec', 'uploading'):
            continue    # it may ask for a passphrase, or have much to upload
        else:
            stop(f'no news from DCP for {patience} s. Check your network; install requirements.txt again.')


def likely_cause(first_report):
    """Name the first step, from data to results, that was not taken since the first report."""
    try:
        report = ask_server()
    except SystemExit as problem:    # from ask_server(), with its text
        return str(problem)
    if report['refusals'] > first_report['refusals']:
        return f'server.py refused a request: {report["last_refusal"]}.'
    if report['fetches'] == first_report['fetches']:
        return ('no worker has fetched the data. Is one in your compute group, was it started with '
                f'--allow-origin {server_url}, and does it trust your certificate (NODE_EXTRA_CA_CERTS)?')
    return 'workers have fetched the data, but posted no result: see above why, or a slice takes that long.'


# START, continued (here, to leave lines 26 and 99 alone): PythonMonkey 1.4.1 may freeze when dcp, in order to
# sign the job, compiles WebAssembly in the background. So compile it in the foreground, until that is mended.
pm.eval("""WebAssembly.instantiate = async (bytes, imports) => {
    const module = new WebAssembly.Module(bytes);
    return { module, instance: new WebAssembly.Instance(module, imports) };
}""")
main()
