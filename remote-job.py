"""Search random gene signatures that tell psoriatic arthritis from psoriasis, on DCP with remote data and results."""
import json
import signal
import sys
import urllib.request

import dcp
import pythonmonkey as pm
from dcp.dry.aio import blockify, loop

# KEYS (DCP's errors are raised: of what else it tells the loop, print only slips in the Python callbacks below)
loop.set_exception_handler(lambda _, told: 'Python' in str(told.get('exception')) and print(told['exception']))
reason = lambda error: error.jsError['message'].splitlines()[0]
sys.excepthook = lambda kind, error, stack: (
    print(f'DCP: {reason(error)}. Check network, keystores (ask dan@dcp.dev) and settings.', file=sys.stderr)
    if kind is pm.SpiderMonkeyError else sys.__excepthook__(kind, error, stack))
dcp.init()
dcp.identity.set(dcp.wallet.get('id'))         # owns the job: ~/.dcp/id.keystore
dcp.wallet.add(dcp.wallet.get('default'))      # pays for it: ~/.dcp/default.keystore

# SETTINGS
n_signatures = 10
min_sig_length, max_sig_length = 5, 9
seed = 42
access_key = ''    # the same letters and digits as in server.py
server_url = 'http://127.0.0.1:5001'
data = pm.new('URL')(f'{server_url}/GSE57383_ps_psa?key={access_key}')    # <<<<<< bypasses the scheduler: workers fetch

# INPUT SET (as floats: Python's ints do not reach JavaScript as numbers)
slices = [float(i) for i in range(1, n_signatures + 1)]

# WORK FUNCTION (JavaScript, on the workers. What it throws or logs passes through DCP's scheduler: put no data there.)
work_function = r'''(i, nSignatures, minLength, maxLength, seed, data) => {
  const lineEnd = (start) => (data.indexOf('\n', start) + 1 || data.length + 1) - 1, size = data.trimEnd().length;
  const cell = (start, end) => data.slice(start, end).split('\t', 1)[0].trim();
  const [phenotype, ...probesets] = data.slice(0, lineEnd(0)).trim().split('\t'), n = probesets.length;
  if (phenotype !== 'phenotype' || !n) throw Error('the data has no phenotype column or no probesets');
  // The signature: random probesets, none twice. Its length sweeps evenly from min to max over the slices.
  const longest = Math.max(1, Math.min(maxLength, n)), shortest = Math.max(1, Math.min(minLength, longest));
  const steps = Math.floor((i - 1) * (longest - shortest + 1) / Math.max(1, nSignatures - 1));
  let state = Math.imul(seed, 0x85ebca6b) + i;    // splitmix32: the same random numbers in every engine
  const picked = new Set(), mix = (bits, shift, factor) => Math.imul(bits ^ bits >>> shift, factor);
  const random = () => mix(mix(mix(state += 0x9e3779b9, 16, 0x21f0aaad), 15, 0x735a2d97), 15, 1) / 2 ** 32 + 0.5;
  while (picked.size < Math.min(shortest + steps, longest)) picked.add(Math.floor(random() * n));
  const signature = [...picked].sort((a, b) => a - b);
  // Read each sample no further than that takes, and deal out the samples of each class over ten folds.
  const classes = ['Psoriasis', 'Psoriatic Arthritis'], sizes = [0, 0], folds = 10, x = [], y = [], fold = [], p = [];
  for (let start = lineEnd(0) + 1, end = lineEnd(start); start < size; start = end + 1, end = lineEnd(start)) {
    let label = classes.indexOf(cell(start, end)), at = start, column = -1, row = [];
    if (label < 0) throw Error(`sample ${y.length + 1} is neither ${classes.join(' nor ')}`);
    for (const wanted of signature) {
      for (; column < wanted; column++) at = data.indexOf('\t', at) + 1;
      row.push(at > start ? Number(cell(at, end) || NaN) : NaN);
      if (!isFinite(row.at(-1))) throw Error(`sample ${y.length + 1} has no number for ${probesets[wanted]}`);
    }
    x.push(row); y.push(label); fold.push(sizes[label]++ % folds);
  }
  if (Math.min(...sizes) < folds) throw Error(`each class needs ${folds} samples, not ${sizes.join(' and ')}`);
  // Classifiers learn from the rows of the two classes, and return a function: row => probability of the second class.
  const sum = (values) => { let total = 0; for (let k = 0; k < values.length; k++) total += values[k]; return total; };
  const mean = (values) => sum(values) / values.length, variance = (v, m = mean(v)) => mean(v.map((a) => (a - m) ** 2));
  const columns = (rows) => rows[0].map((_, j) => rows.map((row) => row[j])), sigmoid = (t) => 1 / (1 + Math.exp(-t));
  const add = (target, factor, source) => source.forEach((value, k) => { target[k] += factor * value; });
  const LDA = (groups, [a, b], prior) => {    // linear discriminant analysis, with a ridge of 0.001
    const S = a.map((_, j) => [...a.map((_, k) => j === k ? 0.001 : 0), b[j].mean - a[j].mean]);
    groups.forEach((rows, label) => rows.forEach((row) => {    // S: covariance, then the difference of the means
      const centred = row.map((value, j) => value - [a, b][label][j].mean);
      S.forEach((s, j) => add(s, centred[j] / (groups[0].length + groups[1].length), centred));
    }));
    S.forEach((pivot, j) => S.forEach((s) => s === pivot || add(s, -s[j] / pivot[j], pivot)));    // Gauss-Jordan
    return (row) => sigmoid(prior + sum(S.map((s, j) => s.at(-1) / s[j] * (row[j] - (a[j].mean + b[j].mean) / 2))));
  };
  const GNB = (groups, [a, b], prior) => {    // Gaussian naive Bayes
    const logDensity = (value, gene) => -(Math.log(gene.variance) + (value - gene.mean) ** 2 / gene.variance) / 2;
    return (row) => sigmoid(prior + sum(row.map((value, j) => logDensity(value, b[j]) - logDensity(value, a[j]))));
  };
  const KNN = (groups) => (row) => mean(groups.flatMap((rows, c) => rows.map((near) => [    // of 5 nearest neighbours
    row.reduce((d, v, j) => d + (v - near[j]) ** 2, 0), c])).sort((a, b) => a[0] - b[0]).slice(0, 5).map((k) => k[1]));
  // Cross-validation: each sample is predicted by models, and standardised by moments, that have not seen it.
  for (let f = 0; f < folds; f++) {    // with progress(): DCP gives up a slice that reports none for 30 s
    const train = x.filter((_, r) => fold[r] !== f);
    const seen = columns(train).map((v) => [mean(v), new Set(v).size > 1 ? Math.sqrt(variance(v)) : 1]);
    const z = x.map((row) => row.map((value, j) => (value - seen[j][0]) / seen[j][1]));
    const groups = [0, 1].map((label) => z.filter((_, r) => fold[r] !== f && y[r] === label));
    const genes = groups.map((rows) => columns(rows).map((v) => ({ mean: mean(v), variance: variance(v) + 1e-9 })));
    const models = [LDA, GNB, KNN].map((learn) => learn(groups, genes, Math.log(groups[1].length / groups[0].length)));
    z.forEach((row, r) => { if (fold[r] === f) p[r] = models.map((model) => model(row)); }); progress((f + 1) / folds);
  }
  return ['LDA', 'GNB', 'KNN', 'Ensemble'].map((classifier, c) => {
    const score = p.map((three) => [...three, mean(three)][c]), hits = score.filter((q, r) => (q >= 0.5) === !!y[r]);
    const wins = sum(score.map((q, r) => y[r] && sum(score.map((o, s) => y[s] ? 0 : (q > o) + (q === o) / 2))));
    return { classifier, accuracy: +(hits.length / y.length).toFixed(3),
      auc: +(wins / (sizes[0] * sizes[1])).toFixed(3), probesets: signature.map((j) => probesets[j]).join(', ') };
  });
}'''

# JOB
job = dcp.compute_for(slices, work_function, [*map(float, (n_signatures, min_sig_length, max_sig_length, seed)), data])
job.computeGroups = [{'joinKey': 'demo', 'joinSecret': 'dcp'}]
job.worktime = 'map-basic'    # the one for JavaScript
job.setResultStorage(f'{server_url}/dcp-results',    # <<<<<< bypasses the scheduler: workers post
                     {'elementType': 'results', 'job': job.id, 'key': access_key})

# PUBLIC INFO
job.public.name = 'PsA signature search'
job.public.description = 'Scores random gene signatures that tell psoriatic arthritis from psoriasis'
job.public.link = 'https://www.ncbi.nlm.nih.gov/geo/query/acc.cgi?acc=GSE57383'

# EVENTS
patience = 30    # seconds without news from DCP until this script says so
state = alarm = None
said = set()


def say_once(line):
    """Print a line, but only once: DCP repeats events."""
    if line not in said:
        print(line)
        said.add(line)


def expect_news():
    """Count the seconds without news afresh."""
    global alarm
    if alarm:
        alarm.cancel()
    alarm = loop.call_later(patience, on_silence)


def on_silence():
    if state == 'deployed':
        group = job.computeGroups[0]['joinKey']
        say_once(f'  No result for {patience} s: does a worker run in compute group {group!r}, was it given '
                 f'--allow-origin {server_url}, and does server.py log a refusal? Still waiting...')
    elif state == 'uploading':
        say_once('  Still uploading the input set...')
    else:
        sys.exit(f'DCP has not answered for {patience} s: check your network, and try again.')


def on_state(new_state):
    global state
    state = new_state
    print('State:', state)
    expect_news()


def on_accepted(_):
    print(f'  Job ID: {job.id}\n  Job accepted, awaiting results...')


def on_result(event):
    """Print what the server answered to the worker that posted the result: DCP passes on that answer only."""
    expect_news()
    mark = '✔' if event.result == 'Result received' else '✘'
    say_once(f'    {mark} Slice {int(event.sliceNumber)}: {event.result}')


def on_error(error):
    if error.code == 'EPERM_ORIGIN':
        say_once(f'  A worker may not use the server: start the worker with --allow-origin {server_url}')
    elif 'EUNCAUGHT' not in (error.code, error.errorCode):    # a throw is a result, too
        say_once(f'  A worker failed: {error.message}')


def on_no_funds(event):
    say_once(f'  No funds: the job waits until the account has {event.fundsRequired} more compute credits.')


def on_interrupt():
    """End the wait for DCP. Another Ctrl-C ends this script without a word."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    raise KeyboardInterrupt


signal.signal(signal.SIGINT, lambda *_: loop.call_soon_threadsafe(on_interrupt))    # a callback would swallow it
job.on('readystatechange', on_state)
job.on('accepted', on_accepted)
job.on('result', on_result)
job.on('error', on_error)
job.on('nofunds', on_no_funds)


# RUN
def ask_server(path, method='GET'):
    """Return the answer of server.py, or end with what is wrong. No proxy: the server is inside the firewall."""
    try:
        request = urllib.request.Request(f'{server_url}{path}?key={access_key}', method=method)
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10).read()
    except urllib.error.HTTPError as error:
        sys.exit(f'server.py refuses {path} ({error}): see its log, and access_key in both scripts.')
    except Exception as error:
        sys.exit(f'server.py does not answer at {server_url} ({error}): start it, and set server_url on line 26.')


ask_server(data.pathname, 'HEAD')
try:
    pm.eval(f'({work_function})')
except pm.SpiderMonkeyError as error:
    sys.exit(f'The work function does not compile, its line {error.jsError["lineNumber"]:.0f}: {reason(error)}')
try:
    # Not job.exec() and job.wait(): those hang when DCP refuses a job, and take a cancelled job for a finished one.
    blockify(job.js_ref.exec)(pm.eval('dcp.compute.marketValue'))    # or the compute credits offered per slice
except KeyboardInterrupt:
    if state not in ('listeners', 'compute-groups', 'uploading', 'deployed'):
        sys.exit('Stopped: the job is not deployed.')
    job.cancel('stopped by its owner')    # the scheduler has it
    sys.exit('Stopped: the job is cancelled and costs nothing more.')
except pm.SpiderMonkeyError as error:
    if error.jsError['code'] == 'DCPL-1100':
        sys.exit('DCP does not know this joinKey and joinSecret: check line 99.')
    sys.exit(f'Job {"cancelled" if state == "deployed" else "not deployed"}: {reason(error)}')
stored = json.loads(ask_server(f'/dcp-results/{job.id}'))
missing = sorted({*range(1, len(slices) + 1)} - {*stored})
if missing:
    sys.exit(f'{len(missing)} of {len(slices)} slices have no result: {missing}')
print('Done.')
