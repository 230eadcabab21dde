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

from . import scheduler, worker

PROJECT = Path(__file__).resolve().parents[2]


def main():
    options = read_options()
    if options.script:
        run_job(options)
    else:
        play_tutorial(options)


def read_options():
    parser = argparse.ArgumentParser('python -m tests.mock_dcp', description=__doc__)
    parser.add_argument('--join', action='append', metavar='KEY,SECRET',
                        help='a compute group with its join secret (demo,dcp unless told)')
    parser.add_argument('--allow-origin', action='append', default=[], metavar='URL',
                        help='an origin that the workers may fetch from and post results to')
    parser.add_argument('--workers', type=int, default=2, metavar='N', help='how many workers there are (2)')
    parser.add_argument('--fault', action='append', default=[], metavar='NAME[=PROBABILITY]',
                        help='let a fault happen, to each slice with that probability (1): ' +
                             '; '.join(f'{name}: {meaning}' for name, meaning in worker.FAULTS.items()))
    parser.add_argument('--seed', type=int, default=1, help='the same faults again for the same seed (1)')
    parser.add_argument('script', nargs='?', help='the job script')
    parser.add_argument('arguments', nargs=argparse.REMAINDER, help='its arguments')
    options = parser.parse_args()
    try:
        options.groups = dict(join.split(',', 1) for join in options.join or ['demo,dcp'])
        options.faults = {name: float(probability or 1) for name, _, probability in
                          (fault.partition('=') for fault in options.fault)}
    except ValueError:
        parser.error('--join wants KEY,SECRET and --fault wants NAME or NAME=PROBABILITY')
    for name in options.faults.keys() - worker.FAULTS.keys():
        parser.error(f'no fault {name!r}, only {", ".join(worker.FAULTS)}')
    return options


def run_job(options):
    """Run the script in this process, with `dcp` initialised and its network replaced."""
    with tempfile.TemporaryDirectory(prefix='mock-dcp-') as home:
        (Path(home) / 'dcp-config.js').write_text(scheduler.config())
        for name in ('id', 'default'):    # throwaway keystores: nothing but a private key
            (Path(home) / f'{name}.keystore').write_text(json.dumps('0x' + secrets.token_hex(32)))
        os.environ.setdefault('DCP_RESOURCE_DIR', home)
        os.environ['DCP_CONFIG_LOCATION'] = (Path(home) / 'dcp-config.js').as_uri()
        import dcp
        import pythonmonkey as pm
        dcp.init()    # the script's own dcp.init() then finds it done
        glue = pm.eval((Path(__file__).parent / 'glue.js').read_text())
        faults = worker.Faults(options.faults, options.seed)

        async def start_workers(mock, job):
            if set(job.groups) & set(options.groups):
                await worker.run_workers([worker.Worker(mock, job, glue, options.allow_origin, faults)
                                          for _ in range(options.workers)], job)
        glue['replaceConnection'](scheduler.Scheduler(glue, options.groups, faults, start_workers).answer)
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
