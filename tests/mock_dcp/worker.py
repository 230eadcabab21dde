"""The worker of the mocked DCP: it takes slices, computes them in dcp-client's sandbox, and posts their results."""
import asyncio
import json
import random
from importlib.util import find_spec
from pathlib import Path

FAULTS = {
    'die':         'the worker dies while it computes the slice, which another one gets',
    'return':      'the worker gives the slice back before it has computed it',
    'twice':       'the slice is computed, and its result posted, twice',
    'lose-answer': 'the result is posted, but its answer gets lost, so that the slice is given back',
    'refuse-post': 'no worker may post results to the origin, though all may fetch from it',
    'no-answer':   'the scheduler never answers when the job is submitted',
    'no-funds':    'the scheduler tells that the account has run out of funds',
    'cancel':      'the scheduler cancels the job when it gets the result',
}
SANDBOX_FILES_LEFT_OUT = {'pyodide-core', 'pyodide-worktime'}    # 16 MB that only Python work functions need
PROGRESS_TIMEOUT = 30    # seconds


class Faults:
    """Decides which faults happen, from a seed: the same ones to the same slices, in whatever order they are computed."""

    def __init__(self, probabilities, seed):
        self.probabilities, self.seed, self.attempts = probabilities, seed, {}

    def happens(self, fault, slice_number=0):
        attempt = self.attempts[fault, slice_number] = self.attempts.get((fault, slice_number), 0) + 1
        return random.Random(f'{self.seed} {fault} {slice_number} {attempt}').random() < self.probabilities.get(fault, 0)


class GiveBack(Exception):
    """The worker gives the slice back, and DCP lets it be computed again. `event` is what the job script hears of it."""

    def __init__(self, event=None):
        self.event = event


class Worker:
    def __init__(self, scheduler, job, glue, allowed_origins, faults):
        self.scheduler, self.job, self.glue, self.faults = scheduler, job, glue, faults
        self.allowed = glue['allowList'](allowed_origins, faults.happens('refuse-post'))
        self.details, self.assignment, self.sandbox = json.dumps(job.submitted), None, None

    async def run(self):
        """Take slices until the job is over. A slice that fails goes back, and the worker pauses, longer each time."""
        pause = 0.1
        while not self.job.stopped.is_set():
            number = await self.job.waiting.get()
            try:
                await self.compute(number)
                pause = 0.1
            except GiveBack as failure:
                self.job.waiting.put_nowait(number)
                if failure.event:
                    self.scheduler.emit(self.job, 'error', sliceNumber=number, **failure.event)
                await self.end_sandbox()
                await asyncio.sleep(pause)
                pause = min(2 * pause, 5)

    async def compute(self, number):
        if self.faults.happens('return', number):
            raise GiveBack
        self.assignment = self.assignment or fetched(await self.glue['assignment'](self.details, self.allowed))
        datum = self.job.slices[number - 1]
        line = datum['line'] if 'line' in datum else fetched(await self.glue['sliceData'](datum['href'], self.allowed))
        for _ in range(2 if self.faults.happens('twice', number) else 1):
            if not self.sandbox:
                self.sandbox = await start_sandbox()
                await self.ask_sandbox(self.glue['toSandbox'](json.dumps({'request': 'applyRequirements', 'worktime': 'map-basic'})))
                await self.ask_sandbox(self.assignment)
            await self.ask_sandbox(self.glue['toSandbox']('{"request": "resetState"}'))
            if self.faults.happens('die', number):
                self.sandbox.kill()
            result = await self.ask_sandbox(line, number)
            if self.job.submitted.get('resultStorageType') == 'pattern':
                uri = fetched(await self.glue['postResult'](self.details, number, json.dumps(result), self.allowed), silent=True)
            else:
                uri = self.glue['encodeDataURI'](result['kvin'], 'application/x-kvin')
            if self.faults.happens('lose-answer', number):
                raise GiveBack
            self.scheduler.result(self.job, number, uri)

    async def ask_sandbox(self, line, number=0):
        """Send the sandbox a message, and return its last word on it."""
        progressed = False
        try:
            self.sandbox.stdin.write(line.encode() + b'\n')
            while True:
                answer = await asyncio.wait_for(self.sandbox.stdout.readline(), PROGRESS_TIMEOUT)
                if not answer:
                    raise GiveBack({'message': 'the sandbox ended', 'code': 'ESANDBOX'})
                if not answer.startswith(b'MSG:{"type":"workerMessage"'):
                    continue
                message = json.loads(self.glue['fromSandbox'](answer[4:].decode()))
                request = message['request']
                progressed = progressed or request == 'progress'
                if request in ('applyRequirementsDone', 'assigned', 'resetStateDone'):
                    return message
                if request == 'console':
                    self.scheduler.emit(self.job, 'console', sliceNumber=number, **message['payload'])
                elif request == 'emitEvent':
                    self.scheduler.emit(self.job, 'custom', sliceNumber=number, **message['payload'])
                elif request == 'workError':
                    self.scheduler.emit(self.job, 'error', sliceNumber=number, **message['error'])
                    return message
                elif request == 'complete' and progressed:
                    return message
                elif request == 'complete':
                    self.no_progress(number, 'Sandbox never emitted a progress event.')
                elif request in ('workReject', 'sandboxError', 'reject', 'error'):
                    raise GiveBack
        except asyncio.TimeoutError:
            self.no_progress(number, f'No progress event was received in the last {PROGRESS_TIMEOUT} seconds.')

    def no_progress(self, number, message):
        self.scheduler.emit(self.job, 'noprogress', sliceNumber=number, message=message, code='ENOPROGRESS')
        raise GiveBack({'message': message, 'code': 'ENOPROGRESS'})

    async def end_sandbox(self):
        if self.sandbox and self.sandbox.returncode is None:
            self.sandbox.kill()
            await self.sandbox.wait()
        self.sandbox = None


def fetched(answer, silent=False):
    """Return what the glue has fetched or posted. The job script hears of no failure but a refused origin of data."""
    error = answer['error'] if isinstance(answer, dict) else None
    if error:
        heard = not silent and not str(error['code']).startswith('EHTTP_STATUS')
        raise GiveBack({key: error[key] for key in ('name', 'message', 'code')} if heard else None)
    return answer


async def start_sandbox():
    """Start dcp-client's evaluator for Node.js, with the files that its sandbox-definitions.json lists."""
    modules = Path(find_spec('dcp').origin).parent / 'js' / 'node_modules'
    client = modules / 'dcp-client'
    names = json.loads((client / 'generated' / 'sandbox-definitions.json').read_text())['node']
    files = [modules / name if '/' in name else client / 'libexec' / 'sandbox' / f'{name}.js' for name in names
             if name not in SANDBOX_FILES_LEFT_OUT]
    # The evaluator refuses to run as root, which containers often do. This sandbox runs its user's own job only.
    program = ('process.getuid = process.geteuid = () => 1;'
               'const [evaluator, ...files] = process.argv.slice(1);'
               'new (require(evaluator).Evaluator)(process.stdin, process.stdout, files);')
    return await asyncio.create_subprocess_exec(
        'node', '-e', program, client / 'libexec' / 'evaluator-node.js', *files, limit=2 ** 30, start_new_session=True,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL)


async def run_workers(workers, job):
    """Let workers compute a job until it is over."""
    tasks = [asyncio.ensure_future(worker.run()) for worker in workers]
    over = asyncio.ensure_future(job.stopped.wait())
    ended, _ = await asyncio.wait([over, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    for worker in workers:
        await worker.end_sandbox()
    for task in ended:
        task.result()    # raises what a worker died of: a fault of the mock itself
