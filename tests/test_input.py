"""The simulated series that is shipped, and the conversion of the real one."""
import gzip
import io
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

INPUT = Path(__file__).resolve().parent.parent / 'input'
sys.path.insert(0, str(INPUT))
import from_geo  # noqa: E402 (input/ has to be on the path first)
import simulate as simulation  # noqa: E402
from simulate import MODULE_SIZE, simulate, write_table  # noqa: E402

PSA, PS = 'Psoriatic Arthritis', 'Psoriasis'


def run_as_a_command(script, *args):
    return subprocess.run([sys.executable, script, *map(str, args)], capture_output=True, text=True)


def run(script, *args):
    """Do the same without starting Python and NumPy once more: call the main() of an imported script."""
    output, errors, status = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(errors):
        patch.setattr(sys, 'argv', [script.__file__, *map(str, args)])
        try:
            script.main()
        except SystemExit as end:
            status = 1
            print(end, file=sys.stderr)
    return SimpleNamespace(returncode=status, stdout=output.getvalue(), stderr=errors.getvalue())


def read_table(path):
    """Return (phenotypes, names, matrix) of a table, checking that it has no gaps."""
    header, *rows = [line.split('\t') for line in path.read_text(encoding='utf-8').splitlines()]
    assert header[0] == 'phenotype'
    matrix = np.array([row[1:] for row in rows], float)
    assert matrix.shape == (len(rows), len(header) - 1)
    assert np.isfinite(matrix).all()
    return [row[0] for row in rows], header[1:], matrix


def assert_one_line_error(result, *words):
    assert result.returncode == 1
    assert result.stdout == ''
    assert result.stderr.count('\n') == 1
    for word in words:
        assert word in result.stderr


# ---- the shipped file ----

@pytest.fixture(scope='module')
def shipped():
    return read_table(INPUT / 'GSE57383_ps_psa.txt')


def test_shipped_file_is_byte_for_byte_what_simulate_writes_next_to_it(tmp_path):
    shutil.copy(INPUT / 'simulate.py', tmp_path)
    result = run_as_a_command(tmp_path / 'simulate.py')
    assert (result.returncode, result.stderr) == (0, '')
    assert (tmp_path / 'GSE57383_ps_psa.txt').read_bytes() == (INPUT / 'GSE57383_ps_psa.txt').read_bytes()


def test_shipped_bytes_do_not_depend_on_the_last_digits_of_a_maths_library():
    hundredths = simulate()[2] * 100
    assert np.abs(hundredths - np.floor(hundredths) - 0.5).min() > 1e-7  # none is about to round otherwise


def test_shipped_file_has_33_psoriatic_arthritis_and_27_psoriasis_samples_of_5000_probesets(shipped):
    phenotypes, names, matrix = shipped
    assert (phenotypes.count(PSA), phenotypes.count(PS), matrix.shape) == (33, 27, (60, 5000))
    assert len(set(names)) == 5000
    assert 2 < matrix.min() < 5 and 10 < matrix.max() < 16  # log2 intensities


def test_shipped_samples_are_not_grouped_by_phenotype(shipped):
    phenotypes = shipped[0]
    assert set(phenotypes[:10]) == set(phenotypes[-10:]) == {PSA, PS}


def test_shipped_file_is_small_and_has_unix_line_ends():
    data = (INPUT / 'GSE57383_ps_psa.txt').read_bytes()
    assert len(data) < 3_000_000
    assert b'\r' not in data and data.endswith(b'\n')


def test_no_simulated_probeset_can_be_taken_for_a_measured_one(shipped):
    assert shipped[1] == [f'simulated_{i:04d}' for i in range(1, 5001)]


# ---- what is simulated ----

def t_tests(phenotypes, matrix):
    arthritis = np.array(phenotypes) == PSA
    return stats.ttest_ind(matrix[arthritis], matrix[~arthritis])


def test_one_probeset_in_125_differs_between_the_phenotypes_and_the_others_do_not(shipped):
    t, p = t_tests(shipped[0], shipped[2])
    differing = np.arange(5000) % 125 == 0
    # One standard deviation between 33 and 27 samples: t is about sqrt(33 * 27 / 60) = 3.9.
    assert 3.4 < np.abs(t[differing]).mean() < 4.4
    assert (p[differing] < 0.05).mean() > 0.9
    assert 0.04 < (p[~differing] < 0.05).mean() < 0.06


def test_differing_probesets_are_alternately_higher_and_lower_in_psoriatic_arthritis(shipped):
    t, _ = t_tests(shipped[0], shipped[2])
    assert (t[::250] > 0).all() and (t[125::250] < 0).all()


def test_probesets_of_a_module_are_co_expressed_and_those_of_different_modules_are_not():
    _, _, matrix = simulate(samples=500, probesets=200, differing=0)
    correlation = np.corrcoef(matrix.T)
    module = np.arange(200) // MODULE_SIZE
    within = module[:, None] == module
    assert 0.45 < correlation[within & ~np.eye(200, dtype=bool)].mean() < 0.55
    assert abs(correlation[~within].mean()) < 0.02


@pytest.mark.parametrize('differing, share', [(0, 0), (500, 0.5), (1000, 1)])
def test_as_many_probesets_differ_as_asked_for(differing, share):
    phenotypes, _, matrix = simulate(samples=500, probesets=1000, differing=differing)
    _, p = t_tests(phenotypes, matrix)  # one standard deviation cannot be missed in 500 samples
    assert (p < 1e-6).mean() == share


def test_same_seed_same_study_other_seed_other_study():
    first, again, other = (simulate(samples=20, probesets=30, seed=seed)[2] for seed in (1, 1, 2))
    assert (first == again).all()
    assert not np.isclose(first, other).all()


@pytest.mark.parametrize('samples, probesets', [(20, 1), (21, 19)])
def test_simulate_writes_any_size(tmp_path, samples, probesets):
    output = tmp_path / 'table.txt'
    result = run(simulation, '--samples', samples, '--probesets', probesets, '--output', output)
    assert (result.returncode, result.stderr) == (0, '')
    phenotypes, names, matrix = read_table(output)
    assert matrix.shape == (samples, probesets)
    assert len(set(names)) == probesets
    assert min(phenotypes.count(PSA), phenotypes.count(PS)) >= 10
    for part in (f'{phenotypes.count(PSA)} {PSA}', f'{phenotypes.count(PS)} {PS}', f'{probesets} probesets'):
        assert part in result.stdout


@pytest.mark.parametrize('arguments, words', [
    (['--samples', '19'], ['19 samples', 'at least 20']),
    (['--probesets', '0'], ['0 probesets', 'at least 1']),
    (['--samples', 'ten'], ['--samples', "'ten'", '--help']),
    (['--samples', '1000000000000'], ['1000000000000 samples', 'fewer']),
    (['--samples', '1' + '0' * 30], ['samples', 'fewer']),
    (['--replicates', '3'], ['--replicates', '--help']),
])
def test_simulate_refuses_a_bad_size_in_one_line(tmp_path, arguments, words):
    output = tmp_path / 'table.txt'
    assert_one_line_error(run(simulation, '--output', output, *arguments), 'simulate.py: ', *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('output, reason', [('missing/table.txt', 'No such file or directory'),
                                            ('.', 'not a regular file')])
def test_simulate_says_where_it_cannot_write(tmp_path, output, reason):
    result = run(simulation, '--samples', 20, '--probesets', 1, '--output', tmp_path / output)
    assert_one_line_error(result, 'simulate.py: cannot write', str(tmp_path), reason, '--output')
    assert list(tmp_path.iterdir()) == []


# ---- from_geo.py ----

DISEASES = [PSA] * 12 + ['Healthy'] * 2 + [PS] * 11
SAMPLES = len(DISEASES)
PSORIATIC = [disease != 'Healthy' for disease in DISEASES]
CHARACTERISTICS = ('!Sample_characteristics_ch1', [f'disease: {disease}' for disease in DISEASES])
VALUES = np.round(np.random.RandomState(1).uniform(3, 14, (6, SAMPLES)), 4)


def series_matrix(*sample_lines, values=VALUES):
    """Return the text of a series matrix, as GEO lays it out; values (probesets, samples), numbers or str."""
    lines = ['!Series_title\t"Psoriatic arthritis and psoriasis"',
             '!Series_summary\t"Psoriasis, a line',
             'that is broken."',
             '',
             '\t'.join(['!Sample_geo_accession', *(f'"GSM{i}"' for i in range(SAMPLES))])]
    lines += ['\t'.join([field, *(f'"{text}"' for text in texts)]) for field, texts in sample_lines]
    lines += ['!series_matrix_table_begin', '\t'.join(['"ID_REF"', *(f'"GSM{i}"' for i in range(SAMPLES))])]
    lines += ['\t'.join([f'"{1000 + i}_s_at"', *map(str, row)]) for i, row in enumerate(values)]
    return '\n'.join(lines + ['!series_matrix_table_end', ''])


WHOLE = series_matrix(CHARACTERISTICS)
GZIPPED = gzip.compress(WHOLE.encode())


def with_value(value, probeset=2, sample=0):
    values = VALUES.astype(object)
    values[probeset, sample] = value
    return series_matrix(CHARACTERISTICS, values=values)


@pytest.fixture
def table(tmp_path, monkeypatch):
    """Let from_geo.py write its table into a folder of its own, where it replaces nobody's data."""
    table = tmp_path / 'input' / 'GSE57383_ps_psa.txt'
    table.parent.mkdir()
    monkeypatch.setattr(from_geo, 'OUTPUT', table)
    return table


@pytest.fixture
def convert(table, tmp_path):
    def convert(content, name='GSE57383_series_matrix.txt'):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return run(from_geo, tmp_path / name)
    return convert


def test_command_rewrites_the_table_next_to_it(tmp_path):
    for script in ('from_geo.py', 'simulate.py'):
        shutil.copy(INPUT / script, tmp_path)
    (tmp_path / 'GSE57383_series_matrix.txt').write_text(WHOLE)
    result = run_as_a_command(tmp_path / 'from_geo.py', tmp_path / 'GSE57383_series_matrix.txt')
    assert (result.returncode, result.stderr) == (0, '')
    assert read_table(tmp_path / 'GSE57383_ps_psa.txt')[2].shape == (23, 6)


def test_series_matrix_becomes_a_table_of_its_psoriatic_samples(convert, table):
    result = convert(series_matrix(CHARACTERISTICS))
    assert (result.returncode, result.stderr) == (0, '')
    phenotypes, names, matrix = read_table(table)
    assert phenotypes == [PSA] * 12 + [PS] * 11
    assert names == [f'{1000 + i}_s_at' for i in range(6)]
    assert (matrix == VALUES.T[PSORIATIC]).all()
    for said in ("12 Psoriatic Arthritis samples, such as 'disease: Psoriatic Arthritis'",
                 "11 Psoriasis samples, such as 'disease: Psoriasis'",
                 'samples of neither phenotype: 2, probesets with a missing value: 0',
                 '23 samples, 6 probesets', str(table)):
        assert said in result.stdout
    assert 'Took log2' not in result.stdout


@pytest.mark.parametrize('compress', [gzip.compress, bytes])
@pytest.mark.parametrize('name', ['GSE57383_series_matrix.txt.gz', 'GSE57383_series_matrix.txt'])
def test_series_matrix_is_read_compressed_or_not_whatever_its_name(convert, table, compress, name):
    assert convert(compress(WHOLE.encode()), name).returncode == 0
    assert read_table(table)[2].shape == (23, 6)


def test_windows_line_ends_and_foreign_characters_do_no_harm(convert, table):
    text = series_matrix(('!Sample_source_name_ch1', ['Köln'] * SAMPLES), CHARACTERISTICS)
    assert convert(text.replace('\n', '\r\n').encode('latin-1')).returncode == 0
    assert (read_table(table)[2] == VALUES.T[PSORIATIC]).all()


@pytest.mark.parametrize('field, arthritis, psoriasis, healthy', [
    ('!Sample_title', 'PsA', 'Ps', 'HC'),
    ('!Sample_title', 'blood PsA12', 'blood Ps12', 'blood C12'),
    ('!Sample_source_name_ch1', 'PSA_lesional', 'PSO_lesional', 'healthy_skin'),
    ('!Sample_source_name_ch1', 'psoriatic arthritis, skin', 'PSORIASIS, skin', 'normal, skin'),
    ('!Sample_characteristics_ch1', 'psoriasis arthropathica', 'psoriasis vulgaris', 'control'),
])
def test_phenotype_is_found_in_any_sample_line_and_spelling(field, arthritis, psoriasis, healthy):
    line = [field] + [arthritis] * 3 + [psoriasis] * 2 + [healthy]
    tissue = ['!Sample_characteristics_ch1'] + ['tissue: skin'] * 6
    assert from_geo.classify([tissue, line]) == ([PSA] * 3 + [PS] * 2 + [None], line)


@pytest.mark.parametrize('other', [
    ('!Sample_title', ['Psoriasis study, ' + disease for disease in DISEASES]),  # mentions both in some
    ('!Sample_source_name_ch1', ['skin with psoriasis'] * SAMPLES),  # tells nothing
    ('!Sample_title', ['PsA 1', 'Ps 1']),  # is broken
    ('!Sample_title', ['PsA'] * 12 + ['untitled'] * 2 + ['Ps'] * 3 + ['untitled'] * 8),  # tells less
])
def test_lines_that_do_not_tell_the_phenotype_are_passed_over(convert, table, other):
    characteristics = ('!Sample_characteristics_ch1', [f'psoriasis type: {disease}' for disease in DISEASES])
    assert convert(series_matrix(other, characteristics)).returncode == 0
    assert read_table(table)[0] == [PSA] * 12 + [PS] * 11


@pytest.mark.parametrize('missing', ['', 'NA', 'null', 'NaN', '-Inf'])
def test_probesets_with_a_missing_value_are_left_out_and_counted(convert, table, missing):
    result = convert(with_value(missing))
    assert (result.returncode, result.stderr) == (0, '')
    _, names, matrix = read_table(table)
    assert names == ['1000_s_at', '1001_s_at', '1003_s_at', '1004_s_at', '1005_s_at']
    assert (matrix == np.delete(VALUES, 2, axis=0).T[PSORIATIC]).all()
    assert 'probesets with a missing value: 1\n' in result.stdout


def test_value_missing_only_in_a_sample_that_is_left_out_does_no_harm(convert, table):
    assert convert(with_value('', sample=12)).returncode == 0
    assert read_table(table)[2].shape == (23, 6)


def test_intensities_that_are_not_logged_are_logged_and_it_is_said(convert, table):
    intensities = np.round(2 ** VALUES, 2)
    intensities[3, 5] = 0  # has no logarithm
    result = convert(series_matrix(CHARACTERISTICS, values=intensities))
    assert (result.returncode, result.stderr) == (0, '')
    assert 'Took log2' in result.stdout and 'probesets with a missing value: 1\n' in result.stdout
    expected = np.log2(np.delete(intensities, 3, axis=0)).T[PSORIATIC]
    assert np.abs(read_table(table)[2] - expected).max() <= 0.00005


@pytest.mark.parametrize('values, logged', [(VALUES + 50, False), (VALUES + 90, True),
                                            (VALUES * 6, True), (VALUES * 6 - 50, False)])
def test_log2_follows_the_rule_of_geo2r(convert, values, logged):
    # Over 100 at the 99th percentile, or spread over more than 50 and the lower quartile above 0.
    result = convert(series_matrix(CHARACTERISTICS, values=values))
    assert result.returncode == 0
    assert ('Took log2' in result.stdout) == logged



@pytest.mark.parametrize('content, words', [
    ('phenotype\tsimulated_0001\nPsoriasis\t5.58\n', ['not a GEO series matrix', 'download']),
    (b'', ['not a GEO series matrix', 'download']),
    (bytes(range(256)), ['not a GEO series matrix', 'download']),
    (WHOLE.replace('!series_matrix_table_end\n', ''), ['truncated', 'download it again']),
    (WHOLE[:WHOLE.index('"ID_REF"')], ['truncated', 'download it again']),
    (WHOLE[:WHOLE.index('"1003_s_at"') + 30], ['damaged', '1003_s_at', 'download it again']),
    (with_value('7.1x'), ['damaged', '1002_s_at', 'not a number', 'download it again']),
    (with_value('7.1\t7.2'), ['damaged', '1002_s_at', '26 values, not 25', 'download it again']),
    (GZIPPED[:-20], ['damaged', 'unpack', 'download it again']),
    (GZIPPED[:200] + bytes(50) + GZIPPED[250:], ['damaged', 'unpack', 'download it again']),
    (GZIPPED[:-8] + bytes(8), ['damaged', 'unpack', 'download it again']),
    (series_matrix(CHARACTERISTICS, values=[]), ['without values', 'download']),
    (series_matrix(CHARACTERISTICS, values=[[''] * SAMPLES]), ['without values', 'download']),
    (series_matrix(CHARACTERISTICS, values=[['', *['7.1'] * 24]]), ['every probeset lacks a value']),
    (series_matrix(), ['no sample title', 'psoriatic arthritis from psoriasis']),
    (series_matrix(('!Sample_title', ['Psoriasis'] * SAMPLES)), ['psoriatic arthritis from psoriasis']),
    (series_matrix(('!Sample_title', ['PsA with psoriasis'] + DISEASES[1:])), ['psoriatic arthritis from']),
    (series_matrix(CHARACTERISTICS, ('!Sample_title', ['Ps 1'] + ['PsA'] * 11 + ['HC'] * 2 + ['Ps'] * 11)),
     ["both 'Ps 1' and 'disease: Psoriatic Arthritis'", 'correct']),
    (series_matrix(('!Sample_title', ['PsA'] * 16 + ['Ps'] * 9)), ['16 psoriatic arthritis and 9 psoriasis',
                                                                  'needs 10 of each']),
])
def test_unusable_series_matrix_is_a_one_line_error_and_leaves_the_table(convert, table, content, words):
    table.write_text('the table of before\n')
    assert_one_line_error(convert(content), 'from_geo.py: ', 'GSE57383_series_matrix.txt', *words)
    assert table.read_text() == 'the table of before\n'
    assert list(table.parent.iterdir()) == [table]


@pytest.mark.parametrize('arguments, words', [(['missing.txt.gz'], ['missing.txt.gz', 'No such file', 'GEO']),
                                              (['.'], ['cannot read .', 'GEO']),
                                              ([], ['series_matrix', '--help'])])
def test_missing_series_matrix_is_a_one_line_error(arguments, words):
    assert_one_line_error(run(from_geo, *arguments), 'from_geo.py: ', *words)


def test_table_that_cannot_be_replaced_is_a_one_line_error(convert, table):
    table.mkdir()
    assert_one_line_error(convert(series_matrix(CHARACTERISTICS)), 'from_geo.py: cannot write', str(table))


def test_interrupted_write_leaves_the_old_table(tmp_path):
    table = tmp_path / 'table.txt'
    table.write_text('the table of before\n')

    def disk_full():
        yield np.array([1.0])
        raise OSError('No space left on device')

    with pytest.raises(OSError):
        write_table(table, [PSA, PS], ['simulated_0001'], disk_full(), decimals=2)
    assert list(tmp_path.iterdir()) == [table]
    assert table.read_text() == 'the table of before\n'
