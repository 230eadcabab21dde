"""The scheduler of the mocked DCP, in memory: the operations that dcp-client asks for, and the events that it hears."""
import asyncio
import json
import os
import secrets
import traceback
from dataclasses import dataclass, field
from urllib.parse import quote

import pythonmonkey as pm


class Refused(Exception):
    """An operation that the scheduler refuses."""


@dataclass
class Job:
    submitted: dict                                   # what the job script sent
    slices: list = field(default_factory=list)        # {'line': ...} for a sandbox, or {'href': ...} to fetch that from
    results: dict = field(default_factory=dict)       # slice number: data: URI
    subscriptions: dict = field(default_factory=dict) # event name: (token, push)
    groups: list = field(default_factory=list)        # join keys
    status: str = 'uploading'                         # then ready, running, and finished or cancelled
    over: asyncio.Event = field(default_factory=asyncio.Event)
    waiting: asyncio.Queue = field(default_factory=asyncio.Queue)    # slice numbers for workers to take


class Scheduler:
    def __init__(self, glue, groups, faults, run_workers):
        self.glue, self.groups, self.faults, self.run_workers = glue, groups, faults, run_workers
        self.jobs, self.tasks = {}, set()

    async def answer(self, service, dcpsid, operation, data, signers, push):
        """Answer a request: all that comes from dcp-client comes through here."""
        if operation.startswith('submit') and self.faults.happens('no-answer'):
            await asyncio.Event().wait()
        data = json.loads(data)
        method = getattr(self, 'op_' + operation.partition('@')[0], None)
        try:
            if not method:
                raise Refused(f'the mocked DCP has no operation {service}/{operation}')
            job = self.jobs.get(data.get('job') or data.get('options', {}).get('filter', {}).get('job'))
            return json.dumps({'payload': method(job, data, dcpsid=dcpsid, signers=list(signers), push=push)})
        except Refused as refused:
            return json.dumps({'error': {'message': str(refused), 'code': 'EREFUSED'}})
        except Exception:
            die()

    # Operations

    def op_submit(self, _, data, signers, **__):
        if data['paymentAccount'] not in signers:
            raise Refused('the payment account did not sign the job')
        job = self.jobs[data['job']] = Job(data)
        if data.get('dataRange') or data.get('dataPattern'):
            self.op_addSliceData(job, data)
            job.status = 'ready'
        return {'job': data['job'], 'escrow': '0x' + secrets.token_hex(20), 'status': 'estimation',
                'lastSliceNumber': len(job.slices)}

    def op_addSliceData(self, job, data, **_):
        job.slices += self.glue['slices'](json.dumps(data))
        return {'success': True, 'lastSliceNumber': len(job.slices)}

    def op_closeJob(self, job, data, **_):
        job.status = 'ready'
        self.start_if_ready(job)
        return {'success': True}

    def op_addJobToGroups(self, job, data, dcpsid, **_):
        for group in data['cgArray']:
            key = group.get('joinKey')
            if key in self.groups and group['joinHashHash'] == self.glue['joinHashHash'](dcpsid, key, self.groups[key]):
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
                if n in (data['range'] or job.results)]

    def op_cancelJob(self, job, data, **_):
        self.cancel(job, data.get('reason'))
        return {'success': True}

    # Running a job

    def start_if_ready(self, job):
        if job.status == 'ready' and job.groups and 'stop' in job.subscriptions:
            job.status = 'running'
            task = asyncio.get_running_loop().create_task(self.run(job))
            self.tasks.add(task)    # or it might be collected while it runs
            task.add_done_callback(self.tasks.discard)

    async def run(self, job):
        try:
            await asyncio.sleep(0.05)    # dcp-client hears no 'stop' before it has emitted 'accepted'
            if self.faults.happens('no-funds'):
                self.emit(job, 'nofunds', fundsRequired=12.5, remainingSlices=len(job.slices))
            for number in range(1, len(job.slices) + 1):
                job.waiting.put_nowait(number)
            await self.run_workers(self, job)
            if job.status == 'finished':
                self.emit(job, 'stop', runStatus='finished', sliceCount=len(job.slices))
        except Exception:
            die()

    def result(self, job, number, uri):
        """Take a result from a worker. The second one of a slice changes nothing."""
        if number in job.results or job.status != 'running':
            return
        job.results[number] = uri
        if len(job.results) % 25 == 0:
            pm.collect()    # the time that PythonMonkey takes to free strings grows with the square of their number
        self.emit(job, 'result', sliceNumber=number, result={'request': 'complete', 'result': uri})
        self.emit(job, 'status', runStatus='running', total=len(job.slices), distributed=len(job.slices),
                  computed=len(job.results))
        if self.faults.happens('cancel', number):
            self.cancel(job, 'the mocked scheduler was told to cancel')
        elif len(job.results) == len(job.slices):
            job.status = 'finished'
            job.over.set()

    def cancel(self, job, reason):
        job.status = 'cancelled'
        job.over.set()
        self.emit(job, 'stop', runStatus='cancelled', sliceCount=len(job.slices), reason=reason, code='ECANCELLED')

    def emit(self, job, event, **details):
        """Send dcp-client an event, if the job script listens to it."""
        if event in job.subscriptions:
            token, push = job.subscriptions[event]
            push(json.dumps({'token': token, 'event': {'eventId': secrets.token_hex(11), 'data': {
                **details, 'job': job.submitted['job'], 'eventName': event}}}))


def die():
    """End the process on a fault of the mock itself, lest the job script wait for ever."""
    traceback.print_exc()
    os._exit(70)
