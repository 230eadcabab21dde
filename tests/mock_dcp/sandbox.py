"""dcp-client's sandbox, in a Node.js process of its own, watched by the rules of the real worker."""
import asyncio
import json
from importlib.util import find_spec
from pathlib import Path

from .packages import NO_NUMPY, NotMocked, module_groups

# The evaluator refuses to run as root, as containers often do. But here it runs nobody's work but its user's.
# Its process ends when its input does, which a work function in an endless loop keeps it from seeing: so a
# thread looks every second whether the mocked DCP is still there, lest anything be left when that is killed.
PROGRAM = '''
process.getuid = process.geteuid = () => 1;
const { Worker } = require('worker_threads');
const watch = `setInterval(() => {
  if (process.ppid !== ${process.ppid})
    process.kill(process.pid, 'SIGKILL');
}, 1000)`;
new Worker(watch, { eval: true }).unref();
const [evaluator, ...files] = process.argv.slice(1);
new (require(evaluator).Evaluator)(process.stdin, process.stdout, files);
'''

READY = ('applyRequirementsDone', 'assigned', 'resetStateDone')


class GiveBack(Exception):
    """The worker gives its slice back. The job script hears of it by `events`, if at all: {name: payload}."""

    def __init__(self, reason, **events):
        self.reason, self.events = reason, events


class Sandbox:
    """A sandbox. What the work function logs and emits goes to `emit`, a coroutine of (event, payload)."""

    def __init__(self, glue, emit, progress_timeout, allowed_origins):
        self.glue, self.emit, self.progress_timeout = glue, emit, progress_timeout
        self.allowed_origins, self.process = allowed_origins, None

    async def start(self, worktime, assignment):
        """Start the process, and give it the job."""
        evaluator, *files = evaluator_files(worktime)
        # In a session of its own, so that Ctrl-C in a terminal is the job script's alone.
        self.process = await asyncio.create_subprocess_exec(
            'node', '-e', PROGRAM, evaluator, *files, limit=2 ** 30, start_new_session=True,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL)
        self.post('applyRequirements', worktime=worktime)
        await self.be_ready()
        self.send(assignment)
        await self.be_ready()

    async def end(self):
        if self.process and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    async def be_ready(self):
        """Wait until the sandbox has done what prepares the work."""
        while (message := await self.hear())['request'] not in READY:
            await self.attend(message)

    async def compute(self, line):
        """Compute a slice, and return the message with its result.

        As in the real worker (supervisor2/sandbox2.js) only progress() counts as progress, nothing else that
        the work function says: the time since the last one, or since the slice began. A result without any
        does not count.
        """
        self.post('resetState')
        await self.be_ready()
        self.send(line)
        clock = asyncio.get_running_loop().time
        last, reports = clock(), {}
        while True:
            try:
                message = await asyncio.wait_for(self.hear(), last + self.progress_timeout - clock())
            except asyncio.TimeoutError:
                limit = f'{self.progress_timeout:g} seconds'
                raise no_progress(f'No progress event was received in the last {limit}.', reports) from None
            request = message['request']
            if request == 'progress':
                last = clock()
                reports['last'] = {name: message.get(name) for name in ('progress', 'value')}
            elif request == 'complete' and not reports:
                raise no_progress('Sandbox never emitted a progress event.', reports)
            elif request == 'complete':
                return message
            elif request == 'workError' and NO_NUMPY in message['error']['message']:
                raise NotMocked(NO_NUMPY)
            elif request == 'workError':
                await self.emit('error', message['error'])
                return message    # an error is a result, too
            else:
                await self.attend(message)

    def post(self, request, **message):
        self.send(self.glue['toSandbox'](json.dumps({'request': request, **message})))

    def send(self, line):
        self.process.stdin.write(line.encode() + b'\n')

    async def hear(self):
        """Return the next message, past the evaluator's own log."""
        while line := await self.process.stdout.readline():
            if line.startswith(b'MSG:{"type":"workerMessage"'):
                return json.loads(self.glue['fromSandbox'](line[4:].decode()))
        raise GiveBack('the sandbox has ended')

    async def attend(self, message):
        """Do what the sandbox asks for besides its work, and pass on what the work function says."""
        request = message['request']
        if request == 'console':
            await self.emit('console', message['payload'])
        elif request == 'emitEvent':
            await self.emit('custom', message['payload'])
        elif request == 'dependency':
            self.post('moduleGroup', id=message['id'], data=module_groups(message['data']))
        elif request == 'fetchRequest':
            url = message['data']['url']
            if url in self.allowed_origins:    # which the real worker compares with all of the address, too
                raise NotMocked(f'the mocked DCP does not fetch for a work function: {url}')
            self.post('fetchError', id=message['id'], error={
                'name': 'DCPError', 'message': f"Not allowed to fetch from '{url}'", 'code': 'EPERM_ORIGIN'})
        elif request in ('error', 'reject', 'sandboxError', 'workReject'):
            raise GiveBack(request)
        elif request not in ('__sandboxLoaded', 'measurement', 'scriptLoaded'):
            raise NotMocked(f'the mocked DCP knows no request {request} of a sandbox')


def no_progress(message, reports):
    """Return the failure as the real worker tells it: in two events, one with the last progress."""
    payload = {'message': message, 'code': 'ENOPROGRESS'}
    return GiveBack('ENOPROGRESS', error=payload, noProgress={**payload, 'progressReports': reports})


def evaluator_files(worktime):
    """Return dcp-client's evaluator for Node.js, and the sandbox files that dcp-client lists for it."""
    modules = Path(find_spec('dcp').origin).parent / 'js' / 'node_modules'
    client = modules / 'dcp-client'
    names = json.loads((client / 'generated' / 'sandbox-definitions.json').read_text())['node']
    if worktime != 'pyodide':    # 16 MB that take a second to load
        names = [name for name in names if not name.startswith('pyodide')]
    sandbox = client / 'libexec' / 'sandbox'
    files = [modules / name if '/' in name else sandbox / f'{name}.js' for name in names]
    return client / 'libexec' / 'evaluator-node.js', *files
