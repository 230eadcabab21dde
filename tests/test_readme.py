"""The README and the code never disagree."""
import csv
import json
import re
import subprocess
import sys
from urllib.parse import unquote

import pytest
from packaging.requirements import Requirement

from .project import PROJECT, Project, compute, input_set, table

README = (PROJECT / 'README.md').read_text(encoding='utf-8')
BLOCKS = re.findall(r'^```\w*\n(.*?)^```', README, re.MULTILINE | re.DOTALL)
SCRIPT_LINES = (PROJECT / 'remote-job.py').read_text(encoding='utf-8').splitlines()
TOP_LEVEL = ['README.md', 'input', 'remote-job.py', 'requirements.txt', 'results', 'server.py', 'tests']


def block(start):
    """Return the lines of the one code block of the README that starts with a regular expression."""
    (found,) = [text for text in BLOCKS if re.match(start, text)]
    return found.splitlines()


def rows(heading):
    """Return the rows of the table under a heading, as lists of cells, without the table's own header."""
    lines = README.partition(f'## {heading}\n')[2].partition('\n## ')[0].splitlines()
    cells = [[cell.strip() for cell in line.strip('|').split(' | ')] for line in lines if line.startswith('|')]
    return cells[2:]


# Commands, and what they print

@pytest.fixture(scope='module')
def done(tmp_path_factory):
    """A project whose job is done: (project, job)."""
    project = Project(tmp_path_factory.mktemp('done') / 'project')
    project.serve()
    yield project, project.run_job()
    project.stop()


def test_job_prints_the_block_of_the_readme(done):
    """But for the job's id, and the order in which the slices finish."""
    _, job = done
    printed = [re.sub('Job ID: [A-Za-z0-9]{22}', 'Job ID: jCTpufKzW0ps0qifz6xZdX', line) for line in job.lines]
    expected = block('State: exec')
    assert printed[:10] == expected[:10] and printed[-1] == expected[-1], job.output
    assert sorted(printed[10:-1]) == sorted(expected[10:-1])
    assert job.status == 0 and not job.errors


def test_server_prints_the_block_of_the_readme(one_server):
    printed = [re.sub(r'http://[\d.]+:\d+', 'http://122.148.6.59:5001', line) for line in one_server.server.lines]
    assert printed == block(r' \* Serving data on:')


def test_first_quick_start_command_ends_with_the_results(project):
    (command,) = block('python3 -m venv .* tests.mock_dcp$')
    job = project.run(*command.partition('.venv/bin/python ')[2].split())
    assert job.status == 0, job.output
    assert [line.partition(': ')[2] for line in job.lines[4:12]] == [
        line.partition(': ')[2] for line in block('State: exec')[:8]]
    path, header, *lines = job.lines[job.lines.index('Done.') + 2:]
    assert re.fullmatch(r'.*[/\\]results[/\\]GSE57383_PsA_vs_Ps_\d{6}_\d{6}\.txt:', path)
    assert header.startswith('job\tslice\tprobesets\t')
    assert {line.split('\t')[1] for line in lines} == {str(number) for number in range(1, 11)}


def test_tutorial_uses_a_server_that_runs(served):
    job = served.run('-m', 'tests.mock_dcp')
    assert job.status == 0 and job.lines[0] == 'State: exec', job.output
    assert sum('Result received' in line for line in served.server.errors) == 10


def test_tutorial_says_that_server_url_was_not_changed_with_the_port(project):
    project.edit('server.py', f'port = {project.port}', 'port = 0')    # any one that is free
    job = project.run('-m', 'tests.mock_dcp')
    assert job.status == 1 and f'server.py does not answer at {project.url}: set server_url' in job.output


def test_ci_runs_the_commands_of_the_readme():
    ci = (PROJECT / '.ci' / 'run').read_text()
    for pattern in ('-m pytest$', '^python3 .* -m tests.mock_dcp$'):
        assert f"'{pattern}' README.md" in ci
        (command,) = re.findall(rf'(?m)^.*{pattern.removeprefix("^")}', README)
        assert block(re.escape(command)) == [command]


# Places and numbers

@pytest.mark.parametrize('number, line', [(26, "server_url = 'http://127.0.0.1:5001'"),
                                          (99, "job.computeGroups = [{'joinKey': 'demo', 'joinSecret': 'dcp'}]")])
def test_lines_to_edit_are_where_the_readme_says(number, line):
    assert SCRIPT_LINES[number - 1] == line
    assert block(re.escape(line)) == [line]
    assert f'**line {number}**' in README


def test_names_that_anybody_sees_are_where_the_readme_says():
    first, last = map(int, re.search(r'choose them on lines (\d+) to (\d+)', README).groups())
    assert [line.partition(' = ')[0] for line in SCRIPT_LINES[first - 1:last]] == [
        'job.public.name', 'job.public.description', 'job.public.link']


def test_configuration_table_names_what_is_there():
    for parameters, location, _ in rows('Configuration'):
        scripts = ['remote-job.py', 'server.py'] if 'both' in location else re.findall('`([a-z-]+.py)`', location)
        for name in re.findall(r'`(\w+)`', parameters):
            for script in scripts or ['remote-job.py']:
                assert re.search(rf'^.*\b{name}\b.* = ', (PROJECT / script).read_text(), re.MULTILINE), name
        for code in re.findall(r'`((?:job|wallet|random)\..*?)`', location):
            assert code in (PROJECT / 'remote-job.py').read_text()
        if 'line' in location:
            number = int(re.search(r'line (\d+)', location)[1])
            assert re.search(r'server_url|computeGroups', parameters)[0] in SCRIPT_LINES[number - 1]


def test_places_to_change_are_there():
    scripts = ''.join((PROJECT / name).read_text(encoding='utf-8') for name in ('remote-job.py', 'server.py'))
    for _, change in rows('Your own job'):
        for name in re.findall('`([^`]+)`', change):
            assert name in scripts or (PROJECT / name).exists() or name.startswith('result.')


def test_project_structure_is_the_one_of_the_readme():
    tree = re.findall(r'[├└]── (\S+)', '\n'.join(block(r'\.\n')))
    files = {name.rstrip('/') for name in tree if not name.startswith('GSE57383_PsA')}
    assert {*TOP_LEVEL, 'GSE57383_ps_psa.txt', 'simulate.py', 'from_geo.py'} <= files
    assert all(list(PROJECT.glob(f'**/{name}')) for name in files)


def test_top_level_holds_nothing_else():
    listed = subprocess.run(['git', 'ls-files'], cwd=PROJECT, capture_output=True, text=True).stdout.split('\n')
    if not any(listed):
        pytest.skip('not a git checkout')
    assert sorted({name.partition('/')[0] for name in listed if name and not name.startswith('.')}) == TOP_LEVEL


def test_requirements_are_the_packages_that_the_readme_names():
    lines = (PROJECT / 'requirements.txt').read_text().replace('\\\n', '').splitlines()
    names = {Requirement(line).name for line in lines if not line.startswith('#')} - {'needed'}
    assert names == {'dcp', 'pythonmonkey', 'nest-asyncio2', 'flask', 'numpy', 'scipy', 'pytest'}


def test_first_lines_of_the_data_are_those_of_the_readme():
    with open(PROJECT / 'input' / 'GSE57383_ps_psa.txt') as file:
        lines = [next(file).split('\t')[:3] + ['...'] for _ in range(3)]
    assert [re.split(' {2,}', line) for line in block('phenotype')] == lines


# Results

def test_results_are_those_of_the_readme():
    shipped = (PROJECT / 'input' / 'GSE57383_ps_psa.txt').read_text()
    expected = [outcome['result'] for outcome in compute(shipped, input_set())]
    header, *lines = block('job +slice')
    assert header.split()[:3] == ['job', 'slice', 'probesets'] and lines
    for line in lines:
        _, number, probesets, *scores = re.split(r' {2,}', line)
        result = expected[int(number) - 1]
        assert result['probesets'].startswith(probesets.removesuffix('...'))
        assert [float(score) for score in scores] == [result[name] for name in header.split()[3:]]


def test_whole_work_function_of_the_readme_counts_the_samples():
    shipped = (PROJECT / 'input' / 'GSE57383_ps_psa.txt').read_text()
    (outcome,) = compute(shipped, [1.0], source='\n'.join(block(r'\(slice, data\) =>')))
    assert outcome['result'] == {'psoriasis': 27, 'arthritis': 33}


def test_results_of_a_job_are_read_as_the_readme_reads_them(done):
    project, job = done
    (job_id,) = {row['job'] for path in project.results() for row in csv.DictReader(path.open(), delimiter='\t')}
    (project.folder / 'results' / 'other.txt').write_text('another\ttable\n1\t2\n')
    reader = '\n'.join(block('import csv\nimport glob')).replace('jCTpufKzW0ps0qifz6xZdX', job_id)
    printed = subprocess.run([sys.executable, '-c', reader], cwd=project.folder, capture_output=True, text=True)
    rows = sorted(project.rows(job_id), key=lambda row: float(row['ensemble_auc']), reverse=True)
    assert len(rows) == 10
    assert printed.stdout.splitlines() == [
        f'{row["slice"]} {row["ensemble_auc"]} {row["probesets"]}' for row in rows[:3]], printed.stderr


def test_pandas_would_read_the_scores_as_numbers(done):
    project, _ = done
    assert "pandas.read_csv(path, sep='\\t')" in README
    table = [row for path in project.results() for row in csv.DictReader(path.open(newline=''), delimiter='\t')
             if 'job' in row]
    assert table and all(0 <= float(value) <= 1 for row in table for name, value in row.items()
                         if name not in ('job', 'slice', 'probesets'))


def test_best_signature_of_no_difference_is_as_good_as_the_readme_says():
    outcomes = compute(table(60, 5000, differing=0), input_set(1000))
    best = max(outcome['result']['ensemble_auc'] for outcome in outcomes)
    assert f'the best of 1,000 signatures reaches an AUC of {best}.' in README.replace('\n', ' ')


# What leaves the building

@pytest.fixture(scope='module')
def said(tmp_path_factory):
    """All that passes between the scheduler and the rest, in a job whose third slice throws and whose fourth logs."""
    project = Project(tmp_path_factory.mktemp('said') / 'project')
    for script in ('server.py', 'remote-job.py'):
        project.edit(script, "access_key = ''", "access_key = 'SecretKey1'")
    project.edit('remote-job.py', "  // TABLE:", """
  if (slice.length === 7) throw Error('thrown in a slice');
  console.log('written by a slice');
  // TABLE:""")
    project.serve()
    job = project.run_job('--log', 'said.jsonl')
    messages = [json.loads(line) for line in (project.folder / 'said.jsonl').read_text().splitlines()]
    data = (project.folder / 'input' / 'GSE57383_ps_psa.txt').read_text()
    results = [row for path in project.results() for row in csv.DictReader(path.open(newline=''), delimiter='\t')]
    project.stop()
    assert len(results) > 5, job.output
    return {'text': unquote(json.dumps(messages)), 'messages': messages, 'data': data, 'results': results,
            'url': project.url, 'slices': input_set()}


def seen_by_scheduler(what):
    (row,) = [row for row in rows('What leaves the building') if row[0].startswith(what)]
    return row[1]


def test_data_does_not_pass_through_the_scheduler(said):
    assert seen_by_scheduler('the data') == 'no'
    header, *samples = [line.split('\t') for line in said['data'].splitlines()]
    assert not [name for name in header[1:] if name in said['text']]
    assert not [sample for sample in samples if '\t'.join(sample[1:4]) in said['text']]


def test_results_do_not_pass_through_the_scheduler(said):
    assert seen_by_scheduler('the results') == 'no'
    for row in said['results']:
        assert row['probesets'] not in said['text'] and '_auc"' not in said['text']
    answers = {message['data']['result'] for message in said['messages']
               if message['from'] == 'worker' and message['operation'] == 'result'}
    assert {unquote(answer).rpartition(',')[2] for answer in answers} == {
        'Result received', "work function failed: 'thrown in a slice'"}


@pytest.mark.parametrize('what, words', [
    ('the work function', ['const classifiers = {']),
    ('your server', ['/GSE57383_ps_psa?key=SecretKey1', '/dcp-results']),
    ('name, description', ['PsA signature search', 'Scores random gene signatures', 'acc=GSE57383']),
    ('what the work function throws', ['thrown in a slice']),
    ('what it writes', ['written by a slice']),
    ('slice numbers', ['"slice": 10']),
])
def test_scheduler_sees_what_the_readme_admits(said, what, words):
    assert seen_by_scheduler(what) == 'yes'
    for word in words:
        assert word in said['text']


def test_scheduler_sees_the_input_set(said):
    assert seen_by_scheduler('the input set') == 'yes'
    assert all(str(number) in said['text'] for numbers in said['slices'] for number in numbers)


def test_table_says_of_everything_else_that_it_is_not_there(said):
    """Every message is of a kind that the table speaks of: nothing else goes to or comes from the scheduler."""
    operations = {message.get('operation', message.get('event')) for message in said['messages']}
    assert operations <= {'submit@5', 'addSliceData', 'closeJob', 'addJobToGroups', 'subscribeMany', 'unsubscribe',
                          'fetchResult', 'requestTask', 'result', 'workEmit', 'status', 'error', 'stop', 'console'}
