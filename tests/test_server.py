"""How server.py is started, the data that it serves, the results files that it writes, and its log."""
import json
import logging
import os
import re
import signal
import socket
import sys

import pytest

from .project import EMPTY, OTHER_COLUMNS, RECEIVED, RESERVED_COLUMN, SCORES, Process

DATA = '/GSE57383_ps_psa'
OTHER_WSGI_SERVER = '''
from server import app, port
from werkzeug.serving import make_server
make_server('127.0.0.1', port, app, threaded=True).serve_forever()
'''
ERROR = {'name': 'Error', 'message': 'sample 3 has\nno number ✘', 'stack': 'Error: at <eval>',
         'errorCode': 'EUNCAUGHT'}
PLAIN = ['text', ' ', "it's", ',', '\\', '1', 'null', 'say "x"', '"', 'Psoriasis é ß 漢字', '🧬', 'x' * 100_000]
UNPRINTABLE = ['a\tb', 'a\nb', '7\t8', '\njob1\t8\tx\n', 'a\rb', 'a\r\nb', '\0', '\x1b[31m', '\u2028',
               '\ufeff', '\ud83d']
FORMULAS = ['=1+1', '+1', '-1', '@x']
NO_KEY = 'no access_key is set: anybody who reaches this server may read the data'


# ---- start and end ----

def test_start_prints_four_lines_and_ctrl_c_ends_without_a_traceback(project):
    server = project.serve()
    with socket.create_connection(('127.0.0.1', project.port)):    # a visitor who says nothing
        assert project.post(1, SCORES) == RECEIVED
        server.stop(signal.SIGINT)
    url = re.fullmatch(rf' \* Serving data on: (http://[\d.]+:{project.port})', server.lines[0])[1]
    assert server.lines[1:] == [f' * DCP results endpoint: {url}/dcp-results',
                                " * Serving Flask app 'server'", ' * Debug mode: off']
    assert server.status == 0
    assert [line[9:] for line in server.errors] == [NO_KEY, '127.0.0.1 slice 1: Result received']


def test_printed_address_is_reached(one_server, monkeypatch):
    monkeypatch.setattr(one_server, 'url', one_server.server.lines[0].split()[-1])
    assert one_server.request('/health')[0] == 200


@pytest.mark.parametrize('command', [
    ['server.py'], ['-m', 'flask', '--app', 'server', 'run', '--port', 'PORT'], ['-c', OTHER_WSGI_SERVER],
], ids=['python server.py', 'flask run', 'another WSGI server'])
def test_results_are_stored_however_the_server_is_started(project, command):
    """The tests that have no server running use yet another way: app.test_client()."""
    process = project.start(*[str(project.port) if word == 'PORT' else word for word in command])
    project.wait_until_reached()
    assert project.post(1, SCORES) == RECEIVED
    assert project.post(1, SCORES) == RECEIVED
    assert project.stored() == [1]
    assert len(project.rows()) == 1
    process.stop()
    assert not re.search('(GET|POST) /', process.output)    # a line per request would show the access key


def test_server_runs_from_any_folder_and_makes_the_folder_of_results(project, tmp_path):
    process = Process([sys.executable, project.folder / 'server.py'], tmp_path, {'PYTHONUNBUFFERED': '1'})
    project.running.append(process)
    process.wait_for('Debug mode')
    assert project.post(1, SCORES) == RECEIVED
    assert len(project.results()) == 1


def remove_data(project):
    (project.folder / 'input' / 'GSE57383_ps_psa.txt').unlink()


def put_a_file_in_place_of_results(project):
    (project.folder / 'results').write_text('')


def write_protect_results(project):
    """Not even root may write to /proc."""
    if not os.path.isdir('/proc/self'):
        pytest.skip('this system has no /proc')
    (project.folder / 'results').symlink_to('/proc')


def name_no_certificate(project):
    project.edit('server.py', 'certificate = None', "certificate = ('cert.pem', 'key.pem')")


def name_text_as_certificate(project):
    name_no_certificate(project)
    for name in ('cert.pem', 'key.pem'):
        (project.folder / name).write_text('not a certificate')


@pytest.mark.parametrize('spoil, line', [
    (remove_data, 'There is no .*GSE57383_ps_psa.txt: put the data there'),
    (write_protect_results, 'Cannot write to .*results .*: make it a folder'),
    (put_a_file_in_place_of_results, 'Cannot write to .*results .*: make it a folder'),
    (name_no_certificate, 'Cannot use the certificate .*cert.pem.*: '),
    (name_text_as_certificate, 'Cannot use the certificate .*cert.pem.*: '),
])
def test_server_that_cannot_start_says_what_to_do(project, spoil, line):
    spoil(project)
    server = project.start('server.py')
    server.wait(20)
    assert (server.status, server.lines, len(server.errors)) == (1, [], 1), server.output
    assert re.match(line, server.errors[0])


def test_port_that_is_in_use_is_told(project):
    with socket.create_server(('0.0.0.0', project.port)):
        server = project.run('server.py')
    assert server.status == 1 and not server.lines and 'Traceback' not in server.output
    assert f'Port {project.port} is in use by another program' in server.output


# ---- the data ----

@pytest.mark.parametrize('data', ['phenotype\tä\r\nPsoriasis\t1.5\n\nno line end 漢'.encode(), b''],
                         ids=['any text', 'empty'])
def test_data_is_served_byte_for_byte_as_plain_text(server, tmp_path, data):
    server.module.data_file = tmp_path / 'data.txt'
    server.module.data_file.write_bytes(data)
    status, text, headers = server.request(DATA)
    assert (status, headers['Content-Type']) == (200, 'text/plain; charset=utf-8')
    assert text.encode() == data


def test_health_tells_whether_the_data_is_there(server, tmp_path):
    health = {'data_file': 'GSE57383_ps_psa.txt', 'data_file_exists': True}
    assert json.loads(server.request('/health')[1]) == health
    server.module.data_file = tmp_path / 'none.txt'
    assert json.loads(server.request('/health')[1])['data_file_exists'] is False


def test_data_that_was_removed_is_a_line_in_the_log(server, tmp_path, caplog):
    server.module.data_file = tmp_path / 'none.txt'
    assert server.request(DATA)[:2] == (500, 'the server cannot read or write its files: see its log\n')
    (line,) = caplog.messages
    assert re.fullmatch('127.0.0.1 GET failed: .*No such file or directory.*none.txt.*', line)


# ---- results ----

def test_results_are_a_table_with_a_line_per_slice(server):
    for number in (3, 1, 2):
        assert server.post(number, SCORES) == RECEIVED
    (path,) = server.results()
    assert re.fullmatch(r'GSE57383_PsA_vs_Ps_\d{6}_\d{6}\.txt', path.name)
    assert path.read_bytes().decode() == ('job\tslice\tprobesets\tcentroid AUC\tensemble AUC\n'
                                          'job1\t3\t1007_s_at, 1053_at\t0.8\t0.85\n'
                                          'job1\t1\t1007_s_at, 1053_at\t0.8\t0.85\n'
                                          'job1\t2\t1007_s_at, 1053_at\t0.8\t0.85\n')


@pytest.mark.parametrize('other', [{'other': 'columns'}, {}, [1, 'a', None], 'text', -1.5, None], ids=repr)
def test_later_result_of_another_shape_is_in_the_last_column(server, other):
    assert server.post(1, SCORES) == RECEIVED
    assert server.post(2, other) == (EMPTY if other is None else OTHER_COLUMNS)
    assert server.post(3, SCORES) == RECEIVED
    before, row, after = server.rows()
    assert list(row.values()) == ['job1', '2', '', '', json.dumps(other)]
    assert {**before, 'slice': '3'} == after


def test_order_of_columns_is_that_of_the_first_result(server):
    server.post(1, {'a': 1, 'b': 2}), server.post(2, {'b': 2, 'a': 1})
    assert [list(row.values()) for row in server.rows()] == [['job1', '1', '1', '2'], ['job1', '2', '1', '2']]


@pytest.mark.parametrize('column', ['job', 'slice'])
def test_column_that_the_file_has_anyway_costs_no_value(server, column):
    result = {column: 7, 'n': 5}
    assert server.post(3, result) == RESERVED_COLUMN
    (row,) = server.rows()
    assert (row['job'], row['slice'], json.loads(row['result'])) == ('job1', '3', result)


@pytest.mark.parametrize('result, cell', [
    (7, '7'), (-1.5, '-1.5'), (1e-300, '1e-300'), (10 ** 30, '1' + '0' * 30), (True, 'true'),
    ('text', 'text'), ([1, 'a', None], '[1, "a", null]'), ([], '[]'), ({}, '{}'), ([{'a': 1}], '[{"a": 1}]'),
    (0, 'null'), ('', 'null'), (False, 'null'), (None, 'null')], ids=repr)
def test_result_that_is_no_object_is_in_the_column_result(server, result, cell):
    """DCP does not tell 0, '', false and null apart, so the answer says that nothing is left of it."""
    assert server.post(1, result) == (EMPTY if cell == 'null' else RECEIVED)
    assert server.rows() == [{'job': 'job1', 'slice': '1', 'result': cell}]


def test_whatever_an_object_holds_keeps_to_its_cell(server):
    values = [*PLAIN, *UNPRINTABLE, '', 0, False, None, [], {'a': {'b': ['\t']}}]
    for number, value in enumerate(values, 1):
        assert server.post(number, {'value': value, 'next': 'x'}) == RECEIVED
    rows = server.rows()
    assert [row['slice'] for row in rows] == [str(number) for number in range(1, len(values) + 1)]
    assert {row['next'] for row in rows} == {'x'}
    cells = [row['value'] for row in rows]
    assert cells[:len(PLAIN)] == PLAIN
    assert [json.loads(cell) if cell else '' for cell in cells[len(PLAIN):]] == values[len(PLAIN):]
    server.restart()
    assert len(server.stored()) == len(values)


@pytest.mark.parametrize('name', [*PLAIN, *UNPRINTABLE, ''], ids=lambda name: ascii(name)[:20])
def test_columns_may_have_any_names(server, name):
    for number in (1, 2):
        assert server.post(number, {'before': 1, name: number}) == RECEIVED
    assert [list(row.values()) for row in server.rows()] == [['job1', '1', '1', '1'], ['job1', '2', '1', '2']]
    server.restart()
    assert server.stored() == [1, 2]


def test_text_that_a_spreadsheet_would_run_is_stored_in_quotes(server):
    server.post(1, {'number': -1.5, **{text: text for text in FORMULAS}})
    quoted = [f'"{text}"' for text in FORMULAS]
    assert server.rows() == [{'job': 'job1', 'slice': '1', 'number': '-1.5', **dict(zip(quoted, quoted))}]
    assert not re.search(r'(^|\t)"?[=+@-](?!1\.5\t)', server.results()[0].read_text(), re.MULTILINE)


def test_error_of_a_work_function_is_told_and_not_stored(server, caplog):
    caplog.set_level(logging.INFO)
    answer = r"work function failed: 'sample 3 has\nno number ✘'"
    assert server.post(7, ERROR) == (200, answer)
    assert caplog.messages == [f'127.0.0.1 slice 7: {answer}']
    assert server.report()['failed'] == {'7': answer}
    assert not server.results()


def test_long_error_of_a_work_function_is_cut(server):
    """It passes through DCP, and may hold data."""
    assert len(server.post(7, {**ERROR, 'message': 'x' * 1000})[1]) == 200
    assert len(server.report()['failed']['7']) == 200


@pytest.mark.parametrize('message', [None, 5], ids=repr)
def test_error_of_a_work_function_may_have_any_message(server, message):
    assert server.post(7, {**ERROR, 'message': message}) == (200, f'work function failed: {message}')


@pytest.mark.parametrize('results', [[ERROR, SCORES], [SCORES, ERROR]], ids=['first', 'second'])
def test_slice_that_failed_once_and_is_stored_has_not_failed(server, results):
    for result in results:
        assert server.post(7, result)[0] == 200
    assert server.stored() == [7]
    assert server.report()['failed'] == {}


def test_object_that_only_looks_like_an_error_is_stored(server):
    server.post(1, {'message': 'no error', 'stack': 'of books'})
    assert server.stored() == [1]


def test_each_job_has_a_file_of_its_own(server):
    for job in ('job1', 'job2', 'job3', 'job1'):    # in the same second
        assert server.post(1, f'of {job}', job) == RECEIVED
    assert len(server.results()) == 3
    for job in ('job1', 'job2', 'job3'):
        assert server.rows(job) == [{'job': job, 'slice': '1', 'result': f'of {job}'}]


@pytest.mark.parametrize('job', [None, ''])
def test_results_without_a_job_are_stored_as_they_come(server, job):
    for number, result in ((1, 'a'), (2, 'b'), (1, 'a')):
        assert server.post(number, result, job) == RECEIVED
    assert [list(row.values()) for row in server.rows('')] == [['', '1', 'a'], ['', '2', 'b'], ['', '1', 'a']]
    server.restart()
    assert server.post(1, 'a', job) == RECEIVED
    assert len(server.rows('')) == 4
    assert not server.module.jobs[''].slices    # memory does not grow


def test_report_tells_what_is_stored_what_failed_and_what_was_seen(server):
    assert server.report() == {'slices': [], 'failed': {}, 'fetches': 0, 'refusals': 0, 'last_refusal': ''}
    for number in (12, 2, 1, 9999999999999999):
        server.post(number, SCORES)
    server.post(3, {**ERROR, 'message': 'no such gene'})
    server.post(4, SCORES, job='job2')
    server.request(DATA)
    server.request('/nothing')
    report = server.report()
    refusal = report.pop('last_refusal')
    assert re.fullmatch(r"127\.0\.0\.1 'GET /nothing' refused: 404 .*", refusal)
    assert report == {'slices': [1, 2, 12, 9999999999999999], 'fetches': 1, 'refusals': 1,
                      'failed': {'3': "work function failed: 'no such gene'"}}


def test_results_files_are_listed_the_newest_first(server):
    server.post(1, SCORES), server.post(1, SCORES, 'job2'), server.post(7, {**ERROR, 'message': 'no'}, 'job2')
    (server.folder / 'results' / 'notes.txt').write_text('of a user', encoding='utf-16')
    for age, path in enumerate(server.results()):    # job1, job2, notes
        os.utime(path, (age, age))
    listed = json.loads(server.request('/results')[1])
    assert [(file['name'], file['job'], file['size']) for file in listed['files']] == [
        (path.name, job, path.stat().st_size) for path, job in zip(server.results()[1::-1], ('job2', 'job1'))]
    assert listed['failed']['job2'] == {'7': "work function failed: 'no'"}


def test_new_part_of_a_results_file_can_be_asked_for(server):
    server.post(1, SCORES)
    (path,) = server.results()
    seen = path.read_text()
    server.post(2, SCORES)
    status, text, headers = server.request(f'/results/{path.name}', headers={'Range': f'bytes={len(seen)}-'})
    assert (status, seen + text) == (206, path.read_text())
    assert headers['Content-Type'] == 'text/plain; charset=utf-8'


def test_question_for_what_is_new_is_no_refusal_if_there_is_nothing(server):
    server.post(1, SCORES)
    (path,) = server.results()
    size = path.stat().st_size
    status, _, headers = server.request(f'/results/{path.name}', headers={'Range': f'bytes={size}-'})
    assert (status, headers['Content-Range'], server.report()['refusals']) == (416, f'bytes */{size}', 0)


def test_log_has_one_line_per_result_and_per_refused_request(served):
    served.post(7, SCORES)
    served.request(DATA)
    served.request('/health')
    served.post('x', SCORES)
    served.request('/nothing')
    served.server.stop()
    ends = [NO_KEY, r'127\.0\.0\.1 slice 7: Result received',
            r"127\.0\.0\.1 'POST /dcp-results' refused: 400 element is not a slice number",
            r"127\.0\.0\.1 'GET /nothing' refused: 404 .*"]
    assert len(served.server.errors) == len(ends), served.server.output
    for line, end in zip(served.server.errors, ends):
        assert re.fullmatch(rf'\d\d:\d\d:\d\d {end}', line)
