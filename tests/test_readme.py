"""The README's commands, printed blocks, line numbers and names are those of the code."""
import os
import re
import subprocess

import pytest

from .project import PROJECT, Project

README = (PROJECT / 'README.md').read_text(encoding='utf-8')
BLOCKS = re.findall(r'^ *```\w*\n(.*?)^ *```', README, re.MULTILINE | re.DOTALL)
SCRIPTS = {name: (PROJECT / name).read_text(encoding='utf-8') for name in ('remote-job.py', 'server.py')}
SCRIPT_LINES = SCRIPTS['remote-job.py'].splitlines()


def block(start):
    """Return the lines of the one code block that starts with a regular expression."""
    (found,) = [text for text in BLOCKS if re.match(start, text)]
    return found.splitlines()


@pytest.fixture(scope='module')
def done(tmp_path_factory):
    """A project whose job is done, with what server and job have printed."""
    project = Project(tmp_path_factory.mktemp('done') / 'project')
    project.server = project.serve()
    project.job = project.run_job()
    yield project
    project.stop()


def test_job_prints_the_block_of_the_readme(done):
    """But for the job's id, and the order in which slices finish."""
    printed = [re.sub(r'Job ID: \w{22}', 'Job ID: jCTpufKzW0ps0qifz6xZdX', line) for line in done.job.lines]
    expected = block('State: exec')
    assert (printed[:10], printed[-1]) == (expected[:10], 'Done.'), done.job.output
    assert sorted(printed[10:]) == sorted(expected[10:])
    assert done.job.status == 0 and not done.job.errors


def test_first_command_plays_the_tutorial(project):
    (command,) = block('python3 -m venv .* tests.mock_dcp$')
    played = project.run(*command.partition('.venv/bin/python ')[2].split())
    assert played.status == 0 and 'Done.' in played.lines, played.output
    assert {f'    ✔ Slice {number}: Result received' for number in range(1, 11)} <= set(played.lines)


def test_lines_to_edit_are_where_the_readme_says():
    for number in re.findall(r'\*\*line (\d+)\*\*', README):
        assert block(SCRIPT_LINES[int(number) - 1].partition(' = ')[0])    # the value may be the user's
    first, last = map(int, re.search(r'choose them on lines (\d+) to (\d+)', README).groups())
    names = [line.partition(' = ')[0] for line in SCRIPT_LINES[first - 1:last]]
    assert names == ['job.public.name', 'job.public.description', 'job.public.link']


def test_another_computation_begins_as_the_readme_says(done):
    sections = SCRIPTS['remote-job.py'].partition('# INPUT SET')[2].partition('# JOB\n')[0]
    done.edit('remote-job.py', sections, '\n' + '\n'.join(block('slices, arguments = ')) + '\n')
    job = done.run_job()
    rows = done.rows(re.search('Job ID: (.*)', job.output)[1])
    size = str(len((PROJECT / 'input' / 'GSE57383_ps_psa.txt').read_text()))
    assert {(row['number'], row['characters']) for row in rows} == {('1', size), ('2', size), ('3', size)}


def test_results_are_those_of_the_readme(done):
    job = re.search('Job ID: (.*)', done.job.output)[1]
    stored = {row['slice']: row for row in done.rows(job)}
    header, *lines = block('job +slice')
    for line in lines:
        _, number, _, probesets, *scores = re.split(r' {2,}', line)
        assert stored[number]['probesets'].startswith(probesets.removesuffix('...'))
        assert [stored[number][name] for name in header.split()[4:]] == scores


def test_results_are_read_as_the_readme_reads_them(project):
    """Also after a restart, with half a line, a byte order mark, and another job's file."""
    pytest.importorskip('pandas', reason='pandas is not installed: see tests/requirements.txt')
    texts = {'b.txt': '\ufeffjob\tslice\tprobesets\tensemble_auc\nme\t2\tb\t0.7\nme\t1\ta\t0.4\nme\t10\tc\t0.9',
             'a.txt': 'job\tslice\tprobesets\tensemble_auc\nme\t10\tc\t0.65\nme\t3\td\t0.5\nme\t4\te\t0.6\nme\t1',
             'c.txt': 'job\tslice\tresult\nme\t5\tx\n', 'd.txt': 'another\ttable\n1\t2\n'}
    for time, (name, text) in enumerate(texts.items()):
        (project.folder / 'results' / name).write_text(text, encoding='utf-8')
        os.utime(project.folder / 'results' / name, (time, time))
    reader = '\n'.join(block('import glob')).replace('jCTpufKzW0ps0qifz6xZdX', 'me')
    printed = [line.split()[1:] for line in project.run('-c', reader).lines[1:]]
    assert printed == [['2.0', '0.70', 'b'], ['10.0', '0.65', 'c'], ['4.0', '0.60', 'e']]


def test_project_structure_is_the_one_of_the_readme():
    names = [re.search(r'[├└]── ([^ /]+)', line)[1] for line in block(r'\.\n')[1:]]
    listed = subprocess.run(['git', 'ls-files'], cwd=PROJECT, capture_output=True, text=True).stdout.split()
    top_level = {name.partition('/')[0] for name in listed if not name.startswith('.')}
    assert top_level <= {*names, 'README.md', 'requirements.txt'}
    assert all(list(PROJECT.glob(f'**/{name}')) for name in names if not name.startswith('GSE57383_PsA'))
