"""A series matrix of GEO becomes the table that the job reads: right, or not at all."""
import gzip

import numpy as np
import pytest

PSA, PS = 'disease: psoriatic arthritis', 'disease: psoriasis'
TEXTS = [PSA] * 3 + [PS] * 3
CLASSES = ['--class', 'Psoriatic Arthritis', PSA, '--class', 'Psoriasis', PS]
LABELS = ['Psoriatic Arthritis'] * 3 + ['Psoriasis'] * 3
VALUES = np.round(np.random.RandomState(1).uniform(3, 14, (4, 6)), 4)


def series_matrix(*texts, line='!Sample_characteristics_ch1', values=VALUES):
    """Return a series matrix as GEO lays it out, of four probesets and six samples."""
    rows = [['!Series_title', '"A series, made up"']]
    rows += [[line, *(f'"{text}"' for text in each)] for each in texts]
    rows += [['!series_matrix_table_begin'], ['"ID_REF"', *(f'"GSM{i}"' for i in range(6))]]
    rows += [[f'"p{i}_at"', *map(str, row)] for i, row in enumerate(values)]
    return ''.join('\t'.join(row) + '\n' for row in [*rows, ['!series_matrix_table_end']])


def with_value(value):
    values = VALUES.astype(object)
    values[1, 4] = value
    return series_matrix(TEXTS, values=values)


WHOLE = series_matrix(TEXTS)
GZIPPED = gzip.compress(WHOLE.encode())


@pytest.fixture
def convert(project):
    """Run from_geo.py on a file with this content, and read the table, be it new or the simulated one."""
    def convert(content, *arguments, **environment):
        data = content.encode() if isinstance(content, str) else content
        if data:
            (project.folder / 'matrix.txt').write_bytes(data)
        run = project.run('input/from_geo.py', 'matrix.txt', *arguments, **environment)
        table = (project.folder / 'input/GSE57383_ps_psa.txt').read_text(encoding='utf-8')
        header, *rows = [line.split('\t') for line in table.splitlines()]
        run.names, run.labels = header[1:], [row[0] for row in rows]
        run.values = np.array([row[1:] for row in rows], float).T
        return run
    return convert


def test_without_classes_it_lists_the_texts_with_their_counts_and_how_to_go_on(convert):
    run = convert(series_matrix(TEXTS[:2] + ['Healthy'] + TEXTS[3:], ['skin'] * 6))
    assert run.lines[:4] == ['     6  skin', f'     3  {PS}', f'     2  {PSA}', '     1  Healthy']
    run.wait_for('^python input/from_geo.py "matrix.txt" --class ')
    assert len(run.names) == 5000    # the simulated table


@pytest.mark.parametrize('line', ['title', 'source_name_ch1', 'source_name_ch2', 'characteristics_ch2'])
def test_a_text_is_found_on_any_line_of_a_sample(convert, line):
    shifted = ['', *TEXTS[1:5], 'batch: 1'], [PSA, *['batch: 1'] * 4, PS]
    run = convert(series_matrix(*shifted, line=f'!Sample_{line}'), *CLASSES)
    assert (run.status, run.errors, run.labels) == (0, [], LABELS)
    assert run.names == ['p0_at', 'p1_at', 'p2_at', 'p3_at'] and (run.values == VALUES).all()


def test_a_text_is_a_whole_one_and_samples_of_neither_class_are_told_with_their_texts(convert):
    series = series_matrix([PSA, PSA, f'{PS} with arthritis', PS, PS, 'healthy'])
    run = convert(series, *CLASSES)
    assert run.labels == LABELS[1:5] and (run.values == VALUES[:, [0, 1, 3, 4]]).all()
    run.wait_for(f'1  Neither . {PS} with arthritis')
    run.wait_for('neither class: 2')
    assert convert(series, *CLASSES, *CLASSES[:2], f'{PS} with arthritis').labels == LABELS[:5]


def test_a_star_stands_for_what_differs_in_titles_unless_a_text_has_a_star(convert):
    series = series_matrix(['PsA [1]', 'PsA [2]', 'PsA', 'B*27', 'B*27', 'B 27'])
    assert convert(series, '--class', 'A', 'PsA [*]', '--class', 'B', 'B*27').labels == ['A', 'A', 'B', 'B']


@pytest.mark.parametrize('content', [
    GZIPPED, WHOLE.replace('\n', '\r\n'), WHOLE.replace('\n', '\r'), WHOLE.replace('"', ''),
    WHOLE.replace('_begin', '_begin\t').replace('_end', '_end\t'), '\ufeff' + WHOLE[WHOLE.index('!Sample'):],
    series_matrix(TEXTS, ['Köln'] * 6).encode('latin-1'), with_value(f'"{VALUES[1, 4]}"'),
])
def test_a_file_may_have_gone_through_other_programs(convert, content):
    run = convert(content, *CLASSES)
    assert (run.errors, run.labels) == ([], LABELS) and (run.values == VALUES).all()


@pytest.mark.parametrize('missing', ['', 'NA', 'null', 'NaN', '-Inf'])
def test_probesets_with_a_missing_value_are_left_out_and_counted(convert, missing):
    run = convert(with_value(missing), *CLASSES)
    assert run.names == ['p0_at', 'p2_at', 'p3_at'] and (run.values == VALUES[[0, 2, 3]]).all()
    run.wait_for('missing value: 1$')


@pytest.mark.parametrize('values, logged', [(VALUES + 50, False), (VALUES + 90, True),
                                            (VALUES * 6, True), (VALUES * 6 - 50, False)])
def test_log2_is_taken_where_geo2r_would_and_it_is_said(convert, values, logged):
    run = convert(series_matrix(TEXTS, values=values), *CLASSES)
    assert np.allclose(run.values, np.log2(values) if logged else values, rtol=0, atol=0.0001)
    assert ('log2 of the values' in run.output) == logged


def test_what_the_terminal_cannot_show_is_replaced(convert):
    classes = ['--class', 'A', 'β PsA', '--class', 'B', 'β Ps']
    run = convert(series_matrix(['β PsA'] * 3 + ['β Ps'] * 3), *classes, PYTHONIOENCODING='cp1252')
    assert (run.status, run.errors, run.lines[0]) == (0, [], '     3  A | ? PsA')


@pytest.mark.parametrize('content, arguments, problem', [
    (WHOLE, [*CLASSES[:5], 'psoriasis'], 'no sample has the text "psoriasis"'),
    (series_matrix(TEXTS, ['', 'Ps'] * 3), [*CLASSES, *CLASSES[3:5], 'Ps'], 'GSM1 is of both classes'),
    (WHOLE, CLASSES[:3], "two classes.*{'Psoriatic Arthritis': 3}"),
    (series_matrix(TEXTS[:3] + ['a', 'a', PS]), CLASSES, "of two or more samples each.*'Psoriasis': 1"),
    (series_matrix(TEXTS[1:]), CLASSES, 'line 2: 5 texts for 6 samples'),
    (series_matrix(['GSM1', 'GSM0'], line='!Sample_geo_accession'), CLASSES, 'line 2: these samples are not'),
    (WHOLE.replace('"ID_REF"', '"p"'), CLASSES, 'line 4: "p" in place of ID_REF'),
    (WHOLE.replace('GSM2', 'GSM4'), CLASSES, 'line 4: sample "GSM4" is there twice'),
    (WHOLE.replace('p3_at', 'p0_at'), CLASSES, 'line 8: probeset "p0_at" is there twice'),
    (with_value('7.1\t7.2'), CLASSES, 'line 6: probeset "p1_at" has 7 values for 6 samples'),
    (with_value('12,62'), CLASSES, 'line 6: probeset "p1_at", sample GSM4: "12,62" is no number'),
    (series_matrix(TEXTS, values=[[9.5, 9.5, 9.5, 9.5, '', 9.5]]), CLASSES, 'GSM4 has 0'),
    (series_matrix(TEXTS, values=[[0, 17, 245, 3, 0, 9]]), CLASSES, 'whole.*counts'),
    (series_matrix(TEXTS, values=[]), CLASSES, 'line 4: no probesets follow'),
    (WHOLE + WHOLE, CLASSES, 'line 10: more follows the table'),
    ('', CLASSES, "No such file.*matrix.txt"),
    ('phenotype\tp1\n', CLASSES, 'no series matrix file'),
    (WHOLE[:40], CLASSES, 'truncated.*: download it again'),
    (WHOLE[:-60], CLASSES, 'truncated.*: download it again'),
    (GZIPPED[:-20], CLASSES, 'does not unpack: download it again'),
])
def test_what_is_wrong_is_told_in_a_line_and_the_table_stays(convert, content, arguments, problem):
    run = convert(content, *arguments)
    assert (run.status, run.lines, len(run.errors)) == (1, [], 1)
    run.wait_for('^from_geo.py: .*' + problem)
    assert ('download' in run.output) == ('download' in problem)
    assert len(run.names) == 5000    # the simulated table
