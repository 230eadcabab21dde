"""The README and the code never disagree."""
import re
import subprocess

import pytest

from .project import PROJECT
from .test_work_function import WORK_FUNCTION, table

README = (PROJECT / 'README.md').read_text()
BLOCKS = re.findall(r'^```\n(.*?)^```', README, re.MULTILINE | re.DOTALL)
TOP_LEVEL = ['README.md', 'input', 'remote-job.py', 'requirements.txt', 'results', 'server.py', 'tests']


def block(start):
    """Return the lines of the one code block of the README that starts with a regular expression."""
    (found,) = [text for text in BLOCKS if re.match(start, text)]
    return found.splitlines()


@pytest.mark.parametrize('number, line', [(26, "server_url = 'http://127.0.0.1:5001'"),
                                          (99, "job.computeGroups = [{'joinKey': 'demo', 'joinSecret': 'dcp'}]")])
def test_lines_to_edit_are_where_the_readme_says(number, line):
    assert (PROJECT / 'remote-job.py').read_text().splitlines()[number - 1] == line
    assert block(re.escape(line)) == [line]
    assert f'**line {number}**' in README


def test_job_prints_the_block_of_the_readme(served):
    """But for the job's id, and the order in which the slices finish."""
    job = served.run_job()
    printed = [re.sub('Job ID: [A-Za-z0-9]{22}', 'Job ID: jCTpufKzW0ps0qifz6xZdX', line) for line in job.lines]
    expected = block('State: exec')
    assert printed[:10] == expected[:10] and printed[-1] == expected[-1]
    assert sorted(printed[10:-1]) == sorted(expected[10:-1])
    assert job.status == 0 and not job.errors


def test_server_prints_the_block_of_the_readme(served):
    printed = [re.sub(r'http://[\d.]+:\d+', 'http://122.148.6.59:5001', line) for line in served.server.lines]
    assert printed == block(r' \* Serving data on:')


def test_first_quick_start_command_ends_with_the_results(project):
    (command,) = block('python3 -m venv .* tests.mock_dcp$')
    job = project.run(*command.partition('.venv/bin/python ')[2].split())
    assert job.status == 0, job.output
    assert re.sub('ID: .*', '', '\n'.join(job.lines[:13])) == re.sub('ID: .*', '', '\n'.join(
        [*job.lines[:4], *block('State: exec')[:9]]))
    table = job.lines[job.lines.index('Done.') + 2:]
    assert re.fullmatch(r'.*/results/GSE57383_PsA_vs_Ps_\d{6}_\d{6}\.txt:', table[0])
    assert table[1].split('\t') == ['slice', 'classifier', 'accuracy', 'auc', 'probesets']
    assert {row.split('\t')[0] for row in table[2:]} == {str(i) for i in range(1, 11)}


def test_tutorial_uses_a_server_that_runs(served):
    job = served.run('-m', 'tests.mock_dcp')
    assert job.status == 0 and job.lines[0] == 'State: exec', job.output
    assert sum('Result received' in line for line in served.server.errors) == 10


def test_ci_runs_the_test_command_of_the_readme():
    (command,) = block('python3 -m venv .* pytest$')
    assert [line for line in README.splitlines() if line.endswith('-m pytest')] == [command]
    assert "grep -- '-m pytest$' README.md" in (PROJECT / '.ci' / 'run').read_text()


def test_configuration_table_names_what_is_there():
    table = README.partition('## Configuration')[2].partition('## ')[0]
    rows = re.findall(r'^\| (.*?) \| (.*?) \| .*? \|$', table, re.MULTILINE)[2:]
    assert len(rows) > 10
    for parameters, location in rows:
        scripts = ['remote-job.py', 'server.py'] if 'both' in location else re.findall('`([a-z-]+.py)`', location)
        for name in re.findall('`(\\w+)`', parameters):
            for script in scripts or ['remote-job.py']:
                assert re.search(rf'^.*\b{name}\b.* = ', (PROJECT / script).read_text(), re.MULTILINE), name
        for code in re.findall(r'`((?:job|wallet)\..*?)`', location):
            assert code in (PROJECT / 'remote-job.py').read_text()
        if 'line' in location:
            number = int(re.search(r'line (\d+)', location)[1])
            assert re.search(r'server_url|computeGroups', parameters)[0] in (
                PROJECT / 'remote-job.py').read_text().splitlines()[number - 1]


def test_project_structure_is_the_one_of_the_readme():
    tree = re.findall(r'[├└]── (\S+)', '\n'.join(block(r'\.\n')))
    files = {name.rstrip('/') for name in tree if not name.startswith('GSE57383_PsA')}
    assert files == {*TOP_LEVEL, 'GSE57383_ps_psa.txt', 'simulate.py', 'from_geo.py'}
    assert all(list(PROJECT.glob(f'**/{name}')) for name in files)


def test_top_level_holds_nothing_else():
    listed = subprocess.run(['git', 'ls-files'], cwd=PROJECT, capture_output=True, text=True).stdout.split('\n')
    if not any(listed):
        pytest.skip('not a git checkout')
    assert sorted({name.partition('/')[0] for name in listed if name and not name.startswith('.')}) == TOP_LEVEL


def test_best_signature_of_no_difference_is_as_good_as_the_readme_says():
    program = f"""const progress = () => {{}}, work = {WORK_FUNCTION}, data = require('fs').readFileSync(0, 'utf8');
                  const aucs = Array.from({{ length: 1000 }}, (_, i) => work(i + 1, 1000, 5, 9, 42, data)[3].auc);
                  console.log(Math.max(...aucs));"""
    best = subprocess.run(['node', '-e', program], input=table(60, 5000, differing=0), capture_output=True, text=True)
    assert f'the best of 1,000 signatures reaches an AUC of {best.stdout.strip()}.' in README.replace('\n', ' ')


def test_requirements_are_the_six_packages():
    lines = (PROJECT / 'requirements.txt').read_text().split()
    assert [re.match(r'\w+', line)[0] for line in lines] == ['dcp', 'pythonmonkey', 'flask', 'numpy', 'scipy', 'pytest']
    assert lines[0].startswith('dcp==') and all('<' in line for line in lines[1:])
