"""What goes wrong is said in one plain line that tells what to do: no hang, no traceback."""
import re
import signal
import time

import pytest

PATIENCE = ('patience = 30', 'patience = 1')
THROW_IN_SLICE_3 = ('    const train =', "    if (i === 3) throw Error('no such gene');\n    const train =")


def assert_ends_with(job, line, within=20):
    """Check that the job has ended soon, with status 1 and one plain line, which matches a regular expression."""
    assert job.status == 1, job.output
    assert time.monotonic() - job.started < within
    assert len(job.errors) == 1 and re.search(line, job.errors[0]), job.output
    assert 'Done.' not in job.lines


# Before the job starts

def test_no_keystore(served, tmp_path):
    job = served.run_job(DCP_RESOURCE_DIR=str(tmp_path))
    assert_ends_with(job, r"^DCP: .* keystore named 'id' .*\(ask dan@dcp.dev\)")


def test_no_network(served):
    job = served.run('remote-job.py', DCP_SCHEDULER_LOCATION='http://127.0.0.1:1')
    assert_ends_with(job, '^DCP: .*Connection refused.* Check network')
    assert not job.lines


def test_server_does_not_run(project):
    job = project.run_job()
    assert_ends_with(job, f'^server.py does not answer at {project.url} .* start it, and set server_url on line 26')
    assert not job.lines


def test_server_url_is_no_url(served):
    served.edit('remote-job.py', f"'{served.url}'", f"'127.0.0.1:{served.port}'")
    assert_ends_with(served.run_job(), 'Invalid scheme')


@pytest.mark.parametrize('broken', ['progress(;', 'const progress();'])
def test_work_function_does_not_compile(served, broken):
    served.edit('remote-job.py', 'progress((f + 1) / folds);', broken)
    job = served.run_job()
    assert_ends_with(job, r'^The work function does not compile, its line \d+: ')
    assert not job.lines


@pytest.mark.parametrize('group', ['demo,other', 'other,dcp'])
def test_wrong_join_key_or_secret(served, group):
    assert_ends_with(served.run_job('--join', group), 'joinKey and joinSecret: check line 99')


def test_deployment_fails_for_another_reason(served):
    served.edit('remote-job.py', "'map-basic'", "'map-advanced'")
    assert_ends_with(served.run_job(), '^Job not deployed: Invalid Worktime map-advanced')


def test_dcp_does_not_answer(served):
    served.edit('remote-job.py', *PATIENCE)
    assert_ends_with(served.run_job('--fault', 'no-answer'), '^DCP has not answered for 1 s')


def test_wrong_access_key(project):
    project.edit('server.py', "access_key = ''", "access_key = 'right'")
    project.serve()
    assert_ends_with(project.run_job(), '^server.py refuses /GSE57383_ps_psa .*403.* access_key in both scripts')


# While the job runs

def test_worker_refuses_the_origin(served):
    job = served.start_job('--allow-origin', 'http://other.example', '--workers', '8')
    job.wait_for(f'start the worker with --allow-origin {served.url}$')
    job.stop(signal.SIGINT)
    assert sum('--allow-origin' in line for line in job.lines) == 1


def test_work_function_throws(served):
    served.edit('remote-job.py', *THROW_IN_SLICE_3)
    job = served.run_job()
    assert_ends_with(job, r'^1 of 10 slices have no result: \[3\]')
    assert [line for line in job.lines if '✘' in line] == ['    ✘ Slice 3: work function failed: no such gene']
    assert sum('✔' in line for line in job.lines) == 9


def test_work_function_never_calls_progress(served):
    served.edit('remote-job.py', ' progress((f + 1) / folds);', '')
    job = served.start_job()
    job.wait_for('A worker failed: Sandbox never emitted a progress event')
    job.stop(signal.SIGINT)


def test_no_funds(served):
    job = served.run_job('--fault', 'no-funds')
    assert job.status == 0, job.output
    assert '  No funds: the job waits until the account has 12.5 more compute credits.' in job.lines


def test_job_is_cancelled(served):
    assert_ends_with(served.run_job('--fault', 'cancel'), '^Job cancelled: the mocked scheduler was told to cancel')


def test_interrupt_cancels_the_job(served):
    job = served.start_job('--workers', '0')
    job.wait_for('awaiting results')
    job.stop(signal.SIGINT)
    assert_ends_with(job, 'the job is cancelled')


def test_interrupt_while_deploying_cancels_what_the_scheduler_has(served):
    served.edit('remote-job.py', "    print('State:', state)\n",
                "    print('State:', state)\n    state == 'uploading' and signal.raise_signal(signal.SIGINT)\n")
    assert_ends_with(served.run_job(), 'the job is cancelled')


def test_slip_in_a_callback_is_told(served):
    served.edit('remote-job.py', 'int(event.sliceNumber)', 'int(event.slyceNumber)')
    assert any('remote-job.py, on line' in line for line in served.run_job().lines)


def test_input_set_may_be_any_values(served):
    served.edit('remote-job.py', 'range(1, n_signatures + 1)', 'range(n_signatures)')
    assert served.run_job().lines[-1] == 'Done.'


@pytest.mark.parametrize('silence', [('--workers', '0'), ('--fault', 'refuse-post')])
def test_results_do_not_come(served, silence):
    served.edit('remote-job.py', *PATIENCE)
    job = served.start_job(*silence)
    job.wait_for(f"No result for 1 s: does a worker run in compute group 'demo', .* --allow-origin {served.url},")
    assert job.status is None
    job.stop(signal.SIGINT)
    assert sum('No result' in line for line in job.lines) == 1


# After the job

def test_result_is_missing_from_the_server(project):
    project.edit('server.py', '        arrivals.put(arrival)\n        arrival.stored.result()\n',
                 "        if g.slice != '7':\n            arrivals.put(arrival)\n            arrival.stored.result()\n")
    project.serve()
    job = project.run_job()
    assert_ends_with(job, r'^1 of 10 slices have no result: \[7\]')
    assert '    ✔ Slice 7: Result received' in job.lines
