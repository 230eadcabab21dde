"""The scheduler of the mocked DCP, in memory: it answers the job script and the workers, and emits events."""
import asyncio
import json
import os
import secrets
import sys
import traceback
from dataclasses import dataclass, field
from functools import cache, partial
from urllib.parse import quote

import pythonmonkey as pm

from .faults import DELAY
from .packages import NotMocked


class Refused(Exception):
    """An operation that the scheduler refuses."""


@dataclass
class Job:
    submitted: dict                                   # what the job script sent
    slices: list = field(default_factory=list)        # {'value': marshalled}, or {'href': where it is}
    is_open: bool = True                              # more slices may come
    results: dict = field(default_factory=dict)       # slice number: data: URI
    subscriptions: dict = field(default_factory=dict) # event name: (token, push)
    groups: list = field(default_factory=list)        # join keys
    status: str = 'deploying'                         # then running, and finished or cancelled
    over: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: asyncio.Queue = field(default_factory=asyncio.Queue)    # slice numbers for workers to take


class Scheduler:
    def __init__(self, glue, join_secrets, faults, run_workers, log_file):
        self.glue, self.join_secrets, self.faults = glue, join_secrets, faults
        self.run_workers, self.log_file = run_workers, log_file
        self.jobs, self.tasks = {}, set()
        self.reachable = asyncio.Event()    # clear while the scheduler is lost
        self.reachable.set()

    async def answer(self, service, dcpsid, operation, data, signers, push):
        """Answer the job script: all that comes from dcp-client comes through here."""
        try:
            if '"__pythonmonkey_guard"' in data:
                tell_once('dcp gives a JavaScript work function no ints and no NumPy arrays, but objects '
                          'around them, here as on DCP: use floats and lists.')
            data, signers = json.loads(data), list(signers)
            self.log('script', 'scheduler', service=service, operation=operation, data=data, signers=signers)
            submits = operation.startswith('submit')
            if submits and self.faults.happens('no-answer'):
                self.reachable.clear()
            await self.reachable.wait()
            if submits and self.faults.happens('late'):
                await asyncio.sleep(DELAY)
            answer = self.do(service, operation, data, dcpsid=dcpsid, signers=signers, push=push)
            await self.reachable.wait()
            self.log('scheduler', 'script', service=service, operation=operation, data=answer)
            return json.dumps(answer)
        except Exception:
            die()

    def do(self, service, operation, data, **context):
        """Do what the job script asks for; return its payload, or the error that dcp-client throws."""
        method = getattr(self, 'op_' + operation.partition('@')[0], None)
        name = data.get('job') or data.get('options', {}).get('filter', {}).get('job')
        try:
            if not method:
                raise Refused(f'the mocked DCP has no operation {service}/{operation}')
            if name and name not in self.jobs and method != self.op_submit:
                raise Refused(f'the mocked DCP has no job {name}: it knows those of this script')
            return {'payload': method(self.jobs.get(name), data, **context)}
        except Refused as refused:
            return {'error': {'message': str(refused), 'code': 'EREFUSED'}}

    async def answer_worker(self, worker, operation, data):
        """Answer a worker: all that comes from workers comes through here. Operations are named as on DCP."""
        self.log('worker', 'scheduler', worker=worker, operation=operation, data=data)
        await self.reachable.wait()
        answer = await getattr(self, 'worker_' + operation)(self.jobs[data['job']], data)
        await self.reachable.wait()
        self.log('scheduler', 'worker', worker=worker, operation=operation, data=answer)
        return answer

    def log(self, sender, receiver, **message):
        """Write a message down, as it is sent."""
        if self.log_file:
            print(json.dumps({'from': sender, 'to': receiver, **message}), file=self.log_file, flush=True)

    # What the job script asks for

    def op_submit(self, _, data, signers, **__):
        if data['paymentAccount'] not in signers:
            raise Refused('the payment account did not sign the job')
        job = self.jobs[data['job']] = Job(data)
        if data.get('dataRange') or data.get('dataPattern'):    # and not a list, which comes later
            self.op_addSliceData(job, data)
            job.is_open = data['isOpen']
        return {'job': data['job'], 'escrow': '0x' + secrets.token_hex(20), 'status': 'estimation',
                'lastSliceNumber': len(job.slices)}

    def op_addSliceData(self, job, data, **_):
        if not job.is_open:
            raise Refused('the job is closed: it takes no more slices')
        for data_of_slice in json.loads(self.glue['slices'](json.dumps(data))):
            job.slices.append(data_of_slice)
            job.waiting.put_nowait(len(job.slices))
        return {'success': True, 'lastSliceNumber': len(job.slices)}

    def op_closeJob(self, job, *_, **__):
        job.is_open = False
        self.start_if_ready(job)
        self.finish_if_done(job)
        return {'success': True}

    def op_addJobToGroups(self, job, data, dcpsid, **_):
        for group in data['cgArray']:
            key = group.get('joinKey')
            secret = self.join_secrets.get(key)
            knows_secret = secret and group['joinHashHash'] == self.glue['joinHashHash'](dcpsid, key, secret)
            if knows_secret or key == 'public':
                job.groups.append(key)
        self.start_if_ready(job)
        return {'success': bool(job.groups)}

    def op_subscribeMany(self, job, data, push, **_):
        events = [*(data.get('reliableEvents') or []), *(data.get('optionalEvents') or [])]
        tokens = [{'event': event, 'token': secrets.token_hex(11)} for event in events]
        job.subscriptions.update({token['event']: (token['token'], push) for token in tokens})
        self.start_if_ready(job)
        return {'tokens': tokens}

    def op_unsubscribe(self, *_, **__):
        return {'success': True}

    def op_fetchResult(self, job, data, **_):
        return [{'slice': n, 'value': quote(uri, safe='')} for n, uri in job.results.items()
                if n in (data.get('range') or job.results)]

    def op_cancelJob(self, job, data, **_):
        if job.status not in ('finished', 'cancelled'):
            self.cancel(job, data.get('reason'))
        return {'success': True}

    # What a worker asks for

    async def worker_requestTask(self, job, data):
        """Give a worker a slice, and the job with the first one; or nothing when there are no more."""
        number = await job.waiting.get()
        if not number:
            return None
        new_job = None if data['hasJob'] else job.submitted
        return {'newJob': new_job, 'slice': number, **job.slices[number - 1]}

    async def worker_result(self, job, data):
        """Take a result. The second one of a slice changes nothing."""
        number = data['slice']
        if number in job.results or job.status != 'running':
            return {'success': True}
        job.results[number] = data['result']
        if len(job.results) % 25 == 0:
            pm.collect()    # PythonMonkey's time to free strings grows with the square of their number
        self.emit(job, 'result', sliceNumber=number, result={'request': 'complete', 'result': data['result']})
        total, computed = len(job.slices), len(job.results)
        self.emit(job, 'status', runStatus='running', total=total, distributed=total, computed=computed)
        if self.faults.happens('cancel', number):
            self.cancel(job, 'the mocked scheduler was told to cancel')
        self.finish_if_done(job)
        if computed == 1:
            self.get_lost()
        return {'success': True}

    async def worker_status(self, job, data):
        """Take a slice back, for some worker to try again."""
        if data['slice'] not in job.results:
            job.waiting.put_nowait(data['slice'])
        return {'success': True}

    async def worker_workEmit(self, job, data):
        """Pass on an event of the work function, or of the worker's trouble with it."""
        self.emit(job, data['eventName'].lower(), sliceNumber=data['slice'], **data['payload'])
        return {'success': True}

    # Running a job

    def start_if_ready(self, job):
        has_slices = not job.is_open or job.submitted['isOpen']
        if job.status == 'deploying' and has_slices and job.groups and 'stop' in job.subscriptions:
            job.status = 'running'
            task = asyncio.get_running_loop().create_task(self.run(job))
            self.tasks.add(task)    # or it might be collected while it runs
            task.add_done_callback(self.tasks.discard)

    async def run(self, job):
        try:
            await asyncio.sleep(0.05)    # dcp-client hears no 'stop' before it has emitted 'accepted'
            if self.faults.happens('no-funds'):
                self.emit(job, 'nofunds', fundsRequired=12.5, remainingSlices=len(job.slices))
            self.finish_if_done(job)    # it may have no slices
            await self.run_workers(self, job)
            if job.status == 'finished':
                self.emit(job, 'stop', runStatus='finished', sliceCount=len(job.slices))
        except NotMocked as problem:
            asyncio.get_running_loop().call_soon(sys.exit, str(problem))
        except Exception:
            die()

    def finish_if_done(self, job):
        if job.status == 'running' and not job.is_open and len(job.results) == len(job.slices):
            job.status = 'finished'
            job.over.set()

    def cancel(self, job, reason):
        job.status = 'cancelled'
        job.over.set()
        stop = partial(self.emit, job, 'stop', runStatus='cancelled', sliceCount=len(job.slices),
                       reason=reason, code='ECANCELLED')
        asyncio.get_running_loop().call_later(0.05, stop)    # dcp-client may be about to subscribe to it

    def get_lost(self):
        """Be lost from now on, or for a while, if that was asked for. What is said to it meanwhile waits."""
        if self.faults.happens('lost'):
            self.reachable.clear()
        elif self.faults.happens('away'):
            self.reachable.clear()
            asyncio.get_running_loop().call_later(DELAY, self.reachable.set)

    def emit(self, job, event, **details):
        """Send dcp-client an event, if the job script listens to it. An error is told in any case."""
        if event in job.subscriptions:
            token, push = job.subscriptions[event]
            details.update(job=job.submitted['job'], eventName=event)
            message = {'token': token, 'event': {'eventId': secrets.token_hex(11), 'data': details}}
            self.log('scheduler', 'script', event=event, data=message)
            push(json.dumps(message))
        elif event == 'error':
            tell_once(f'A worker: {details["message"].strip().splitlines()[-1]}')    # Python's is a traceback

    def on_failure(self, loop, context):
        """Hear of what fails in dcp. If a job cannot be deployed, job.exec() would wait for ever: so end."""
        error = context.get('exception')
        newest_job = list(self.jobs.values())[-1:]
        is_deployed = any(job.status in ('running', 'finished') for job in newest_job)
        is_dcps = isinstance(error, pm.SpiderMonkeyError) and error.jsError['code'] != 'ECANCELLED'
        if is_dcps and not is_deployed:
            loop.call_soon(sys.exit, in_one_line(error))
        else:
            loop.default_exception_handler(context)


def in_one_line(error):
    return f'{error.jsError["name"]}: {error.jsError["message"]}'.splitlines()[0]


@cache
def tell_once(line):
    print(line, file=sys.stderr, flush=True)


def die():
    """End the process on a fault of the mock itself, lest the job script wait for ever."""
    traceback.print_exc()
    sys.stdout.flush()
    os._exit(70)
