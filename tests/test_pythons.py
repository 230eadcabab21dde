"""The job starts on the Pythons that the README names, says so on any other, and cannot freeze."""
import ast
import re
import subprocess
import sys
import time

import pytest
from packaging.requirements import Requirement

from .project import PROJECT

SUPPORTED = ['3.10', '3.11', '3.12', '3.13', '3.14']
TOO_OLD, UNTRIED = ['3.7', '3.9'], ['3.15', '4.0']
PRETEND = '''
import collections, runpy, sys
version = collections.namedtuple('version', 'major minor micro releaselevel serial')
sys.version_info = version(*map(int, sys.argv.pop(1).split('.')), 0, 'final', 0)
sys.modules.update(dict.fromkeys(['dcp', 'nest_asyncio2', 'pythonmonkey']))    # as if they were not installed
(runpy.run_path if sys.argv[1].endswith('.py') else runpy.run_module)(sys.argv.pop(1), run_name='__main__')
'''


# Versions

def start(version, *command):
    """Start a script as if on that Python, without packages. Return its status and what it prints."""
    run = subprocess.run([sys.executable, '-u', '-c', PRETEND, version, *command], cwd=PROJECT, timeout=60,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding='utf-8')
    return run.returncode, run.stdout.splitlines()


def tells_what_to_do(line):
    return 'Python 3.10 to 3.14' in line and 'venv' in line


command = pytest.mark.parametrize('command', [['remote-job.py'], ['tests.mock_dcp', '--help']], ids=' '.join)


@command
@pytest.mark.parametrize('version', TOO_OLD)
def test_older_python_is_refused_at_once_in_one_line(command, version):
    status, lines = start(version, *command)
    assert status == 1 and len(lines) == 1 and tells_what_to_do(lines[0]), lines


@command
@pytest.mark.parametrize('version', UNTRIED)
def test_newer_python_is_warned_of_and_tried(command, version):
    _, (first, *more) = start(version, *command)
    assert tells_what_to_do(first) and more


@command
@pytest.mark.parametrize('version', SUPPORTED)
def test_supported_python_is_not_talked_about(command, version):
    _, lines = start(version, *command)
    assert lines and not any(map(tells_what_to_do, lines))


@pytest.mark.parametrize('path', ['remote-job.py', 'tests/mock_dcp/__init__.py'])
def test_older_python_can_read_as_far_as_the_refusal(path):
    ast.parse((PROJECT / path).read_text(encoding='utf-8'), feature_version=(3, 7))


@pytest.mark.parametrize('version', TOO_OLD + SUPPORTED + UNTRIED)
def test_requirements_refuse_the_same_pythons(version):
    lines = (PROJECT / 'requirements.txt').read_text().replace('\\\n', '').splitlines()
    every = [Requirement(line) for line in lines if not line.startswith('#')]
    wanted = [r for r in every if not r.marker or r.marker.evaluate({'python_version': version})]
    assert len({r.name for r in wanted}) == len(wanted)
    refused = [r.url for r in wanted if r.url]
    assert len(refused) == (version in TOO_OLD) and all('3.10%20to%203.14' in url for url in refused)


@pytest.mark.parametrize('path', ['.ci/run', '.github/workflows/tutorial.yml'])
def test_all_supported_pythons_are_tried(path):
    assert re.findall(r"\b3\.\d+\b", (PROJECT / path).read_text()) == SUPPORTED


# The freeze

def remedy():
    """Return the JavaScript in remote-job.py that makes WebAssembly synchronous."""
    calls = [node for node in ast.walk(ast.parse((PROJECT / 'remote-job.py').read_text(encoding='utf-8')))
             if isinstance(node, ast.Call) and ast.unparse(node.func) == 'pm.eval']
    texts = [call.args[0].value for call in calls if isinstance(call.args[0], ast.Constant)]
    [text] = [text for text in texts if 'WebAssembly.instantiate =' in text]
    return text


def freezes(javascript, seconds):
    try:
        subprocess.run([sys.executable, PROJECT / 'tests/freeze.py', javascript], check=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return True


def test_pythonmonkey_would_freeze_but_for_the_line_in_remote_job():
    started = time.monotonic()
    assert not freezes(remedy(), seconds=60)
    needed = time.monotonic() - started
    assert any(freezes('', seconds=2 + 3 * needed) for _ in range(3)), 'the line in remote-job.py can go'
