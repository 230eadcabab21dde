"""A mocked DCP: it runs DCP job scripts, unchanged, with no account and no network.

The real `dcp` package and the dcp-client inside it do all that they do on DCP, up to one seam: dcp-client's
Connection class, which talks to the scheduler. Here it talks to `scheduler.py` in the same process.
`worker.py` keeps the rules of the real worker, with dcp-client's own code where there is some (`glue.js`),
and `sandbox.py` computes in dcp-client's own sandbox, under Node.js. Nothing is signed, encrypted or paid
for. An operation that it does not know is an error that names it.
"""
import sys

# Here, and in words that every Python reads, because this runs before anything else of the mocked DCP.
_running = 'Python {}.{}'.format(*sys.version_info)
_instead = 'use Python 3.10 to 3.14, in a venv of its own (python3.12 -m venv .venv).'
if sys.version_info < (3, 10):
    sys.exit(_running + ' is too old for DCP: ' + _instead)
if sys.version_info >= (3, 15):
    sys.stderr.write('Warning: ' + _running + ' was not tried with DCP. If this fails, ' + _instead + '\n')
