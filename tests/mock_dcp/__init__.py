"""A mocked DCP: it runs DCP job scripts, unchanged, with no account and no network.

The real `dcp` package and the dcp-client inside it do all that they do on DCP, up to one seam: dcp-client's
Connection class, which talks to the scheduler. Here it talks to `scheduler.py` in the same process.
`worker.py` keeps the rules of the real worker, with dcp-client's own code where there is some (`glue.js`),
and `sandbox.py` computes in dcp-client's own sandbox, under Node.js. Nothing is signed, encrypted or paid
for. What it does not know or have is an error that names it.
"""
import os
import sys

os.environ['MOZ_NURSERY_STRINGS'] = '0'    # else PythonMonkey may crash: it loses strings that are moved
if sys.version_info < (3, 10):    # in words that every Python reads
    version = 'Python {}.{}'.format(*sys.version_info)
    sys.exit(version + ' is too old for DCP: use Python 3.10 to 3.15, in a venv of its own.')
