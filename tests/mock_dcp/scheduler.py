"""The scheduler of the mocked DCP, in memory: the operations that a job script's dcp-client asks for, and its events."""
import asyncio
import json
import os
import secrets
import traceback
from dataclasses import dataclass, field
from urllib.parse import quote

SERVICES = {'jobSubmit': 'job-submit', 'eventRouter': 'event-router', 'resultSubmitter': 'result-submitter',
            'computeGroups': 'compute-groups', 'packageManager': 'package-manager'}


def config():
    """Return the configuration that dcp.init() would fetch from the scheduler: one JavaScript expression."""
    def url(path=''):
        return f"new URL('http://scheduler.invalid/{path}')"
    services = ', '.join(f"{name}: {{ location: {url(path)} }}" for name, path in SERVICES.items())
    return f"""({{
      scheduler: {{ location: {url()}, services: {{ {services} }} }},
      bank: {{ location: {url()}, services: {{ bankTeller: {{ location: {url('bank-teller')} }} }} }},
      packageManager: {{ location: {url('package-manager')} }},
      portal: {{ location: {url()} }}, cdn: {{ location: {url()} }}, pxAuth: {{ location: {url()} }}, oAuth: {{ location: {url()} }},
      eventSubscriber: {{ seenListSize: 100 }},
      job: {{ maxDeployTime: 3600, deployAttempts: 1, uploadInitialNumberOfSlices: 10, uploadIncreaseFactor: 4,
             uploadSlicesTarget: 1000000, uploadSlicesCeiling: 5000000, sliceUploadErrorTolerance: 3 }},
      dcp: {{ validityStampCachePurgeInterval: 0, connectionOptions: {{ default: {{ lingerTimeout: 120,
             identityUnlockTimeout: 3600 }} }} }},
    }})"""


def die():
    """End the process on a fault of the mock itself, lest the job script wait for ever."""
    traceback.print_exc()
    os._exit(70)


class Refused(Exception):
    """An operation that the scheduler refuses: the job script gets the message and the code."""

    def __init__(self, message, code):
        super().__init__(message)
        self.code = code


@dataclass
class Job:
    submitted: dict                                   # what the job script sent with 'submit'
    slices: list = field(default_factory=list)        # what each slice's sandbox is sent, or {'href': ...} to fetch it
    results: dict = field(default_factory=dict)       # slice number -> data: URI
    subscriptions: dict = field(default_factory=dict) # event name -> (token, push)
    groups: list = field(default_factory=list)        # join keys
    closed: bool = False                              # no more slices follow
    running: bool = False
    waiting: asyncio.Queue = field(default_factory=asyncio.Queue)    # slice numbers for workers to take
    stopped: asyncio.Event = field(default_factory=asyncio.Event)


class Scheduler:
    def __init__(self, glue, groups, faults, start_workers):
        self.glue, self.groups, self.faults, self.start_workers = glue, groups, faults, start_workers
        self.jobs, self.tasks = {}, set()

    async def answer(self, service, dcpsid, operation, data, signers, push):
        """Answer a request of the job script: the mocked network's one entrance. JSON in, JSON out."""
        if operation.startswith('submit') and self.faults.happens('no-answer'):
            await asyncio.Event().wait()
        method = getattr(self, 'op_' + operation.partition('@')[0], None)
        try:
            if not method:
                raise Refused(f'the mocked DCP has no operation {service}/{operation}', 'ENOSYS')
            return json.dumps({'payload': method(json.loads(data), dcpsid=dcpsid, signers=list(signers), push=push)})
        except Refused as refused:
            return json.dumps({'error': {'message': str(refused), 'code': refused.code}})
        except Exception:
            die()

    def job(self, data):
        if data['job'] not in self.jobs:
            raise Refused(f'no job {data["job"]}', 'ENOJOB')
        return self.jobs[data['job']]

    # Operations of the services job-submit, compute-groups, event-router and result-submitter

    def op_submit(self, data, signers, **_):
        if data['paymentAccount'] not in signers:
            raise Refused('the payment account did not sign the job', 'EAUTH')
        job = self.jobs[data['job']] = Job(data)
        if data.get('dataRange') or data.get('dataPattern'):
            job.slices, job.closed = list(self.glue['slices'](json.dumps(data))), True
        return {'job': data['job'], 'escrow': '0x' + secrets.token_hex(20), 'status': 'estimation',
                'lastSliceNumber': len(job.slices)}

    def op_addSliceData(self, data, **_):
        job = self.job(data)
        job.slices += self.glue['slices'](json.dumps(data))
        return {'success': True, 'lastSliceNumber': len(job.slices)}

    def op_closeJob(self, data, **_):
        self.job(data).closed = True
        self.start_if_ready(self.job(data))
        return {'success': True}

    def op_addJobToGroups(self, data, dcpsid, **_):
        job = self.job(data)
        for group in data['cgArray']:
            key = group.get('joinKey')
            if key in self.groups and group['joinHashHash'] == self.glue['joinHashHash'](dcpsid, key, self.groups[key]):
                job.groups.append(key)
        self.start_if_ready(job)
        return {'success': bool(job.groups), 'payload': job.groups}

    def op_subscribeMany(self, data, push, **_):
        job = self.job(data['options']['filter'])
        events = [*(data.get('reliableEvents') or []), *(data.get('optionalEvents') or [])]
        tokens = [{'event': event, 'token': secrets.token_hex(11)} for event in events]
        job.subscriptions.update({token['event']: (token['token'], push) for token in tokens})
        self.start_if_ready(job)
        return {'tokens': tokens}

    def op_unsubscribe(self, data, **_):
        return {'success': True}

    def op_fetchResult(self, data, **_):
        results = self.job(data).results
        return [{'slice': n, 'value': quote(results[n], safe='')} for n in data['range'] or results if n in results]

    def op_cancelJob(self, data, **_):
        self.stop(self.job(data), 'cancelled', data.get('reason'), 'ECANCELLED')
        return {'success': True}

    # Running a job

    def start_if_ready(self, job):
        if job.closed and job.groups and 'stop' in job.subscriptions and not job.running:
            job.running = True
            self.spawn(self.run(job))

    async def run(self, job):
        await asyncio.sleep(0.05)    # the job script hears no 'stop' before it has emitted 'accepted'
        if self.faults.happens('no-funds'):
            self.emit(job, 'nofunds', fundsRequired=12.5, remainingSlices=len(job.slices))
        for number in range(1, len(job.slices) + 1):
            job.waiting.put_nowait(number)
        await self.start_workers(self, job)

    def result(self, job, number, uri):
        """Take a result from a worker. Of a slice that was computed twice, the second one changes nothing."""
        if number in job.results:
            return
        job.results[number] = uri
        self.emit(job, 'result', sliceNumber=number, result={'request': 'complete', 'result': uri})
        self.emit(job, 'status', runStatus='running', total=len(job.slices), distributed=len(job.slices),
                  computed=len(job.results))
        if self.faults.happens('cancel', number):
            self.stop(job, 'cancelled', 'the mocked scheduler was told to cancel', 'ECANCELLED')
        elif len(job.results) == len(job.slices):
            self.stop(job, 'finished')

    def stop(self, job, status, reason=None, code=None):
        if not job.stopped.is_set():
            job.stopped.set()
            self.emit(job, 'stop', runStatus=status, sliceCount=len(job.slices), reason=reason, code=code)

    def emit(self, job, event, **details):
        """Send the job script an event, if it listens to it."""
        if event in job.subscriptions:
            token, push = job.subscriptions[event]
            push(json.dumps({'token': token, 'event': {'eventId': secrets.token_hex(11), 'data': {
                **details, 'job': job.submitted['job'], 'eventName': event}}}))

    def spawn(self, coroutine):
        async def run():
            try:
                await coroutine
            except Exception:
                die()
        task = asyncio.get_running_loop().create_task(run())
        self.tasks.add(task)    # asyncio itself keeps no reference
        task.add_done_callback(self.tasks.discard)
