"""However a job ends, one plain line tells why, and nothing that costs money is left behind."""
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys

import pytest

from .project import make_certificate

IMPATIENT = ('patience = 30', 'patience = 0.5')
NO_GRACE = ('call_later(10,', 'call_later(0.1,')    # for DCP to answer to a cancellation
ON_STATE = "    print('State:', state)\n"
PROGRESS = 'progress();    // DCP demands this call: at least once per slice, and every 30 s'


def assert_ends_with(job, line):
    """Check that the job has ended with status 1 and one plain line, which matches a regular expression."""
    assert job.status == 1, job.output
    assert len(job.errors) == 1 and re.search(line, job.errors[0]), job.output
    assert 'Done.' not in job.lines


@pytest.fixture
def told(served):
    """Return a function that lists what the job script has made the scheduler do, in a job with `log`."""
    def told():
        messages = map(json.loads, served.log.read_text().splitlines())
        answers = [message for message in messages if message['to'] == 'script']
        return [answer['operation'] for answer in answers if 'payload' in answer.get('data', '')]
    served.log = served.folder / 'messages'
    return told


# Before there is a job

def test_no_keystore(project, tmp_path):
    job = project.run_job(DCP_RESOURCE_DIR=str(tmp_path))
    assert_ends_with(job, r"^DCP: .* keystore named 'id' .*\(ask dan@dcp.dev")


def test_no_network(project):
    job = project.run('remote-job.py', DCP_SCHEDULER_LOCATION='http://127.0.0.1:1')
    assert_ends_with(job, '^DCP: .*Connection refused.* Check network')


def test_ctrl_c_while_dcp_loads(project):
    with socket.create_server(('127.0.0.1', 0)) as silent_scheduler:
        job = project.start('remote-job.py',
                            DCP_SCHEDULER_LOCATION=f'http://127.0.0.1:{silent_scheduler.getsockname()[1]}')
        connection, _ = silent_scheduler.accept()
        job.stop(signal.SIGINT)
        connection.close()
    assert job.status == -signal.SIGINT and job.output == ''


def test_server_does_not_run(project):
    job = project.run_job()
    assert_ends_with(job, f'^server.py does not answer at {project.url} .*: start it, or correct server_url')


def test_another_server_answers(project):
    project.start('-m', 'http.server', project.port).wait_for('Serving HTTP')
    assert_ends_with(project.run_job(), f'^server.py does not answer at {project.url} .*404')


def test_server_url_is_no_url(project):
    project.edit('remote-job.py', f"'{project.url}'", f"'127.0.0.1:{project.port}'")
    assert_ends_with(project.run_job(), '^server_url must begin with http://')


@pytest.mark.parametrize('right, wrong, line', [
    ('n_signatures = 10', 'n_signatures = 0', '^There are no slices'),
    ('# WORK FUNCTION', 'slices = range(3)\n\n# WORK FUNCTION', '^Python ints .* do not arrive as such: use floats'),
    ('# WORK FUNCTION', 'slices = [1, 2]\n\n# WORK FUNCTION', '^Python ints .* do not arrive as such: use floats'),
    ("# WORK FUNCTION", "import numpy\nslices = list(numpy.ones((2, 3)))\n\n# WORK FUNCTION", "^Python ints .and NumPy arrays"),
    ('[data])', '[data, 5])', '^Python ints .* do not arrive as such: use floats'),
    ('# WORK FUNCTION', 'slices = [[{"a": (1.0, 2.0)}]]\n\n# WORK FUNCTION', '^Python tuples do not arrive as lists'),
    ('[data])', '[data, (1.0, 2.0)])', '^Python tuples do not arrive as lists'),
])
def test_setting_that_would_go_wrong_without_a_word(project, right, wrong, line):
    project.edit('remote-job.py', right, wrong)
    assert_ends_with(project.run_job(), line)


@pytest.mark.parametrize('keys', [{'server.py': 'right'}, {'remote-job.py': 'right'},
                                  {'server.py': 'a&b', 'remote-job.py': 'a&b'}])
def test_wrong_access_key(project, keys):
    for script, key in keys.items():
        project.edit(script, "access_key = ''", f'access_key = {key!r}')
    project.serve()
    assert_ends_with(project.run_job(), '^server.py refuses this script: set access_key to the same letters and digits')


@pytest.mark.parametrize('slip, wrong, line', [
    (PROGRESS, 'progress(;', 'progress(;'),
    ('    }\n    sample.scores.ensemble', '    sample.scores.ensemble', "}'''"),    # seen at the end only
])
def test_work_function_does_not_compile(project, slip, wrong, line):
    project.edit('remote-job.py', slip, wrong)
    lines = (project.folder / 'remote-job.py').read_text().splitlines()
    number = 1 + next(i for i, text in enumerate(lines) if line in text)
    job = project.run_job()
    assert_ends_with(job, f'^The work function does not compile, see line {number}: ')
    assert not job.lines


def test_work_function_in_a_file_of_its_own_does_not_compile(project):
    (project.folder / 'input' / 'work.js').write_text('(slice, data) => {\n  progress(;\n}')
    project.edit('remote-job.py', '# JOB', "work_function = open('input/work.js').read()\n\n# JOB")
    assert_ends_with(project.run_job(), '^The work function does not compile, see line 2: ')


# While DCP takes the job

def test_wrong_join_secret(served):
    job = served.run_job('--join', 'demo,other')
    assert_ends_with(job, '^Job cancelled: DCP does not know this joinKey and joinSecret: check job.computeGroups')


def test_dcp_refuses_the_job_for_another_reason(served):
    served.edit('remote-job.py', "'map-basic'", "'map-advanced'")
    assert_ends_with(served.run_job(), '^Job not deployed: Invalid Worktime map-advanced')


def test_dcp_does_not_answer(served):
    served.edit('remote-job.py', *IMPATIENT)
    served.edit('remote-job.py', *NO_GRACE)
    job = served.run_job('--fault', 'no-answer')
    assert_ends_with(job, r'^Job \w{22} may still run: no news from DCP for 0.5 s')


@pytest.mark.parametrize('state, fate', [('exec', 'not deployed'), ('deploying', 'cancelled')])
def test_ctrl_c_while_dcp_takes_the_job(served, told, state, fate):
    interrupt = f"    if state == {state!r}: signal.raise_signal(signal.SIGINT)\n"
    served.edit('remote-job.py', ON_STATE, ON_STATE + interrupt)
    job = served.run_job('--log', served.log)
    assert_ends_with(job, f'^Job {fate}: stopped by its owner')
    assert ('cancelJob' in told()) == (fate == 'cancelled')


def test_slip_while_the_job_is_deployed_cancels_it(served, told):
    served.edit('remote-job.py', ON_STATE, ON_STATE + "    if state == 'deployed': slip\n")
    job = served.run_job('--log', served.log)
    assert_ends_with(job, "^Job cancelled: Python NameError: name 'slip' is not defined")
    assert 'cancelJob' in told()


def test_terminal_is_closed_while_dcp_takes_the_job(served, told):
    command = [sys.executable, *served.job_command('--log', served.log, '--fault', 'late')]
    ours, terminal = pty.openpty()
    job = subprocess.Popen(['setsid', '--ctty', *map(str, command)], cwd=served.folder, stdin=terminal,
                           stdout=terminal, stderr=terminal)
    os.close(terminal)
    with open(ours) as screen:
        while next(screen) != 'State: deploying\n':
            pass
    assert job.wait(20) == 1
    assert 'cancelJob' in told()


# While the job runs

def test_worker_refuses_the_origin(served, told):
    job = served.start_job('--allow-origin', 'http://other.example', '--workers', '8', '--log', served.log)
    job.wait_for(f'start it with --allow-origin {served.url}$')
    job.process.send_signal(signal.SIGINT)
    job.stop(signal.SIGINT)    # who presses Ctrl-C, presses it twice
    assert_ends_with(job, '^Job cancelled: stopped by its owner')
    assert sum('--allow-origin' in line for line in job.lines) == 1
    assert 'cancelJob' in told()


def test_silence_has_a_cause(served, told):
    served.edit('remote-job.py', *IMPATIENT)
    job = served.start_job('--workers', '0', '--log', served.log)
    job.wait_for('No news for 0.5 s: no worker has fetched the data. Is one in your compute group, ')
    served.request('/GSE57383_ps_psa')
    job.wait_for('No news for 0.5 s: workers have fetched the data, but post no result now')
    served.request('/other')
    job.wait_for('No news for 0.5 s: server.py refused a request: .* 404')
    served.server.stop()
    job.wait_for(f'No news for 0.5 s: server.py does not answer at {served.url}')
    job.stop(signal.SIGTERM)
    assert_ends_with(job, '^Job cancelled: stopped by its owner')
    assert 'cancelJob' in told()


def test_scheduler_is_lost(served):
    served.edit('remote-job.py', *NO_GRACE)
    job = served.start_job('--fault', 'lost')
    job.wait_for('Slice')
    job.stop(signal.SIGHUP)
    assert_ends_with(job, r'^Job \w{22} may still run: stopped by its owner')


def test_scheduler_cancels_the_job(served):
    assert_ends_with(served.run_job('--fault', 'cancel'), '^Job cancelled: the mocked scheduler was told to')


def test_nohup_lets_the_job_live(served):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)    # which the job inherits, as from nohup
    try:
        job = served.start_job()
    finally:
        signal.signal(signal.SIGHUP, before)
    job.wait_for('awaiting results')
    job.stop(signal.SIGHUP)
    assert job.status == 0 and job.lines[-1] == 'Done.', job.output


def test_no_funds_and_a_slip_are_told(served):
    served.edit('remote-job.py', 'int(event.sliceNumber)', 'int(event.slyceNumber)')
    lines = (served.folder / 'remote-job.py').read_text().splitlines()
    number = 1 + next(i for i, text in enumerate(lines) if 'slyceNumber' in text)
    job = served.run_job('--fault', 'no-funds')
    assert job.status == 0 and job.lines[-1] == 'Done.' and not job.errors, job.output
    assert '  No funds: the job waits until the account has 12.5 more compute credits.' in job.lines
    (problem,) = [line for line in job.lines if 'Problem: ' in line]
    assert problem.startswith('  Problem: Python ') and problem.endswith(f' (line {number})')


# After the job

def test_slices_without_a_result(project):
    project.edit('remote-job.py', '  // SIGNATURE:',
                 "  if (slice[0] === 0.42) throw Error('no such gene');\n"
                 "  if (slice[0] === 0.43) { progress(); return null; }\n  // SIGNATURE:")
    project.edit('remote-job.py', '# WORK FUNCTION', 'slices[2:4] = [0.42], [0.43]\n\n# WORK FUNCTION')
    project.edit('server.py', 'answer = results.store(slice_number, result)',
                 "answer = 'Result received' if slice_number == 7 else results.store(slice_number, result)")
    project.serve()
    job = project.run_job()
    assert_ends_with(job, r'^2 of 10 slices have no result. The first of them: \[3, 7\]')
    failed = sorted(line for line in job.lines if '✘' in line)
    assert failed == ["    ✘ Slice 3: work function failed: 'no such gene'",
                      '    ✘ Slice 4: Result received, but it is empty: return an object']
    assert sum('✔' in line for line in job.lines) == 8
    lines = (project.folder / 'remote-job.py').read_text().splitlines()
    number = 1 + next(i for i, text in enumerate(lines) if 'no such gene' in text)
    assert f'  The work function threw at line {number}.' in job.lines


def test_whole_job_over_https_with_an_access_key(project):
    certificate, _ = make_certificate(project.folder)
    project.url = project.url.replace('http:', 'https:')
    project.edit('server.py', 'certificate = None ',
                 "certificate = (here / 'certificate.pem', here / 'private_key.pem')")
    project.edit('remote-job.py', "server_url = 'http:", "server_url = 'https:")
    for script in ('server.py', 'remote-job.py'):
        project.edit(script, "access_key = ''", "access_key = 'secret1'")
    server = project.serve()
    assert_ends_with(project.run_job(), '^The certificate of https://.* is not trusted: set SSL_CERT_FILE')
    job = project.run_job(SSL_CERT_FILE=str(certificate), NODE_EXTRA_CA_CERTS=str(certificate))
    assert job.status == 0 and job.lines[-1] == 'Done.', job.output
    assert 'secret1' not in server.output + job.output
