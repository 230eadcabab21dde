"""What is answered is on the disk, whole and once: crashes, edited files, failing disks, many at once."""
import errno
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from . import soak
from .project import RECEIVED, SCORES, ServerModule

try:
    import resource
except ImportError:    # Windows
    resource = None
OTHER_SCORES = {**SCORES, 'ensemble AUC': 0.5}
FAILED = (500, 'the server cannot read or write its files: see its log\n')
PATIENCE = 10    # seconds until an event that does not come fails a test


def slices(rows):
    return sorted(int(row['slice']) for row in rows)


def row(number, job='job1'):
    """Return the row that SCORES become."""
    return {'job': job, 'slice': str(number), **{name: str(value) for name, value in SCORES.items()}}


@pytest.fixture
def fsync(monkeypatch):
    """A function that replaces what syncs files with what a test wants; None is the real one."""
    real = os.fsync
    return lambda replacement: monkeypatch.setattr(os, 'fsync', replacement or real)


@pytest.fixture
def workers():
    with ThreadPoolExecutor(64) as pool:
        yield pool


def fail(*_):
    raise OSError(errno.EIO, 'the disk is gone')


# ---- repeats ----

@pytest.mark.parametrize('again', [OTHER_SCORES, 'text', None], ids=['other scores', 'text', 'null'])
def test_repeated_result_is_answered_and_not_stored_again(server, again):
    server.post(1, SCORES)
    content = server.results()[0].read_bytes()
    assert server.post(1, again)[1].startswith('Result received')
    assert server.results()[0].read_bytes() == content


def test_workers_that_post_the_same_slices_at_the_same_time_store_them_once(one_server, job, workers):
    answers = list(workers.map(lambda number: one_server.post(number // 16 + 1, SCORES, job), range(160)))
    assert set(answers) == {RECEIVED}
    assert slices(one_server.rows(job)) == one_server.stored(job) == [*range(1, 11)]


# ---- crashes ----

def test_restarted_server_knows_what_is_stored_and_goes_on_in_a_new_file(server):
    server.post(1, SCORES), server.post(2, SCORES), server.post(1, 'of another job', 'b1')
    before = {path: path.read_bytes() for path in server.results()}
    server.restart()
    assert (server.stored(), server.stored('b1')) == ([1, 2], [1])
    for number in (3, 2, 4):
        assert server.post(number, OTHER_SCORES) == RECEIVED
    assert server.stored() == [1, 2, 3, 4]
    assert slices(server.rows()) == [1, 2, 3, 4]
    assert before == {path: path.read_bytes() for path in before}
    assert len(server.results()) == 3


def test_sync_is_of_the_whole_line(server, fsync):
    synced = []
    fsync(lambda _: synced.append(slices(server.rows())))
    for number in (1, 2):
        server.post(number, SCORES)
    assert synced == [[1], [1, 2]]


def test_whatever_a_crash_leaves_of_the_last_line_only_whole_lines_count(server):
    server.post(1, SCORES), server.post(2, SCORES)
    (crashed,) = server.results()
    content = crashed.read_bytes()
    for end in range(len(content)):
        for path in server.results():
            path.unlink()
        left = content[:end]
        crashed.write_bytes(left)
        server.restart()
        whole_lines = left.count(b'\n')
        assert server.stored() == [1, 2][:max(0, whole_lines - 1)], left
        for number in (1, 2):
            assert server.post(number, SCORES) == RECEIVED
        assert sorted(server.rows(), key=str) == [row(1), row(2)], left
        assert crashed.read_bytes() == left


def test_line_of_zero_bytes_that_a_power_cut_left_does_not_count(server):
    """Some file systems lengthen a file before they write what is in it."""
    server.post(1, SCORES), server.post(2, SCORES)
    (path,) = server.results()
    path.write_bytes(path.read_bytes()[:-10] + bytes(9) + b'\n')
    server.restart()
    assert server.stored() == [1]


def test_nothing_that_a_killed_server_had_not_synced_counts_before_it_is(server, fsync):
    server.post(1, SCORES)
    server.restart()
    fsync(fail)
    assert server.request('/dcp-results/job1')[:2] == FAILED
    assert server.post(1, SCORES) == FAILED
    fsync(None)
    assert server.stored() == [1]


def test_no_answered_result_is_lost_or_doubled_when_the_server_is_killed_again_and_again(project):
    figures = soak.run_posters(project, seed=1, slices=40, kills=3)
    assert (figures['answered'], figures['stored']) == (40, 40)
    assert (figures['lost'], figures['doubled'], figures['wrong']) == (0, 0, 0)


# ---- files that somebody edits ----

def delete_row_of_slice_1(path):
    path.write_text(''.join(line for line in path.open() if not line.startswith('job1\t1\t')))


EDITS = {    # what is done to a file with slices 1 and 2, and those that count after a restart
    'saved as UTF-16': (lambda path: path.write_text(path.read_text(), encoding='utf-16'), []),
    'saved with CRLF': (lambda path: path.write_text(path.read_text(), newline='\r\n'), [1, 2]),
    'saved without the last line end': (lambda path: path.write_text(path.read_text()[:-1]), [1]),
    'row deleted': (delete_row_of_slice_1, [2]),
    'row added': (lambda path: path.write_text(path.read_text() + 'mean\t\t\t0.8\t0.85\n'), [1, 2]),
    'half a row added': (lambda path: path.write_text(path.read_text() + 'a note'), [1, 2]),
    'emptied': (lambda path: path.write_text(''), []),
    'moved away': (lambda path: path.rename(path.parent.parent / 'moved.txt'), []),
    'renamed': (lambda path: path.rename(path.parent / 'renamed.txt'), [1, 2]),
}


@pytest.mark.parametrize('edit, left', EDITS.values(), ids=EDITS)
def test_next_result_is_safe_from_what_somebody_did_to_the_file(server, edit, left):
    server.post(1, SCORES), server.post(2, SCORES)
    (path,) = server.results()
    edit(path)
    edited = {path: path.read_bytes() for path in server.folder.rglob('*.txt')}
    for number in (3, 1, 4):
        assert server.post(number, SCORES) == RECEIVED
    (new,) = set(server.results()) - edited.keys()
    assert new.read_text() == 'job\tslice\tprobesets\tcentroid AUC\tensemble AUC\n' + ''.join(
        '\t'.join(row(number).values()) + '\n' for number in (3, 4))
    assert edited == {path: path.read_bytes() for path in edited}
    server.restart()
    assert server.stored() == [*left, 3, 4]


def test_number_that_somebody_changed_in_a_file_stays_changed(server):
    """The file has the size that it had: the next result may go there."""
    server.post(1, SCORES)
    (path,) = server.results()
    path.write_text(edited := path.read_text().replace('0.85', '0.99'))
    assert server.post(2, SCORES) == RECEIVED
    assert path.read_text().startswith(edited)
    assert slices(server.rows()) == [1, 2]


def test_folder_of_results_that_was_moved_away_is_made_anew(server):
    server.post(1, SCORES)
    (server.folder / 'results').rename(server.folder / 'away')
    assert server.post(2, SCORES) == RECEIVED
    assert server.rows() == [row(2)]


def test_write_protected_file_of_another_job_stops_nobody(server, monkeypatch):
    server.post(1, SCORES, 'old')
    (protected,) = server.results()

    def open_unless_protected(path, mode='r', **options):
        if path == protected and mode not in ('r', 'rb'):
            raise PermissionError(errno.EACCES, 'Permission denied')
        return open(path, mode, **options)

    monkeypatch.setattr(server.module, 'open', open_unless_protected, raising=False)    # root may
    assert server.post(1, SCORES) == RECEIVED


# ---- two servers ----

def test_two_servers_with_one_folder_lose_nothing_and_do_not_mix(server, tmp_path, workers):
    server.post(1, SCORES)
    other = ServerModule(tmp_path)
    assert other.stored() == [1]
    posts = [workers.submit((server, other)[number % 2].post, number, SCORES) for number in range(2, 66)]
    assert {post.result() for post in posts} == {RECEIVED}
    assert slices(server.rows()) == [*range(1, 66)]
    assert len(server.results()) == 2
    other.restart()
    assert other.stored() == [*range(1, 66)]


# ---- many at once ----

def test_64_workers_that_fetch_and_post_at_once(one_server, job, workers):
    data = (one_server.folder / 'input' / 'GSE57383_ps_psa.txt').read_text()
    start = threading.Barrier(64)

    def work(worker):
        start.wait(PATIENCE)
        assert one_server.request('/GSE57383_ps_psa')[:2] == (200, data)
        for number in range(1 + worker, 129, 64):
            assert one_server.post(number, SCORES, job) == RECEIVED

    assert list(workers.map(work, range(64))) == [None] * 64
    assert slices(one_server.rows(job)) == one_server.stored(job) == [*range(1, 129)]


def test_jobs_that_post_at_once_do_not_mix(server, workers):
    answers = list(workers.map(lambda n: server.post(n // 8 + 1, SCORES, f'job{n % 8}'), range(64)))
    assert set(answers) == {RECEIVED}
    assert len(server.results()) == 8
    for path in server.results():
        assert len({line.split('\t')[0] for line in path.read_text().splitlines()[1:]}) == 1


def test_result_that_waits_for_a_slow_disk_keeps_no_other_job_waiting(server, workers, fsync):
    server.post(1, SCORES), server.post(1, SCORES, 'job2')
    syncing, go_on = threading.Event(), threading.Event()
    fsync(lambda _: syncing.set() or go_on.wait(PATIENCE))
    slow = workers.submit(server.post, 2, SCORES)
    assert syncing.wait(PATIENCE)
    fsync(None)
    assert server.post(2, SCORES, 'job2') == RECEIVED
    assert server.stored() == [1]
    assert not slow.done()
    go_on.set()
    assert slow.result() == RECEIVED


# ---- failing disks ----

@pytest.mark.skipif(not hasattr(resource, 'prlimit'), reason='no way to limit the files of a process here')
@pytest.mark.parametrize('before', [[], [1]], ids=['first result', 'later result'])
@pytest.mark.parametrize('room', [0, 20], ids=['no room', 'room for half a line'])
def test_result_that_a_full_disk_does_not_take_is_refused_until_it_does(one_server, job, room, before):
    for number in before:
        assert one_server.post(number, SCORES, job) == RECEIVED
    pid, content = one_server.server.process.pid, [path.read_bytes() for path in one_server.results()]
    size = sum(path.stat().st_size for path in one_server.results() if job in path.read_text())
    limits = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size + room, limits[1]))
    try:
        assert [one_server.post(2, SCORES, job) for _ in range(2)] == [FAILED] * 2
        left = [path.read_bytes() for path in one_server.results()]
        assert [each for each in left if each] == content
        assert one_server.stored(job) == before
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
    for number in (2, 3):
        assert one_server.post(number, SCORES, job) == RECEIVED
    assert one_server.rows(job) == [row(number, job) for number in (*before, 2, 3)]


def test_results_are_refused_while_a_file_is_in_place_of_their_folder(server, caplog):
    server.post(1, SCORES)
    folder, away = server.folder / 'results', server.folder / 'away'
    folder.rename(away)
    folder.write_text('')
    assert server.post(2, SCORES) == FAILED
    (line,) = caplog.messages
    assert line.startswith('127.0.0.1 POST failed: ')
    folder.unlink()
    away.rename(folder)
    assert server.post(2, SCORES) == RECEIVED
    assert slices(server.rows()) == server.stored() == [1, 2]


@pytest.mark.parametrize('before', [[], [1]], ids=['first result', 'later result'])
def test_result_that_was_not_synced_does_not_count_until_it_is(server, fsync, before):
    for number in before:
        server.post(number, SCORES)
    fsync(fail)
    for _ in range(2):
        assert server.post(2, SCORES) == FAILED
        assert server.stored() == slices(server.rows()) == before
    fsync(None)
    assert server.post(2, SCORES) == RECEIVED
    assert server.stored() == slices(server.rows()) == [*before, 2]


def test_repeat_that_arrives_while_the_first_is_synced_is_stored_if_that_fails(server, workers, fsync):
    syncing, disk_fails = threading.Event(), threading.Event()

    def sync(_):
        if not syncing.is_set():
            syncing.set()
            disk_fails.wait(PATIENCE)
            fail()

    fsync(sync)
    first = workers.submit(server.post, 1, SCORES)
    assert syncing.wait(PATIENCE)
    repeat = workers.submit(server.post, 1, SCORES)
    assert server.stored() == []
    assert not first.done() and not repeat.done()
    disk_fails.set()
    assert (first.result(), repeat.result()) == (FAILED, RECEIVED)
    assert server.rows() == [row(1)]


def test_exactly_what_is_answered_is_stored_on_a_disk_that_fails_now_and_then(server, workers, fsync):
    chance = random.Random(1)
    fsync(lambda _: chance.random() < 0.5 and fail())
    numbers = range(1, 65)
    answers = dict(zip(numbers, workers.map(lambda number: server.post(number, SCORES), numbers)))
    assert set(answers.values()) == {RECEIVED, FAILED}
    received = [number for number in numbers if answers[number] == RECEIVED]
    assert server.stored() == slices(server.rows()) == received
    fsync(None)
    assert {server.post(number, SCORES) for number in numbers} == {RECEIVED}
    server.restart()
    assert server.stored() == slices(server.rows()) == [*numbers]
