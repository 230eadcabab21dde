"""Score random gene signatures, to tell psoriatic arthritis from psoriasis: on DCP, with remote data."""
import asyncio, http.client, json, random, re, signal, sys, urllib.request

# START (on a first reading, skip to KEYS)
if sys.version_info < (3, 10):
    sys.exit('Use Python 3.10 to 3.14: README.md shows how to make a venv with one.')
if sys.version_info >= (3, 15):
    print('Tried on Python 3.10 to 3.14 only: if it fails, make a venv with one.', file=sys.stderr)
signal.signal(signal.SIGINT, signal.SIG_DFL)    # Ctrl-C ends this without a traceback
import nest_asyncio2
sys.modules['nest_asyncio'] = nest_asyncio2     # dcp 3.4.3 imports nest_asyncio, which fails on Python 3.14
import dcp
import pythonmonkey as pm                       # runs JavaScript, which most of dcp is written in
asyncio.get_event_loop().set_exception_handler(lambda *_: None)    # dcp's errors raise, too: no tracebacks

# KEYS
try:
    dcp.init()
    dcp.identity.set(dcp.wallet.get('id'))       # owns the job: ~/.dcp/id.keystore
    dcp.wallet.add(dcp.wallet.get('default'))    # pays for it: ~/.dcp/default.keystore
except pm.SpiderMonkeyError as error:
    sys.exit(f'DCP: {error.jsError["message"].splitlines()[0]} Check network, keystores (ask dan@dcp.dev).')

# DATA: workers fetch an argument that is a URL object, and get its text. DCP sees the address, not the data.
access_key = ''    # the same as in server.py: letters and digits only
server_url = 'http://127.0.0.1:5001'
if not server_url.startswith(('http://', 'https://')) or server_url.endswith('/'):
    sys.exit('server_url must begin with http:// or https://, and have no / at its end.')
data = pm.new('URL')(f'{server_url}/GSE57383_ps_psa?key={access_key}')    # <<<<<< fetched from your server

# INPUT SET: a slice is a signature. A probeset is given as a fraction of the table's width: 0.5 is halfway.
n_signatures = 10
min_length, max_length = 5, 9
random.seed(42)
lengths = [random.randint(min_length, max_length) for _ in range(n_signatures)]
slices = [[random.random() for _ in range(length)] for length in lengths]    # lists of floats

# WORK FUNCTION: workers call work_function(slice, *arguments) for each slice. README.md explains JavaScript.
work_function = r'''(slice, data) => {    // above, data is a URL; in here, it is the text of the file
  const classes = ['Psoriasis', 'Psoriatic Arthritis'];    // the phenotypes to tell apart: class 0, class 1
  const folds = 10;    // of the cross-validation
  // TABLE: rows of cells. globalThis outlives the call: a worker parses once per job, for its first slice.
  globalThis.table ||= data.trimEnd().split('\n').map((line) => line.split('\t').map((cell) => cell.trim()));
  const [header, ...rows] = globalThis.table;
  if (!rows.every((row) => row.length === header.length)) throw Error('lines differ in number of cells');
  // SIGNATURE: each fraction becomes a column number, from 1 on (0 is the phenotype). The Set drops repeats.
  const columns = [...new Set(slice.map((fraction) => 1 + Math.floor(fraction * (header.length - 1))))];
  // SAMPLES: an object for each row. A class's first sample gets fold 0, its second fold 1, and so on.
  const samples = rows.map((row, i) => ({
    label: classes.indexOf(row[0]),    // 0 or 1, its class. -1: neither
    fold: rows.slice(0, i).filter((earlier) => earlier[0] === row[0]).length % folds,    // in turn
    values: columns.map((column) => Number(row[column] || NaN)),    // log2. An empty cell must not become 0
    scores: {},    // one per classifier, from CROSS-VALIDATION
  }));
  const [class0, class1] = [0, 1].map((label) => samples.filter((sample) => sample.label === label));
  if (class0.length + class1.length < rows.length) throw Error(`column 1 must hold two labels: ${classes}`);
  if (class0.length < 2 || class1.length < 2) throw Error(`each label must be there twice: ${classes}`);
  if (!samples.every((sample) => sample.values.every(Number.isFinite))) throw Error('a value is no number');

  // CLASSIFIERS: how similar (a number above 0) a sample's values are to `known`, a list of others' values.
  const mean = (values) => values.reduce((total, value) => total + value, 0) / values.length;
  const columnMeans = (known) => known[0].map((_, i) => mean(known.map((other) => other[i])));
  const similarity = (a, b) => 1 / (1 + mean(a.map((value, i) => (value - b[i]) ** 2)));    // 1: equal
  const classifiers = {    // the more similar, the higher: a distance would turn the scores round
    centroid: (values, known) => similarity(values, columnMeans(known)),
    neighbour: (values, known) => Math.max(...known.map((other) => similarity(values, other))),    // nearest
    kernel: (values, known) => mean(known.map((other) => similarity(values, other))),    // all of them
  };

  // CROSS-VALIDATION: each sample is compared with each class's samples of all folds but its own.
  if (!(folds >= 2)) throw Error('folds must be 2 or more');    // `folds < 2` would not hear of NaN
  for (const sample of samples) {
    const known0 = class0.filter((other) => other.fold !== sample.fold).map((other) => other.values);
    const known1 = class1.filter((other) => other.fold !== sample.fold).map((other) => other.values);
    for (const [name, classifier] of Object.entries(classifiers)) {
      const like0 = classifier(sample.values, known0);
      const like1 = classifier(sample.values, known1);
      if (!(like0 > 0 && like1 > 0 && like0 + like1 < Infinity)) throw Error(`${name} gave no number > 0`);
      sample.scores[name] = like1 / (like0 + like1);    // near 0: like class 0; near 1: like class 1
    }
    sample.scores.ensemble = mean(Object.values(sample.scores));
    progress();    // DCP demands this call: at least once per slice, and every 30 s
  }

  // RESULT: accuracy: share scored on the right side of 0.5. AUC: share of pairs where class 1 scores higher.
  const result = { probesets: columns.map((column) => header[column]).join(', ') };
  for (const name of Object.keys(samples[0].scores)) {    // of each classifier, and of the ensemble
    const [scores0, scores1] = [class0, class1].map((group) => group.map((sample) => sample.scores[name]));
    const correct = [...scores0.map((s0) => s0 < 0.5), ...scores1.map((s1) => s1 >= 0.5)];    // true is 1
    const inOrder = scores1.flatMap((s1) => scores0.map((s0) => (s1 > s0 ? 1 : s1 === s0 ? 0.5 : 0)));
    result[`${name}_accuracy`] = Number(mean(correct).toFixed(3));
    result[`${name}_auc`] = Number(mean(inOrder).toFixed(3));
  }
  return result;    // a line of the results file; its last column is the score on the results page
}'''

# JOB: workers post each result, as a form, to setResultStorage's address, with its dict as two more fields.
job = dcp.compute_for(slices, work_function, [data])
job.computeGroups = [{'joinKey': 'demo', 'joinSecret': 'dcp'}]
job.worktime = 'map-basic'    # what runs the work function: this for JavaScript, 'pyodide' for Python
job.setResultStorage(f'{server_url}/dcp-results', {'job': job.id, 'key': access_key})    # <<<<<< posted there

# PUBLIC INFO: anybody may see this
job.public.name = 'PsA signature search'
job.public.description = 'Scores random gene signatures that tell psoriatic arthritis from psoriasis'
job.public.link = 'https://www.ncbi.nlm.nih.gov/geo/query/acc.cgi?acc=GSE57383'

# EVENTS (print_once() and exit_soon() are in GUARDS, below)
@job.on('readystatechange')
def on_state(state):
    print('State:', state)


@job.on('accepted')
def on_accepted(_):
    print(f'  Job ID: {job.id}')
    print('  Job accepted, awaiting results...')


@job.on('result')
def on_result(event):
    """Print your server's answer to the worker that posted the result: no more of it passes through DCP."""
    mark = '✔' if event.result == 'Result received' else '✘'    # any other answer says what is wrong
    print(f'    {mark} Slice {int(event.sliceNumber)}: {event.result}')


@job.on('error')
def on_error(error):
    if error.code == 'EPERM_ORIGIN':
        print_once(f'  A worker may not use your server: start it with --allow-origin {server_url}')
    elif error.code == 'ENOPROGRESS':
        print_once('  The work function must call progress(): at least once per slice, and every 30 s.')
    elif 'EUNCAUGHT' in (error.code, error.errorCode):    # dcp sets one of the two fields
        print_once(f'  The work function threw{where_thrown(error)}.')    # on_result prints what it threw
    else:
        print_once(f'  A worker failed: {error.message}')


@job.on('nofunds')
def on_no_funds(event):
    print_once(f'  No funds: the job waits until the account has {event.fundsRequired} more compute credits.')


@job.on('cancel')
def on_cancel(event):
    exit_soon(f'Job cancelled: {event.reason}')


# RUN
def main():
    check_input()
    check_work_function()
    first_report = ask_server()    # ends this script if server.py does not answer
    start_guards(first_report)
    job.exec()    # returns when DCP has the job; exec(0.1) would offer 0.1 compute credits per slice
    job.wait()    # returns when every slice is done
    n_slices = len(slices)
    stored = set(ask_server()['slices'])
    missing = [number for number in range(1, n_slices + 1) if number not in stored]
    if missing:
        sys.exit(f'{len(missing)} of {n_slices} slices have no result. The first of them: {missing[:20]}')
    print('Done.')


# GUARDS: whatever goes wrong ends in one line that says what to do. No need to read on to change the rest.
loop = asyncio.get_event_loop()    # dcp's event loop, which job.exec() and job.wait() run
patience = 30    # seconds: if there is no news from DCP that long, watch() asks why
news = asyncio.Event()
printed = set()    # by print_once()
tasks = []    # by start()
report_url = f'{server_url}/dcp-results/{job.id}?key={access_key}'    # what server.py knows of this job


def print_once(line):
    """Print a line, but not again: all workers make the same complaint."""
    if line not in printed:
        printed.add(line)
        print(line)


# Before the job is deployed
def has_tuple(value):
    """Say whether a value is a tuple, or a list or dict with one in it, however deep."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return any(has_tuple(part) for part in value)
    return isinstance(value, tuple)


def check_input():
    """End if there are no slices, or if a slice or an argument is of a type that does not arrive as such."""
    if not slices:
        sys.exit('There are no slices: nothing to do.')
    values = list(job.jobArguments)
    if isinstance(slices, list):
        values += slices
    if any(has_tuple(value) for value in values):
        sys.exit('Python tuples do not arrive as lists: use lists, such as [1.0, 2.0].')
    # For what it can't send, dcp.compute_for() has put a dict with this key, and a worker would get that.
    has_ints = any(isinstance(value, dict) and '__pythonmonkey_guard' in value for value in values)
    if has_ints or isinstance(slices, range):
        sys.exit('Python ints (and NumPy arrays) do not arrive as such: use floats, such as 1.0, and lists.')


def check_work_function():
    """End with the line of this file where the work function does not compile."""
    try:
        pm.eval(f'({work_function})')
    except pm.SpiderMonkeyError as error:
        line = line_of_file(error.jsError['lineNumber'])
        sys.exit(f'The work function does not compile, see line {line}: {error.jsError["message"]}')


def line_of_file(line):
    """Return which line of this file a line of the work function is (if its text is in this file)."""
    with open(__file__, encoding='utf-8') as this_file:
        text_above, found, _ = this_file.read().partition(work_function)
    return int(line) + (text_above.count('\n') if found else 0)


def ask_server():
    """Return server.py's report on this job. Raises ConnectionError, which says what to do."""
    no_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))    # it is in your own network
    try:
        with no_proxy.open(report_url, timeout=10) as response:
            return json.load(response)
    except (OSError, ValueError, http.client.HTTPException) as error:
        if 'CERTIFICATE_VERIFY_FAILED' in str(error):
            problem = f'The certificate of {server_url} is not trusted: set SSL_CERT_FILE to its file.'
        elif getattr(error, 'code', None) == 403:
            problem = 'server.py refuses this script: set access_key to the same letters and digits in both.'
        else:
            problem = f'server.py does not answer at {server_url} ({error}): start it, or correct server_url.'
        raise ConnectionError(problem) from None


# While it runs, and when it ends
def prevent_freeze():
    """Let WebAssembly, with which dcp signs the job, be compiled in the foreground.

    In the background, as usual, that may stop PythonMonkey 1.4.1 for ever, and not even Ctrl-C is heard.
    """
    pm.eval("""WebAssembly.instantiate = async (bytes, imports) => {
        const module = new WebAssembly.Module(bytes);
        return { module, instance: new WebAssembly.Instance(module, imports) };
    }""")


def start_guards(first_report):
    """Have what goes wrong from now on heard by the event loop, which job.exec() and job.wait() run."""
    prevent_freeze()

    def on_signal(*_):    # runs in the midst of anything: so it leaves the cancelling to the event loop
        start(cancel_job('stopped by its owner.'))

    signal.signal(signal.SIGINT, on_signal)     # Ctrl-C
    signal.signal(signal.SIGTERM, on_signal)    # kill
    if hasattr(signal, 'SIGHUP') and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:    # nohup ignores it
        signal.signal(signal.SIGHUP, on_signal)    # the terminal is closed
    loop.set_exception_handler(on_failure)
    for event in ('readystatechange', 'result'):
        job.on(event, lambda _: news.set())    # for watch()
    start(watch(first_report))


def start(coroutine):
    """Have the event loop run a coroutine. What is not kept in a variable, asyncio may forget."""
    tasks.append(asyncio.run_coroutine_threadsafe(coroutine, loop))


def exit_soon(line):
    """End this script with a line, from an event handler: there, sys.exit() would only end the handler."""
    loop.call_soon_threadsafe(sys.exit, line)


async def cancel_job(problem):
    """End this script, and cancel the job if DCP has it: it costs money, and nobody would wait for it.

    A job can be cancelled only once DCP has answered with its address: wait up to 10 s for that.
    """
    if job.readyState in ('new', 'exec', 'init', 'preauth'):    # the states before it is sent to DCP
        sys.exit(f'Job not deployed: {problem}')
    loop.call_later(10, sys.exit, f'Job {job.id} may still run: {problem}')    # gives up, after 10 s
    while not job.address:
        await asyncio.sleep(0.1)
    job.cancel(problem)    # runs the event loop until DCP has done so
    sys.exit(f'Job cancelled: {problem}')


def on_failure(_, context):
    """Hear of an error that job.exec() and job.wait() do not raise: DCP's, or a slip in a handler above.

    What to do depends on how far the job has come:

    - job.connected: the job runs, and goes on.
    - Only job.address: DCP has taken the job, but job.exec() will never return, so cancel it.
    - Neither: DCP refuses the job.
    """
    error = context.get('exception')
    if not isinstance(error, pm.SpiderMonkeyError):    # asyncio also reports what is left undone at the end
        return
    problem = in_one_line(error)
    if job.connected:
        print_once(f'  Problem: {problem}')
    elif job.address:
        start(cancel_job(problem))
    else:
        exit_soon(f'Job not deployed: {problem}')


def where_thrown(error):
    """Return where in this file the work function threw, if the error's stack tells. Python's does not."""
    line = re.search(r'<anonymous>:(\d+)', str(error.stack))
    return f' at line {line_of_file(line[1])}' if line else ''


def in_one_line(error):
    """Return what a JavaScript error says, and where, if it was raised in this file."""
    message = error.jsError['message'].partition('\n')[0]
    if error.jsError['code'] == 'DCPL-1100':
        return 'DCP does not know this joinKey and joinSecret: check job.computeGroups.'
    if str(error.jsError['fileName']).endswith('.py'):
        return f'{message} (line {int(error.jsError["lineNumber"])})'
    return message


# When there is no news
async def watch(first_report):
    """Whenever there is no news for as long as patience allows, say why."""
    while True:
        try:
            await asyncio.wait_for(news.wait(), patience)
            news.clear()
        except asyncio.TimeoutError:
            if job.connected:
                cause = await asyncio.to_thread(likely_cause, first_report)    # may take ask_server() 10 s
                print_once(f'  No news for {patience} s: {cause} Still waiting...')
            elif job.readyState not in ('exec', 'uploading'):    # may last: passphrase, big upload
                await cancel_job(f'no news from DCP for {patience} s. Check your network.')


def likely_cause(first_report):
    """Name the first step, from data to results, that was not taken since the first report."""
    try:
        report = ask_server()
    except ConnectionError as problem:
        return str(problem)
    if report['refusals'] > first_report['refusals']:
        return f'server.py refused a request: {report["last_refusal"]}.'
    if report['fetches'] == first_report['fetches']:
        return ('no worker has fetched the data. Is one in your compute group, was it started with '
                f'--allow-origin {server_url}, and does it trust your certificate (NODE_EXTRA_CA_CERTS)?')
    return 'workers have fetched the data, but post no result now: see above why, or a slice takes that long.'


try:
    main()
except ConnectionError as problem:    # from ask_server()
    sys.exit(str(problem))
