"""Measure parts of the project side by side with something simpler that does the same.

    python -m tests.benchmark    (a minute or two, no network)

A row has a figure, what it is compared with, and their ratio: trust that more, as both take turns.
"""
import csv
import re
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from statistics import median
from urllib.parse import urlencode

from input.simulate import simulate, write_table

from .project import Project

DATA = 'GSE57383_ps_psa'
TIMED = '''(signature, data, classes, folds) => {
  const start = performance.now();
  (WORK_FUNCTION)(signature, data, classes, folds);
  const scored = performance.now();
  let tabs = 0;
  for (let at = data.indexOf('\\t'); at >= 0; at = data.indexOf('\\t', at + 1)) tabs++;
  return { scoring: scored - start, counting: performance.now() - scored, tabs };
}'''


def show(what, ours, other, theirs, unit):
    """Print a row with the medians of two lists."""
    ours, theirs = median(ours), median(theirs)
    print(f'{what:32} {ours:8.1f}   {other:14} {theirs:8.1f} {unit:5} ratio {ours / theirs:.2f}', flush=True)


def measure_slices(project, samples, probesets):
    """Time 60 slices in the sandbox of one worker: the work function, and a pass that counts tabs."""
    write_table(project.folder / 'input' / f'{DATA}.txt', *simulate(samples, probesets), decimals=2)
    project.edit('remote-job.py', 'n_signatures = 10', 'n_signatures = 60')
    project.edit('remote-job.py', 'compute_for(slices, work_function,',
                 f'compute_for(slices, {TIMED!r}.replace("WORK_FUNCTION", work_function),')
    project.serve()
    job = project.run_job('--workers', '1')
    assert job.status == 0, job.output
    rows = list(csv.DictReader(project.results()[0].open(), delimiter='\t'))    # about in order
    scoring, counting = [[float(row[name]) for row in rows] for name in ('scoring', 'counting')]
    show(f'slice 1, {samples} x {probesets:,}', scoring[:1], 'counting tabs', counting[:1], 'ms')
    show(f'slices 11 to 60, {samples} x {probesets:,}', scoring[10:], 'counting tabs', counting[10:], 'ms')


def ask(port, path, form={}):
    connection = HTTPConnection('127.0.0.1', port, timeout=60)
    headers = {'Content-Type': 'application/x-www-form-urlencoded'}
    connection.request('POST' if form else 'GET', path, urlencode(form) or None, headers)
    return connection.getresponse().read()


def post_results(port, posters):
    """Post 400 results of a new job from so many threads. Return results per second."""
    form = {'job': time.time_ns(), 'content': '{"probesets": "simulated_0001, simulated_0002", "auc": 0.8}'}
    start = time.perf_counter()
    with ThreadPoolExecutor(posters) as pool:
        answers = pool.map(lambda number: ask(port, '/dcp-results', {**form, 'element': number}), range(400))
    assert set(answers) == {b'Result received'}
    return 400 / (time.perf_counter() - start)


def fetch(port, path, readers):
    """Read a file over so many connections at once. Return MB per second."""
    start = time.perf_counter()
    with ThreadPoolExecutor(readers) as pool:
        size = sum(pool.map(lambda _: len(ask(port, path)), range(readers)))
    return size / (time.perf_counter() - start) / 1e6


def measure_server(project, forgetful):
    forgetful.edit('server.py', "        store(job, slice_number, {'of': as_cell(of), **row} if of else row)\n", '')
    (project.folder / 'input' / f'{DATA}.txt').write_bytes(b'7.0000\t' * 7_000_000)
    project.serve(), forgetful.serve()
    other = project.start('-m', 'http.server', 0, '--directory', 'input')
    port = int(re.search(r'port (\d+)', other.wait_for('Serving HTTP'))[1])
    for n in (1, 8):
        rates = [(post_results(project.port, n), post_results(forgetful.port, n),
                  fetch(project.port, f'/{DATA}', n), fetch(port, f'/{DATA}.txt', n)) for _ in range(7)]
        stored, not_stored, served, served_simply = zip(*rates)
        show(f'results stored, {n} at once', stored, 'not stored', not_stored, '/s')
        show(f'49 MB served, {n} at once', served, 'http.server', served_simply, 'MB/s')


if __name__ == '__main__':
    with tempfile.TemporaryDirectory() as folder:
        projects = [Project(Path(folder) / f'project{number}') for number in range(4)]
        try:
            measure_slices(projects[0], 60, 5_000)
            measure_slices(projects[1], 79, 12_000)
            measure_server(*projects[2:])
        finally:
            [project.stop() for project in projects]
