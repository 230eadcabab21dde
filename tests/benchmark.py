"""Measure each part of the project side by side with something simpler that does the same.

    python -m tests.benchmark    (about two minutes, no network)

A row has the median of some rounds, what it is compared with, and the ratio of the two medians. Both sides take turns
within one run, so that a busy machine slows both alike. Not part of pytest. Peak memory is VmHWM of Linux's /proc.
"""
import csv
import json
import re
import selectors
import socket
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import mean, median
from urllib.parse import urlencode

from input.simulate import simulate, write_table

from . import oracle
from .project import Project, input_set

DATA = 'GSE57383_ps_psa'
PATIENCE = 40    # seconds after which a comparison does without its remaining rounds
TIMED = '''(slice, data) => {
  const start = performance.now();
  (WORK_FUNCTION)(slice, data);
  const scored = performance.now();
  let tabs = 0;
  for (let at = data.indexOf('\\t'); at >= 0; at = data.indexOf('\\t', at + 1)) tabs++;
  return { scoring: scored - start, counting: performance.now() - scored, tabs };
}'''
ROW = '{:33} | {:>9} | {:>26} | {:>5} | {}'
verdicts = []


def show(what, ours, compared, theirs, form, goal=''):
    """Print a row. A goal, '<= 1.5' or '<= 4 s', is about the ratio, or about our figure if it has a unit."""
    ours, theirs = median(ours), median(theirs)
    if goal:
        relation, limit, *unit = goal.split()
        value = ours if unit else ours / theirs
        holds = value <= float(limit) if relation == '<=' else value >= float(limit)
        verdicts.append((holds, f'{what}: {goal}'))
        goal += ' holds' if holds else ' MISSED'
    compared += ' ' + form.format(theirs)
    print(ROW.format(what, form.format(ours), compared, f'{ours / theirs:.2f}', goal), flush=True)


def in_turn(rounds, *tasks):
    """Call the tasks in turn, with the number of the round. Return what each task returned: a list of tuples."""
    results, end = [], time.monotonic() + PATIENCE
    while len(results) < rounds and (not results or time.monotonic() < end):
        results.append([task(len(results)) for task in tasks])
    return list(zip(*results))


def make_data(path, probesets):
    """Write a table of 80 samples with four decimals: 12,000 probesets take 7 MB."""
    write_table(path, *simulate(80, probesets), decimals=4)
    return path


# WORK FUNCTION
def measure_work_function(project, samples, probesets):
    """Time 60 slices in the sandbox of one worker: the scoring, and one pass that counts the text's tabs."""
    path = project.folder / 'input' / f'{DATA}.txt'
    write_table(path, *simulate(samples, probesets), decimals=2)
    project.edit('remote-job.py', 'n_signatures = 10', 'n_signatures = 60')
    project.edit('remote-job.py', 'compute_for(slices, work_function,',
                 f'compute_for(slices, {TIMED!r}.replace("WORK_FUNCTION", work_function),')
    project.serve()
    job = project.run_job('--workers', '1')
    assert job.status == 0, job.output
    with open(project.results()[0], newline='') as file:
        rows = sorted(csv.DictReader(file, delimiter='\t'), key=lambda row: int(row['slice']))
    scoring, counting = [[float(row[name]) for row in rows] for name in ('scoring', 'counting')]
    warm = mean(scoring[10:])
    size = f'{samples} x {probesets:,}'
    show(f'first slice, {size}', scoring[:1], 'counting tabs', counting[:1], '{:.1f} ms')
    show(f'slices 11 to 60, {size}', [warm], 'counting tabs', [mean(counting[10:])], '{:.1f} ms')
    start = time.perf_counter()
    table = oracle.read(path.read_text())
    after_reading = time.perf_counter()
    for numbers in input_set(60)[10:]:
        oracle.score(table, numbers)
    numpy = 1000 * (time.perf_counter() - after_reading) / 50
    numpy_first = 1000 * (after_reading - start) + numpy
    show(f'first slice, {size}', scoring[:1], 'NumPy and SciPy', [numpy_first], '{:.1f} ms')
    show(f'slices 11 to 60, {size}', [warm], 'NumPy and SciPy', [numpy], '{:.1f} ms')


# SERVING THE DATA
def fetch(port, path, readers, size):
    """Read a file over so many connections at once. Return MB/s, until all have got its last byte."""
    buffer, left, selector = bytearray(2 ** 20), {}, selectors.DefaultSelector()
    for _ in range(readers):
        selector.register(socket.create_connection(('127.0.0.1', port)), selectors.EVENT_READ)
    start = time.perf_counter()
    for key in selector.get_map().values():
        key.fileobj.sendall(f'GET /{path} HTTP/1.0\r\nHost: localhost\r\n\r\n'.encode())
    while selector.get_map():
        for connection in [key.fileobj for key, _ in selector.select()]:
            count = connection.recv_into(buffer)
            assert count, 'the connection was closed before the end of the file'
            if connection not in left:
                left[connection] = buffer.index(b'\r\n\r\n') + 4 + size
            left[connection] -= count
            if left[connection] == 0:
                selector.unregister(connection)
    seconds = time.perf_counter() - start
    for connection in left:
        connection.close()
    return readers * size / seconds / 1e6


def peak_memory(status):
    """Return the MB that a /proc/PID/status calls the most that the process has had in memory."""
    return int(re.search(r'VmHWM:\s+(\d+) kB', status)[1]) * 1024 / 1e6


def measure_serving(project):
    size = make_data(project.folder / 'input' / f'{DATA}.txt', 76_500).stat().st_size
    server, other = project.serve(), project.start('-m', 'http.server', 0, '--directory', 'input')
    other_port = int(re.search(r'port (\d+)', other.wait_for('Serving HTTP'))[1])
    for readers, rounds in ((1, 21), (32, 5)):
        ours, theirs = in_turn(rounds, lambda _: fetch(project.port, DATA, readers, size),
                               lambda _: fetch(other_port, f'{DATA}.txt', readers, size))
        show(f'serving {size / 1e6:.0f} MB, {readers} at once', ours, 'http.server', theirs, '{:.0f} MB/s',
             '>= 125 MB/s')    # what a gigabit network carries
    ours, theirs = [peak_memory(Path(f'/proc/{each.process.pid}/status').read_text()) for each in (server, other)]
    show('peak memory of server.py', [ours], 'http.server', [theirs], '{:.0f} MB', '<= 100 MB')


# TAKING RESULTS
def post(port, body):
    """Post a form over a connection of its own. Return whether it is answered as received."""
    request = (b'POST /dcp-results HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n'
               b'Content-Type: application/x-www-form-urlencoded\r\n\r\n%s' % (len(body), body))
    with socket.create_connection(('127.0.0.1', port)) as connection:
        connection.sendall(request)
        answer = b''
        while not answer.endswith(b'Result received') and (part := connection.recv(65536)):
            answer += part
    return answer.endswith(b'Result received')


def post_results(project, posters, count, number):
    """Post so many results of a new job from so many threads. Return results/s."""
    result = {'probesets': ', '.join(['simulated_0001'] * 7), 'ensemble accuracy': 0.7, 'ensemble AUC': 0.75}
    form = {'contentType': 'application/json', 'content': json.dumps(result), 'job': f'{posters}x{number}'}
    bodies = [urlencode({**form, 'element': i}).encode() for i in range(1, count + 1)]
    with ThreadPoolExecutor(posters) as pool:
        start = time.perf_counter()
        assert all(pool.map(partial(post, project.port), bodies)), 'a result was refused'
        rate = count / (time.perf_counter() - start)
    assert project.stored(form['job']) == list(range(1, count + 1)), 'not all results are stored'
    return rate


def measure_results(project, slow, forgetful):
    sync = 'os.fsync(file.fileno())    # returns when'
    slow.edit('server.py', sync, f"__import__('time').sleep(0.005), {sync}")
    forgetful.edit('server.py', 'answer = results.store(slice_number, result)',
                   "answer = 'Result received'; results.slices.add(slice_number)")
    for each in (project, slow, forgetful):
        each.serve()
    for posters, count in ((1, 100), (8, 300), (64, 640)):
        tasks = [partial(post_results, each, posters, count) for each in (project, slow, forgetful)]
        ours, slowly, theirs = in_turn(7, *tasks)
        show(f'results stored, {posters} at once', ours, 'not stored', theirs, '{:.0f}/s', '>= 0.5')
        show('- on a disk whose sync takes 5 ms', slowly, 'not stored', theirs, '{:.0f}/s')


# THE WHOLE JOB
def run_job(project):
    """Run the job. Return the seconds of its parts and of the whole, and its peak memory in MB."""
    job, moments = project.start_job(), []
    for line in ('State: exec', 'Job accepted', '✔', 'VmHWM'):
        last = job.wait_for(line, 300)
        moments.append(time.monotonic() - job.started)
    assert job.wait() == 0, job.output
    started, deployed, first, done = moments
    return {'start': started, 'deploy': deployed - started, 'first': first - deployed, 'rest': done - first,
            'whole': done, 'memory': peak_memory(last)}


def measure_jobs(projects):
    for n, project in zip((10, 100, 1000), projects):
        project.edit('remote-job.py', 'n_signatures = 10', f'n_signatures = {n}')
        project.edit('remote-job.py', "print('Done.')", "print('Done.', *open('/proc/self/status'))")
        project.serve()
    runs = in_turn(3, *[lambda _, project=project: run_job(project) for project in projects])
    ten, hundred, thousand = [{figure: [run[figure] for run in same] for figure in same[0]} for same in runs]
    show('job of 10 slices', ten['whole'], 'of 100', hundred['whole'], '{:.2f} s', '<= 4 s')
    for part, figure in (('SDK: import, dcp.init()', 'start'), ('SDK: deploy, on the mock', 'deploy'),
                         ('mock: workers, first slice', 'first'), ('mock: 9 more slices', 'rest')):
        show(f'- {part}', ten[figure], 'all of that job', ten['whole'], '{:.2f} s')
    show('job of 1,000 slices', thousand['whole'], 'of 100', hundred['whole'], '{:.2f} s')
    rates = [[n / seconds for seconds in job['whole']] for n, job in ((10, ten), (100, hundred), (1000, thousand))]
    show('slices/s of 100', rates[1], 'of 10', rates[0], '{:.1f}/s')
    show('slices/s of 1,000', rates[2], 'of 100', rates[1], '{:.1f}/s', '>= 1')
    show('- once the first one is there', [999 / seconds for seconds in thousand['rest']], 'of 100',
         [99 / seconds for seconds in hundred['rest']], '{:.1f}/s')
    show('script and mock, memory of 100', hundred['memory'], 'of 10', ten['memory'], '{:.0f} MB')
    show('script and mock, memory of 1,000', thousand['memory'], 'of 10', ten['memory'], '{:.0f} MB')


def main():
    print(ROW.format('what', 'figure', 'compared with', 'ratio', 'goal'))
    with tempfile.TemporaryDirectory() as folder:
        projects = [Project(Path(folder) / f'project{number}') for number in range(10)]
        try:
            for project, samples, probesets in zip(projects, (60, 80, 300), (5_000, 12_000, 5_000)):
                measure_work_function(project, samples, probesets)
            measure_serving(projects[3])
            measure_results(*projects[4:7])
            measure_jobs(projects[7:])
        finally:
            for project in projects:
                project.stop()
    missed = [f'Missed: {goal}' for holds, goal in verdicts if not holds]
    print(f'{len(verdicts) - len(missed)} of {len(verdicts)} goals hold.', *missed, sep='\n')


if __name__ == '__main__':
    main()
