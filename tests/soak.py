"""Kill server.py again and again while workers post results, and count what is lost, doubled or wrong.

    python -m tests.soak [RUNS]    (10 runs unless told: a few minutes)

A run has 500 slices, 8 workers and 20 SIGKILLs at moments by chance; `torn` are those that left half a line.
Workers post a slice until they read that it is received. Every tenth answer gets lost, every tenth slice has two.
"""
import random
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, wait
from http.client import HTTPException
from pathlib import Path

from .project import Project


def result_of(number):
    """Return a slice's result, always the same one. Every fifth fills many pages of the disk."""
    length = 100_000 if number % 5 == 0 else 10
    return {f'text{i}': f'{number} {i} '.ljust(length, 'x') for i in range(9)}


def post_until_received(project, job, number, times, posts):
    while times:
        posts.append(number)
        try:
            assert project.post(number, result_of(number), job) == (200, 'Result received')
            times -= 1
        except (OSError, HTTPException):    # the server is dead
            time.sleep(0.05)


def kill_and_restart(project):
    """Return whether that has left half a line."""
    project.server.stop()
    assert 'Traceback' not in project.server.output
    torn = any(not path.read_bytes().endswith(b'\n') for path in project.results()[-1:])
    project.server = project.serve()
    return torn


def figures_of(rows, slices, posts, torn, is_right):
    """Return what happened to so many slices, all of which were answered as received."""
    times = Counter(row['slice'] for row in rows)
    return {'slices': slices, 'posts': posts, 'kills': len(torn), 'torn': sum(torn),
            'lost': slices - len(times), 'doubled': len(rows) - len(times),
            'wrong': sum(not is_right(row) for row in rows)}


def run(project, seed, slices=500, kills=20):
    """Let workers post all slices of a job while the server is killed. Return the run's figures."""
    chance, job, posts, torn = random.Random(seed), f'soak{seed}', [], []
    project.server = project.serve()
    tasks = [*range(slices), *chance.sample(range(slices), slices // 10)]
    chance.shuffle(tasks)
    with ThreadPoolExecutor(8) as workers:
        work = [workers.submit(post_until_received, project, job, number, chance.choice([1] * 9 + [2]), posts)
                for number in tasks]
        while len(torn) < kills and wait(work, chance.uniform(0, 0.15)).not_done:
            torn.append(kill_and_restart(project))
    assert not any(each.exception() for each in work)
    is_right = lambda row: row == {'job': job, 'slice': row['slice'], **result_of(int(row['slice']))}
    return figures_of(project.rows(job), slices, len(posts), torn, is_right)


def main(runs=10):
    bad = 0
    for number in range(1, runs + 1):
        with tempfile.TemporaryDirectory() as folder:
            project, start = Project(Path(folder) / 'project'), time.monotonic()
            try:
                figures = run(project, number)
            finally:
                project.stop()
        bad += figures['lost'] + figures['doubled'] + figures['wrong']
        print(number, figures, round(time.monotonic() - start), 's', flush=True)
    sys.exit(1 if bad else 0)


if __name__ == '__main__':
    main(*map(int, sys.argv[1:]))
