"""What a user notices of server.py: its start, the data, the results files, and who may come in."""
import json
import os
import re
import shutil
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlencode

import pytest

from . import soak
from .project import Project

DATA = '/GSE57383_ps_psa'
SCORES = {'probesets': 'a_at, b_at', 'accuracy': 0.8, 'auc': 0.85}
HEADER, LINE = 'job\tslice\tprobesets\taccuracy\tauc\n', 'job1\t2\ta_at, b_at\t0.8\t0.85\n'    # of slice 2
PLAIN = ['Psoriasis é 漢字 🧬', "it's", 'say "x"', '"', ',', '\\', ' ', 'null', 'x' * 100_000]
QUOTED = ['a\tb', 'a\nb', '\njob1\t8\tx\n', 'a\r\nb', '\0', '\x1b[31m', '\u2028', '\ufeff', '\ud83d',
          '=1+1', '+1', '-1', '@x']    # the last four are formulas to a spreadsheet
FORM = {'job': 'job1', 'element': '1', 'content': '1'}
SMALL, LARGE = urlencode(FORM), urlencode(FORM).ljust(1_000_001, '1')
POST = 'POST /Sesame1/dcp-results HTTP/1.1\r\nContent-Type: application/x-www-form-urlencoded\r\n'
RECEIVED = (200, 'Result received')
FAILED = (500, 'the server cannot use its files: see its log')


def slices(project):
    return sorted(int(row['slice']) for row in project.rows())


def test_start_prints_four_lines_and_the_log_says_what_happens_until_ctrl_c(served):
    url = re.fullmatch(r' \* Serving data on: (http://[\d.:]+)', served.server.wait_for('Serving data'))[1]
    served.url = url    # as others reach it
    served.request(DATA), served.post(7, SCORES), served.request('/nothing')
    assert served.server.stop(signal.SIGINT) == 0
    assert served.server.lines[1:] == [f' * DCP results endpoint: {url}/dcp-results',
                                       " * Serving Flask app 'server'", ' * Debug mode: off']
    log = ['That address is a guess.*', 'Whoever reaches it may read data and results.*', '[0-9.]+ fetches the data',
           '[0-9.]+ slice 7: Result received', "[0-9.]+ '?GET '?/nothing' refused: 404 .*"]
    assert re.fullmatch('\n'.join(f'..:..:.. {line}' for line in log), '\n'.join(served.server.errors))


@pytest.mark.parametrize('command', [
    ['-c', 'import os, runpy; os.chdir("/"); runpy.run_path(os.environ["HERE"], run_name="__main__")'],
    ['-m', 'flask', '--app', 'server', 'run'],
    ['-c', 'from server import *; from werkzeug.serving import make_server\n'
           'make_server("127.0.0.1", port, app, threaded=True).serve_forever()']],
    ids=['in another folder', 'flask run', 'another WSGI server'])
def test_it_works_however_it_is_started(project, command):
    server = project.serve(*command, FLASK_RUN_PORT=f'{project.port}', HERE=f'{project.folder}/server.py')
    with socket.create_connection(('127.0.0.1', project.port)):    # a visitor who says nothing
        assert project.request(DATA)[0] == 200
        assert project.post(1, SCORES) == RECEIVED
    assert slices(project) == [1]
    server.stop()
    assert 'GET /' not in server.output    # such a line for each request would show the access key


@pytest.mark.parametrize('old, new, line', [
    ('certificate = ()', "certificate = 'none.pem', 'key.pem'", r'settings: .*none\.pem'),
    ('input/GSE57383_ps_psa.txt', 'none.txt', r'settings: .*none\.txt'),
    ('debug=False', 'debug=False', 'Port [0-9]+ is in use')], ids=['certificate', 'data', 'port'])
def test_server_that_cannot_start_says_why(project, old, new, line):
    project.edit('server.py', old, new)
    with socket.create_server(('0.0.0.0', project.port)):
        server = project.run('server.py')
    assert server.status == 1 and re.search(line, server.output) and 'Traceback' not in server.output


@pytest.mark.parametrize('path, name', [(DATA, 'table.csv'), ('/input/other.json', 'other.json')])
def test_files_of_input_are_served_byte_for_byte_as_plain_text(server, path, name):
    data = 'phenotype\tä\r\nPsoriasis\t1.5\n\nno line end 漢'.encode()
    server.edit('server.py', 'input/GSE57383_ps_psa.txt', 'input/table.csv')
    server.restart()
    (server.folder / 'input' / name).write_bytes(data)
    status, text, headers = server.request(path)
    assert (status, text.encode(), headers['Content-Type']) == (200, data, 'text/plain; charset=utf-8')


@pytest.mark.parametrize('path', ['/server.py', '/input/../server.py', '/results/..%2fserver.py'])
def test_no_other_file_is_served(server, path):
    assert server.request(path)[0] == 404


def test_data_that_is_gone_is_told_by_health_and_in_the_log(server, caplog):
    health = {'data_file': 'GSE57383_ps_psa.txt', 'data_file_exists': True}
    assert json.loads(server.request('/health')[1]) == health
    (server.folder / 'input' / 'GSE57383_ps_psa.txt').unlink()
    assert json.loads(server.request('/health')[1]) == {**health, 'data_file_exists': False}
    assert server.request(DATA)[:2] == FAILED
    assert f"No such file or directory: '{server.folder}" in caplog.text


def test_results_are_tables_one_for_each_job_and_its_columns(server):
    assert server.post(3, SCORES) == server.post(2, SCORES, job='job2') == RECEIVED
    assert server.post(2, SCORES) == server.post(1, 'a') == RECEIVED
    assert [path.read_bytes().decode() for path in server.results()] == [
        HEADER + LINE.replace('2', '3', 1) + LINE, HEADER + LINE.replace('1', '2', 1),
        'job\tslice\tresult\njob1\t1\ta\n']
    for age, path in enumerate(server.results()):
        assert re.fullmatch(r'GSE57383_PsA_vs_Ps_\d{6}_\d{6}\.txt', path.name)
        assert server.request(f'/results/{path.name}')[1] == path.read_text()
        os.utime(path, (age, age))
    newest_first = [path.name for path in server.results()[::-1]]
    assert json.loads(server.request('/results')[1]) == newest_first
    assert '<html' in server.request('/')[1]    # the page that shows them


@pytest.mark.parametrize('result, cells', [
    (7, {'result': '7'}), (-1.5, {'result': '-1.5'}), (True, {'result': 'true'}), ('a b', {'result': 'a b'}),
    ([1, 'a', None], {'result': '[1, "a", null]'}), ([], {'result': '[]'}), ({}, {'result': '{}'}),
    ({'a': {'b': [0]}, 'c': None, 'd': ''}, {'a': '{"b": [0]}', 'c': 'null', 'd': ''}),
    ({'job': 7, 'n': 5}, {'job_': '7', 'n': '5'}), ({'slice': 0, 'of': 1}, {'slice_': '0', 'of_': '1'}),
    *[({text: 1, 'a': text, 'b': 2}, {cell: '1', 'a': cell, 'b': '2'})
      for text, cell in [*zip(PLAIN, PLAIN), *zip(QUOTED, map(json.dumps, QUOTED))]],
], ids=lambda part: ascii(part)[:20])
def test_result_of_any_type_keeps_to_its_cells(server, result, cells):
    assert server.post(1, result) == RECEIVED
    assert server.rows() == [{'job': 'job1', 'slice': '1', **cells}]


@pytest.mark.parametrize('result, answer', [
    *[(nothing, 'the work function returned nothing') for nothing in (None, 0, False, '')],    # one to DCP
    ({'message': 'sample 3 has\nno number'}, r'the work function failed: "sample 3 has\nno number"'),
    ({'message': 'x' * 1000}, 'the work function failed: ' + 'x' * 174)], ids=lambda part: repr(part)[:30])
def test_nothing_and_what_was_thrown_are_answered_and_not_stored(server, result, answer):
    thrown = result and {**result, 'name': 'Error', 'stack': 'at <eval>', 'errorCode': 'EUNCAUGHT'}
    assert server.post(1, thrown or result) == (200, answer)
    assert not server.results()
    assert server.post(1, SCORES) == RECEIVED    # computed again
    assert slices(server) == [1]


def test_slice_is_stored_once_also_after_a_restart(server):
    assert server.post(1, 'a') == server.post(1, 'b') == server.post(2, 'b') == RECEIVED
    server.restart()
    assert server.post(2, 'c') == server.post(1, 'c') == server.post(3, 'c') == RECEIVED
    assert [(row['slice'], row['result']) for row in server.rows()] == [('1', 'a'), ('2', 'b'), ('3', 'c')]


def test_slices_that_eight_workers_post_at_the_same_time_are_stored_once(served):
    with ThreadPoolExecutor(8) as workers:
        answers = workers.map(lambda number: served.post(number // 8, SCORES), range(80))
    assert set(answers) == {RECEIVED}
    assert slices(served) == [*range(10)]


def test_no_result_is_lost_doubled_or_wrong_when_the_server_is_killed_again_and_again(project):
    figures = soak.run(project, seed=1, slices=60, kills=4)
    assert [figures[name] for name in ('lost', 'doubled', 'wrong')] == [0, 0, 0] and figures['kills'] > 1


def test_result_is_answered_once_its_line_is_synced(server, monkeypatch):
    synced = []
    monkeypatch.setattr(os, 'fsync', lambda _: synced.append(slices(server)))
    server.post(1, SCORES), server.post(2, SCORES)
    server.restart()    # a killed run may have left lines on the way to the disk
    server.post(2, SCORES)
    assert synced == [[1], [1, 2], [1, 2]]


@pytest.mark.parametrize('end', [-1, -12, 9], ids=['all but the line end', 'half a line', 'half the header'])
def test_half_a_line_of_a_killed_run_does_not_count(server, end):
    server.post(1, SCORES), server.post(2, SCORES)
    (path,) = server.results()
    path.write_bytes(left := path.read_bytes()[:end])
    server.restart()
    assert server.post(1, SCORES) == server.post(2, SCORES) == RECEIVED
    assert slices(server) == [1, 2]
    assert path.read_bytes() == left


@pytest.mark.parametrize('edit', [
    lambda path: path.write_text(path.read_text() + 'mean\t\t\t0.8\n'), lambda path: path.write_text(''),
    lambda path: path.rename(path.parent.parent / 'moved.txt'), lambda path: shutil.rmtree(path.parent)],
    ids=['row added', 'emptied', 'moved away', 'folder deleted'])
def test_file_that_somebody_edited_is_left_alone_and_that_is_logged(server, caplog, edit):
    server.post(1, SCORES)
    (path,) = server.results()
    edit(path)
    edited = {each: each.read_bytes() for each in server.folder.rglob('*.txt')}
    assert server.post(1, SCORES) == server.post(2, SCORES) == RECEIVED
    assert edited == {each: each.read_bytes() for each in edited}
    assert [each.read_text() for each in {*server.results()} - edited.keys()] == [HEADER + LINE]
    assert caplog.messages == [f'{path.name} has changed: results go on in a new file']


@pytest.mark.parametrize('result, room', [('a', 0), (SCORES, 0), (SCORES, 5), (SCORES, 99), ('a', -1)], ids=[
    'no room for a file', 'no room for a line', 'room for half a line', 'no sync', 'folder moved away then'])
def test_disk_that_fails_refuses_results_until_it_works(server, monkeypatch, result, room):
    def sync(file):
        excess = max(0, sum(path.stat().st_size for path in server.results()) - size - max(0, room))
        excess and os.ftruncate(file, os.fstat(file).st_size - excess)
        if excess or room == 99:
            raise OSError(28, 'No space left on device')
    server.post(1, SCORES)
    size = server.results()[0].stat().st_size
    monkeypatch.setattr(os, 'fsync', sync)
    assert [server.post(2, result) for _ in range(3)] == [FAILED] * 3
    monkeypatch.undo()
    assert len(server.results()) <= 2    # and not one of each attempt
    if room == -1:    # somebody makes room
        shutil.move(server.folder / 'results', server.folder / 'moved')
    assert [server.post(number, result) for number in (2, 3, 2)] == [RECEIVED] * 3
    assert slices(server) == [1, 2, 3][room == -1:]


@pytest.mark.parametrize('form', [
    {'job': 'job1'}, {'element': '1'}, bytes(range(256)),
    *[{**FORM, 'element': element} for element in ('', '-1', '1.0', 'x', '1\n')],
    *[{**FORM, 'job': job} for job in ('', '../../etc', 'a b', 'a\tb', '.*')],
    *[{**FORM, 'content': content} for content in ('', '{', '[1,]', '"\n"', '1' * 5000, '[' * 100_000)]])
def test_malformed_result_is_refused_in_one_line(server, caplog, form):
    assert server.request('/dcp-results', form)[0] == 400
    assert ["/dcp-results' refused: 400 " in line for line in caplog.messages] == [True]
    assert not server.results()


@pytest.mark.parametrize('origin', [
    'https://dcp.work', 'http://dcp.work', 'https://dcp.work.evil.com', 'https://evil.com', 'null', ''])
def test_web_pages_but_those_of_dcp_work_are_refused(server, origin):
    right = (200, origin) if origin == 'https://dcp.work' else (403, None)
    for method, path in (('GET', DATA), ('OPTIONS', '/dcp-results'), ('POST', '/dcp-results')):
        status, _, headers = server.request(path, FORM, method, {'Origin': origin})
        assert (status, headers.get('Access-Control-Allow-Origin')) == right
    assert 'Access-Control-Allow-Origin' not in server.request(DATA)[2]    # other workers send no Origin


@pytest.fixture(scope='module')
def locked(tmp_path_factory):
    """A server with an access key, and a route that its user has added. Its log is text without the key."""
    project = Project(tmp_path_factory.mktemp('locked') / 'project')
    project.edit('server.py', "access_key = ''", "access_key = 'Sesame1'")
    project.edit('server.py', '# RESULTS\n', "app.get('/mine')(lambda: 'mine')\n\n# RESULTS\n")
    project.server = project.serve()
    yield project
    project.stop()
    assert project.server.lines[1].endswith(f':{project.port}/Sesame1/dcp-results')
    assert not re.search(r'Sesame1|Traceback|[^\n -~]', '\n'.join(project.server.errors))


@pytest.mark.parametrize('path', [DATA, '/dcp-results', '/input/simulate.py', '/health', '/mine', ''])
def test_whoever_lacks_the_access_key_finds_nothing(locked, path):
    form = {**FORM, 'job': 'friend'} if path == '/dcp-results' else None
    for wrong in ('', '/wrong', '/Sesame', '/sesame1'):
        assert locked.request(wrong + path, form)[0] == 404
    status, _, headers = locked.request(f'/Sesame1{path}', form)
    assert status == 200 if path else headers['Location'].endswith(f':{locked.port}/Sesame1/')


@pytest.mark.parametrize('request_text, status', [
    (f'{POST}Content-Length: 1000001\r\n\r\n{LARGE}', '413'), (f'{POST}\r\n{SMALL}', '411'),
    (f'{POST}Transfer-Encoding: chunked\r\n\r\n{len(LARGE):x}\r\n{LARGE}\r\n0\r\n\r\n', '411'),
    (f'{POST}Content-Length: 99\r\n\r\n{SMALL}', '400'), ('GET http://[ HTTP/1.1\r\n\r\n', ''),
    ('GET /Sesame1/ HTTP/1.1\r\n' + 'X: x\r\n' * 200 + '\r\n', '431'), ('\x16\x03\x01\x02\0', ''),
    ('GET /Sesame1/health x HTTP/1.1\r\n\r\n', '400'), ('\x1b[2J /Sesame1/ HTTP/1.1\r\n\r\n', '405')],
    ids=['large', 'no length', 'chunks', 'gone', 'no address', 'many headers', 'garbage', 'space', 'escape'])
def test_too_large_or_broken_request_is_refused(locked, request_text, status):
    with socket.create_connection(('127.0.0.1', locked.port), 30) as stranger:
        stranger.sendall(request_text.encode())
        stranger.shutdown(socket.SHUT_WR)
        answer = b''.join(iter(lambda: stranger.recv(65536), b'')).decode()
    assert re.match(f'HTTP/1.1 {status} ' if status else '$|<!DOCTYPE HTML', answer)
    assert locked.rows() == []
