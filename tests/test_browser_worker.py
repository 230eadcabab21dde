"""A browser worker, a page from https://dcp.work, may use the server; other pages may not. In Chromium.

All traffic stays on this machine: whatever host the browser is told, it looks for it at 127.0.0.1.
"""
import shutil

import pytest

playwright = pytest.importorskip('playwright.sync_api', reason='tests/requirements.txt is not installed')
CHROMIUM = shutil.which('chromium') or pytest.skip('there is no chromium', allow_module_level=True)
WORKER = """async ([server, job]) => {
    const body = new URLSearchParams({ element: 1, content: '{"auc": 0.5}', job });
    const [data, results] = [`${server}/GSE57383_ps_psa`, `${server}/dcp-results`];
    const answers = [fetch(data), fetch(results, { method: 'POST', body })];
    return Promise.all(answers.map((answer) => answer.then((answer) => answer.text(), String)));
}"""
FAILED = ['TypeError: Failed to fetch'] * 2


@pytest.fixture
def work(served):
    """Fetch and post as a worker in a page of that origin. Return both answers, and the console's lines."""
    local = f'--ip-address-space-overrides=127.0.0.1:{served.port}=local'    # a machine of the local network

    def work(origin, permissions):
        with playwright.sync_playwright() as started:
            browser = started.chromium.launch(executable_path=CHROMIUM, args=[
                local, '--host-resolver-rules=MAP * 127.0.0.1', '--disable-gpu'])
            page, console = browser.new_page(), []
            page.context.grant_permissions(permissions, origin=origin)
            page.route(f'{origin}/**', lambda route: route.fulfill(body='a worker', content_type='text/html'))
            page.on('console', lambda message: console.append(message.text))
            page.goto(origin)
            answers = page.evaluate(WORKER, [f'http://192.168.77.1:{served.port}', 'job1'])
            page.evaluate('0')    # the console's lines have come, too
            return answers, '\n'.join(console)

    return work


def test_dcp_work_may_fetch_and_post_only_once_the_user_allows_it(served, work):
    answers, console = work('https://dcp.work', [])
    assert answers == FAILED
    assert 'Permission was denied for this request to access the `local` address space.' in console
    data = (served.folder / 'input' / 'GSE57383_ps_psa.txt').read_text()
    assert work('https://dcp.work', ['local-network-access'])[0] == [data, 'Result received']
    assert [row['slice'] for row in served.rows()] == ['1']


def test_another_web_page_may_not_even_with_permission(served, work):
    answers, console = work('https://dcp.example', ['local-network-access'])
    assert answers == FAILED
    assert "No 'Access-Control-Allow-Origin' header is present on the requested resource." in console
    for request in ('GET /GSE57383_ps_psa', 'POST /dcp-results'):
        served.server.wait_for(f"'{request}' refused: 403")
    assert not served.results()
