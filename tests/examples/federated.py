"""Federated clusters: two sites score the same signatures, each with data, server and workers of its own.

In the project's top folder, with `python3 tests/examples/federated_server.py north` in another terminal, and
the same with `south` in a third one; federated_aggregate.py then ranks the signatures:

    python3 -m tests.mock_dcp --join north,north-secret --allow-origin http://127.0.0.1:5002 \\
        tests/examples/federated.py north
    python3 -m tests.mock_dcp --join south,south-secret --allow-origin http://127.0.0.1:5003 \\
        tests/examples/federated.py south

On DCP each site has its own machine, server.py and compute group: correct server_url and job.computeGroups.

* Two locks keep data in: workers of the south are not in the group that gets the north's slices, and if they
  were, they may not use its server. Try: `--join north,north-secret --allow-origin http://127.0.0.1:5003`.
"""
import os, random, sys, urllib.request, nest_asyncio2
sys.modules['nest_asyncio'] = nest_asyncio2    # dcp imports nest_asyncio, which fails on Python 3.14
os.environ['MOZ_NURSERY_STRINGS'] = '0'        # else PythonMonkey may crash
import dcp
import pythonmonkey as pm

dcp.init()
dcp.identity.set(dcp.wallet.get('id'))
dcp.wallet.add(dcp.wallet.get('default'))
site = sys.argv[1]
server_url = {'north': 'http://127.0.0.1:5002', 'south': 'http://127.0.0.1:5003'}[site]
urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f'{server_url}/health')    # is it there?

# The signatures that all sites have agreed on: names, since their columns may be in another order elsewhere.
random.seed(42)
slices = [[f'simulated_{n:04}' for n in random.sample(range(1, 5001), 6)] for _ in range(10)]

work_function = r'''(signature, data) => {
  progress();
  const [header, ...rows] = data.trimEnd().split('\n').map((line) => line.split('\t'));
  const columns = signature.map((name) => header.indexOf(name));
  if (columns.includes(-1)) throw Error('this site lacks a probeset of the signature');
  const total = (row) => columns.reduce((sum, column) => sum + Number(row[column]), 0);
  const totals = (label) => rows.filter((row) => row[0] === label).map(total);
  const [ps, psa] = [totals('Psoriasis'), totals('Psoriatic Arthritis')];
  const pairs = psa.flatMap((b) => ps.map((a) => (b > a) + (b === a) / 2));    // 1: in order, 1/2: a tie
  const auc = pairs.reduce((sum, pair) => sum + pair, 0) / pairs.length;
  return { probesets: signature.join(', '), samples: ps.length + psa.length, auc };
}'''
job = dcp.compute_for(slices, work_function, [pm.new('URL')(f'{server_url}/GSE57383_ps_psa')])
job.computeGroups = [{'joinKey': site, 'joinSecret': f'{site}-secret'}]
job.worktime = 'map-basic'
job.setResultStorage(f'{server_url}/dcp-results', {'job': job.id})
job.on('error', lambda error: print(f'A worker: {error.message}'))
job.exec()
if job.wait() != ['Result received'] * len(slices):    # what server.py answered for each slice
    sys.exit('Not every slice has a result: see the log of the server.')
print('Done.')
