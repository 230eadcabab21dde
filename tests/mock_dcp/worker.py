"""The worker of the mocked DCP: it takes slices, computes them in a sandbox, and delivers their results."""
import asyncio
import json

from .packages import NotMocked
from .sandbox import GiveBack, Sandbox

PATIENCE = 7    # times in a row that all workers are refused before the mocked DCP gives up: about 6 s


class Worker:
    def __init__(self, name, scheduler, job_id, glue, allowed_origins, faults, progress_timeout):
        self.name, self.scheduler, self.job_id, self.glue, self.faults = name, scheduler, job_id, glue, faults
        self.allowed_origins, self.progress_timeout = allowed_origins, progress_timeout
        self.allowed = glue['allowList'](allowed_origins)
        self.refusals = 0    # how often in a row it was not allowed to fetch
        self.job = self.submitted = self.assignment = self.sandbox = self.slice = None

    async def run(self):
        """Take slices until there are no more. After a failure the worker pauses, longer each time."""
        pause = 0.1
        while task := await self.tell('requestTask', hasJob=bool(self.job)):
            self.slice = task['slice']
            if task['newJob']:
                self.job, self.submitted = task['newJob'], json.dumps(task['newJob'])
            try:
                await self.compute(task)
                pause, self.refusals = 0.1, 0
            except GiveBack as failure:
                for event, payload in failure.events.items():
                    await self.emit(event, payload)
                await self.end_sandbox()
                await self.tell('status', slice=self.slice, status='return', reason=failure.reason)
                self.refusals = self.refusals + 1 if failure.reason == 'EPERM_ORIGIN' else 0
                if all(worker.refusals >= PATIENCE for worker in self.colleagues):
                    message = failure.events['error']['message']
                    raise NotMocked(f'{message}: no worker here is, see --allow-origin')
                await asyncio.sleep(pause)
                pause = min(2 * pause, 5)

    async def tell(self, operation, **data):
        """Tell the scheduler something, and return its answer."""
        return await self.scheduler.answer_worker(self.name, operation, {'job': self.job_id, **data})

    async def emit(self, event, payload):
        await self.tell('workEmit', slice=self.slice, eventName=event, payload=payload)

    async def compute(self, task):
        number = task['slice']
        if self.faults.happens('return', number):
            raise GiveBack('the mocked worker was told to return it')
        if not self.assignment:
            answer = await self.glue['assignment'](self.submitted, self.allowed)
            self.assignment = fetched(answer, 'EJOBFETCH')
        line = fetched(await self.glue['slice'](json.dumps(task), self.allowed), 'ESLICEFETCH')
        for _ in range(1 + self.faults.happens('twice', number)):
            if not self.sandbox:
                self.sandbox = Sandbox(self.glue, self.emit, self.progress_timeout, self.allowed_origins)
                await self.sandbox.start(self.job['worktime']['name'], self.assignment)
            if self.faults.happens('die', number):
                await self.sandbox.end()
            await self.deliver(number, await self.sandbox.compute(line))

    async def deliver(self, number, result):
        """Post a result to its remote storage, if there is one, and tell the scheduler where it is."""
        uri = self.glue['encodeDataURI'](result['kvin'], 'application/x-kvin')
        if self.job.get('resultStorageType') == 'pattern':
            uri = await self.glue['postResult'](self.submitted, number, json.dumps(result), self.allowed)
            if not isinstance(uri, str) or self.faults.happens('lose-answer', number):
                raise GiveBack('the result was not stored')    # of which the job script hears nothing
        await self.tell('result', slice=number, result=uri)

    async def end_sandbox(self):
        if self.sandbox:
            await self.sandbox.end()
        self.sandbox = None


def fetched(answer, code):
    """Return what was fetched. The job script hears why not, unless it is the server or the way there."""
    if isinstance(answer, str):
        return answer
    error = dict(answer['error'])
    if str(error['code']).startswith('EHTTP'):    # a bad status, no connection, a certificate without trust
        raise GiveBack(code)
    raise GiveBack(error['code'], error=error)


async def run_workers(workers, job):
    """Let workers compute a job until it is over. They end what they are at, unless it is cancelled."""
    for worker in workers:
        worker.colleagues = workers
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
