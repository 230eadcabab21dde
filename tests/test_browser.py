"""The results page, and what a browser worker may do, in the browser that is installed.

They need Debian's chromium package and tests/requirements.txt; else they are skipped. All traffic stays on
this machine: whatever host the browser is told, it looks for it at 127.0.0.1.
"""
import json
import re
import shutil
from pathlib import Path

import pytest

from .project import PROJECT, Project

playwright = pytest.importorskip('playwright.sync_api', reason='tests/requirements.txt is not installed')
expect = playwright.expect
expect.set_options(timeout=20_000)    # milliseconds, for a machine that is busy with other things
CHROMIUM = shutil.which('chromium')
if not CHROMIUM:
    pytest.skip('there is no chromium (apt-get install chromium)', allow_module_level=True)

HACK = 'document.title = "hacked"'
HOSTILE = [f"<img src=x onerror='{HACK}'>", f'"><script>{HACK}</script>', '=HYPERLINK("http://192.0.2.1")',
           '{{7*7}}', '${%s}' % HACK, '__proto__', 'a\tb\n"c"', '\u202e']


@pytest.fixture(scope='module')
def browser(one_server):
    """Chromium, which takes one_server for a machine of the local network."""
    local = f'--ip-address-space-overrides=127.0.0.1:{one_server.port}=local'
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=[
            local, '--host-resolver-rules=MAP * 127.0.0.1', '--disable-gpu', '--disable-quic',
            '--no-first-run', '--disable-background-networking', '--disable-component-update',
            '--disable-sync'])
        yield browser
        browser.close()


@pytest.fixture(scope='module')
def tab(browser):
    """One tab for all tests, because a new one costs more than most of them."""
    tab = browser.new_page()
    tab.set_default_timeout(20_000)
    yield tab
    tab.close()


@pytest.fixture
def show(tab):
    """Open the results page of a project. Its script must not fail."""
    errors, note = [], lambda error: errors.append(error)
    tab.on('pageerror', note)

    def show(project, width=1280, height=720):
        tab.set_viewport_size({'width': width, 'height': height})
        tab.goto(project.url)
        return tab

    yield show
    tab.goto('about:blank')
    tab.remove_listener('pageerror', note)
    assert not errors


def add_page(project):
    """Copy the results page to a project, which has only what a job leaves in its folder of results."""
    (project.folder / 'results').mkdir(exist_ok=True)
    shutil.copy(PROJECT / 'results' / 'page.html', project.folder / 'results')
    return project


@pytest.fixture
def project(project):
    return add_page(project)


@pytest.fixture(scope='module')
def server(one_server):
    """A running server for the tests of one job, which the page shows because it is the newest one."""
    return add_page(one_server)


@pytest.fixture(scope='module')
def locked(tmp_path_factory):
    """A project whose server wants an access key."""
    project = add_page(Project(tmp_path_factory.mktemp('locked') / 'project'))
    project.edit('server.py', "access_key = ''", "access_key = 'SesameOpen'")
    project.server = project.serve()
    store_scores(project, 0.6, key='SesameOpen')
    yield project
    project.stop()


def store_scores(project, *aucs, first=1, **more):
    for slice_number, auc in enumerate(aucs, first):
        project.post(slice_number, {'probesets': f'p{slice_number}, q', 'accuracy': 0.5, 'auc': auc}, **more)


def first_column(page):
    """What the table shows: the slices, from top to bottom."""
    return page.locator('tbody td:first-child')


# ---- the results page ----

def test_page_follows_a_job_on_the_mocked_dcp(served, show):
    page = show(served)
    expect(page.get_by_text('Waiting for the first result')).to_be_visible()
    assert served.run_job().status == 0
    expect(page.locator('#stored')).to_have_text('10')
    expect(page.locator('#failed')).to_have_text('0')
    expect(page.locator('#best_of')).to_have_text('Best ensemble_auc')


def test_results_appear_as_they_arrive(served, show):
    page = show(served)
    expect(page.get_by_text('Waiting for the first result')).to_be_visible()
    store_scores(served, 0.6, 0.9, 0.7)
    expect(page.get_by_text('Waiting')).to_be_hidden()
    expect(page.locator('#stored')).to_have_text('3')
    expect(first_column(page)).to_have_text(['2', '3', '1'])    # the best first
    expect(page.get_by_label('Histogram of auc, from 0.6 to 0.9; best: 0.9, slice 2')).to_be_visible()
    expect(page.get_by_text(re.compile('looks good by chance alone'))).to_be_visible()
    store_scores(served, 0.95, first=4)
    expect(page.locator('#stored')).to_have_text('4')
    expect(first_column(page)).to_have_text(['4', '2', '3', '1'])
    expect(page.locator('#best')).to_have_text('0.95')
    expect(page.locator('#pace')).to_have_text(re.compile(r'\d a (second|minute)'))


def test_what_went_wrong_is_said_in_words(served, show):
    page = show(served)
    failure = {'errorCode': 'EUNCAUGHT', 'message': 'sample 3 has no number', 'stack': ''}
    store_scores(served, 0.6)
    served.post(8, failure)
    served.post(9, failure)
    served.request('/nothing')
    expect(page.locator('#failed')).to_have_text('2')
    expect(page.get_by_text("Slice 8, 9: work function failed: 'sample 3 has no number'")).to_be_visible()
    last_refusal = re.compile("^Last refusal: 127.0.0.1 'GET /nothing' refused: 404")
    expect(page.get_by_text(last_refusal)).to_be_visible()
    store_scores(served, 0.7, first=8)    # mended, and computed again
    expect(page.locator('#failed')).to_have_text('1')
    data = served.folder / 'input' / 'GSE57383_ps_psa.txt'
    data.rename(data.with_suffix('.away'))
    expect(page.get_by_text('The data file is missing')).to_be_visible()
    served.server.stop()
    expect(page.get_by_text('The server does not answer. This page keeps trying.')).to_be_visible()
    expect(first_column(page)).to_have_text(['8', '1'])
    data.with_suffix('.away').rename(data)
    served.serve()
    expect(page.get_by_text('The server does not answer')).to_be_hidden()


def test_job_whose_slices_all_failed_is_shown(server, show, job):
    store_scores(server, 0.6, job=job + 'earlier')
    server.post(1, {'errorCode': 'EUNCAUGHT', 'message': 'no', 'stack': ''}, job)
    page = show(server)
    expect(page.get_by_text("Slice 1: work function failed: 'no'")).to_be_visible()
    expect(page.locator('#stored')).to_have_text('0')


def test_table_sorts_by_any_column_by_mouse_and_keyboard(server, show, job):
    for slice_number, (name, auc) in enumerate([('b', 0.9), ('c', 0.10), ('a', None), ('d', 1e-3)], 1):
        server.post(slice_number, {'auc': auc, 'name': name}, job)
    page = show(server)
    expect(first_column(page)).to_have_text(['1', '2', '4', '3'])    # no number: last, whatever the direction
    page.get_by_role('button', name='auc').click()
    expect(first_column(page)).to_have_text(['4', '2', '1', '3'])
    expect(page.get_by_role('columnheader', name='auc')).to_have_attribute('aria-sort', 'ascending')
    expect(page.locator('#best_of')).to_have_text('Lowest auc')
    page.get_by_role('button', name='name').press('Enter')
    expect(first_column(page)).to_have_text(['3', '1', '2', '4'])
    expect(page.get_by_role('button', name='name')).to_be_focused()
    page.keyboard.press('Enter')
    expect(first_column(page)).to_have_text(['4', '2', '1', '3'])
    page.get_by_role('button', name='slice', exact=True).click()
    expect(first_column(page)).to_have_text(['1', '2', '3', '4'])


def test_row_is_found_and_shown_whole(server, show, job):
    store_scores(server, *[0.5 + number / 100 for number in range(30)], job=job)
    server.post(31, {'probesets': 'X' * 500, 'accuracy': 1 / 3, 'auc': 0.1}, job)
    page = show(server)
    expect(page.get_by_text('page 1 of 2')).to_be_visible()
    page.get_by_role('button', name='Next').press('Enter')
    expect(first_column(page)).to_have_text(['5', '4', '3', '2', '1', '31'])
    page.get_by_label('Search').fill('p7,')
    expect(first_column(page)).to_have_text(['7'])
    expect(page.locator('#matches')).to_have_text('1 of 31')
    page.get_by_label('Search').fill('xxx')
    page.get_by_role('button', name='31').press('Enter')
    cells = page.get_by_role('dialog', name='Slice 31').locator('dd')
    expect(cells).to_have_text(['X' * 500, str(1 / 3), '0.1'])
    page.keyboard.press('Escape')
    expect(page.get_by_role('dialog')).to_be_hidden()
    page.get_by_role('cell', name='0.333333').click()
    expect(page.get_by_role('dialog', name='Slice 31')).to_be_visible()


def test_histogram_shows_any_column_of_numbers(server, show, job):
    store_scores(server, 0.5, 0.5, 0.9, job=job)
    server.post(4, {'probesets': 'z', 'accuracy': 12, 'auc': 0.7}, job)
    page = show(server)
    expect(page.get_by_label('How the slices did').locator('option')).to_have_text(['accuracy', 'auc'])
    expect(page.get_by_text('Slices in the tallest: 2.')).to_be_visible()
    page.get_by_label('How the slices did').select_option('accuracy')
    expect(page.get_by_label('Histogram of accuracy, from 0.5 to 12; best: 12, slice 4')).to_be_visible()
    expect(first_column(page)).to_have_text(['4', '1', '2', '3'])


@pytest.mark.parametrize('results', [
    [1.5, 2], ['text', 'words'], [[1, 2], []], [None, {}], [{'a': {'b': 1}}, {'c': 2}], [{'x': 1}, 'other'],
    [{'slice': 7, 'job': 'j'}], [{'x': 1e300}, {'x': -1e300}, {'x': 1e-320}],
    [{f'column {i}': i for i in range(300)}]],
    ids=lambda results: str(results)[:30])
def test_page_shows_whatever_a_work_function_returns(server, show, job, results):
    for slice_number, result in enumerate(results, 1):
        server.post(slice_number, result, job)
    page = show(server)
    expect(page.get_by_label('Job').locator('option', has_text=job)).to_have_count(1)
    expect(page.locator('#stored')).to_have_text(str(len(results)))
    expect(first_column(page)).to_have_count(len(results))


def test_newest_job_is_shown_and_any_other_by_choice(server, show, job):
    first, second = job, job + '2'
    store_scores(server, 0.6, job=first)
    page = show(server)
    expect(first_column(page)).to_have_text(['1'])
    store_scores(server, 0.6, 0.7, job=second)
    expect(first_column(page)).to_have_text(['2', '1'])
    page.get_by_label('Job').select_option(f'job {first}')
    expect(first_column(page)).to_have_text(['1'])
    store_scores(server, 0.8, first=5, job=second)
    store_scores(server, 0.8, first=2, job=first)
    expect(first_column(page)).to_have_text(['2', '1'])
    page.get_by_label('Job').select_option('the newest')
    expect(page.locator('#stored')).to_have_text('3')


def test_files_of_a_job_are_read_together_and_a_repeated_slice_counts_once(server, show, job):
    header, line = 'job\tslice\tname\tauc\n', job + '\t{}\t"a ""quoted"" name"\t{}\n'
    results = server.folder / 'results'
    (results / 'a_010126_000000.txt').write_text(header + line.format(1, 0.5) + line.format(2, 0.6))
    (results / 'a_010126_000001.txt').write_text('job\tslice\tauc\tmore\n' f'{job}\t2\t0.6\tx\n'
                                                 f'{job}\t3\t0.7\ty\n' f'{job}\t4\t0.8')
    (results / 'notes.txt').write_text('Not a table\nof results\n')
    server.post(1, {}, job)    # again: so it knows of the job, and there is nothing to store
    assert server.stored(job) == [1, 2, 3]
    page = show(server)
    options = page.get_by_label('Job').locator('option')
    expect(options.nth(0)).to_have_text('the newest')
    expect(options.nth(1)).to_have_text(f'{job}, 2026-01-01 00:00')
    expect(first_column(page)).to_have_text(['3', '2', '1'])    # half a line does not count
    expect(page.locator('thead th')).to_have_text(['slice', 'auc ▼', 'name', 'more'])
    expect(page.locator('tbody tr').nth(2).locator('td')).to_have_text(['1', '0.5', 'a "quoted" name', ''])
    with page.expect_download() as download:
        page.get_by_role('link', name='a_010126_000000.txt').click()
    assert Path(download.value.path()).read_bytes() == (results / 'a_010126_000000.txt').read_bytes()


def test_fifty_thousand_slices_open_at_once_and_are_followed(server, show, job):
    """A quarter of a second on an idle machine; a machine that runs tests gets ten times as long."""
    columns = ['probesets', *(f'score {k}' for k in range(8))]
    lines = ['\t'.join([job, str(i), ', '.join(f'simulated_{i * k % 12000:05}' for k in range(1, 8)),
                        *(f'{i * k % 1009 / 2000:.4f}' for k in range(1, 9))]) for i in range(1, 50_001)]
    path = server.folder / 'results' / 'many_010126_000000.txt'
    path.write_text('\n'.join(['\t'.join(['job', 'slice', *columns]), *lines, '']))
    server.post(1, {}, job)    # again: so it knows of the job, and there is nothing to store
    assert len(server.stored(job)) == 50_000
    page = show(server)
    expect(page.locator('#stored')).to_have_text('50,000', timeout=5000)
    expect(page.locator('tbody tr')).to_have_count(25)
    with open(path, 'a') as file:
        file.write(f'{job}\t50001\tthe last one' + '\t9' * 8 + '\n')
    expect(page.locator('#stored')).to_have_text('50,001', timeout=5000)
    expect(first_column(page).first).to_have_text('50001')
    page.get_by_role('button', name='score 0').click(timeout=5000)
    page.get_by_label('Search').fill('simulated_00007, simulated_00014')
    expect(page.locator('#matches')).to_have_text('5 of 50,001', timeout=5000)
    path.unlink()    # other tests of this server need not read it


def test_hostile_results_are_shown_as_text(server, show, job):
    for slice_number, text in enumerate(HOSTILE, 1):
        server.post(slice_number, {'name': text, 'value': slice_number}, job)
    server.post(9, {'name': 'M' * 1_000_000, 'value': 0}, job)
    server.post(10, {'errorCode': 'E', 'message': HOSTILE[0], 'stack': ''}, job)
    server.post(1, {name: '<b>1</b>' for name in HOSTILE}, job=job + 'columns')
    page = show(server)
    expect(page.locator('tbody td')).to_have_count(1 + len(HOSTILE))
    expect(page.locator('thead')).to_contain_text(HOSTILE[0])
    page.get_by_label('Job').select_option(f'job {job}')
    expect(page.locator('#stored')).to_have_text('9')
    as_in_the_file = [*HOSTILE[:2], json.dumps(HOSTILE[2]), *HOSTILE[3:6], json.dumps(HOSTILE[6])]
    for text in as_in_the_file:
        expect(page.get_by_role('cell', name=text, exact=True)).to_have_count(1)
    page.get_by_role('button', name='9', exact=True).click()
    assert len(page.locator('dialog dd').first.text_content()) == 1_000_000
    page.keyboard.press('Escape')
    expect(page.get_by_text("failed: '<img src=x onerror=")).to_be_visible()
    expect(page).to_have_title('9 slices stored')
    assert page.locator('main img, main script, main b:not(#histogram b)').count() == 0


def test_policy_lets_the_page_ask_nobody_but_its_own_server(server, show):
    page = show(server)
    elsewhere = f'http://127.0.0.2:{server.port}/health'
    fetching = page.evaluate('(address) => fetch(address, { mode: "no-cors" }).catch(String)', elsewhere)
    assert fetching == 'TypeError: Failed to fetch'


def test_access_key_is_asked_for_once_and_kept_out_of_addresses_and_logs(locked, show):
    page, addresses = show(locked), []
    page.on('request', lambda request: addresses.append(request.url))
    page.get_by_label('Access key').fill('SesameShut')
    page.keyboard.press('Enter')
    expect(page.get_by_text('The server refused: wrong or missing access key')).to_be_visible()
    expect(page.locator('#shown')).to_be_hidden()
    page.get_by_label('Access key').fill('SesameOpen')
    page.get_by_role('button', name='Show the results').click()
    expect(first_column(page)).to_have_text(['1'])
    expect(page.get_by_label('Access key')).to_be_hidden()
    with page.expect_download() as download:
        page.get_by_role('link').click()
    assert Path(download.value.path()).read_bytes() == locked.results()[0].read_bytes()
    page.reload()
    expect(first_column(page)).to_have_text(['1'])
    assert any('/results' in address for address in addresses)
    assert not [text for text in [*addresses, page.url, *locked.server.errors] if 'Sesame' in text]


def test_results_need_the_access_key(locked):
    name = f'/results/{locked.results()[0].name}'
    key = {'Authorization': 'Bearer SesameOpen'}
    for path, status in [('/results', 403), (name, 403)]:
        assert locked.request(path)[0] == status
        assert locked.request(path, headers={'Authorization': 'Bearer SesameShut'})[0] == 403
        assert locked.request(path, headers={**key, 'Origin': 'https://dcp.example'})[0] == 403
        assert locked.request(path, headers=key)[0] == 200
    assert locked.request(name, headers={**key, 'Range': 'bytes=4-8'})[1] == 'slice'
    assert not [line for line in locked.server.errors if 'Sesame' in line]


@pytest.mark.parametrize('path', ['/results/..%2fserver.txt', '/results/%2e%2e/requirements.txt',
                                  '/results//etc/hosts.txt', '/results/no.txt'])
def test_nothing_but_results_is_sent(server, path):
    (server.folder / 'server.txt').write_text('secret')
    assert server.request(path)[0] == 404


def test_page_fits_a_phone_in_either_scheme(server, show, job):
    store_scores(server, 0.6, 0.7, job=job)
    server.post(3, {'probesets': 'Y' * 5000, 'accuracy': 1, 'auc': 0.8}, job)
    server.request('/' + 'nothing' * 30)
    page = show(server, width=360, height=700)
    expect(first_column(page)).to_have_text(['3', '2', '1'])
    for scheme, paper in [('dark', 'rgb(20, 24, 29)'), ('light', 'rgb(244, 246, 248)')]:
        page.emulate_media(color_scheme=scheme)
        expect(page.locator('body')).to_have_css('background-color', paper)
        assert page.evaluate('document.documentElement.scrollWidth') <= 360
        box = page.get_by_role('columnheader', name='auc').bounding_box()
        assert box['x'] + box['width'] <= 360    # what the table is sorted by is in sight


# ---- a browser worker ----

WORKER = """async ([server, job]) => {
    const body = new URLSearchParams({ element: 1, content: '{"auc": 0.5}', job, key: '' });
    const [data, results] = [`${server}/GSE57383_ps_psa`, `${server}/dcp-results`];
    const answers = [fetch(data), fetch(results, { method: 'POST', body })];
    return Promise.all(answers.map((answer) => answer.then((answer) => answer.text(), String)));
}"""
FAILED = ['TypeError: Failed to fetch'] * 2


@pytest.fixture
def work(tab, one_server, job):
    """Fetch and post as a worker in a page does. Return both answers, and the lines of the console."""

    def work(origin, host, permissions):
        console, hear = [], lambda message: console.append(message.text)
        tab.context.clear_permissions()
        tab.context.grant_permissions(permissions, origin=origin)
        tab.route(f'{origin}/**', lambda route: route.fulfill(body='a worker', content_type='text/html'))
        tab.on('console', hear)
        tab.goto(origin)
        answers = tab.evaluate(WORKER, [f'http://{host}:{one_server.port}', job])
        tab.evaluate('0')    # the console's lines have come, too
        tab.remove_listener('console', hear)
        return answers, '\n'.join(console)

    yield work
    tab.unroute_all()
    tab.context.clear_permissions()
    tab.goto('about:blank')


@pytest.mark.parametrize('host', ['127.0.0.1', '192.168.77.1', 'server.local'])
def test_dcp_work_may_fetch_and_post_only_once_the_user_allows_it(one_server, work, job, host):
    seen_before = one_server.server.output
    answers, console = work('https://dcp.work', host, [])
    for path in ('GSE57383_ps_psa', 'dcp-results'):
        assert (f"Access to fetch at 'http://{host}:{one_server.port}/{path}' from origin 'https://dcp.work' "
                'has been blocked by CORS policy: Permission was denied for this request to access the '
                '`local` address space.') in console
    assert answers == FAILED
    assert one_server.server.output == seen_before

    data = (one_server.folder / 'input' / 'GSE57383_ps_psa.txt').read_text()
    assert work('https://dcp.work', host, ['local-network-access'])[0] == [data, 'Result received']
    assert one_server.stored(job) == [1]


def test_host_name_needs_https_even_with_permission(work):
    answers, console = work('https://dcp.work', 'server.example', ['local-network-access'])
    assert answers == FAILED
    assert 'This request has been blocked; the content must be served over HTTPS.' in console


def test_server_refuses_another_web_page_even_with_permission(one_server, work, job):
    answers, console = work('https://dcp.example', '192.168.77.1', ['local-network-access'])
    assert answers == FAILED
    assert "No 'Access-Control-Allow-Origin' header is present on the requested resource." in console
    for request in ("'GET /GSE57383_ps_psa'", "'POST /dcp-results'"):
        one_server.server.wait_for(f'{request} refused: 403 this web page may not use this server')
    assert one_server.stored(job) == []
