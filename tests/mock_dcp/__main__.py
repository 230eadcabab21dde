"""Run a DCP job script, unchanged, on the mocked DCP; with no script, play the whole tutorial."""
import argparse
import asyncio
import http.client
import json
import os
import re
import runpy
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from urllib.parse import urljoin

from .faults import FAULTS, Faults

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
# Runs a script until its input ends: that is when the mocked DCP ends, even if it is killed.
TIED = '''
import os, runpy, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
runpy.run_path(sys.argv[1], run_name='__main__')
'''


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
           help='a compute group and its secret (demo,dcp), with workers of its own, as the public group has')
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
    os.environ.setdefault('DCP_RESOURCE_DIR', str(HERE / 'keystores'))
    os.environ['DCP_CONFIG_LOCATION'] = (HERE / 'dcp-config.js').as_uri()
    trust_as_a_worker()
    import nest_asyncio2
    sys.modules['nest_asyncio'] = nest_asyncio2    # dcp imports the older one, which fails on Python 3.14
    import dcp
    import pythonmonkey as pm
    dcp.init()    # the script's own dcp.init() then finds it done

    from .scheduler import Scheduler, in_one_line, tell_once
    from .worker import Worker, run_workers
    glue = pm.eval((HERE / 'glue.js').read_text())

    async def work(scheduler, job):
        workers = [Worker(f'{group} {number}', scheduler, job.submitted['job'], glue,
                          options.allowed_origins[None] + options.allowed_origins.get(group, []),
                          options.faults, options.progress_timeout)
                   for group in job.groups for number in range(1, options.workers + 1)]
        await run_workers(workers, job)

    def on_untrusted(origin):
        tell_once(f'A worker does not trust the certificate of {origin}: name its file in '
                  'NODE_EXTRA_CA_CERTS. (A real worker does not say so.)')

    log = options.log and open(options.log, 'w', encoding='utf-8')
    scheduler = Scheduler(glue, options.join_secrets, options.faults, work, log)
    glue['replaceConnection'](scheduler.answer)
    glue['mendRequests'](lambda text: bytes(text).decode('utf-8-sig', 'replace'), on_untrusted)
    asyncio.get_event_loop().set_exception_handler(scheduler.on_failure)    # the script may set its own
    sys.argv = [options.script, *options.arguments]
    sys.path.insert(0, str(Path(options.script).resolve().parent))
    try:
        runpy.run_path(options.script, run_name='__main__')
    except pm.SpiderMonkeyError as error:
        if error.jsError['code'] == 'EREFUSED':
            sys.exit(in_one_line(error))
        raise


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
    script, started = PROJECT / 'remote-job.py', time.time()
    options.script = str(script)
    url = re.search(r"""(?m)^server_url = ['"](.*)['"]""", script.read_text(encoding='utf-8'))[1]
    options.allowed_origins[None].append(urljoin(url, '/')[:-1])    # without an access key
    with tempfile.TemporaryFile('w+') as log:
        answer = health(url)
        if answer:
            folder = answer.get('results_folder', 'its own folder')
            print(f'A server.py runs already at {url}: results go to {folder}.', file=sys.stderr)
        else:
            server = subprocess.Popen([sys.executable, '-c', TIED, 'server.py'], cwd=PROJECT, text=True,
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
            answer = wait_for(server, url, log)
        run_job(options)
    folder = Path(answer.get('results_folder', PROJECT / 'results'))
    for path in folder.glob('*.txt'):
        if path.stat().st_mtime >= started:
            print(f'\n{path}:', *path.read_text(encoding='utf-8').splitlines()[:41], sep='\n')


def wait_for(server, url, log):
    """Show what server.py prints when it starts, and return what it says of itself once it answers."""
    print(*[server.stdout.readline() for _ in range(4)], sep='', end='', flush=True)
    until = time.monotonic() + 5
    while not (answer := health(url)):
        if server.poll() is not None:
            log.seek(0)
            sys.exit(log.read().strip())
        if time.monotonic() > until:
            sys.exit(f'server.py does not answer at {url}: set server_url in remote-job.py')
        time.sleep(0.05)
    return answer


def health(url):
    """Return what server.py says of itself, or None if it does not answer."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(
        context=ssl._create_unverified_context()))    # whether to trust it is for the job to decide
    try:
        answer = json.loads(direct.open(f'{url}/health', timeout=5).read(10_000))
    except (OSError, ValueError, OverflowError, http.client.HTTPException):
        return None
    return answer if isinstance(answer, dict) and 'data_file' in answer else None


if __name__ == '__main__':
    main()
