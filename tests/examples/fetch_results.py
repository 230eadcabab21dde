"""Fetch the results back from your server, past DCP's scheduler: the best signatures, and what chance gives.

In the project's top folder, with `python3 server.py` in another terminal:

    python3 -m tests.mock_dcp --allow-origin http://127.0.0.1:5001 tests/examples/fetch_results.py
    python3 tests/examples/fetch_results.py    # on DCP: correct server_url and job.computeGroups

* If server.py is restarted, or somebody edits a results file, the job has several: all are read here.
* Put no scores into what receive_result in server.py answers to a worker: the scheduler passes that on.
"""
import csv, json, os, random, sys, urllib.request, nest_asyncio2
sys.modules['nest_asyncio'] = nest_asyncio2    # dcp imports nest_asyncio, which fails on Python 3.14
os.environ['MOZ_NURSERY_STRINGS'] = '0'        # else PythonMonkey may crash
import dcp
import pythonmonkey as pm

dcp.init()
dcp.identity.set(dcp.wallet.get('id'))
dcp.wallet.add(dcp.wallet.get('default'))
server_url = 'http://127.0.0.1:5001'

# Half of the signatures are scored on shuffled labels: what they reach, they reach by chance.
fetch = urllib.request.build_opener(urllib.request.ProxyHandler({})).open    # no proxy
header = fetch(f'{server_url}/GSE57383_ps_psa').readline().split(b'\t')
columns = [float(number) for number in range(1, len(header))]    # Python's ints do not arrive as numbers
slices = [{'signature': random.sample(columns, 6), 'shuffled': n % 2 == 1} for n in range(40)]

work_function = r'''({ signature, shuffled }, data) => {
  progress();
  const [header, ...rows] = data.trimEnd().split('\n').map((line) => line.split('\t'));
  const draws = rows.map((row) => ({ label: row[0], number: shuffled ? Math.random() : 0 }));
  const labels = draws.sort((a, b) => a.number - b.number).map((draw) => draw.label);
  const total = (row) => signature.reduce((sum, column) => sum + Number(row[column]), 0);
  const totals = (label) => rows.filter((row, i) => labels[i] === label).map(total);
  const [ps, psa] = [totals('Psoriasis'), totals('Psoriatic Arthritis')];
  const pairs = psa.flatMap((b) => ps.map((a) => (b > a) + (b === a) / 2));    // 1: in order, 1/2: a tie
  const auc = pairs.reduce((sum, pair) => sum + pair, 0) / pairs.length;
  return { shuffled, auc, probesets: signature.map((column) => header[column]).join(', ') };
}'''
job = dcp.compute_for(slices, work_function, [pm.new('URL')(f'{server_url}/GSE57383_ps_psa')])
job.computeGroups = [{'joinKey': 'demo', 'joinSecret': 'dcp'}]
job.worktime = 'map-basic'
job.setResultStorage(f'{server_url}/dcp-results', {'job': job.id})
job.on('error', lambda error: print(f'A worker: {error.message}'))
job.exec()
if job.wait() != ['Result received'] * len(slices):    # what server.py answered for each slice
    sys.exit('Not every slice has a result: see the log of server.py.')
print('Done.')

results = {}    # slice number: its row
for name in reversed(json.load(fetch(f'{server_url}/results'))):    # the newest file last: it wins
    whole_lines = [line.decode() for line in fetch(f'{server_url}/results/{name}') if line.endswith(b'\n')]
    for row in csv.DictReader(whole_lines, delimiter='\t'):
        if row.get('job') == job.id:    # other jobs' rows may be there, too, and other tables
            results[row['slice']] = row
rows = sorted(results.values(), key=lambda row: float(row['auc']), reverse=True)
for row in [row for row in rows if row['shuffled'] == 'false'][:3]:
    print(f'{float(row["auc"]):.3f} {row["probesets"]}')
best = next(row for row in rows if row['shuffled'] == 'true')
print(f'{float(best["auc"]):.3f} is the best of as many with shuffled labels: what chance gives')
