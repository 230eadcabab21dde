"""A work function in Python: workers run it in Pyodide, which is CPython for browsers.

In the project's top folder, with `python3 server.py` in another terminal:

    python3 -m tests.mock_dcp --allow-origin http://127.0.0.1:5001 tests/examples/python_work_function.py
    python3 tests/examples/python_work_function.py    # on DCP: correct server_url and job.computeGroups

* It takes 10 s to start, and is run for each slice. It uses the standard library only: numpy is not mocked.
* Errors pass through DCP's scheduler, and Python's like to quote: float('7.1x') would tell it that value.
"""
import os, random, sys, urllib.request, nest_asyncio2
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

work_function = r'''
import dcp, math, sys
from js import Object
from pyodide.ffi import to_js
header, *rows = [line.split('\t') for line in sys.argv[-1].splitlines()]

def distance(sample, group):    # from the centroid of the others in the group
    others = [other for other in group if other is not sample]
    return math.dist(sample, [sum(column) / len(others) for column in zip(*others)])

def search(signature):
    dcp.progress()
    columns = [int(number) for number in signature]
    ps, psa = [[[float(row[column]) for column in columns] for row in rows if row[0] == label]
               for label in ('Psoriasis', 'Psoriatic Arthritis')]
    # The higher a sample's score is, the nearer is the sample to psoriatic arthritis.
    scores = [[distance(sample, ps) - distance(sample, psa) for sample in group] for group in (ps, psa)]
    pairs = [(b > a) + (b == a) / 2 for a in scores[0] for b in scores[1]]    # 1: in order, 1/2: a tie
    result = {'probesets': ', '.join(header[column] for column in columns), 'auc': sum(pairs) / len(pairs)}
    return to_js(result, dict_converter=Object.fromEntries)    # a dict of JavaScript

dcp.set_slice_handler(search)    # called with each slice
'''
job = dcp.compute_for(slices, work_function, [1.0, pm.new('URL')(address)])    # 1.0: the rest is in sys.argv
job.computeGroups = [{'joinKey': 'demo', 'joinSecret': 'dcp'}]
job.worktime = 'pyodide'
job._wrapper_set_attribute('_before_exec', lambda: None)    # dcp would wrap it in code that needs NumPy
job.setResultStorage(f'{server_url}/dcp-results', {'job': job.id})
job.on('result', lambda event: print(f'Slice {int(event.sliceNumber)}: {event.result}'))
job.on('error', lambda error: print(f'A worker: {error.message}'))
job.exec()
if job.wait() != ['Result received'] * len(slices):    # what server.py answered for each slice
    sys.exit('Not every slice has a result: see the log of server.py.')
print('Done.')
