"""The simulated series that is shipped, and others."""
import numpy as np
import pytest
from scipy import stats

from input.simulate import OUTPUT, simulate, write_table


def test_shipped_file_is_byte_for_byte_what_simulate_writes(project):
    table = project.folder / 'input' / OUTPUT.name
    table.unlink()
    assert project.run('input/simulate.py').errors == []
    assert table.read_bytes() == OUTPUT.read_bytes()


def test_shipped_phenotypes_are_mixed_and_no_probeset_can_be_taken_for_a_measured_one():
    header, *samples = [line.split('\t') for line in OUTPUT.read_text().splitlines()]
    phenotypes = [sample[0] for sample in samples]
    assert header == ['phenotype'] + [f'simulated_{i:04d}' for i in range(1, 5001)]
    assert (phenotypes.count('Psoriatic Arthritis'), phenotypes.count('Psoriasis')) == (33, 27)
    assert len(set(phenotypes[:10])) == len(set(phenotypes[-10:])) == 2


def test_one_probeset_in_125_differs_by_turns_up_and_down_and_the_others_do_not():
    phenotypes, _, matrix = simulate()
    arthritis = np.array(phenotypes) == 'Psoriatic Arthritis'
    t, p = stats.ttest_ind(matrix[arthritis], matrix[~arthritis])
    differing = np.arange(5000) % 125 == 0
    assert 3.4 < np.abs(t[differing]).mean() < 4.4    # sqrt(33 * 27 / 60) = 3.9: one standard deviation
    assert (t[::250] > 0).all() and (t[125::250] < 0).all()
    assert 0.04 < (p[~differing] < 0.05).mean() < 0.06


@pytest.mark.parametrize('arguments, problem', [
    (['--samples', 19], 'at least 20'), (['--probesets', 0], 'at least 1'), (['--samples', 'ten'], "'ten'"),
    (['--samples', 10 ** 30], 'OverflowError'), (['--output', 'nowhere/it'], 'nowhere/it'),
    (['--output', 'input'], 'input is not a regular file')])
def test_what_cannot_be_simulated_or_written_is_told_in_a_line(project, arguments, problem):
    run = project.run('input/simulate.py', *arguments)
    assert (run.status, run.lines, len(run.errors)) == (1, [], 1)
    run.wait_for('simulate.py: .*' + problem)


def test_a_write_that_fails_leaves_the_old_table(tmp_path):
    table = tmp_path / 'table.txt'
    table.write_text('the table of before\n')
    with pytest.raises(AttributeError):
        write_table(table, ['Psoriasis'] * 2, ['simulated_0001'], [np.array([1.0]), None], decimals=2)
    assert table.read_text() == 'the table of before\n' and list(tmp_path.iterdir()) == [table]
