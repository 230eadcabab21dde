"""What strangers may do: nothing. Web pages, bad input, the access key, TLS, and a fuzz of hostile requests.

The fuzz sends 200 requests, or as many as FUZZ_REQUESTS in the environment says, from the seed FUZZ_SEED.
"""
import contextlib
import json
import os
import random
import re
import secrets
import socket
import ssl
import struct
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from .project import RECEIVED, SCORES, Project, make_certificate

DATA = '/GSE57383_ps_psa'
FORM = {'element': '2', 'contentType': 'application/json', 'content': '1', 'job': 'job1'}
BODY = urllib.parse.urlencode(FORM).encode()
POST = 'POST /dcp-results HTTP/1.1\r\nContent-Type: application/x-www-form-urlencoded\r\n'


@contextlib.contextmanager
def serving(folder, **settings):
    """Serve with changed settings, {name: (old, new)}. In the end the log must have only lines for people."""
    project = Project(folder / 'project')
    for name, (old, new) in settings.items():
        project.edit('server.py', f'{name} = {old}', f'{name} = {new}')
    try:
        project.server = project.serve()
        yield project
    finally:
        project.stop()
    assert [line for line in project.server.errors if not is_log_line(line)] == []


def is_log_line(line):
    start = r'\d\d:\d\d:\d\d (127\.0\.0\.1|no access_key is set:) .+'
    return re.fullmatch(start, line) and line.isprintable() and len(line) < 400


def files(project):
    return {path.name: path.read_bytes() for path in project.results()}


def send(project, request, wait=True):
    """Send bytes, then nothing more, and return all that is answered."""
    answer = b''
    with socket.create_connection(('127.0.0.1', project.port), 30) as connection:
        with contextlib.suppress(ConnectionError):    # the server may close it before it has read all
            connection.sendall(request)
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_WR)
            while wait and (part := connection.recv(65536)):
                answer += part
    return answer


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    """A server that has stored slice 1 of job1, and takes no results over 100,000 bytes."""
    with serving(tmp_path_factory.mktemp('server'), max_result_size=('10_000_000', '100_000')) as project:
        assert project.post(1, SCORES) == RECEIVED
        yield project


@pytest.fixture
def untouched(small):
    """The same server, which must not store anything in this test."""
    before = files(small)
    yield small
    assert files(small) == before
    assert small.server.process.poll() is None


@pytest.fixture
def logged(untouched):
    """A function that waits for what the server logs in this test, and returns its lines."""
    server, mark = untouched.server, secrets.token_hex(8)
    untouched.request(f'/{mark}')
    server.wait_for(mark)    # so that no line of an earlier test comes late
    seen = len(server.errors)

    def lines():
        with server.news:
            server.news.wait_for(lambda: len(server.errors) > seen, 10)
            return server.errors[seen:]
    return lines


# ---- web pages ----

@pytest.mark.parametrize('origin', [
    'null', '', 'https://evil.com', 'https://dcp.work.evil.com', 'http://dcp.work',
    'https://evil.com, https://dcp.work', 'https://dcp.work\r\nOrigin: https://evil.com'])
def test_other_web_pages_are_refused(untouched, origin):
    headers = (f'Origin: {origin}\r\nAccess-Control-Request-Method: POST\r\n'
               f'Content-Length: {len(BODY)}\r\n\r\n')
    for line in (f'GET {DATA} HTTP/1.1\r\n', 'GET /dcp-results/job1 HTTP/1.1\r\n', POST,
                 'OPTIONS /dcp-results HTTP/1.1\r\n'):
        head, _, text = send(untouched, (line + headers).encode() + BODY).partition(b'\r\n\r\n')
        assert head.startswith(b'HTTP/1.1 403 ') and b'Access-Control' not in head
        assert text == b'this web page may not use this server: see browser_origins in server.py\n'


def test_browser_workers_may_fetch_and_post(server):
    page = {'Origin': 'https://dcp.work'}
    ask = {**page, 'Access-Control-Request-Method': 'POST'}
    for path in (DATA, '/dcp-results'):
        status, _, headers = server.request(path, method='OPTIONS', headers=ask)
        assert (status, headers['Access-Control-Allow-Origin']) == (200, 'https://dcp.work')
        assert {'GET', 'POST'} <= set(headers['Access-Control-Allow-Methods'].split(', '))
        assert headers['Access-Control-Allow-Headers'] == 'Content-Type'
    bad_form = {**FORM, 'element': 'x'}    # the page may read why it is refused
    for answer, status in ((server.request(DATA, headers=page), 200),
                           (server.request('/dcp-results', FORM, headers=page), 200),
                           (server.request('/dcp-results', bad_form, headers=page), 400)):
        assert (answer[0], answer[2]['Access-Control-Allow-Origin'], answer[2]['Vary']) == (
            status, 'https://dcp.work', 'Origin')


def test_other_workers_send_no_origin_and_get_no_cors_headers(server):
    status, _, headers = server.request(DATA)
    assert status == 200 and not [name for name, _ in headers if name.startswith('Access-Control')]


def test_browsers_do_not_guess_what_an_answer_is(server):
    for path in (DATA, '/dcp-results/job1', '/nothing'):
        assert server.request(path)[2]['X-Content-Type-Options'] == 'nosniff'


# ---- bad input ----

@pytest.mark.parametrize('form, status, word', [    # the answer names the problem with this word
    (b'', 400, 'element'),
    (bytes(range(256)), 400, 'element'),
    ({'content': '1'}, 400, 'element'),
    *[({**FORM, 'element': element}, 400, 'element') for element in
      ('', '0', '-1', '1.0', '1e3', '01', ' 1', '1\n', '٣', '1\0', 'NaN', '1' * 17)],
    *[({**FORM, 'job': job}, 400, 'job') for job in ('../../etc/passwd', 'a b', 'a\n', 'é', '.*', 'a' * 65)],
    ({'element': '2', 'job': 'job1'}, 400, 'content'),
    ({'element': '2', 'error': 'undefined'}, 400, 'content'),
    *[({**FORM, 'content': content}, 400, 'JSON') for content in
      ('', '{', '[1,]', "'a'", '1 2', 'undefined', '"\n"', '1' * 5000, '[' * 30_000)],
    ({**FORM, 'content': 'x' * 100_000}, 413, 'exceeds'),
], ids=lambda part: ascii(part)[:70])
def test_bad_result_is_refused_with_one_line_that_names_the_problem(untouched, logged, form, status, word):
    answer = untouched.request('/dcp-results', form, method='POST')
    assert answer[0] == status and re.fullmatch(rf'[^\n]*{word}[^\n]*\n', answer[1])
    (line,) = logged()
    assert f"'POST /dcp-results' refused: {status} " in line


@pytest.mark.parametrize('job', ['(', '.*', 'a.b', '%00', 'a%09b', 'x' * 65])
def test_asking_for_what_cannot_be_a_job_is_refused(untouched, job):
    assert untouched.request(f'/dcp-results/{job}')[:2] == (400, 'job is not the id of a DCP job\n')


def test_asking_for_another_job_tells_no_slices_and_is_not_remembered(untouched):
    status, report, _ = untouched.request('/dcp-results/job2')
    assert status == 200 and json.loads(report)['slices'] == []
    assert 'job2' not in json.loads(untouched.request('/results')[1])['failed']


CHUNKED = POST + 'Transfer-Encoding: chunked\r\n\r\n'
LARGE = b'element=2&job=job1&content=' + b'1' * 100_000


@pytest.mark.parametrize('lines, body, status', [
    *[(f'GET {path} HTTP/1.1\r\n\r\n', b'', '404') for path in
      ('*', '/nothing', f'{DATA}/', '/../server.py', '/%2e%2e/server.py', '/input/GSE57383_ps_psa.txt',
       '//evil.com/x', f'/x//{DATA}', '/results/x.txt', '/results/..%2fserver.py', '/dcp-results/a/b',
       '/%ff%00', '/\x1b[2J', '/x' * 20_000)],
    *[(f'{method} {DATA} HTTP/1.1\r\n\r\n', b'', '405') for method in ('DELETE', '\x1b[2J', 'X' * 60_000)],
    ('GET http://[ HTTP/1.1\r\n\r\n', b'', '400'),
    (f'GET {DATA} HTTP/1.1 x\r\n\r\n', b'', '400'),
    ('\x16\x03\x01\x02\0\x01\0\x01', b'', '400'),
    (f'GET /{"x" * 70_000} HTTP/1.1\r\n\r\n', b'', '414'),
    ('GET / HTTP/1.1\r\n' + 'X: x\r\n' * 200 + '\r\n', b'', '431'),
    (f'{POST}\r\n', BODY, '400'),    # no length
    *[(f'{POST}Content-Length: {length}\r\n\r\n', BODY, '400') for length in (len(BODY) + 1, -5, 'x')],
    (f'{POST}Content-Length: {"9" * 30}\r\n\r\n', BODY, '413'),
    *[(f'{CHUNKED}{length}\r\n', BODY, '400') for length in (f'{len(BODY) + 1:x}', 'zz', '-5')],
    (f'{CHUNKED}{len(LARGE):x}\r\n', LARGE + b'\r\n0\r\n\r\n', '400|413'),    # Werkzeug cuts it at the limit
], ids=lambda part: ascii(part)[:50])
def test_bad_request_is_refused_in_one_line(untouched, logged, lines, body, status):
    answer = send(untouched, lines.encode() + body).decode(errors='replace')
    assert re.match(f'HTTP/1.1 ({status}) |<!DOCTYPE HTML>', answer)    # a broken first line gets no head
    assert 'Traceback' not in answer
    assert len(logged()) == 1


def test_worker_that_is_gone_half_way_through_a_result_stores_nothing(untouched, logged):
    with socket.create_connection(('127.0.0.1', untouched.port)) as worker:
        worker.sendall(f'{POST}Content-Length: {len(BODY) + 1}\r\n\r\n'.encode() + BODY)
        assert untouched.request('/health')[0] == 200    # meanwhile
        worker.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))    # reset it
    (line,) = logged()
    assert 'refused: 400' in line


def test_unfinished_request_does_not_keep_its_connection_for_ever(tmp_path):
    with serving(tmp_path, timeout=('60', '0.3')) as project, contextlib.ExitStack() as stack:
        connections = []
        for request in ('', 'GET / HT', 'GET / HTTP/1.1\r\nHost', f'{POST}Content-Length: 99\r\n\r\na=1'):
            connection = stack.enter_context(socket.create_connection(('127.0.0.1', project.port), 10))
            connection.sendall(request.encode())
            connections.append(connection)
        for connection in connections:
            answer = b''.join(iter(lambda: connection.recv(65536), b''))    # ends when the server closes it
            assert not answer or answer.startswith(b'HTTP/1.1 4')


# ---- the access key ----

KEY = 'Secret/key+1'
QUOTED_KEY = urllib.parse.quote(KEY, safe='')
REFUSED = (403, 'wrong or missing access key: see access_key in server.py\n')


@pytest.fixture(scope='module')
def locked(tmp_path_factory):
    """A server with an access key, which its log must not show."""
    with serving(tmp_path_factory.mktemp('locked'), access_key=("''", f"'{KEY}'")) as project:
        assert project.post(1, SCORES, key=KEY) == RECEIVED
        yield project
    assert 'Secret' not in project.server.output


def test_key_opens_the_data_and_the_results(locked):
    assert locked.request(f'{DATA}?key={QUOTED_KEY}')[0] == 200
    assert locked.post(2, SCORES, key=KEY) == RECEIVED
    assert '"slices":[1,2]' in locked.request(f'/dcp-results/job1?key={QUOTED_KEY}')[1]


def test_browsers_ask_without_the_key_what_a_page_may_do(locked):
    assert locked.request('/dcp-results', method='OPTIONS', headers={'Origin': 'https://dcp.work'})[0] == 200


@pytest.mark.parametrize('key, status', [(KEY, 200), ('wrong', 403)])
def test_key_may_be_in_a_header(locked, key, status):
    """The results page sends it so, since addresses are kept in a browser's history."""
    assert locked.request('/results', headers={'Authorization': f'Bearer {key}'})[0] == status


@pytest.mark.parametrize('key', [None, '', 'wrong', KEY[:-1], KEY + '1', KEY.lower(), 'é\0'])
def test_wrong_key_opens_nothing(locked, key):
    before = files(locked)
    query = '' if key is None else f'?key={urllib.parse.quote(key, safe="")}'
    (results,) = locked.results()
    for path in (DATA, '/dcp-results/job1', '/results', f'/results/{results.name}', '/nothing'):
        assert locked.request(path + query)[:2] == REFUSED
    assert locked.post(3, SCORES, key=key) == REFUSED
    assert files(locked) == before


def test_health_needs_no_key_and_does_not_tell_it(locked):
    status, text, _ = locked.request('/health')
    assert status == 200 and 'Secret' not in text


def test_files_in_a_folder_named_static_are_not_served(locked):
    (locked.folder / 'static').mkdir()
    (locked.folder / 'static' / 'notes.txt').write_text('private')
    assert locked.request(f'/static/notes.txt?key={QUOTED_KEY}')[0] == 404


@pytest.mark.parametrize('request_line', [
    f'GET {DATA}?key=KEY', f'GET {DATA}?key=KEY HTTP/1.1', f'GET {DATA}?key=KEY HTTP/x', f'{DATA}?key=KEY',
    f'GET {DATA}?key=KEY x HTTP/1.1', f'GET {DATA}&key=KEY HTTP/1.1', f'GET {DATA}%3Fkey=KEY HTTP/1.1',
    f'GET /{DATA}?key=KEY HTTP/1.1', 'GET http://[/?key=KEY HTTP/1.1', 'PUT /dcp-results?key=KEY HTTP/1.1',
    'GET /?key=KEY HTTP/1.1' + '\r\nX: x' * 200, f'GET {DATA}?key=KEY' + 'x' * 70_000,
    f'{POST}Content-Length: 99\r\n\r\nkey=KEY'], ids=lambda line: line[:50])
def test_key_of_a_bad_request_does_not_show_in_the_log(locked, request_line):
    """The log is looked at in the end."""
    assert send(locked, request_line.replace('KEY', QUOTED_KEY).encode() + b'\r\n\r\n')


# ---- TLS ----

@pytest.fixture(scope='module')
def secure(tmp_path_factory):
    """A server with a certificate of its own, and what a client needs to trust it."""
    folder = tmp_path_factory.mktemp('secure')
    certificate, key = make_certificate(folder)
    with serving(folder, certificate=('None', (str(certificate), str(key)))) as project:
        project.trust = ssl.create_default_context(cafile=certificate)
        yield project


def fetch(project, path, form=None):
    url, body = f'https://127.0.0.1:{project.port}{path}', form and urllib.parse.urlencode(form).encode()
    with urllib.request.urlopen(url, body, 10, context=project.trust) as answer:
        return answer.status, answer.read().decode()


def test_https_serves_data_and_takes_results(secure):
    assert [line.split()[-1][:8] for line in secure.server.lines[:2]] == ['https://'] * 2
    data = (secure.folder / 'input' / 'GSE57383_ps_psa.txt').read_text()
    assert fetch(secure, DATA) == (200, data)
    assert fetch(secure, '/dcp-results', FORM) == RECEIVED


@pytest.mark.parametrize('silence', [b'', b'\x16\x03\x01\x02\0'], ids=['no byte', '5 bytes'])
def test_client_that_stalls_in_the_handshake_stops_nobody(secure, silence):
    with socket.create_connection(('127.0.0.1', secure.port)) as client:
        client.sendall(silence)
        assert fetch(secure, '/health')[0] == 200


def test_client_that_speaks_no_tls_is_refused_in_one_line(secure):
    seen = len(secure.server.errors)
    assert b'phenotype' not in send(secure, f'GET {DATA} HTTP/1.1\r\n\r\n'.encode())
    with secure.server.news:
        assert secure.server.news.wait_for(lambda: len(secure.server.errors) > seen, 10)
    assert fetch(secure, '/health')[0] == 200


# ---- the fuzz ----

NASTY = ['', '\0', '\t', ' ', '%', '%ff', '%0d%0a', '../' * 9, '-1', '0', '1e999', 'NaN', '9' * 9000,
         '[' * 9000, '"', "'", '=', '&', ';', '\\', 'é', '漢', '👩‍🔬', '\ud800', '\x85', '\u2028', '\x1b[2J',
         'null', '__proto__', '${7*7}']
HEADERS = ['Range', 'If-Range', 'If-None-Match', 'If-Modified-Since', 'Cookie', 'Content-Type', 'Host',
           'Expect', 'Content-Encoding', 'Authorization', 'Connection', 'Upgrade', 'Accept']
FORM_FAULTS = {'element': 'x', 'job': '/', 'content': '{'}    # a field, and what no good one ends with
REQUEST_FAULTS = ['origin', 'path', 'get', 'line', 'length', 'chunks', 'large', 'noise']


def hostile_request(chance):
    """Return a request with one fault for which it must be refused, and oddities for which it need not be."""
    def nasty():
        return chance.choice([*NASTY, ''.join(chr(chance.randrange(0x250)) for _ in range(20))])

    def raw(text):
        return text.encode(errors='surrogatepass').translate(None, b'\r\n')

    def quote(text):
        return urllib.parse.quote(text, chance.choice(['', '/', '[]{}":,']), errors='surrogatepass').encode()

    fault = chance.choice([*FORM_FAULTS, *REQUEST_FAULTS])
    line, length, end = b'POST /dcp-results HTTP/1.1', b'Content-Length: %d\r\n', b''
    headers = [b'Content-Type: application/x-www-form-urlencoded']
    headers += [raw(chance.choice([*HEADERS, nasty()]) + ': ' + nasty()) for _ in range(chance.randint(0, 2))]
    form = {**{nasty(): nasty() for _ in range(chance.randint(0, 3))}, **FORM}
    if fault in FORM_FAULTS:
        form[fault] = nasty() + FORM_FAULTS[fault]
    elif fault == 'origin':
        headers.append(raw(f'Origin: {nasty()}!'))
    elif fault == 'path':
        line = b'POST /' + quote(nasty()) + b'!/dcp-results HTTP/1.1'
    elif fault == 'get':
        path = chance.choice([f'{DATA}/', '/dcp-results?', '/dcp-results/a/', '//x', 'x://', 'http://['])
        line = b'GET ' + path.encode() + quote(nasty()) + b' HTTP/1.1'
    elif fault == 'line':
        line = chance.choice([b'', b'POST', b'POST /dcp-results', b'POST  HTTP/1.1',
                              b'POST /dcp-results x HTTP/1.1', b'POST /dcp-results HTTP/' + raw(nasty()),
                              raw(nasty()) + b'! /dcp-results HTTP/1.1'])
    elif fault == 'length':
        wrong = chance.choice([b'-%d', b'x%d', b'%d9', b'%d' + b'0' * 30])
        length = b'Content-Length: ' + wrong + b'\r\n'
    elif fault == 'chunks':
        wrong = chance.choice([b'f%x', b'-%x', b'%xx', b'%x' + b'0' * 30])
        length = b'Transfer-Encoding: chunked\r\n\r\n' + wrong
    elif fault == 'large':
        end = b'x' * 100_000
    elif fault == 'noise':
        form = dict.fromkeys(form, '{{{{{')
    body = b'&'.join(quote(name) + b'=' + quote(value) for name, value in form.items()) + end
    request = bytearray(b'\r\n'.join([line, *headers, length % len(body), body]))
    for _ in range(chance.randint(1, 9) if fault == 'noise' else 0):
        at = chance.randrange(len(request))
        request[at:at + chance.randint(0, 3)] = chance.randbytes(chance.randint(0, 3))
    return bytes(request)


def test_fuzz_of_hostile_requests_changes_nothing(untouched):
    count, seed = int(os.environ.get('FUZZ_REQUESTS', 200)), os.environ.get('FUZZ_SEED', 1)
    numbers_of = {}    # status: the numbers of the requests so answered

    def attack(number):
        chance = random.Random(f'{seed} {number}')
        return send(untouched, hostile_request(chance), wait=chance.random() < 0.95)

    with ThreadPoolExecutor(8) as strangers:
        for number, answer in enumerate(strangers.map(attack, range(count))):
            status = re.match(rb'HTTP/1.1 (\d+) ', answer)
            numbers_of.setdefault(int(status[1]) if status else answer[:40], []).append(number)
    print(f'{count} requests:', {status: len(numbers) for status, numbers in numbers_of.items()})
    for status, numbers in numbers_of.items():    # 308: // is /, 505: no version of HTTP
        assert isinstance(status, bytes) or 400 <= status < 500 or status in (308, 505), (status, numbers[:9])
    assert untouched.post(1, SCORES) == RECEIVED
