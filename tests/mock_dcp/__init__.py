"""A mocked DCP: run a DCP job script, unchanged, with no account and no network.

The real `dcp` package and the dcp-client inside it do all that they do on DCP, up to one seam: dcp-client's Connection
class, which would talk to the scheduler. Here it talks to `scheduler.py`, in the same process. `worker.py` follows the
rules of the real worker, with dcp-client's own code where a job script can reach it (glue.js), and runs work functions
in dcp-client's own sandbox, under Node.js. Nothing is signed, encrypted or paid for.
"""
