"""What strangers may do: nothing. Foreign web pages, bad input, the access key, TLS, and a fuzz of hostile requests.

The fuzz sends 1,000 requests, or as many as FUZZ_REQUESTS in the environment says, from the seed FUZZ_SEED.
"""
import contextlib
import os
import random
import re
import secrets
import shutil
import socket
import ssl
import subprocess
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from .project import Project
from .test_server import RECEIVED, SCORES, post, table

FORM = {'element': '2', 'contentType': 'application/json', 'content': '1', 'job': 'job1'}
BODY = urllib.parse.urlencode(FORM).encode()


@contextlib.contextmanager
def serving(folder, **settings):
    """Serve with changed settings, {name: (old, new)}, and check in the end that the log has only lines for people."""
    project = Project(folder / 'project')
    for name, (old, new) in settings.items():
        project.edit('server.py', f'{name} = {old}', f'{name} = {new}')
    try:
        project.server = project.serve()
        yield project
    finally:
        project.stop()
    assert not [line for line in project.server.errors if not is_log_line(line)]


def is_log_line(line):
    return re.fullmatch(r'\d\d:\d\d:\d\d 127\.0\.0\.1 slice .+: .+', line) and line.isprintable() and len(line) < 400


def files(project):
    return {path.name: path.read_bytes() for path in (project.folder / 'results').iterdir()}


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
def one_server(tmp_path_factory):
    """A server for many tests, that has stored slice 1 of job1 and takes no results over 100,000 bytes."""
    with serving(tmp_path_factory.mktemp('server'), max_result_size=('10_000_000', '100_000')) as project:
        assert post(project, 1, SCORES) == RECEIVED
        yield project


@pytest.fixture
def untouched(one_server):
    """The same server, which must not store anything in this test."""
    before = files(one_server)
    yield one_server
    assert files(one_server) == before
    assert one_server.server.process.poll() is None


@pytest.fixture
def logged(untouched):
    """A function that returns what the server has logged since the test began, as soon as there is something."""
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
    'null', '', '*', 'https://evil.com', 'https://dcp.work.evil.com', 'https://evil.dcp.work', 'https://xdcp.work',
    'http://dcp.work', 'dcp.work', 'https://dcp.work:8443', 'https://DCP.WORK:443', 'https://dcp.work/',
    'https://user@dcp.work', 'https://dcp.work\0', 'https://evil.com, https://dcp.work',
    'https://dcp.work https://evil.com', 'http://127.0.0.1'])
def test_other_web_pages_are_refused(untouched, origin):
    """A browser writes https://dcp.work in this one way."""
    for line in ('GET /GSE57383_ps_psa', 'POST /dcp-results', 'OPTIONS /dcp-results', 'OPTIONS /GSE57383_ps_psa',
                 'GET /health', 'GET /dcp-results/job1', 'GET /nothing'):
        headers = f'Origin: {origin}\r\nAccess-Control-Request-Method: POST\r\nContent-Length: {len(BODY)}'
        answer = send(untouched, f'{line} HTTP/1.1\r\n{headers}\r\n\r\n'.encode() + BODY)
        head, _, text = answer.partition(b'\r\n\r\n')
        assert head.startswith(b'HTTP/1.1 403 ') and b'Access-Control' not in head
        assert text.count(b'\n') == 1 and b'browser_origins' in text


def test_second_origin_is_no_way_in(untouched):
    request = b'GET /GSE57383_ps_psa HTTP/1.1\r\nOrigin: https://dcp.work\r\nOrigin: https://evil.com\r\n\r\n'
    assert send(untouched, request).startswith(b'HTTP/1.1 403 ')


def test_browser_workers_may_fetch_and_post(one_server):
    page = {'Origin': 'https://dcp.work'}
    ask = {**page, 'Access-Control-Request-Method': 'POST', 'Access-Control-Request-Private-Network': 'true'}
    for path in ('/GSE57383_ps_psa', '/dcp-results'):
        status, _, headers = one_server.request(path, method='OPTIONS', headers=ask)
        assert (status, headers['Access-Control-Allow-Origin']) == (200, 'https://dcp.work')
        assert {'GET', 'POST'} <= set(headers['Access-Control-Allow-Methods'].split(', '))
        assert headers['Access-Control-Allow-Private-Network'] == 'true'
    for status, _, headers in (one_server.request('/GSE57383_ps_psa', headers=page),
                               one_server.request('/dcp-results', {**FORM, 'job': 'browser'}, headers=page)):
        assert (status, headers['Access-Control-Allow-Origin'], headers['Vary']) == (200, 'https://dcp.work', 'Origin')
    status, _, headers = one_server.request('/dcp-results', {**FORM, 'element': 'x'}, headers=page)
    assert (status, headers['Access-Control-Allow-Origin']) == (400, 'https://dcp.work')    # the page may read why


def test_other_workers_send_no_origin_and_get_no_cors_headers(one_server):
    status, _, headers = one_server.request('/GSE57383_ps_psa')
    assert status == 200 and not [name for name in headers if name.startswith('Access-Control')]


# ---- bad input ----

BAD_BODIES = [b'{"element": 1}', bytes(range(256)), 'element=2&content="é"'.encode(), b'element=2&content',
              b'element=2&&content=1', b'element=2&content=1&%c3%28=1', b'element=2&content=1' + b'&a=1' * 100,
              b'element=2&content=%22%ff%22', b'element=2&content=%22%ed%a0%80%22']
BAD_ELEMENTS = ['', ' ', 'x', '0', '-1', '+1', '1.0', '1.5', '1e3', '0x1', '1_0', '01', ' 1', '1 ', '1\n', '1\t2', '٣',
                '²', 'NaN', 'null', '[1]', '1; DROP', '\0', '1\0', '1' * 17, '9' * 5000]
BAD_CONTENTS = ['', ' ', 'NaN', 'Infinity', '-Infinity', '1e999', '[1e999]', '{"a": NaN}', '{', '[1', '"a', '[1,]',
                "'a'", '1 2', '01', 'undefined', '\ufeff1', '\0', '"\n"', '\\', '1' * 5000, '[' * 30_000, 
                '{"a":' * 5000, '[' * 9000 + ']' * 9000]
BAD_TYPES = ['', 'x', 'image/png', 'application/jsonx', 'application/x-kvin', '../text/plain', '\0', 'x' * 9000]
BAD_JOBS = ['', '.', '..', '../../etc/passwd', '/etc/passwd', 'a/b', 'a\\b', 'a.txt', '.jobs.json', 'a b', 'a\n', 'a\0',
            'é', '-', '%2e', 'a' * 65]
BAD_FORMS = [    # form, status, what the answer names
    *[(body, 400, 'form') for body in BAD_BODIES],
    *[({**FORM, 'element': element}, 400, 'element') for element in BAD_ELEMENTS],
    *[({**FORM, 'content': content}, 400, 'JSON') for content in BAD_CONTENTS],
    *[({**FORM, 'contentType': name}, 415, 'contentType') for name in BAD_TYPES],
    *[({**FORM, 'job': job}, 400, 'job') for job in BAD_JOBS],
    ({**FORM, 'content': 'x' * 100_000}, 413, 'large|limit'),
    (b'', 400, 'form|element'),
    ({'content': '1'}, 400, 'element'),
    ({'element': '2', 'job': 'job1'}, 400, 'content'),
    ({'element': '2', 'error': 'undefined'}, 400, 'content'),
]


@pytest.mark.parametrize('form, status, word', BAD_FORMS)
def test_bad_result_is_refused_with_one_line_that_names_the_problem(untouched, logged, form, status, word):
    answer = untouched.request('/dcp-results', form, method='POST')
    assert answer[0] == status and re.fullmatch(rf'[^\n]*({word})[^\n]*\n', answer[1])
    assert len(logged()) == 1 and is_log_line(logged()[0]) and f' {status} ' in logged()[0]


BAD_PATHS = ['/', '*', '/nothing', '/GSE57383_ps_psa/', '/GSE57383_ps_psa.txt', '/gse57383_ps_psa', '/%',
             '/GSE57383_ps_psa%00', '/./GSE57383_ps_psa', '/input/GSE57383_ps_psa.txt', '/results/.jobs.json',
             '/../server.py', '/%2e%2e/server.py', '/..%2fserver.py', '/\\..\\server.py', '/static/server.py',
             '/static/../server.py', '/GSE57383_ps_psa/../server.py', '/dcp-results/../server.py', '/dcp-results/',
             '/dcp-results/a/b', '/dcp-results//job1', '/x//GSE57383_ps_psa', '//evil.com/x', '///', '//[', '/%ff%fe',
             '/GSE57383_ps_psa;a', '/é', '/\0', '/\x1b[2J', '/x' * 20_000]
BAD_URLS = ['http://[', 'http://[::1', 'http://[evil]/GSE57383_ps_psa', 'x://]']
BAD_METHODS = ['PUT', 'DELETE', 'EVIL', '\x1b[2J', 'X' * 60_000]
BAD_LENGTHS = [len(BODY) + 1, -5, 'x', '', '1e3', '²']
BAD_CHUNKS = [f'{len(BODY) - 1:x}', f'{len(BODY) + 1:x}', 'zz', '-5', '', 'f' * 40]
POST = 'POST /dcp-results HTTP/1.1\r\n'
CHUNKED = POST + 'Transfer-Encoding: chunked\r\n\r\n'
LONG = b'element=2&job=job1&contentType=text/plain&content=' + b'x' * 100_000
BAD_REQUESTS = [    # request, body, status (411: a server may refuse all forms that have no Content-Length)
    *[(f'GET {path} HTTP/1.1\r\n\r\n', b'', '404') for path in BAD_PATHS],
    *[(f'GET {url} HTTP/1.1\r\n\r\n', b'', '400') for url in BAD_URLS],
    *[(f'{method} /GSE57383_ps_psa HTTP/1.1\r\n\r\n', b'', '405') for method in BAD_METHODS],
    *[(f'{method} /dcp-results HTTP/1.1\r\n\r\n', b'', '405') for method in ('GET', 'PUT', 'PATCH')],
    *[(f'{POST}Content-Length: {length}\r\n\r\n', BODY, '400|411') for length in BAD_LENGTHS],
    *[(f'{CHUNKED}{length}\r\n', BODY, '400|411|413') for length in BAD_CHUNKS],
    (f'{CHUNKED}{len(LONG):x}\r\n', LONG + b'\r\n0\r\n\r\n', '413|411'),
    (f'{POST}Content-Length: {"9" * 30}\r\n\r\n', BODY, '413'),
    (f'{POST}\r\n', BODY, '400|411'),
    (f'GET /{"x" * 70_000} HTTP/1.1\r\n\r\n', b'', '414'),
    (f'GET / HTTP/1.1\r\nX: {"x" * 70_000}\r\n\r\n', b'', '431'),
    ('GET / HTTP/1.1\r\n' + 'X: x\r\n' * 200 + '\r\n', b'', '431'),
    ('GET http://[ HTTP/1.1\r\n' + 'X: x\r\n' * 200 + '\r\n', b'', '431'),
    ('GET / HTTP/1.1 x\r\n\r\n', b'', '400'),
    ('GET / HTTP/x\r\n\r\n', b'', '400'),
    ('\x16\x03\x01\x02\0\x01\0\x01', b'', '400'),
]


@pytest.mark.parametrize('lines, body, status', BAD_REQUESTS, ids=[ascii(request[0])[:50] for request in BAD_REQUESTS])
def test_bad_request_is_refused(untouched, logged, lines, body, status):
    head, _, text = send(untouched, lines.encode() + body).decode(errors='replace').rpartition('\r\n\r\n')
    assert not head or re.match(f'HTTP/1.1 ({status}) ', head)    # an unknown version of HTTP may have no head
    assert text.count('\n') == 1
    assert len(logged()) == 1 and is_log_line(logged()[0])


def test_unfinished_request_does_not_keep_its_connection_for_ever(tmp_path):
    with serving(tmp_path, timeout=('60', '0.3')) as project:
        for request in ('', 'GET / HT', 'GET / HTTP/1.1\r\nHost', f'{POST}Content-Length: 99\r\n\r\nelement=1'):
            with socket.create_connection(('127.0.0.1', project.port), 10) as connection:
                connection.sendall(request.encode())
                answer = b''.join(iter(lambda: connection.recv(65536), b''))    # ends when the server closes it
                assert not answer or answer.startswith(b'HTTP/1.1 4')
    assert len(project.server.errors) <= 4


def test_jobs_without_end_are_refused_until_files_are_moved_away(tmp_path):
    with serving(tmp_path, max_jobs=('1000', '3')) as project:
        assert [post(project, 1, SCORES, f'job{number}')[0] for number in range(6)] == [200] * 3 + [429] * 3
        assert post(project, 2, SCORES, 'job2') == RECEIVED    # known jobs go on
        assert len(project.results()) == 3
        for path in [*project.results(), project.folder / 'results' / '.jobs.json']:
            path.rename(tmp_path / path.name)
        assert post(project, 1, SCORES, 'job5') == RECEIVED


# ---- the access key ----

KEY = 'Secret/key+1'
QUOTED_KEY = urllib.parse.quote(KEY, safe='')


def shows_key(text):
    return 'Secret' in text


@pytest.fixture(scope='module')
def locked(tmp_path_factory):
    """A server with an access key, which its log must not show."""
    with serving(tmp_path_factory.mktemp('locked'), access_key=("''", f"'{KEY}'")) as project:
        assert post(project, 1, SCORES, key=KEY) == RECEIVED
        yield project
    assert not shows_key(project.server.output)


def test_key_opens_the_data_and_the_results(locked):
    for path in ('/GSE57383_ps_psa', '/dcp-results/job1'):
        assert locked.request(f'{path}?key={QUOTED_KEY}')[0] == 200
    assert post(locked, 2, SCORES, key=KEY) == RECEIVED
    assert locked.request(f'/dcp-results/job1?key={QUOTED_KEY}')[1] == '[1,2]\n'


@pytest.mark.parametrize('key', [None, '', ' ', 'wrong', KEY.lower(), KEY[:-1], KEY[1:], KEY + '1', f' {KEY}',
                                 f'{KEY}\0', 'é', KEY * 99])
def test_wrong_key_opens_nothing(locked, key):
    before = files(locked)
    query = '' if key is None else f'?key={urllib.parse.quote(key, safe="")}'
    for path in ('/GSE57383_ps_psa', '/dcp-results/job1', '/dcp-results/none'):
        for method in ('GET', 'HEAD'):
            status, text, headers = locked.request(path + query, method=method)
            assert status == 403 and 'phenotype' not in text and not headers['ETag']
    status, text = post(locked, 3, SCORES, key=key)
    assert status == 403 and re.fullmatch('[^\n]*key[^\n]*\n', text)
    assert files(locked) == before


def test_key_is_not_taken_from_elsewhere_and_not_wanted_for_health(locked):
    assert locked.request(f'/dcp-results?key={QUOTED_KEY}', {**FORM, 'element': '4'})[0] == 403
    assert locked.request('/GSE57383_ps_psa', headers={'Cookie': f'key={QUOTED_KEY}', 'key': KEY})[0] == 403
    status, text, _ = locked.request('/health')
    assert status == 200 and not shows_key(text)


@pytest.mark.parametrize('key', [KEY, QUOTED_KEY], ids=['plain', 'quoted'])
@pytest.mark.parametrize('request_line', [
    'GET /GSE57383_ps_psa?key=KEY', 'GET /GSE57383_ps_psa?key=KEY HTTP/1.1', 'GET /GSE57383_ps_psa?key=KEY HTTP/x',
    'GET /GSE57383_ps_psa?key=KEY x HTTP/1.1', 'GET /GSE57383_ps_psa?key=KEY HTTP/2.0', '/GSE57383_ps_psa?key=KEY',
    'GET /GSE57383_ps_psa&key=KEY HTTP/1.1', 'GET /GSE57383_ps_psa%3Fkey=KEY HTTP/1.1', 'GET /x&key=KEY HTTP/1.1',
    'GET /dcp-results/job1&key=KEY HTTP/1.1', 'GET /dcp-results//job1?key=KEY HTTP/1.1', 'GET /x?key=KEY HTTP/1.1',
    'GET //GSE57383_ps_psa?key=KEY HTTP/1.1', 'GET http://[/?key=KEY HTTP/1.1', 'GET\r/?key=KEY HTTP/1.1', 'key=KEY',
    'PUT /dcp-results?key=KEY HTTP/1.1', 'POST /dcp-results?key=KEY', 'GET /?key=KEY HTTP/1.1' + '\r\nX: x' * 200,
    'GET /GSE57383_ps_psa?key=KEY HTTP/1.1\r\nOrigin: null', 'GET /GSE57383_ps_psa?key=KEY' + 'x' * 70_000,
    'GET /GSE57383_ps_psa?key=KEY HTTP/1.1\r\nRange: bytes=99999999-',
    'GET /GSE57383_ps_psa?key=KEY HTTP/1.1\r\n\0: \r\nno header', 'POST /dcp-results HTTP/1.1\r\n\r\nelement=1&key=KEY',
    'POST /dcp-results HTTP/1.1\r\nContent-Length: 99\r\n\r\nkey=KEY'], ids=lambda line: line[:50])
def test_key_shows_on_no_page(locked, request_line, key):
    """The log is looked at in the end."""
    answer = send(locked, request_line.replace('KEY', key).encode() + b'\r\n\r\n')
    assert not shows_key(answer.decode(errors='replace'))


# ---- TLS ----

@pytest.fixture(scope='module')
def secure(tmp_path_factory):
    """A server with a certificate of its own, and what a client needs to trust it."""
    if not shutil.which('openssl'):
        pytest.skip('there is no openssl command to make a certificate with')
    folder = tmp_path_factory.mktemp('secure')
    subprocess.run([*'openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost'.split(), '-addext',
                    'subjectAltName=IP:127.0.0.1', '-keyout', 'key.pem', '-out', 'cert.pem'], cwd=folder, check=True,
                   capture_output=True)
    with serving(folder, certificate=('None', (str(folder / 'cert.pem'), str(folder / 'key.pem')))) as project:
        project.trust = ssl.create_default_context(cafile=folder / 'cert.pem')
        yield project


def fetch(project, path, form=None):
    url, body = f'https://127.0.0.1:{project.port}{path}', form and urllib.parse.urlencode(form).encode()
    with urllib.request.urlopen(url, body, 10, context=project.trust) as answer:
        return answer.status, answer.read().decode()


def test_https_serves_data_and_takes_results(secure):
    assert [line.split()[-1][:8] for line in secure.server.lines[:2]] == ['https://'] * 2
    data = (secure.folder / 'input' / 'GSE57383_ps_psa.txt').read_text()
    assert fetch(secure, '/GSE57383_ps_psa') == (200, data)
    assert fetch(secure, '/dcp-results', FORM) == RECEIVED
    assert fetch(secure, '/dcp-results/job1') == (200, '[2]\n')


@pytest.mark.parametrize('silence', [b'', b'\x16\x03\x01', b'\x16\x03\x01\x02\0'], ids=['0', '3 bytes', '5 bytes'])
def test_client_without_a_handshake_blocks_nobody(secure, silence):
    clients = [socket.create_connection(('127.0.0.1', secure.port)) for _ in range(20)]
    for client in clients:
        client.sendall(silence)
    assert fetch(secure, '/health')[0] == 200
    for client in clients:
        client.close()


@pytest.mark.parametrize('request_bytes', [b'GET /GSE57383_ps_psa HTTP/1.1\r\n\r\n', b'\0' * 99,
                                           b'\x16\x03\x01\0\4abcd'], ids=['http', 'zeros', 'broken handshake'])
def test_client_that_speaks_no_tls_is_refused(secure, request_bytes):
    seen = len(secure.server.errors)
    assert b'phenotype' not in send(secure, request_bytes)
    assert fetch(secure, '/health')[0] == 200
    with secure.server.news:
        assert secure.server.news.wait_for(lambda: len(secure.server.errors) > seen, 10)


# ---- the fuzz ----

NASTY = ['', '\0', '\t', ' ', '%', '%ff', '%00', '%0d%0a', '../' * 9, '-1', '0', '1e999', 'NaN', '9' * 9000, '[' * 9000,
         '{"a":' * 2000, '"', "'", '=', '&', ';', '\\', 'é', '漢', '👩‍🔬', '\ud800', '\x85', '\u2028', '\x1b[2J', 'null',
         'x' * 9999, '__proto__', '${7*7}', '<script>']
HEADERS = ['Range', 'If-Range', 'If-None-Match', 'If-Modified-Since', 'Cookie', 'Accept', 'Content-Type', 'Host',
           'Expect', 'Content-Encoding', 'Authorization', 'Connection', 'Upgrade', 'X-Forwarded-For',
           'Access-Control-Request-Method']
FAULTS = ['element', 'content', 'type', 'job', 'bytes', 'large', 'origin', 'path', 'get', 'line', 'length', 'chunks',
          'noise']


def hostile_request(chance):
    """Return a request with one fault for which it must be refused, and with oddities for which it need not be."""
    def nasty():
        return chance.choice([*NASTY, ''.join(chr(chance.randrange(0x250)) for _ in range(20))])

    def raw(text):
        return text.encode(errors='surrogatepass').translate(None, b'\r\n')

    def quote(text):
        return urllib.parse.quote(text, chance.choice(['', '/', '[]{}":,']), errors='surrogatepass').encode()

    fault, line, length, end = chance.choice(FAULTS), b'POST /dcp-results HTTP/1.1', b'Content-Length: %d', b''
    headers = [raw(chance.choice([*HEADERS, nasty()]) + ': ' + nasty()) for _ in range(chance.randint(0, 3))]
    form = {**{nasty(): nasty() for _ in range(chance.randint(0, 3))}, **FORM}
    if fault == 'element':
        form['element'] = nasty() + 'x'
    elif fault == 'content':
        form['content'] = chance.choice([nasty() + '{', 'NaN', '[-Infinity]', '1e999', '[' * 9000 + ']' * 9000])
    elif fault == 'type':
        form['contentType'] = 'x' + nasty()
    elif fault == 'job':
        form['job'] = nasty() + '/'
    elif fault == 'bytes':
        end = b'&' + bytes(chance.randrange(128, 256) for _ in range(20))
    elif fault == 'large':
        end = b'x' * 100_000
    elif fault == 'origin':
        headers.append(raw(f'Origin: {nasty()}!'))
    elif fault == 'path':
        line = b'POST /' + quote(nasty()) + b'!/dcp-results HTTP/1.1'
    elif fault == 'get':
        path = [b'/GSE57383_ps_psa/', b'/dcp-results?', b'/dcp-results/a/', b'/x', b'//', b'x://', b'http://[', b'']
        line = b'GET ' + chance.choice(path) + quote(nasty()) + b' HTTP/1.1'
    elif fault == 'line':
        line = chance.choice([b'', b'POST', b'POST /dcp-results', b'POST  HTTP/1.1', b'POST /dcp-results x HTTP/1.1',
                              b'POST /dcp-results HTTP/' + raw(nasty()), raw(nasty()) + b'! /dcp-results HTTP/1.1'])
    elif fault == 'length':
        length = b'Content-Length: ' + chance.choice([b'-%d', b'x%d', b'%d9', b'%d' + b'0' * 30])
    elif fault == 'chunks':
        length = b'Transfer-Encoding: chunked\r\n\r\n' + chance.choice([b'f%x', b'-%x', b'%xx', b'%x' + b'0' * 30])
    elif fault == 'noise':
        form = dict.fromkeys(form, '{{{{{')
    body = b'&'.join(quote(name) + b'=' + quote(value) for name, value in form.items()) + end
    request = bytearray(b'\r\n'.join([line, *headers, length % len(body), *([] if fault == 'chunks' else [b'']), body]))
    for _ in range(chance.randint(1, 9) if fault == 'noise' else 0):
        at = chance.randrange(len(request))
        request[at:at + chance.randint(0, 3)] = bytes(chance.randrange(256) for _ in range(chance.randint(0, 3)))
    return bytes(request)


def test_fuzz_of_hostile_requests_changes_nothing(tmp_path):
    count, seed = int(os.environ.get('FUZZ_REQUESTS', 1000)), os.environ.get('FUZZ_SEED', 1)
    with serving(tmp_path, max_result_size=('10_000_000', '100_000')) as project, ThreadPoolExecutor(8) as strangers:
        assert post(project, 1, SCORES) == RECEIVED
        before, numbers_of = files(project), {}

        def attack(number):
            chance = random.Random(f'{seed} {number}')
            return send(project, hostile_request(chance), wait=chance.random() < 0.95)

        for number, answer in enumerate(strangers.map(attack, range(count))):
            status = re.match(rb'HTTP/1.1 (\d+) ', answer)
            numbers_of.setdefault(int(status[1]) if status else answer[:40], []).append(number)
        print(f'{count} requests:', {status: len(numbers) for status, numbers in numbers_of.items()})
        for status, numbers in numbers_of.items():    # 505: not a version of HTTP
            assert isinstance(status, bytes) or 400 <= status < 500 or status == 505, (status, numbers[:10])
        assert files(project) == before
        assert post(project, 2, SCORES) == RECEIVED and len(table(*project.results())) == 9
