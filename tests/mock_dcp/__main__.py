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

from .faults import FAULTS, Faults

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]


def main():
    options = read_options()
    if options.script:
        run_job(options)
    else:
        play_tutorial(options)


def read_options():
    faults = 'faults: ' + '; '.join(f'{name}: {meaning}' for name, meaning in FAULTS.items())
    parser = argparse.ArgumentParser('python -m tests.mock_dcp', description=__doc__, epilog=faults)
    option = parser.add_argument
    # These two go into one list, because an allowed origin belongs to the group that it comes after.
    option('--join', dest='access', action='append', default=[], metavar='KEY,SECRET',
           type=lambda group: ('join', *group.split(',', 1)),
           help='a compute group and its secret (demo,dcp), with workers of its own')
    option('--allow-origin', dest='access', action='append', type=lambda url: ('allow', url), metavar='URL',
           help='workers may use it: those of the --join before it, or all if there is none before')
    option('--workers', type=int, default=2, metavar='N', help='how many workers a compute group has (2)')
    option('--progress-timeout', type=float, default=30, metavar='SECONDS',
           help='how long a slice may go without progress() (30, as documented; DCP may set it otherwise)')
    option('--fault', action='append', default=[], metavar='NAME[=PROBABILITY]',
           help='what goes wrong, and how often (1)')
    option('--seed', type=int, default=1, help='the same faults again for the same seed (1)')
    option('--log', metavar='FILE', help='write down all that the scheduler hears and says, a JSON line each')
    option('script', nargs='?', help='the job script')
    option('arguments', nargs=argparse.REMAINDER, help='its arguments')
    options = parser.parse_args()
    try:
        options.join_secrets, options.allowed_origins = read_access(options.access)
        pairs = [fault.partition('=') for fault in options.fault]
        faults = {name: float(probability or 1) for name, _, probability in pairs}
    except ValueError:
        parser.error('--join wants KEY,SECRET, and --fault NAME or NAME=PROBABILITY')
    if faults.keys() - FAULTS.keys():
        parser.error(f'the faults are {", ".join(FAULTS)}')
    options.faults = Faults(faults, options.seed)
    return options


def read_access(access):
    """Return the compute groups' join secrets, and their allowed origins: under None those of all groups."""
    join_secrets, allowed_origins, group = {}, {None: []}, None
    for kind, *values in access:
        if kind == 'join':
            group, secret = values
            join_secrets[group], allowed_origins[group] = secret, []
        else:
            allowed_origins[group] += values
    return join_secrets or {'demo': 'dcp'}, allowed_origins


def run_job(options):
    """Run the script in this process, with dcp initialised and its network replaced."""
    with tempfile.TemporaryDirectory(prefix='mock-dcp-') as home:
        for name in ('id', 'default'):    # a keystore may be nothing but a private key
            (Path(home) / f'{name}.keystore').write_text(json.dumps('0x' + secrets.token_hex(32)))
        os.environ.setdefault('DCP_RESOURCE_DIR', home)
        os.environ['DCP_CONFIG_LOCATION'] = (HERE / 'dcp-config.js').as_uri()
        trust_as_a_worker()
        import nest_asyncio2
        sys.modules['nest_asyncio'] = nest_asyncio2    # dcp imports the older one, which fails on Python 3.14
        import dcp
        import pythonmonkey as pm
        dcp.init()    # the script's own dcp.init() then finds it done

        from .scheduler import Scheduler
        from .worker import Worker, run_workers
        glue = pm.eval((HERE / 'glue.js').read_text())

        async def work(scheduler, job):
            workers = [Worker(f'{group} {number}', scheduler, job.submitted['job'], glue,
                              options.allowed_origins[None] + options.allowed_origins.get(group, []),
                              options.faults, options.progress_timeout)
                       for group in job.groups for number in range(1, options.workers + 1)]
            await run_workers(workers, job)

        log = options.log and open(options.log, 'w', encoding='utf-8')
        glue['replaceConnection'](Scheduler(glue, options.join_secrets, options.faults, work, log).answer)
        sys.argv = [options.script, *options.arguments]
        sys.path.insert(0, str(Path(options.script).resolve().parent))
        runpy.run_path(options.script, run_name='__main__')


def trust_as_a_worker():
    """Let the workers trust what Node.js would: the usual authorities and NODE_EXTRA_CA_CERTS.

    They fetch with PythonMonkey's XMLHttpRequest, that is with aiohttp, which reads SSL_CERT_FILE when it is
    imported. In a real worker that variable means nothing. The job script's own connections read it later.
    """
    for_the_script = os.environ.pop('SSL_CERT_FILE', None)
    if os.environ.get('NODE_EXTRA_CA_CERTS'):
        os.environ['SSL_CERT_FILE'] = os.environ['NODE_EXTRA_CA_CERTS']    # the usual are in SSL_CERT_DIR
    import aiohttp
    os.environ.pop('SSL_CERT_FILE', None)
    if for_the_script is not None:
        os.environ['SSL_CERT_FILE'] = for_the_script


def play_tutorial(options):
    """Start server.py unless it runs, run remote-job.py, and show the results file."""
    options.script = str(PROJECT / 'remote-job.py')
    url = re.search("^server_url = '(.*)'", Path(options.script).read_text(), re.MULTILINE)[1]
    options.allowed_origins[None].append(url)
    with tempfile.TemporaryFile('w+') as log:
        command = [sys.executable, PROJECT / 'server.py']
        pipes = {'stdout': subprocess.PIPE, 'stderr': log}
        server = None if health(url) else subprocess.Popen(command, text=True, **pipes)
        try:
            if server:
                banner = [server.stdout.readline() for _ in range(4)]
                print(*banner, sep='', end='', flush=True)
                if '' in banner:    # it has ended
                    log.seek(0)
                    sys.exit(log.read().strip())
                if not health(url):
                    sys.exit(f'server.py does not answer at {url}: set server_url in remote-job.py')
            run_job(options)
            results = sorted((PROJECT / 'results').glob('*.txt'), key=lambda path: path.stat().st_mtime)
            if results:    # a server that ran before may keep them elsewhere
                print(f'\n{results[-1]}:', *results[-1].read_text().splitlines()[:41], sep='\n')
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
