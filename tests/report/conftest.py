"""A real browser for the pages of reports."""

import shutil

import pytest

from kerneldna.report.page import report

EVIL = '<img src=x onerror="alert(1)"></script>'


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no chromium on the path; apt install chromium to run this test")
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs kerneldna[dev]: playwright")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def show(browser, tmp_path):
    """A function that opens the page of some runs; afterwards, nothing may have been complained about or fetched."""
    complaints, contexts = [], []

    def open_page(runs, *, width=1400, height=900, **options):
        path = tmp_path / "report.html"
        report(runs, path, title="A report", note=EVIL, command=EVIL)
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: (complaints.append("a dialog"), dialog.dismiss()))
        own = (path.as_uri(), "data:image/jpeg;base64,")
        page.on("request", lambda request: request.url.startswith(own) or complaints.append(request.url))
        page.goto(path.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints
