"""Score random gene signatures that tell psoriatic arthritis from psoriasis: a DCP job with remote data."""
import asyncio, functools, json, os, pathlib, random, signal, socket, sys, urllib.request
signal.signal(signal.SIGINT, signal.SIG_DFL)    # until CTRL-C below: end at once, with no traceback
import nest_asyncio2
sys.modules['nest_asyncio'] = nest_asyncio2     # dcp imports nest_asyncio, which fails on Python 3.14
os.environ['MOZ_NURSERY_STRINGS'] = '0'         # else PythonMonkey may crash at start
import dcp                                      # "dcp" is this package, "DCP" the service that it talks to
import pythonmonkey as pm                       # runs JavaScript, which most of dcp is written in

# DCP: connect, and load two keystores
socket.setdefaulttimeout(10)    # give up if DCP or server.py is silent for 10 s
asyncio.get_event_loop().set_exception_handler(lambda *_: None)    # until RUN: no tracebacks of dcp's errors
try:
    dcp.init()
    dcp.identity.set(dcp.wallet.get('id'))       # owns the job: ~/.dcp/id.keystore
    dcp.wallet.add(dcp.wallet.get('default'))    # pays for it: ~/.dcp/default.keystore
except pm.SpiderMonkeyError as error:
    sys.exit(f'DCP: {error.jsError["message"].splitlines()[0]} Check network, keystores (ask dan@dcp.dev).')

# SETTINGS
n_signatures = 10
min_length, max_length = 5, 9                    # probesets in a signature
random.seed(42)                                  # another seed gives other signatures
classes = ['Psoriasis', 'Psoriatic Arthritis']   # the labels in the first column of the table: strings
folds = 10                                       # of the cross-validation, which is stratified
server_url = 'http://127.0.0.1:5001'             # as server.py prints it

# DATA: if an argument is a URL object, the workers fetch from it, and the work function gets the text.
server_url = server_url.strip(' /')    # copied from a browser, it ends in /
address = f'{server_url}/GSE57383_ps_psa'
try:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))    # server.py is inside: no proxy
    header = direct.open(address).readline().decode()    # the first line only: names of columns
    data_url = pm.new('URL')(address)    # REMOTE DATA. In JavaScript: new URL(address)
except Exception as error:    # of many kinds: no answer, no data there, no address
    sys.exit(f'No data at {address} ({error}): does server.py run, and is server_url what it has printed?')

# INPUT SET: slices are lists of column numbers. As DCP garbles ints and tuples, send it floats and lists.
columns = range(1, 1 + header.count('\t'))    # column 0 is the phenotype
try:
    slices = [random.sample(columns, random.randint(min_length, max_length)) for _ in range(n_signatures)]
    as_json = json.dumps([slices, [classes, folds]])
    slices, arguments = json.loads(as_json, parse_int=float)    # JavaScript's numbers are floats
except (TypeError, ValueError) as error:
    sys.exit(f'No slices can be made of {len(columns)} tab-separated probesets and these settings: {error}')

# WORK FUNCTION: a worker calls it for each slice, with the arguments. README.md explains its JavaScript.
work_function = r'''(signature, data, classes, folds) => {    // data arrives as the text of the table
  // TABLE: rows of cells. (An error must quote no cell: its text goes through DCP's scheduler.)
  const [header, ...rows] = data.trimEnd().replaceAll('\r', '').split('\n').map((line) => line.split('\t'));
  if (classes.includes(header[0])) throw Error('the first line must name the columns, not be a sample');
  const groups = [[], []];    // the samples of the first class, and of the second
  for (const [i, row] of rows.entries()) {
    const line = `line ${i + 2} of the table`;
    if (row.length !== header.length) throw Error(`${line} has not as many cells as the first`);
    const group = groups[classes.indexOf(row[0])];    // if neither: groups[-1], which is undefined
    if (!group) throw Error(`${line} must begin with ${classes.join(' or ')}, unquoted; classes: strings`);
    const values = signature.map((column) => Number(row[column].trim() || NaN));    // Number('') would be 0
    if (!values.every(Number.isFinite)) throw Error(`${line}: no number in a column of ${signature}`);
    group.push({ values, fold: group.length % folds, scores: {} });    // dealt to folds 0, 1, 2 ...
  }
  if (folds < 2 || folds % 1 !== 0 || groups.some((g) => g.length < 2)) throw Error('too few samples/folds');
  // CLASSIFIERS: how similar are a sample's values to those of known samples? Each gives a number above 0.
  const mean = (numbers) => numbers.reduce((total, number) => total + number, 0) / numbers.length;
  const columnMeans = (known) => known[0].map((_, i) => mean(known.map((other) => other[i])));
  const similarity = (a, b) => 1 / (1 + mean(a.map((value, i) => (value - b[i]) ** 2)));    // 1 if equal
  const classifiers = {
    centroid: (values, known) => similarity(values, columnMeans(known)),
    neighbour: (values, known) => Math.max(...known.map((other) => similarity(values, other))),
    kernel: (values, known) => mean(known.map((other) => similarity(values, other))),
  };
  if (classifiers.ensemble) throw Error('ensemble is the mean of all classifiers: rename yours');
  // CROSS-VALIDATION: compare each sample with those outside its fold. (other !== sample: for leave-one-out)
  for (const sample of groups.flat()) {
    progress();    // DCP demands this call: at least once per slice, and every 30 s
    const isKnown = (other) => other !== sample && other.fold !== sample.fold;
    const [known0, known1] = groups.map((group) => group.filter(isKnown).map((other) => other.values));
    for (const [name, classifier] of Object.entries(classifiers)) {
      const [like0, like1] = [classifier(sample.values, known0), classifier(sample.values, known1)];
      if (!(like0 > 0 && like1 > 0 && like0 + like1 < Infinity)) throw Error(`${name} gave no number > 0`);
      sample.scores[name] = like1 / (like0 + like1);    // near 0: like class 0; near 1: like class 1
    }
    sample.scores.ensemble = mean(Object.values(sample.scores));
  }
  // RESULT. Accuracy: scores on the right side of 0.5. AUC: share of pairs with class 1 higher (tie: half).
  const result = { probesets: signature.map((column) => header[column]).join(', '), samples: rows.length };
  for (const name of [...Object.keys(classifiers), 'ensemble']) {
    const [scores0, scores1] = groups.map((group) => group.map((sample) => sample.scores[name]));
    const correct = scores0.filter((s0) => s0 < 0.5).length + scores1.filter((s1) => s1 >= 0.5).length;
    const wins = scores1.flatMap((s1) => scores0.map((s0) => (s1 > s0) + (s1 === s0) / 2));    // true is 1
    result[`${name}_accuracy`] = Number((correct / rows.length).toFixed(3));
    result[`${name}_auc`] = Number(mean(wins).toFixed(3));
  }
  return result;    // a line of the results file
}'''

# JOB
job = dcp.compute_for(slices, work_function, [data_url, *arguments])    # work_function(slice, data, ...)
job.computeGroups = [{'joinKey': 'demo', 'joinSecret': 'dcp'}]    # anybody may join 'demo': use your own
job.worktime = 'map-basic'    # DCP's name for work functions in JavaScript
job.setResultStorage(f'{server_url}/dcp-results',    # REMOTE RESULTS: workers post them there
                     {'job': job.id, 'of': str(len(slices))})    # posted with each result; job.id is new

# PUBLIC INFO: anybody may see this
job.public.name = 'PsA signature search'
job.public.description = 'Scores random gene signatures that tell psoriatic arthritis from psoriasis'
job.public.link = 'https://www.ncbi.nlm.nih.gov/geo/query/acc.cgi?acc=GSE57383'

# CHECKS of what DCP itself would let pass
if not slices:
    sys.exit('There are no slices: the job would never end.')
if not job.resultStorageType:    # which setResultStorage sets
    sys.exit('Without job.setResultStorage, the results would go to DCP.')
if not job.computeGroups or not all('joinSecret' in group for group in job.computeGroups):
    sys.exit('Without job.computeGroups of your own, with a joinSecret, strangers would compute the job.')
# Compile the work function, to tell a syntax error with its line in this file. (It may be a URL instead.)
if isinstance(work_function, str):
    text_before = pathlib.Path(__file__).read_text('utf-8').partition(work_function)[0]
    try:
        pm.eval(f'({work_function})', {'filename': __file__, 'lineno': 1 + text_before.count('\n')})
    except pm.SpiderMonkeyError as error:
        sys.exit(f'Work function: {error}')

# EVENTS: dcp calls these functions. As it ignores sys.exit() in them, use loop.call_soon(sys.exit, message).
sys.stdout.reconfigure(line_buffering=True)    # print each line at once, into a file or pipe, too
loop = asyncio.get_event_loop()    # job.exec() and job.wait() run it
print_once = functools.cache(print)    # prints a line, but not again: all workers make the same complaint
answered = set()    # slice numbers
is_deployed = False    # until job.exec() has returned
job.on('readystatechange', lambda state: print('State:', state))
job.on('accepted', lambda _: print(f'  Job ID: {job.id}\n  Job accepted, awaiting results...'))
job.on('nofunds', lambda event: print_once(f'  No funds: the job waits for {event.fundsRequired} credits.'))
job.on('cancel', lambda event: loop.call_soon(sys.exit, f'DCP has cancelled the job: {event.reason}'))


@job.on('result')
def on_result(event):
    """Print what your server answered to the worker: the result itself does not pass through DCP."""
    answered.add(event.sliceNumber)
    mark = '✔' if event.result == 'Result received' else '✘'
    print(f'    {mark} Slice {int(event.sliceNumber)}: {event.result}')    # numbers arrive as floats


@job.on('error')
def on_error(error):
    """Print what a worker complains of, and how to allow it to use your server."""
    hint = f' Start the worker with --allow-origin {data_url.origin}' if error.code == 'EPERM_ORIGIN' else ''
    print_once(f'  A worker: {error.message}{hint}')


def remind(n_before):
    """Every 30 s, print a hint if no slice has been answered since the last time."""
    if len(answered) == n_before:
        print('  No result for 30 s: see what server.py logs, and "Nothing happens?" in README.md.')
    loop.call_later(30, remind, len(answered))


# CANCELLING (skip from here to RUN at first): a job that goes on without this script costs money.
async def end(problem):
    """Cancel the job as soon as DCP has it, and exit with a line that says why. Give up after 10 s."""
    loop.call_later(10, sys.exit, f'{problem} DCP is silent: job {job.id} may still run.')    # a deadline
    while not job.address:    # empty until DCP has the job. (job.id is there from the start.)
        await asyncio.sleep(0.1)
    try:
        await job.aio.cancel(problem)    # awaitable, unlike job.cancel(). DCP is told the problem
        sys.exit(f'{problem} The job is cancelled.')
    except pm.SpiderMonkeyError as error:    # DCP refuses it
        sys.exit(f'{problem} DCP on cancelling job {job.id}: {error.jsError["message"]}')


# ERRORS of dcp, or in an event handler, are not raised by job.exec(): asyncio hands them to on_failure().
def on_failure(loop, context):
    """Print the error. Before the job is deployed, it is fatal: exit, and cancel the job if DCP has it."""
    error = context.get('exception')
    if isinstance(error, pm.SpiderMonkeyError):    # whatever else asyncio reports does no harm
        message = error.jsError['message'].splitlines()[0]
        if is_deployed:    # the job goes on
            print_once(f'  Problem: {message}')
        elif job.address:    # DCP has the job, but perhaps not its compute groups: cancel it
            loop.create_task(end(f'Job cannot be deployed: {message}. (Is job.computeGroups right?)'))
        else:    # DCP does not have the job: there is nothing to cancel
            loop.call_soon(sys.exit, f'Job cannot be deployed: {message}.')


# CTRL-C, kill, or a closed terminal
def on_signal(*_):
    """Queue end() in the loop, which job.exec() and job.wait() run."""
    asyncio.run_coroutine_threadsafe(end('Stopped.'), loop)    # safe in a signal handler; wakes the loop


signal.signal(signal.SIGINT, on_signal)
signal.signal(signal.SIGTERM, on_signal)
if hasattr(signal, 'SIGHUP') and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:    # not under nohup
    signal.signal(signal.SIGHUP, on_signal)

# WORKAROUND (keep it): PythonMonkey may hang if it compiles WebAssembly in the background, as dcp asks it to.
# So replace the function that does so, WebAssembly.instantiate(), by one that compiles at once.
pm.eval('WebAssembly.instantiate = async (bytes, imports) => '
        '({ instance: new WebAssembly.Instance(new WebAssembly.Module(bytes), imports) })')

# RUN
loop.set_exception_handler(on_failure)
loop.call_later(30, remind, 0)
job.exec()              # returns when it is deployed; exec(0.1) offers 0.1 compute credits per slice
is_deployed = True
answers = job.wait()    # returns when all slices are done: what your server answered for each, in slice order
missing = [number for number, answer in enumerate(answers, 1) if answer != 'Result received']
if missing:
    sys.exit(f'{len(missing)} of {len(slices)} slices have no result: {missing[:20]}')
print('Done.')
