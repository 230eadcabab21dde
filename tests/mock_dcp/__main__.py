"""Run a DCP job script, unchanged, on the mocked DCP; with no script, play the whole tutorial."""
import argparse
import json
import os
import re
import runpy
import secrets
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from .scheduler import Scheduler
from .worker import FAULTS, Faults, Worker, run_workers

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]


def main():
    options = read_options()
    if options.script:
        run_job(options)
    else:
        play_tutorial(options)


def read_options():
    parser = argparse.ArgumentParser('python -m tests.mock_dcp', description=__doc__, epilog='faults: ' + '; '.join(
        f'{name}: {meaning}' for name, meaning in FAULTS.items()))
    option = parser.add_argument
    option('--join', action='append', metavar='KEY,SECRET', help='a compute group and its secret (demo,dcp)')
    option('--allow-origin', action='append', default=[], metavar='URL', help='workers may fetch from and post to it')
    option('--workers', type=int, default=2, metavar='N', help='how many workers there are (2)')
    option('--fault', action='append', default=[], metavar='NAME[=PROBABILITY]', help='what goes wrong, how often (1)')
    option('--seed', type=int, default=1, help='the same faults again for the same seed (1)')
    option('script', nargs='?', help='the job script')
    option('arguments', nargs=argparse.REMAINDER, help='its arguments')
    options = parser.parse_args()
    try:
        options.groups = dict(group.split(',', 1) for group in options.join or ['demo,dcp'])
        faults = {name: float(probability or 1) for name, _, probability in (f.partition('=') for f in options.fault)}
    except ValueError:
        parser.error('--join wants KEY,SECRET, and --fault NAME or NAME=PROBABILITY')
    if faults.keys() - FAULTS.keys():
        parser.error(f'the faults are {", ".join(FAULTS)}')
    options.faults = Faults(faults, options.seed)
    return options


def run_job(options):
    """Run the script in this process, with dcp initialised and its network replaced."""
    with tempfile.TemporaryDirectory(prefix='mock-dcp-') as home:
        for name in ('id', 'default'):    # a keystore may be nothing but a private key
            (Path(home) / f'{name}.keystore').write_text(json.dumps('0x' + secrets.token_hex(32)))
        os.environ.setdefault('DCP_RESOURCE_DIR', home)
        os.environ['DCP_CONFIG_LOCATION'] = (HERE / 'dcp-config.js').as_uri()
        import dcp
        import pythonmonkey as pm
        dcp.init()    # the script's own dcp.init() then finds it done
        glue = pm.eval((HERE / 'glue.js').read_text())

        async def work(scheduler, job):
            await run_workers([Worker(scheduler, job, glue, options.allow_origin, options.faults)
                               for _ in range(options.workers)], job)
        glue['replaceConnection'](Scheduler(glue, options.groups, options.faults, work).answer)
        sys.argv = [options.script, *options.arguments]
        sys.path.insert(0, str(Path(options.script).resolve().parent))
        runpy.run_path(options.script, run_name='__main__')


def play_tutorial(options):
    """Start server.py unless it runs, run remote-job.py, and show the results file."""
    options.script = str(PROJECT / 'remote-job.py')
    url = re.search("^server_url = '(.*)'", Path(options.script).read_text(), re.MULTILINE)[1]
    options.allow_origin.append(url)
    with tempfile.TemporaryFile('w+') as log:
        server = None if health(url) else subprocess.Popen([sys.executable, PROJECT / 'server.py'], text=True,
                                                           stdout=subprocess.PIPE, stderr=log)
        try:
            if server:
                print(*(server.stdout.readline() for _ in range(4)), sep='', end='', flush=True)
            if server and not health(url):
                log.seek(0)
                sys.exit(log.read().strip() or f'server.py does not answer at {url}: set server_url in remote-job.py')
            run_job(options)
            newest = max(Path(health(url)['results_folder']).glob('*.txt'), key=lambda path: path.stat().st_mtime)
            print(f'\n{newest}:', *newest.read_text().splitlines()[:41], sep='\n')
        finally:
            if server:
                server.terminate()


def health(url):
    """Return what server.py says of itself, or None if it does not answer."""
    try:
        return json.load(urllib.request.urlopen(f'{url}/health', timeout=5))
    except OSError:
        return None


if __name__ == '__main__':
    main()
