"""The site is built without a warning, loads nothing from elsewhere, fits a phone, has conf/ and the public API."""

import os
import re
import shutil
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import yaml
from conftest import REPOSITORY

import fl.codec

pytestmark = pytest.mark.long
pytest_plugins = ["report.test_browser"]  # its browser


def built(folder, *options):
    """Runs the builder in a folder; returns the finished process."""
    command = [sys.executable, "-P", "-m", "mkdocs", "build", *options]  # not --quiet: it would not count warnings
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = built(REPOSITORY, "--site-dir", str(folder))
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.fixture(scope="module")
def address(site):
    """Serves it on this machine; returns where."""
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=site)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_nothing_is_loaded_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for path in pages:
        tags = re.findall(r"<(?:script|img|iframe|source|link)\b[^>]*>", path.read_text())
        assert not [tag for tag in tags if re.search(r"""(src|href)=["']?(https?:)?//""", tag)], path
    for path in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )[\"']?(https?:)?//", path.read_text()), path


def test_every_setting_has_its_line(site):
    text = (site / "reference" / "settings.html").read_text()

    def names(value, prefix=""):
        for key, each in value.items():
            if isinstance(each, dict) and each:
                yield from names(each, f"{prefix}{key}.")
            elif key not in ("_target_", "defaults"):
                yield f"{prefix}{key}"

    for path in (REPOSITORY / "conf").rglob("*.yaml"):
        if path.parent.name != "experiment":
            content = yaml.safe_load(path.read_text())
            content.pop("hydra", None)
            for name in names(content):
                assert f"<code>{name}</code>" in text, (path, name)
        assert path.stem in text
    assert "of the clients asked to train in each round" in text


def test_the_public_interface_is_there(site):
    text = (site / "reference" / "python.html").read_text()
    for name in fl.codec.__all__:
        assert re.search(rf'id="fl\.(codec|core\.errors)(\.\w+)*\.{name}"', text), name
    assert "load_model" in text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_a_phone_have_no_fault_and_ask_nobody_else(browser, address, scheme):
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    page, wrong = context.new_page(), []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: request.url.startswith((address, "data:")) or wrong.append(request.url))
    for name in ("index", "idea", "tutorials/first-run", "reference/settings", "reference/python", "results"):
        page.goto(f"{address}{name}.html")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
        assert all(page.evaluate("[...document.images].map(each => each.naturalWidth > 0)")), name
        assert page.get_attribute("body", "data-md-color-scheme") == {"light": "default", "dark": "slate"}[scheme]
    context.close()
    assert not wrong


def test_a_forgotten_document_or_a_broken_link_fails_the_build(tmp_path):
    for name in ("conf", "docs", "examples", "fl", "outputs", "scripts"):
        skipped = shutil.ignore_patterns("__pycache__", "*.pt", "20*")
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=skipped)
    for name in ("mkdocs.yml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copy(REPOSITORY / name, tmp_path)
    (tmp_path / "docs" / "forgotten.md").write_text("# Forgotten\n\n[nowhere](nothing.md), [no anchor](idea.md#none)\n")
    done = built(tmp_path)
    assert done.returncode != 0
    for fault in ("forgotten.md", "nothing.md", "idea.md#none"):
        assert fault in done.stderr
