"""A work function that DCP's scheduler does not get to see: workers fetch it from your server, like the data.

In the project's top folder, with `python3 server.py` in another terminal:

    python3 -m tests.mock_dcp --allow-origin http://127.0.0.1:5001 tests/examples/remote_work_function.py
    python3 tests/examples/remote_work_function.py    # on DCP: correct server_url and job.computeGroups

* What the function throws, and what it logs, still passes through the scheduler: put no data there.
* The file is written where server.py finds it. If that runs on another machine, copy it to its input/.
"""
import os, random, sys, urllib.request, nest_asyncio2
from pathlib import Path
sys.modules['nest_asyncio'] = nest_asyncio2    # dcp imports nest_asyncio, which fails on Python 3.14
os.environ['MOZ_NURSERY_STRINGS'] = '0'        # else PythonMonkey may crash
import dcp
import pythonmonkey as pm

dcp.init()
dcp.identity.set(dcp.wallet.get('id'))
dcp.wallet.add(dcp.wallet.get('default'))
server_url = 'http://127.0.0.1:5001'

# A slice is a signature, as numbers of columns: floats, since Python's ints do not arrive as numbers.
address = f'{server_url}/GSE57383_ps_psa'
header = urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address).readline()    # no proxy
columns = [float(number) for number in range(1, len(header.split(b'\t')))]
slices = [random.sample(columns, 6) for _ in range(10)]

# How well does the mean of a signature's values tell the classes? AUC: 0.5 is chance, 1 is perfect.
Path('input/work_function.js').write_text(r'''(signature, data) => {
  progress();
  const [header, ...rows] = data.trimEnd().split('\n').map((line) => line.split('\t'));
  const total = (row) => signature.reduce((sum, column) => sum + Number(row[column]), 0);
  const totals = (label) => rows.filter((row) => row[0] === label).map(total);
  const [ps, psa] = [totals('Psoriasis'), totals('Psoriatic Arthritis')];
  const pairs = psa.flatMap((b) => ps.map((a) => (b > a) + (b === a) / 2));    // 1: in order, 1/2: a tie
  const auc = pairs.reduce((sum, pair) => sum + pair, 0) / pairs.length;
  return { probesets: signature.map((column) => header[column]).join(', '), auc };
}''')
work_function = pm.new('URL')(f'{server_url}/input/work_function.js')    # REMOTE WORK FUNCTION: no text

job = dcp.compute_for(slices, work_function, [pm.new('URL')(address)])
job.computeGroups = [{'joinKey': 'demo', 'joinSecret': 'dcp'}]
job.worktime = 'map-basic'
job.setResultStorage(f'{server_url}/dcp-results', {'job': job.id})
job.on('result', lambda event: print(f'Slice {int(event.sliceNumber)}: {event.result}'))
job.on('error', lambda error: print(f'A worker: {error.message}'))
job.exec()
if job.wait() != ['Result received'] * len(slices):    # what server.py answered for each slice
    sys.exit('Not every slice has a result: see the log of server.py.')
print('Done.')
