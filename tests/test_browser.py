"""The results page shows what the results files say. (Skipped without Chromium or tests/requirements.txt.)"""
import math
import re
import shutil

import pytest

playwright = pytest.importorskip('playwright.sync_api', reason='tests/requirements.txt is not installed')
expect = playwright.expect
expect.set_options(timeout=20_000)    # milliseconds, for a machine that is busy with other things
CHROMIUM = shutil.which('chromium') or pytest.skip('there is no chromium', allow_module_level=True)


@pytest.fixture(scope='module')
def browser():
    with playwright.sync_playwright() as started:
        yield started.chromium.launch(executable_path=CHROMIUM, args=['--disable-gpu'])


@pytest.fixture
def page(browser):
    """A tab. What its scripts failed with is in its `errors`: nothing, unless a test takes it out."""
    page = browser.new_page()
    page.errors = []
    page.on('pageerror', lambda error: page.errors.append(error.message))
    yield page
    page.close()
    assert not page.errors


def post(project, job, *scores, first=1, column='ensemble_auc', **fields):
    for number, score in enumerate(scores, first):
        project.post(number, {'probesets': f'p{number}, "q"', column: score}, job, **fields)


def column(page, number):
    return page.locator(f'tbody td:nth-child({number})')


def expect_files(page, project, job, score='ensemble_auc', sign=-1):
    """Expect that the page shows what a job's files say: the best result, how many, a histogram, a table."""
    rows = {row['slice']: row for row in project.rows(job)}.values()
    rows = sorted(rows, key=lambda row: (sign * float(row[score]), int(row['slice'])))
    expect(column(page, 1)).to_have_text([row['slice'] for row in rows[:100]])
    expect(column(page, 2)).to_have_text([row[score] for row in rows[:100]])
    expect(page.locator('#best')).to_have_text(rows[0][score])
    expect(page.locator('#tried')).to_have_text(f'slice {rows[0]["slice"]}: {rows[0]["probesets"]}')
    expect(page.locator('#tries')).to_have_text(re.compile(f'^{len(rows):,} tr(y|ies)$'))
    counts = [f'{len(rows):,}', *{row['of'] for row in rows if 'of' in row}]
    expect(page.locator('#count')).to_have_text(' of '.join(counts))
    expect(page.locator('#histogram')).to_be_visible(visible=len(rows) >= 10)
    if len(rows) >= 10:
        values = [float(row[score]) for row in rows]
        low, high, bars = min(values), max(values), [0] * min(40, math.ceil(2 * math.sqrt(len(rows))))
        for value in values:
            bars[min(len(bars) - 1, int((value - low) / (high - low) * len(bars)))] += 1
        assert page.locator('#bars i').evaluate_all('bars => bars.map((bar) => Number(bar.title))') == bars


def test_page_follows_the_shipped_job(served, page):
    page.goto(served.url)
    expect(page.get_by_role('status')).to_have_text('No results yet.')
    assert served.run_job().status == 0
    expect_files(page, served, served.results()[0].read_text().splitlines()[1].split('\t')[0])
    expect(page.locator('#age')).to_have_text(re.compile(r'^\d+ s ago$'))
    expect(page.locator('#state')).to_have_text('Done: all results are here')


def test_newest_job_is_shown_or_the_one_chosen_even_after_a_reload(served, page):
    post(served, 'first', *[number / 16 for number in range(12)])
    page.goto(served.url)
    expect_files(page, served, 'first')
    post(served, 'second', 0.7, 0.9, 0.8, of=4)
    expect_files(page, served, 'second')
    expect(page.locator('#state')).to_have_text('Running: results so far')
    page.get_by_label('Job').select_option('first')
    page.reload()
    expect_files(page, served, 'first')
    post(served, 'first', 0.99, first=13)
    expect_files(page, served, 'first')
    page.get_by_label('Job').select_option('')
    expect_files(page, served, 'second')


def test_files_are_shown_as_they_are_now(served, page):
    post(served, 'job1', 0.5, 0.7, 0.6)
    page.goto(served.url)
    expect_files(page, served, 'job1')
    served.server.stop()
    expect(page.get_by_role('status')).to_have_text('The server does not answer. This page keeps asking.')
    served.serve()
    expect(page.get_by_role('status')).to_have_text('')
    post(served, 'job1', 0.8, 0.3, first=4)
    expect_files(page, served, 'job1')
    first, second = served.results()
    second.write_text(second.read_text().replace('0.8', '0.2') + 'job1\t6\thalf a line\t0.9')
    expect_files(page, served, 'job1')
    second.write_text(first.read_text().replace('0.7', '0.1'))    # slices 1 to 3 again: the newest counts
    expect(column(page, 2)).to_have_text(['0.6', '0.5', '0.1'])
    second.unlink()
    expect_files(page, served, 'job1')
    first.unlink()
    expect(page.get_by_role('status')).to_have_text('No results yet.')


def test_numbers_are_unaltered_in_line_and_before_texts_and_equal_ones_by_slice(served, page):
    post(served, 'job1', 0.9, 'text', 0.99999999, None, 1234567.5, 1e-7, 0.9, '', -2, 0.90, True)
    page.goto(served.url)
    expect(column(page, 1)).to_have_text(['5', '3', '1', '7', '10', '6', '9', '11', '2', '4', '8'])
    expect(column(page, 2).first).to_have_text('1234567.5')
    points = column(page, 2).evaluate_all('''(cells) => cells.slice(0, 5).map(({ firstChild: text }) => {
        const range = new Range();
        range.selectNode(text.splitText(text.data.indexOf('.')));
        return Math.round(range.getBoundingClientRect().left);
    })''')
    assert points == [points[0]] * 5


def test_table_is_sorted_by_keyboard_and_stays_where_it_is(served, page):
    post(served, 'job1', 0.5, 0.9, 0.7)
    page.goto(served.url)
    expect(page.get_by_role('status')).to_have_text('')
    button = page.get_by_role('button', name='ensemble_auc')
    place = button.bounding_box()
    for _ in range(5):    # the job, the file, the table, its first column, its second one
        page.keyboard.press('Tab')
    page.keyboard.press('Enter')
    expect(column(page, 1)).to_have_text(['1', '3', '2'])
    post(served, 'job1', 0.6, first=4)
    expect(column(page, 1)).to_have_text(['1', '4', '3', '2'])
    expect(button).to_be_focused()
    assert button.bounding_box() == place
    page.reload()
    expect(column(page, 1)).to_have_text(['1', '4', '3', '2'])
    page.get_by_role('button', name='probesets').click()
    expect(column(page, 1)).to_have_text(['4', '3', '2', '1'])


def test_score_is_what_the_settings_name(served, page):
    post(served, 'job1', 0.5, 0.3, 0.4, column='loss')
    page.goto(served.url)
    expect(page.locator('#tried')).to_contain_text('No result has such a number.')
    served.edit('results/page.html', "score = 'ensemble_auc'", "score = 'loss'")
    served.edit('results/page.html', 'moreIsBetter = true', 'moreIsBetter = false')
    page.reload()
    expect_files(page, served, 'job1', score='loss', sign=1)


def test_hostile_results_are_text_and_fit_a_narrow_screen(served, page):
    texts = ['<img src=x onerror="document.title = 1">', '<script>document.title = 1</script>', '__proto__',
             '=1+1', '${document.title = 1}', 'a\tb\n"c"', 'constructor', '\u202e', 'M' * 900_000]
    for number, text in enumerate(texts):    # each has columns of its own, so it is in a file of its own
        served.post(number, {'probesets': text, text[:99]: 'y' * 500}, 'job1')
    page.set_viewport_size({'width': 380, 'height': 700})
    page.goto(served.url)
    expect(column(page, 2)).to_contain_text([row['probesets'][:1000] for row in served.rows('job1')])
    expect(page).to_have_title('Results')
    assert page.evaluate('document.documentElement.scrollWidth') <= 380


def test_fifty_thousand_results_open_at_once_and_are_followed(served, page):
    path = served.folder / 'results' / 'many_010126_000000.txt'
    lines = [f'job1\t{i}\t{"1007_s_at, " * 9}\t{i * 7919 % 50_021 / 100_000}\n' for i in range(1, 50_001)]
    path.write_text('job\tslice\tprobesets\tensemble_auc\n' + ''.join(lines))
    page.goto(served.url)
    expect(page.locator('#count')).to_have_text('50,000', timeout=5000)    # 500 on an idle machine
    path.write_text(path.read_text() + 'job1\t50001\tthe last one\t0.999\n')
    expect_files(page, served, 'job1')
    assert page.locator('#bars .best').bounding_box()['height'] >= 4    # one of 50,000 is seen


def test_missing_folder_is_said_and_a_slip_in_the_page_is_not_blamed_on_the_server(served, page):
    page.goto(served.url)
    (served.folder / 'results').rename(served.folder / 'away')
    expect(page.get_by_role('status')).to_have_text(re.compile('^The server says .* its files: see its log$'))
    (served.folder / 'away').rename(served.folder / 'results')
    served.edit('results/page.html', 'const jobs = findJobs();', 'const jobs = findJob();')
    page.reload()
    with page.expect_event('pageerror'):
        post(served, 'job1', 0.5)
    assert page.errors.pop() == 'findJob is not defined'
    expect(page.get_by_role('status')).to_have_text('No results yet.')


def test_access_key_is_part_of_the_address(project, page):
    project.edit('server.py', "access_key = ''", "access_key = 'Sesame'")
    project.serve()
    project.url += '/Sesame'
    post(project, 'job1', 0.5)
    page.goto(project.url)    # without a slash at its end
    expect_files(page, project, 'job1')
    page.get_by_role('link').click()
    expect(page.locator('body')).to_have_text(project.results()[0].read_text())
