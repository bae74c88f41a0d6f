"""The page in a real browser: no error, nothing beside it, no horizontal scrolling, readable by everyone."""

import os
import shutil

import pytest

pytest_plugins = ["report.test_report"]


@pytest.fixture(scope="module")
def browser():
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if not found:
        assert not os.environ.get("CI"), "CI installs chromium"
        pytest.skip("there is no chromium here")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, reported):
    """Opens the page in a window; returns it, and what went wrong with it."""
    contexts = []

    def opens(width=1000, scheme="light", path=reported / "report.html"):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme))
        page, wrong = contexts[-1].new_page(), []
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: wrong.append(request.url) if request.url.startswith("http") else None)
        page.goto(path.as_uri())
        return page, wrong

    yield opens
    for context in contexts:
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1000])
def test_it_fits_and_everything_is_drawn(opened, width, scheme):
    page, wrong = opened(width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for picture in page.locator("figure svg").all():
        box = picture.bounding_box()
        assert box["width"] > 200
        assert box["height"] > 50
    assert page.locator("figure svg text").count() > 50
    assert all(page.evaluate("[...document.images].map(each => each.naturalWidth > 0)"))
    assert not wrong


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_by_everyone(opened, scheme):
    from axe_playwright_python.sync_playwright import Axe

    page, _ = opened(390, scheme)
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_tables_are_sorted_with_the_keyboard(opened):
    page, wrong = opened()
    table = page.locator("table").filter(has=page.get_by_role("button", name="file bytes")).first
    column = lambda: [int(each.inner_text().replace(",", "")) for each in table.locator("td:nth-child(2)").all()]  # noqa: E731
    button = table.get_by_role("button", name="file bytes")
    for order in (sorted(column()), sorted(column(), reverse=True)):
        button.focus()
        page.keyboard.press("Enter")
        assert column() == order
    assert table.locator("th[aria-sort=descending]").count() == 1
    assert not wrong


def test_it_prints_on_paper(opened, tmp_path):
    page, _ = opened()
    assert len(page.pdf(format="A4", path=tmp_path / "page.pdf")) > 20_000
