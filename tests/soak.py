"""Kill and restart server.py while faulty workers post results, and count what is lost or stored twice.

    python -m tests.soak [RUNS]    (3 runs unless told: a minute and a half)

A run has 500 slices, and 20 SIGKILLs at moments taken from its seed. Every other one waits until the server
writes a large result: `torn` counts those that left half a line. Other faults are: the answer gets lost, the
connection is reset half way through the result, a slice is computed twice, two workers post the same slice at
the same time. One more run is of remote-job.py itself, on the mocked DCP. Not part of pytest:
test_server_faults.py plays a short run.
"""
import json
import random
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from queue import Empty, SimpleQueue
from urllib.parse import urlencode

from .project import Project

POSTERS = 8
FAULTS = {'lose answer': 0.05, 'leave early': 0.05, 'reset': 0.05, 'twice': 0.05, None: 0.8}
SAME_TIME = 0.1    # of the slices are posted by two workers
MOCK_FAULTS = '--workers 4 --fault twice=0.1 --fault lose-answer=0.1 --fault die=0.05'.split()
PATIENCE = 60    # seconds without an answered result after which a run is given up
KILL_IN_A_WRITE = '''
import os, sys, time
folder, pid, until = sys.argv[1], int(sys.argv[2]), time.monotonic() + 2
before = None
while time.monotonic() < until:
    newest = f'{folder}/{max(os.listdir(folder))}'
    now = newest, os.stat(newest).st_size
    if before and now[1] - (before[1] if before[0] == newest else 0) > 4096:
        break
    before = now
os.kill(pid, 9)
'''
FIGURES = ['slices', 'kills', 'torn', 'posted', 'answered', 'stored', 'lost', 'doubled', 'wrong', 'seconds']


@cache
def result_of(number, job):
    """Return a slice's result, the same at every call. Every tenth slice's fills many pages of the disk."""
    chance = random.Random(f'{job} {number}')
    probesets = chance.randint(20_000, 100_000) if number % 10 == 0 else chance.randint(5, 9)
    return {'probesets': ', '.join(f'{chance.randrange(10 ** 6)}_at' for _ in range(probesets)),
            'ensemble accuracy': round(chance.random(), 3), 'ensemble AUC': round(chance.random(), 3)}


class Posters:
    """Threads that post each slice until it is answered, as DCP's workers do, with faults."""

    def __init__(self, project, job, seed, slices):
        self.project, self.job, self.chance = project, job, random.Random(f'{seed} posters')
        self.posted, self.answered, self.news = 0, set(), threading.Condition()
        self.todo = SimpleQueue()
        for number in range(1, slices + 1):
            for _ in range(2 if self.chance.random() < SAME_TIME else 1):
                self.todo.put(number)

    def work(self):
        while True:
            try:
                number = self.todo.get_nowait()
            except Empty:
                return
            fault, = self.chance.choices([*FAULTS], [*FAULTS.values()])
            for _ in range(2 if fault == 'twice' else 1):
                if not self.attend(number, fault):
                    self.todo.put(number)

    def attend(self, number, fault):
        """Post a slice. Return whether the worker has read that it is stored."""
        form = {'element': number, 'content': json.dumps(result_of(number, self.job)), 'job': self.job}
        try:
            answered = post(self.project.port, urlencode(form).encode(), fault)
        except OSError:    # the server was killed
            answered = False
            time.sleep(0.1)
        with self.news:
            self.posted += 1
            if answered:
                self.answered.add(number)
            self.news.notify_all()
        return answered


def post(port, body, fault=None):
    """Post a form over a connection of its own. Return whether the worker has read that it is received."""
    request = (b'POST /dcp-results HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n'
               b'Content-Type: application/x-www-form-urlencoded\r\n\r\n%s' % (len(body), body))
    with socket.create_connection(('127.0.0.1', port), 30) as connection:
        if fault == 'reset':
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            connection.sendall(request[:len(request) // 2])
            return False
        connection.sendall(request)
        if fault == 'leave early':
            return False
        answer = b''.join(iter(lambda: connection.recv(65536), b''))
    assert not answer.startswith(b'HTTP/1.1 4'), answer
    received = answer.startswith(b'HTTP/1.1 200') and answer.endswith(b'Result received')
    return received and fault != 'lose answer'


def kill_again_and_again(project, seed, moments, kills, answered, news, in_writes=True):
    """Kill the server and restart it, each time soon after so many slices were answered. Return figures."""
    chance = random.Random(f'{seed} kills')
    torn = 0
    for number, moment in enumerate(sorted(chance.sample(moments, kills))):
        with news:
            assert news.wait_for(lambda: answered() >= moment, PATIENCE), 'the run has come to a halt'
        time.sleep(chance.uniform(0, 0.05))
        if in_writes and number % 2:
            results, pid = project.folder / 'results', project.server.process.pid
            subprocess.run([sys.executable, '-SEc', KILL_IN_A_WRITE, results, str(pid)], check=True)
        project.server.stop()
        assert 'Traceback' not in project.server.output
        torn += not project.results()[-1].read_bytes().endswith(b'\n')
        project.server = project.serve()
    return {'kills': kills, 'torn': torn}


def compare(project, job, answered, is_right):
    """Return figures of what is stored."""
    rows = project.rows(job)
    times = Counter(int(row['slice']) for row in rows)
    stored = times.keys() & set(project.stored(job))
    return {'answered': len(answered), 'stored': len(stored), 'lost': len(answered - stored),
            'doubled': sum(count > 1 for count in times.values()),
            'wrong': sum(not is_right(row) for row in rows)}


def run_posters(project, seed, slices=500, kills=20):
    """Let posters do a job while the server is killed. Return the run's figures."""
    job = f'soak{seed}'
    posters = Posters(project, job, seed, slices)
    project.server = project.serve()
    with ThreadPoolExecutor(POSTERS) as pool:
        work = [pool.submit(posters.work) for _ in range(POSTERS)]
        answered = lambda: len(posters.answered)
        figures = kill_again_and_again(project, seed, range(1, slices), kills, answered, posters.news)
    for each in work:
        each.result()

    def is_right(row):
        expected = {'job': job, 'slice': row['slice'], **result_of(int(row['slice']), job)}
        return row == {name: str(value) for name, value in expected.items()}

    return {'slices': slices, 'posted': posters.posted, **figures,
            **compare(project, job, posters.answered, is_right)}


def run_job(project, seed, slices=500, kills=20):
    """Let remote-job.py do a job on the mocked DCP while the server is killed. Return the run's figures."""
    project.edit('remote-job.py', 'n_signatures = 10', f'n_signatures = {slices}')
    project.server = project.serve()
    script = project.start_job('--seed', seed, *MOCK_FAULTS)
    ticks = lambda: re.findall('✔ Slice ([0-9]+): Result received', script.output)
    answered = lambda: len(set(ticks()))
    moments = range(1, slices * 9 // 10)    # not later: the script asks the server in the end what is stored
    figures = kill_again_and_again(project, seed, moments, kills, answered, script.news, in_writes=False)
    script.wait(PATIENCE)
    assert (script.status, script.lines[-1]) == (0, 'Done.'), script.output[-2000:]
    job = re.search('Job ID: (.*)', script.output)[1]
    return {'slices': slices, 'posted': len(ticks()), **figures,
            **compare(project, job, {int(number) for number in ticks()}, is_whole)}


def is_whole(row):
    return None not in row and all(row.values())


def main(runs=3):
    print('run      ', *[f'{figure:>8}' for figure in FIGURES])
    bad = 0
    for number in range(1, runs + 2):
        name, run = (f'posters {number}', run_posters) if number <= runs else ('mocked', run_job)
        with tempfile.TemporaryDirectory() as folder:
            project, start = Project(Path(folder) / 'project'), time.monotonic()
            try:
                figures = {**run(project, number), 'seconds': round(time.monotonic() - start)}
            finally:
                project.stop()
        print(f'{name:10}', *[f'{figures[figure]:>8}' for figure in FIGURES], flush=True)
        bad += figures['lost'] + figures['doubled'] + figures['wrong']
        bad += figures['slices'] - figures['answered']
    sys.exit(1 if bad else 0)


if __name__ == '__main__':
    main(*map(int, sys.argv[1:]))
