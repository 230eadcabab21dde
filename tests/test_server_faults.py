"""Each result is on the disk once, whole, whatever happens: repeats, crashes, many workers at once, failing disks."""
import importlib.util
import itertools
import json
import os
import re
import signal
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from . import soak
from .test_server import RECEIVED, SCORES, post, table

try:
    import resource
except ImportError:    # Windows
    resource = None
OTHER_SCORES = [{**row, 'accuracy': 0.5} for row in SCORES]


def restart(project):
    """Kill the server at once, and start it again."""
    project.server.stop(signal.SIGKILL)
    project.server = project.serve()


def stored(project, job='job1'):
    return json.loads(project.request(f'/dcp-results/{job}')[1])


def sound(project):
    """Return the results file's slices in its order, checking that it has each one's four rows together, and whole."""
    (path,) = project.results()
    rows = table(path)[1:]
    slices = [int(row[0]) for row in rows[::4]]
    assert len(set(slices)) == len(slices)
    assert rows == [[str(number), *map(str, row.values())] for number in slices for row in SCORES]
    return slices


# ---- repeats ----

@pytest.mark.parametrize('again', [SCORES, OTHER_SCORES, 'something else', None], ids=['same', 'other', 'text', 'null'])
def test_repeated_result_is_answered_and_not_stored_again(served, again):
    assert post(served, 1, SCORES) == RECEIVED
    content = served.results()[0].read_bytes()
    assert post(served, 1, again) == RECEIVED
    assert served.results()[0].read_bytes() == content


def test_workers_that_post_the_same_slice_at_the_same_time_store_it_once(served):
    with ThreadPoolExecutor(16) as workers:
        answers = list(workers.map(lambda n: post(served, n // 16 + 1, SCORES), range(160)))
    assert set(answers) == {RECEIVED}
    assert sound(served) and stored(served) == [*range(1, 11)]


# ---- crashes ----

def test_killed_server_goes_on_with_the_same_files(served):
    post(served, 1, SCORES), post(served, 1, 'other job', 'job2'), post(served, 2, SCORES)
    before = served.results()
    restart(served)
    assert stored(served) == [1, 2]
    for number in (2, 3):
        assert post(served, number, SCORES) == RECEIVED
    assert post(served, 2, 'other job', 'job2') == RECEIVED
    assert served.results() == before
    assert sorted(len(table(path)) for path in before) == [3, 1 + 4 * 3]


@pytest.mark.parametrize('damage', [
    lambda one, two: one + two[:7],
    lambda one, two: one + bytes(len(two)),
    lambda one, two: one + bytes(5000),
    lambda one, two: one + b'\0' + two[1:],
    lambda one, two: one + b'\0' + two[1:len(two) // 2],
    lambda one, two: one[:20] + bytes(5000),
    lambda one, two: one[:20],
    lambda one, two: b'',
], ids=['cut in a line', 'zero bytes', 'more zero bytes', 'no first byte', 'no first byte, and half of the rest',
        'zero bytes from the header on', 'cut in the header', 'empty'])
def test_torn_end_of_a_results_file_is_repaired_and_the_slice_accepted_again(served, damage):
    post(served, 1, SCORES)
    (path,) = served.results()
    one = path.read_bytes()
    post(served, 2, SCORES)
    two = path.read_bytes()[len(one):]
    served.server.stop(signal.SIGKILL)
    path.write_bytes(damage(one, two))
    served.server = served.serve()
    whole = path.read_bytes().startswith(one)
    assert stored(served) == [1] * whole
    for number in (1, 2):
        assert post(served, number, SCORES) == RECEIVED
    assert path.read_bytes() == one + two


@pytest.fixture
def server_module(project):
    """server.py as a module, to stop it at any byte."""
    (project.folder / 'results').mkdir(exist_ok=True)
    spec = importlib.util.spec_from_file_location('server_module', project.folder / 'server.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arrivals(server, *slices, result=SCORES):
    return [server.Arrival('job1', number, result) for number in slices]


@pytest.mark.parametrize('before', [[], [1]], ids=['new file', 'file with a slice'])
def test_crash_at_any_byte_of_a_write_leaves_all_of_it_or_nothing(server_module, monkeypatch, tmp_path, before):
    """Several results share a write. After the crash they are posted again."""
    server, write, died = server_module, server_module.write_at, False
    monkeypatch.setattr(os, 'fsync', lambda _: None)    # a killed process loses nothing that it has written

    class Death(BaseException):
        pass

    def write_until_death(file, position, data):
        nonlocal left
        write(file, position, data[:left])
        left -= len(data)
        if left < 0:
            raise Death

    for count in itertools.count():
        path = tmp_path / f'{count}.txt'
        if before:
            server.ResultsFile(path).append(arrivals(server, *before))
        with monkeypatch.context() as patch:
            left = count
            patch.setattr(server, 'write_at', write_until_death)
            try:
                server.ResultsFile(path).append(arrivals(server, 2, 3))
                died = False
            except Death:
                died = True
        assert server.ResultsFile(path).slices in ([{*before}, {*before, 2, 3}] if died else [{*before, 2, 3}])
        server.ResultsFile(path).append(arrivals(server, 3, 2))
        rows = table(path)[1:]
        assert sorted(rows) == sorted([str(n), *map(str, row.values())] for n in [*before, 2, 3] for row in SCORES)
        if not died:
            break
    assert count > 250


def test_power_cut_leaves_all_of_a_result_or_nothing(server_module, monkeypatch, tmp_path):
    """Until a sync, the system is free to put each page of what was written on the disk, or not."""
    server, write, path = server_module, server_module.write_at, tmp_path / 'results.txt'
    results = server.ResultsFile(path)
    results.append(arrivals(server, 1))
    disk, pages, states = path.read_bytes(), [], []

    def write_to_cache(file, position, data):
        write(file, position, data)
        for start in range(position, position + len(data), 4096):
            pages.append((start, data[start - position:start - position + 4096]))

    def sync(_):
        nonlocal disk
        for number in range(len(pages) + 1):
            for some in itertools.combinations(pages, number):
                states.append(apply(disk, some))
        disk = apply(disk, pages)
        pages.clear()

    def apply(content, some):
        content = bytearray(content)
        for start, page in some:
            content.extend(bytes(max(0, start + len(page) - len(content))))
            content[start:start + len(page)] = page
        return bytes(content)

    monkeypatch.setattr(server, 'write_at', write_to_cache)
    monkeypatch.setattr(os, 'fsync', sync)
    long_scores = [{**row, 'probesets': '1007_s_at, ' * 200} for row in SCORES]
    results.append(arrivals(server, 2, result=long_scores))
    assert disk == path.read_bytes(), 'answered, and not on the disk'
    for number, state in enumerate(states):
        path.write_bytes(state)
        after = server.ResultsFile(path)
        assert after.size in (len(states[0]), len(disk)) and after.slices in ({1}, {1, 2}), f'state {number}'


def test_no_answered_result_is_lost_or_doubled_when_the_server_is_killed_again_and_again(project):
    figures = soak.run_posters(project, seed=1, slices=40, kills=3)
    assert (figures['answered'], figures['stored']) == (40, 40)
    assert (figures['lost'], figures['doubled'], figures['halves']) == (0, 0, 0)


# ---- many at once ----

def test_64_posters_and_64_readers_at_once(served):
    data = (served.folder / 'input' / 'GSE57383_ps_psa.txt').read_text()
    start = threading.Barrier(128)

    def work(worker):
        start.wait()
        if worker >= 64:
            return served.request('/GSE57383_ps_psa')[:2] == (200, data)
        return all(post(served, number, SCORES) == RECEIVED for number in range(1 + worker, 321, 64))

    with ThreadPoolExecutor(128) as workers:
        assert all(workers.map(work, range(128)))
    assert sorted(sound(served)) == stored(served) == [*range(1, 321)]


def test_many_jobs_at_once(served):
    with ThreadPoolExecutor(16) as workers:
        answers = list(workers.map(lambda n: post(served, n // 8 + 1, SCORES, f'job{n % 8}'), range(64)))
    assert set(answers) == {RECEIVED} and len(served.results()) == 8
    assert all([int(row[0]) for row in sorted(table(path)[1::4])] == [*range(1, 9)] for path in served.results())


@pytest.mark.parametrize('leave', ['reset', 'close'])
def test_worker_that_leaves_half_way_stores_nothing_and_stops_nobody(served, leave):
    body = 'element=1&job=job1&content=1'
    with socket.create_connection(('127.0.0.1', served.port)) as worker:
        worker.sendall(f'POST /dcp-results HTTP/1.1\r\nContent-Length: {len(body) + 1}\r\n\r\n{body}'.encode())
        assert post(served, 2, SCORES) == RECEIVED    # meanwhile
        if leave == 'reset':
            worker.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    served.server.wait_for(r"slice '?-'?: .* refused: 400")
    assert stored(served) == [2]


# ---- failing disks ----

class MovedFolder:
    """The results folder is gone, and comes back."""

    def __init__(self, project):
        self.folder, self.away = project.folder / 'results', project.folder / 'away'

    def fail(self):
        self.folder.rename(self.away)

    def mend(self):
        self.away.rename(self.folder)


class FileInPlaceOfFolder(MovedFolder):
    def fail(self):
        super().fail()
        self.folder.write_text('')

    def mend(self):
        self.folder.unlink()
        super().mend()


class FullDisk:
    """No file of the server can grow by more than some bytes."""
    room = 100

    def __init__(self, project):
        self.project, self.pid = project, project.server.process.pid

    def fail(self):
        size = sum(path.stat().st_size for path in self.project.results())
        self.limits = resource.prlimit(self.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (size + self.room, self.limits[1]))

    def mend(self):
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, self.limits)


class FullDiskWithNoRoom(FullDisk):
    room = 0


@pytest.mark.parametrize('before', [[], [1]], ids=['first result', 'later result'])
@pytest.mark.parametrize('fault', [MovedFolder, FileInPlaceOfFolder, FullDisk, FullDiskWithNoRoom])
def test_result_that_the_disk_does_not_take_is_refused_until_it_does(served, fault, before):
    for number in before:
        assert post(served, number, SCORES) == RECEIVED
    if issubclass(fault, FullDisk) and not hasattr(resource, 'prlimit'):
        pytest.skip('this system cannot limit the files of a running process')
    (served.folder / 'results').mkdir(exist_ok=True)
    content = [path.read_bytes() for path in served.results()]
    disk = fault(served)
    disk.fail()
    for number in (2, 2):
        status, text = post(served, number, SCORES)
        assert (status, text.count('\n')) == (500, 1) and 'Traceback' not in text
    if issubclass(fault, FullDisk) and before:
        assert [path.read_bytes() for path in served.results()] == content
    disk.mend()
    for number in (2, 3):
        assert post(served, number, SCORES) == RECEIVED
    assert sound(served) == [*before, 2, 3] and stored(served) == [*before, 2, 3]
    served.server.stop()
    lines = [line for line in served.server.errors if 'slice' not in line or 'Result received' not in line]
    assert len(lines) == 2 and all(re.search(r"slice '?2'?: failed: ", line) for line in lines), served.server.output


def test_results_folder_that_was_emptied_while_the_server_runs_is_filled_anew(served):
    post(served, 1, SCORES)
    (served.folder / 'results').rename(served.folder / 'away')
    (served.folder / 'results').mkdir()
    assert post(served, 2, SCORES) == RECEIVED
    assert stored(served) == [2]
    restart(served)
    assert post(served, 2, SCORES) == RECEIVED
    assert sound(served) == stored(served) == [2]


def test_result_in_the_same_write_as_a_failed_one_is_accepted_later(server_module, monkeypatch, tmp_path):
    results = server_module.ResultsFile(tmp_path / 'results.txt')
    results.append(arrivals(server_module, 1))
    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', lambda _: (_ for _ in ()).throw(OSError('the disk is gone')))
        with pytest.raises(OSError):
            results.append(arrivals(server_module, 2, 3))
    results.append(arrivals(server_module, 3))
    assert server_module.ResultsFile(tmp_path / 'results.txt').slices == results.slices == {1, 3}
