"""Kill and restart server.py while faulty workers post results, and count what is lost or stored twice.

    python -m tests.soak [RUNS]    (3 runs unless told: 2 minutes)

A run has 500 slices, 20 SIGKILLs at moments taken from its seed (every other one waits until the server writes a large
result: `torn` counts the kills that hit inside a write), and these faults: the answer gets lost, the connection is
reset half way through the result, a slice is computed twice, two workers post the same slice at the same time. One more
run is of remote-job.py itself, on the mocked DCP. Not part of pytest: test_server_faults.py plays a short run.
"""
import collections
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
import urllib.parse
from pathlib import Path

from .project import Project

CLASSIFIERS = ['LDA', 'GNB', 'KNN', 'Ensemble']
HEADER = 'slice\tclassifier\taccuracy\tauc\tprobesets'
POSTERS = 8
FAULTS = {'lose answer': 0.05, 'leave early': 0.05, 'reset': 0.05, 'twice': 0.05, 'same time': 0.1}
MOCK_FAULTS = '--workers 4 --fault twice=0.1 --fault lose-answer=0.1 --fault die=0.05'.split()
DEADLINE = 300    # seconds until a run that does not end is given up
LURK = """# Kill the server while it writes a large result
import os, sys, time
path, pid, until = sys.argv[1], int(sys.argv[2]), time.monotonic() + 2
before = now = os.stat(path).st_size
while now - before < 20_000 and time.monotonic() < until:
    before, now = now, os.stat(path).st_size
os.kill(pid, 9)
"""
FIGURES = ['slices', 'kills', 'torn', 'posted', 'answered', 'stored', 'lost', 'doubled', 'halves', 'seconds']


def result_of(number, job):
    """Return a slice's result, the same at every call. Those of every tenth slice span many pages of the disk."""
    chance = random.Random(f'{job} {number}')
    probesets = chance.randint(5_000, 25_000) if number % 10 == 0 else chance.randint(5, 9)
    return [{'classifier': classifier, 'accuracy': round(chance.random(), 3), 'auc': round(chance.random(), 3),
             'probesets': ', '.join(f'{chance.randrange(10 ** 6)}_at' for _ in range(probesets))}
            for classifier in CLASSIFIERS]


def lines_of(number, job):
    """Return the lines that a slice's result becomes."""
    return ['\t'.join([str(number), *map(str, row.values())]) for row in result_of(number, job)]


class Killer(threading.Thread):
    """Kills the server with SIGKILL and restarts it, soon after so and so many slices were answered."""

    def __init__(self, project, server, seed, moments, kills, answered, news, lurk=True):
        super().__init__(daemon=True)
        self.project, self.answered, self.news, self.lurk = project, answered, news, lurk
        self.chance = random.Random(f'{seed} kills')
        self.moments = sorted(self.chance.sample(moments, kills))
        self.up, self.torn, self.error = threading.Event(), 0, None
        self.servers = [server]
        self.up.set()

    def run(self):
        try:
            for number, moment in enumerate(self.moments):
                with self.news:
                    assert self.news.wait_for(lambda: self.answered() >= moment, DEADLINE), 'the run has come to a halt'
                time.sleep(self.chance.uniform(0, 0.05))
                path = self.project.results()[-1]
                if self.lurk and number % 2:
                    subprocess.run([sys.executable, '-SEc', LURK, path, str(self.servers[-1].process.pid)], check=True)
                self.servers[-1].stop()
                self.up.clear()
                content = path.read_bytes()
                self.torn += b'\0' in content or not content.endswith(b'\n')
                self.servers.append(self.project.serve())
                self.up.set()
        except Exception as error:
            self.error = error
            self.up.set()

    def finish(self):
        """Wait for the last restart, and return figures. No server may have logged a traceback."""
        self.join(DEADLINE)
        if self.error or self.is_alive():
            raise self.error or TimeoutError('the killer has come to a halt')
        assert not any('Traceback' in line for server in self.servers for line in server.errors)
        return {'kills': len(self.moments), 'torn': self.torn}


class Posters:
    """Threads that post each slice until it is answered, as DCP's workers do, with faults."""

    def __init__(self, project, job, seed, slices):
        self.project, self.job, self.slices, self.seed = project, job, slices, seed
        self.todo = collections.deque(range(1, slices + 1))
        self.attempts, self.posted, self.answered, self.errors = collections.Counter(), 0, set(), []
        self.news = threading.Condition()

    def run(self, up):
        """Post all slices, while the server is up. Raise what a poster died of."""
        self.until = time.monotonic() + DEADLINE
        threads = [threading.Thread(target=self.work, args=[up], daemon=True) for _ in range(POSTERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.errors:
            raise self.errors[0]

    def work(self, up):
        try:
            while task := self.take():
                up.wait(DEADLINE)
                self.attend(*task)
        except Exception as error:
            self.errors.append(error)

    def take(self):
        """Return a slice that is not answered and the fault that this attempt at it meets; None at the end."""
        with self.news:
            while not self.todo and len(self.answered) < self.slices:
                assert time.monotonic() < self.until and not self.errors, 'the run has come to a halt'
                self.news.wait(1)
            if not self.todo:
                return None
            number = self.todo.popleft()
            self.attempts[number] += 1
            chance = random.Random(f'{self.seed} {number} {self.attempts[number]}')
            fault = chance.choices([*FAULTS, None], [*FAULTS.values(), 1 - sum(FAULTS.values())])[0]
            if fault == 'same time':
                self.todo.appendleft(number)
                self.news.notify()
            return number, fault

    def attend(self, number, fault):
        """Post a slice, and give it back if that is not answered."""
        form = {'element': number, 'contentType': 'application/json', 'elementType': 'results', 'job': self.job,
                'content': json.dumps(result_of(number, self.job)), 'key': ''}
        body = urllib.parse.urlencode(form).encode()
        for _ in range(2 if fault == 'twice' else 1):
            try:
                answered = post(self.project.port, body, fault)
            except OSError:    # the server was killed
                answered = False
                time.sleep(0.1)
            with self.news:
                self.posted += 1
                self.answered |= {number} if answered else set()
                self.todo.extend([] if number in self.answered or number in self.todo else [number])
                self.news.notify_all()


def post(port, body, fault=None):
    """Post a result over a connection of its own. Return whether the worker has read that it is stored."""
    request = b'POST /dcp-results HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n' % len(body) + body
    with socket.create_connection(('127.0.0.1', port), 30) as connection:
        if fault == 'reset':
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            connection.sendall(request[:len(request) // 2])
            return False
        connection.sendall(request)
        if fault == 'leave early':
            return False
        answer = b''.join(iter(lambda: connection.recv(65536), b''))
    return fault != 'lose answer' and answer.startswith(b'HTTP/1.1 200') and answer.endswith(b'\n\r\nResult received')


def compare(project, job, answered, expected):
    """Return figures of what is stored: `expected` has the lines of each slice, or patterns of them."""
    listed = set(json.loads(project.request(f'/dcp-results/{job}')[1]))
    found, halves = collections.defaultdict(list), []
    for path in project.results():    # one, if all is well
        header, *lines, rest = path.read_bytes().decode().split('\n')
        halves += [line for line in (header, rest) if line not in (HEADER, '')]
        for line in lines:
            found[line.partition('\t')[0]].append(line)
    stored, doubled = set(), 0
    for number, patterns in expected.items():
        rows = found.pop(str(number), [])
        right = [sum(match(pattern, row) for row in rows) for pattern in patterns]
        stored |= {number} if all(right) and number in listed else set()
        doubled += max(right) > 1
        halves += [row for row in rows if not any(match(pattern, row) for pattern in patterns)]
    halves += [row for rows in found.values() for row in rows]
    return {'answered': len(answered), 'stored': len(stored), 'lost': len(answered - stored), 'doubled': doubled,
            'halves': len(halves)}


def match(pattern, line):
    return bool(pattern.fullmatch(line)) if isinstance(pattern, re.Pattern) else pattern == line


def run_posters(project, seed, slices=500, kills=20):
    """Let posters do a job while the server is killed. Return the run's figures."""
    job = f'soak{seed}'
    posters, server = Posters(project, job, seed, slices), project.serve()
    killer = Killer(project, server, seed, range(1, slices), kills, lambda: len(posters.answered), posters.news)
    killer.start()
    posters.run(killer.up)
    figures = {'slices': slices, 'posted': posters.posted, **killer.finish()}
    return {**figures, **compare(project, job, posters.answered, {n: lines_of(n, job) for n in range(1, slices + 1)})}


def run_job(project, seed, slices=500, kills=20):
    """Let remote-job.py do a job on the mocked DCP while the server is killed. Return the run's figures."""
    project.edit('remote-job.py', 'n_signatures = 10', f'n_signatures = {slices}')
    server, job = project.serve(), project.start_job('--seed', seed, *MOCK_FAULTS)
    ticks = lambda: {int(line.split()[2][:-1]) for line in job.lines if '✔ Slice' in line}
    moments = range(1, slices * 9 // 10)    # after its last result the job asks the server for its list, once
    killer = Killer(project, server, seed, moments, kills, lambda: len(ticks()), job.news, lurk=False)
    killer.start()
    job.wait(DEADLINE)
    figures = {'slices': slices, **killer.finish()}
    assert (job.status, job.lines[-1]) == (0, 'Done.'), job.output[-2000:]
    job_id = next(line.split()[-1] for line in job.lines if 'Job ID' in line)
    figures['posted'] = sum('Result received' in line for server in killer.servers for line in server.errors)
    patterns = {n: [re.compile(rf'{n}\t{classifier}\t[\d.]+\t[\d.]+\t[^\t]+') for classifier in CLASSIFIERS]
                for n in range(1, slices + 1)}
    return {**figures, **compare(project, job_id, ticks(), patterns)}


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
        bad += figures['lost'] + figures['doubled'] + figures['halves'] + (figures['answered'] != figures['slices'])
    sys.exit(1 if bad else 0)


if __name__ == '__main__':
    main(*map(int, sys.argv[1:]))
