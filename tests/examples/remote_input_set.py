"""An input set that DCP's scheduler does not get to see: each slice is a file on your server.

In the project's top folder, with `python3 server.py` in another terminal:

    python3 -m tests.mock_dcp --allow-origin http://127.0.0.1:5001 tests/examples/remote_input_set.py
    python3 tests/examples/remote_input_set.py    # on DCP: correct server_url and job.computeGroups

* With the word `pattern` at the end, the scheduler gets one address for all slices: better for thousands.
* Only a URL is fetched. A plain text is a slice as it is, even if it is an address.
* A file that is not there is asked for again and again, later and later: the job waits. See server.py's log.
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

# Ten signatures, as names of probesets, for server.py to serve. (If it runs elsewhere, copy them there.)
address = f'{server_url}/GSE57383_ps_psa'
header = urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address).readline()    # no proxy
names = header.decode().strip().split('\t')[1:]
for n in range(1, 11):
    Path(f'input/signature-{n}.txt').write_text(', '.join(random.sample(names, 6)))
if sys.argv[1:] == ['pattern']:    # DCP puts 1, 2, 3 and so on in place of {slice}
    slices = dcp.compute.RemoteDataPattern(f'{server_url}/input/signature-{{slice}}.txt', 10)
else:
    slices = [pm.new('URL')(f'{server_url}/input/signature-{n}.txt') for n in range(1, 11)]

work_function = r'''(probesets, data) => {    // both are texts by now: workers have fetched them
  progress();
  const [header, ...rows] = data.trimEnd().split('\n').map((line) => line.split('\t'));
  const columns = probesets.trim().split(', ').map((name) => header.indexOf(name));
  if (columns.includes(-1)) throw Error('the slice is no list of probesets of the data');
  const total = (row) => columns.reduce((sum, column) => sum + Number(row[column]), 0);
  const totals = (label) => rows.filter((row) => row[0] === label).map(total);
  const [ps, psa] = [totals('Psoriasis'), totals('Psoriatic Arthritis')];
  const pairs = psa.flatMap((b) => ps.map((a) => (b > a) + (b === a) / 2));    // 1: in order, 1/2: a tie
  return { probesets, auc: pairs.reduce((sum, pair) => sum + pair, 0) / pairs.length };
}'''

job = dcp.compute_for(slices, work_function, [pm.new('URL')(address)])
job.computeGroups = [{'joinKey': 'demo', 'joinSecret': 'dcp'}]
job.worktime = 'map-basic'
job.setResultStorage(f'{server_url}/dcp-results', {'job': job.id})
job.on('result', lambda event: print(f'Slice {int(event.sliceNumber)}: {event.result}'))
job.on('error', lambda error: print(f'A worker: {error.message}'))
job.exec()
if job.wait() != ['Result received'] * 10:    # what server.py answered for each slice
    sys.exit('Not every slice has a result: see the log of server.py.')
print('Done.')
