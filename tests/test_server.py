"""server.py's routes, the table of results, its log, and what it says when it cannot start."""
import csv
import json
import os
import re
import secrets
import shutil
import signal
import socket

import pytest

from .project import Project

SCORES = [{'classifier': classifier, 'accuracy': 0.75, 'auc': 0.8, 'probesets': '1007_s_at, 1053_at'}
          for classifier in ('LDA', 'GNB', 'KNN', 'Ensemble')]
ERROR = {'name': 'Error', 'message': 'sample 3 has\nno number ✘', 'stack': 'Error: at <eval>', 'errorCode': 'EUNCAUGHT'}
STRINGS = ['text', ' ', 'a\tb', 'a\nb', '7\t8', '\n7\t8\n', 'a\rb', 'a\r\nb', '"', '"a', "'", ',', '\\', '\0', '1',
           '\x1b[31m', 'null', 'Psoriasis é ß 漢字', '\u2028', '\ufeff', '👩‍🔬', '\ud83d', '=1+1', 'x' * 200_000]
VALUES = [0, 1, -1.5, 1e-300, 2 ** 53, 10 ** 30, '', False, True, None, *STRINGS, [], [1, 'a', None], [[]], {}, [{}],
          {'a': {'b': [1, {'c': '\t'}]}}, [{'a': 1}, {'b': 2}], [{'a': 1}, 2], [{'other': 'columns'}], [SCORES],
          SCORES[0], {'message': 'no error', 'stack': 'of books'}]


def post(project, slice_number, result, job='job1', **fields):
    """Post a result as a DCP worker does: what JavaScript holds for false as error=null. Return status and answer."""
    falsy = result is None or result in ('', 0, False)
    form = {'element': slice_number, 'contentType': 'application/json', 'elementType': 'results', 'key': '', 'job': job,
            **({'error': 'null'} if falsy else {'content': json.dumps(result)}), **fields}
    return project.request('/dcp-results', {name: value for name, value in form.items() if value is not None})[:2]


def table(path):
    """Return the rows of a results file, with the header row."""
    csv.field_size_limit(10 ** 7)
    with open(path, newline='', encoding='utf-8') as file:
        return list(csv.reader(file, delimiter='\t'))


RECEIVED = (200, 'Result received')


@pytest.fixture(scope='module')
def one_server(tmp_path_factory):
    """A server for many tests, whose log must hold no traceback in the end."""
    project = Project(tmp_path_factory.mktemp('server') / 'project')
    project.server = project.serve()
    yield project
    project.stop()
    assert 'Traceback' not in project.server.output


@pytest.fixture
def job():
    """The id of a new job."""
    return secrets.token_hex(11)


# ---- start and end ----

def test_start_prints_four_lines_and_ctrl_c_ends_without_a_traceback(project):
    server = project.serve()
    with socket.create_connection(('127.0.0.1', project.port)):    # a visitor who says nothing
        assert post(project, 1, SCORES) == RECEIVED
        server.stop(signal.SIGINT)
    url = re.fullmatch(rf' \* Serving data on: (http://[\d.]+:{project.port})', server.lines[0])[1]
    assert server.lines[1:] == [f' * DCP results endpoint: {url}/dcp-results', " * Serving Flask app 'server'",
                                ' * Debug mode: off']
    assert server.status == 0
    assert len(server.errors) == 1    # the result


def test_printed_address_is_reached(one_server, monkeypatch):
    monkeypatch.setattr(one_server, 'url', one_server.server.lines[0].split()[-1])
    assert one_server.request('/health')[0] == 200


def test_server_runs_from_any_folder_and_makes_the_results_folder(project):
    project.start(project.folder / 'server.py', PYTHONSAFEPATH='1').wait_for('Debug mode')
    assert post(project, 1, SCORES) == RECEIVED
    assert len(project.results()) == 1


def remove_data(project):
    (project.folder / 'input' / 'GSE57383_ps_psa.txt').unlink()


def put_a_folder_in_place_of_the_data(project):
    remove_data(project)
    (project.folder / 'input' / 'GSE57383_ps_psa.txt').mkdir()


def put_a_file_in_place_of_results(project):
    (project.folder / 'results').write_text('')


def write_protect_results(project):
    """Not even root may write to /proc."""
    if not os.path.isdir('/proc/self'):
        pytest.skip('this system has no /proc')
    (project.folder / 'results').symlink_to('/proc')


def occupy_port(project):
    project.listener = socket.create_server(('', project.port))


def name_no_certificate(project):
    project.edit('server.py', 'certificate = None', "certificate = ('cert.pem', 'key.pem')")


def name_text_as_certificate(project):
    name_no_certificate(project)
    for name in ('cert.pem', 'key.pem'):
        (project.folder / name).write_text('not a certificate')


@pytest.mark.parametrize('spoil, line', [
    (remove_data, 'Cannot read .*GSE57383_ps_psa.txt .*: put the data there'),
    (put_a_folder_in_place_of_the_data, 'Cannot read .*GSE57383_ps_psa.txt .*: put the data there'),
    (write_protect_results, 'Cannot write to .*results .*: make it a folder'),
    (put_a_file_in_place_of_results, 'Cannot write to .*results .*: make it a folder'),
    (occupy_port, r'Cannot use port \d+ .*: stop .* uses it, or change port'),
    (name_no_certificate, 'Cannot use the certificate .*: see certificate'),
    (name_text_as_certificate, 'Cannot use the certificate .*: see certificate'),
])
def test_server_that_cannot_start_says_what_to_do(project, spoil, line):
    spoil(project)
    server = project.start('server.py')
    server.wait(20)
    assert (server.status, server.lines, len(server.errors)) == (1, [], 1), server.output
    assert re.match(line, server.errors[0])


# ---- the data ----

@pytest.mark.parametrize('data', [None, 'phenotype\tä\r\nPsoriasis\t1.5\n\nno line end 漢'.encode(), b''],
                         ids=['shipped', 'any text', 'empty'])
def test_data_is_served_byte_for_byte_as_plain_text(served, data):
    path = served.folder / 'input' / 'GSE57383_ps_psa.txt'
    if data is not None:
        path.write_bytes(data)
    status, text, headers = served.request('/GSE57383_ps_psa')
    assert (status, headers['Content-Type']) == (200, 'text/plain; charset=utf-8')
    assert text.encode() == path.read_bytes()


def test_data_that_has_not_changed_is_not_sent_again(served):
    _, text, headers = served.request('/GSE57383_ps_psa')
    for unchanged in ({'If-None-Match': headers['ETag']}, {'If-Modified-Since': headers['Last-Modified']}):
        assert served.request('/GSE57383_ps_psa', headers=unchanged)[:2] == (304, '')
    (served.folder / 'input' / 'GSE57383_ps_psa.txt').write_text('other')
    status, text, changed = served.request('/GSE57383_ps_psa', headers={'If-None-Match': headers['ETag']})
    assert (status, text) == (200, 'other') and changed['ETag'] != headers['ETag']


@pytest.mark.parametrize('ranges, status, text', [('bytes=0-8', 206, 'phenotype'), ('bytes=5-8', 206, 'type'),
                                                  ('bytes=99999999-', 416, None)])
def test_part_of_the_data_can_be_asked_for(one_server, ranges, status, text):
    answer = one_server.request('/GSE57383_ps_psa', headers={'Range': ranges})
    assert answer[0] == status and text in (None, answer[1])


def test_data_can_be_looked_at_without_its_text(one_server):
    status, text, headers = one_server.request('/GSE57383_ps_psa', method='HEAD')
    size = (one_server.folder / 'input' / 'GSE57383_ps_psa.txt').stat().st_size
    assert (status, text, headers['Content-Length']) == (200, '', str(size))


def test_health_tells_of_the_data_and_of_where_results_go(served):
    status, text, headers = served.request('/health')
    assert (status, headers['Content-Type']) == (200, 'application/json')
    folder = str(served.folder / 'results')
    health = {'data_file': 'GSE57383_ps_psa.txt', 'data_file_exists': True, 'results_folder': folder}
    assert json.loads(text) == health
    remove_data(served)
    assert json.loads(served.request('/health')[1]) == {**health, 'data_file_exists': False}
    assert served.request('/GSE57383_ps_psa')[0] == 500
    served.server.wait_for('No such file')


# ---- results ----

def test_results_are_rows_of_a_table(served):
    for number in (3, 1, 2):
        assert post(served, number, SCORES) == RECEIVED
    (path,) = served.results()
    assert re.fullmatch(r'GSE57383_PsA_vs_Ps_\d{6}_\d{6}\.txt', path.name)
    assert table(path) == [['slice', 'classifier', 'accuracy', 'auc', 'probesets'],
                           *[[number, classifier, '0.75', '0.8', '1007_s_at, 1053_at'] for number in '312'
                             for classifier in ('LDA', 'GNB', 'KNN', 'Ensemble')]]


@pytest.mark.parametrize('first', [[], [SCORES]], ids=['alone', 'after table rows'])
def test_whatever_a_work_function_returns_is_stored_with_its_slice(served, first):
    for number, result in enumerate([*first, *VALUES], 1):
        assert post(served, number, result) == RECEIVED, result
    rows = table(*served.results())[1 + 4 * len(first):]
    assert [int(row[0]) for row in rows] == [*range(1 + len(first), len(rows) + 1 + len(first))]
    falsy_as_null = [result if result or isinstance(result, (list, dict)) else None for result in VALUES]
    assert [json.dumps(json.loads(row[-1])) for row in rows] == list(map(json.dumps, falsy_as_null))


def test_strings_of_any_kind_stay_in_their_cells(served):
    assert post(served, 1, [{'classifier': string, 'auc': 1} for string in STRINGS]) == RECEIVED
    rows = table(*served.results())[1:]
    assert [row[2] for row in rows] == ['1'] * len(STRINGS)
    assert [row[1] if string.isprintable() else json.loads(row[1]) for string, row in zip(STRINGS, rows)] == STRINGS
    assert len(served.results()[0].read_bytes().splitlines()) == 1 + len(STRINGS)
    assert served.request('/dcp-results/job1')[1] == '[1]\n'


@pytest.mark.parametrize('name', [*STRINGS, ''], ids=lambda name: ascii(name)[:20])
def test_columns_may_have_any_names(one_server, job, name):
    assert post(one_server, 1, [{name: 1}, {name: 2}], job) == RECEIVED
    assert json.loads(one_server.request(f'/dcp-results/{job}')[1]) == [1]
    assert post(one_server, 1, [{name: 1}, {name: 2}], job) == RECEIVED
    assert post(one_server, 2, 'next', job) == RECEIVED
    assert json.loads(one_server.request(f'/dcp-results/{job}')[1]) == [1, 2]


def test_plain_text_is_stored_as_a_string(served):
    assert post(served, 1, None, contentType='text/plain; charset=utf-8', content='[1]\té', error=None) == RECEIVED
    assert table(*served.results()) == [['slice', 'result'], ['1', json.dumps('[1]\té')]]


def test_error_of_a_work_function_is_logged_and_not_stored(served):
    status, text = post(served, 7, ERROR)
    assert (status, text) == (200, r'work function failed: sample 3 has\nno number \u2718')
    served.server.wait_for(r'^\d\d:\d\d:\d\d 127\.0\.0\.1 slice 7: work function failed: sample 3 has')
    assert not served.results()
    assert post(served, 7, SCORES) == RECEIVED    # the work function was mended
    assert len(table(*served.results())) == 5


def test_each_job_has_its_own_file(served):
    for job in ('job1', 'job2', 'job3', 'job1'):    # in the same second
        assert post(served, 1, job, job) == RECEIVED
    assert sorted(table(path)[1][1] for path in served.results()) == ['"job1"', '"job2"', '"job3"']
    assert len(served.results()) == 3 and not any(len(table(path)) > 2 for path in served.results())


def test_result_without_a_job_is_stored(served):
    for number in (1, 2, 2):
        assert post(served, number, SCORES, job=None) == RECEIVED
    (path,) = served.results()
    assert [row[0] for row in table(path)] == ['slice', *'11112222']


def test_stored_slices_are_listed(served):
    for number in (12, 2, 1, 9999999999999999):
        assert post(served, number, SCORES) == RECEIVED
    status, text, headers = served.request('/dcp-results/job1')
    assert (status, headers['Content-Type']) == (200, 'application/json')
    assert json.loads(text) == [1, 2, 12, 9999999999999999]
    assert served.request('/dcp-results/job2')[:2] == (200, '[]\n')


def test_log_has_one_line_per_result_and_per_refused_request(served):
    post(served, 7, SCORES)
    served.request('/GSE57383_ps_psa')
    served.request('/health')
    post(served, 8, SCORES, content='{')
    served.request('/nothing')
    served.server.stop()
    assert len(served.server.errors) == 3, served.server.output
    ends = ['7: Result received', "'?8'?: .*POST.* 400 .*", "'?-'?: .*GET.* 404 .*"]
    for line, end in zip(served.server.errors, ends):
        assert re.fullmatch(rf'\d\d:\d\d:\d\d 127\.0\.0\.1 slice {end}', line)


def test_results_files_may_be_moved_away_while_the_server_runs(served):
    post(served, 1, SCORES)
    shutil.move(*served.results(), served.folder)
    assert post(served, 2, SCORES) == RECEIVED
    assert [row[0] for row in table(*served.results())] == ['slice', *'2222']
