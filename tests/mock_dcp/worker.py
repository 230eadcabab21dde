"""The worker of the mocked DCP: it takes slices, computes them in dcp-client's sandbox, and delivers their results."""
import asyncio
import json
import random
from importlib.util import find_spec
from pathlib import Path

FAULTS = {
    'die': 'a worker dies while it computes the slice',
    'return': 'a worker gives the slice back before it has computed it',
    'twice': 'a slice is computed, and its result posted, twice',
    'lose-answer': 'a result is posted, but its answer gets lost, so that the slice is given back',
    'refuse-post': 'a worker may fetch from the origin, but not post results to it',
    'no-answer': 'the scheduler never answers to the job',
    'no-funds': 'the scheduler says that the account has run out of funds',
    'cancel': 'the scheduler cancels the job when it gets the result',
}
PROGRESS_TIMEOUT = 30    # seconds


class Faults:
    """Decides from a seed which faults happen: the same to the same slices, in whatever order they are computed."""

    def __init__(self, probabilities, seed):
        self.probabilities, self.seed, self.chances = probabilities, seed, {}

    def happens(self, fault, slice_number=0):
        chance = self.chances.setdefault((fault, slice_number), random.Random(f'{self.seed} {fault} {slice_number}'))
        return chance.random() < self.probabilities.get(fault, 0)


class GiveBack(Exception):
    """The worker gives its slice back. The job script hears of it if there is an `error`."""

    def __init__(self, error=None):
        self.error = error


class Worker:
    def __init__(self, scheduler, job, glue, allowed_origins, faults):
        self.scheduler, self.job, self.glue, self.faults = scheduler, job, glue, faults
        self.allowed = glue['allowList'](allowed_origins, faults.happens('refuse-post'))
        self.submitted, self.assignment, self.sandbox = json.dumps(job.submitted), None, None

    async def run(self):
        """Take slices until there are no more. After a failure the worker pauses, longer each time."""
        pause = 0.1
        while number := await self.job.waiting.get():
            try:
                await self.compute(number)
                pause = 0.1
            except GiveBack as failure:
                if number not in self.job.results:
                    self.job.waiting.put_nowait(number)
                if failure.error:
                    self.scheduler.emit(self.job, 'error', sliceNumber=number, **failure.error)
                await self.end_sandbox()
                await asyncio.sleep(pause)
                pause = min(2 * pause, 5)

    async def compute(self, number):
        if self.faults.happens('return', number):
            raise GiveBack
        self.assignment = self.assignment or self.fetched(await self.glue['assignment'](self.submitted, self.allowed))
        slice_data = self.job.slices[number - 1]
        if 'href' in slice_data:
            line = self.fetched(await self.glue['sliceData'](slice_data['href'], self.allowed))
        else:
            line = slice_data['line']
        for _ in range(1 + self.faults.happens('twice', number)):
            if not self.sandbox:
                self.sandbox = await start_sandbox()
                await self.ask('{"request": "applyRequirements", "worktime": "map-basic"}')
                await self.ask(self.assignment)
            await self.ask('{"request": "resetState"}')
            if self.faults.happens('die', number):
                self.sandbox.kill()
            await self.deliver(number, await self.ask(line, number))

    async def deliver(self, number, result):
        """Post a result to its remote storage, if there is one, and tell the scheduler where it is."""
        uri = self.glue['encodeDataURI'](result['kvin'], 'application/x-kvin')
        if self.job.submitted.get('resultStorageType') == 'pattern':
            uri = await self.glue['postResult'](self.submitted, number, json.dumps(result), self.allowed)
            if not isinstance(uri, str) or self.faults.happens('lose-answer', number):
                raise GiveBack
        self.scheduler.result(self.job, number, uri)

    def fetched(self, answer):
        """Return what was fetched. The job script hears why not, unless a server answered with another status."""
        if isinstance(answer, str):
            return answer
        raise GiveBack(None if str(answer['error']['code']).startswith('EHTTP') else dict(answer['error']))

    async def ask(self, line, number=0):
        """Send the sandbox a message, and return its last word on it."""
        if line.startswith('{"request"'):
            line = self.glue['toSandbox'](line)
        progress = False
        self.sandbox.stdin.write(line.encode() + b'\n')
        while True:
            try:
                answer = await asyncio.wait_for(self.sandbox.stdout.readline(), PROGRESS_TIMEOUT)
            except asyncio.TimeoutError:
                self.no_progress(number, f'No progress event was received in the last {PROGRESS_TIMEOUT} seconds.')
            if not answer:
                raise GiveBack({'message': 'the sandbox ended', 'code': 'ESANDBOX'})
            if not answer.startswith(b'MSG:{"type":"workerMessage"'):
                continue    # the evaluator's own log
            message = json.loads(self.glue['fromSandbox'](answer[4:].decode()))
            request = message['request']
            if request == 'progress':
                progress = True
            elif request in ('console', 'emitEvent'):
                event = 'console' if request == 'console' else 'custom'
                self.scheduler.emit(self.job, event, sliceNumber=number, **message['payload'])
            elif request in ('reject', 'error', 'workReject', 'sandboxError'):
                raise GiveBack
            elif request == 'complete' and not progress:
                self.no_progress(number, 'Sandbox never emitted a progress event.')
            elif request == 'workError':
                self.scheduler.emit(self.job, 'error', sliceNumber=number, **message['error'])
                return message
            elif request in ('applyRequirementsDone', 'assigned', 'resetStateDone', 'complete'):
                return message

    def no_progress(self, number, message):
        self.scheduler.emit(self.job, 'noprogress', sliceNumber=number, message=message, code='ENOPROGRESS')
        raise GiveBack({'message': message, 'code': 'ENOPROGRESS'})

    async def end_sandbox(self):
        if self.sandbox and self.sandbox.returncode is None:
            self.sandbox.kill()
            await self.sandbox.wait()
        self.sandbox = None


async def start_sandbox():
    """Start dcp-client's evaluator for Node.js, with the sandbox files that dcp-client lists for it."""
    modules = Path(find_spec('dcp').origin).parent / 'js' / 'node_modules'
    client = modules / 'dcp-client'
    names = json.loads((client / 'generated' / 'sandbox-definitions.json').read_text())['node']
    files = [modules / name if '/' in name else client / 'libexec' / 'sandbox' / f'{name}.js' for name in names
             if not name.startswith('pyodide')]    # 16 MB that only Python work functions need
    # The evaluator refuses to run as root, as containers often do. But here it runs nobody's work but its user's.
    program = ('process.getuid = process.geteuid = () => 1; const [evaluator, ...files] = process.argv.slice(1);'
               'new (require(evaluator).Evaluator)(process.stdin, process.stdout, files);')
    return await asyncio.create_subprocess_exec(
        'node', '-e', program, client / 'libexec' / 'evaluator-node.js', *files, limit=2 ** 30, start_new_session=True,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL)


async def run_workers(workers, job):
    """Let workers compute a job until it is over. They end what they are at, unless it is cancelled."""
    tasks = [asyncio.ensure_future(worker.run()) for worker in workers]
    over = asyncio.ensure_future(job.over.wait())
    await asyncio.wait([over, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        if job.status == 'finished':
            job.waiting.put_nowait(None)
        else:
            task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for worker in workers:
        await worker.end_sandbox()
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome    # a fault of the mock itself
