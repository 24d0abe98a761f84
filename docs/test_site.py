# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""Every page of the built site in a browser. `make test-docs` builds the site and runs this.

It uses Debian's chromium, and asks no other machine for anything.
"""

import functools
import http.server
import re
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest
from gallery import forget_stale
from playwright.sync_api import sync_playwright

SITE = Path(__file__).parent / "_build" / "html"
PAGES = sorted(str(page.relative_to(SITE)) for page in SITE.rglob("*.html"))
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
# Without a sandbox, which a container's root cannot have, and without requests of its own.
OPTIONS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PHONE = 390  # pixels


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves the site without a line for each request."""

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    handler = functools.partial(Quiet, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": PHONE, "height": 844})
    yield page
    page.close()


def test_there_are_pages():
    assert {"index.html", "reference/index.html", "choosing.html"} <= set(PAGES)


@pytest.mark.parametrize("name", PAGES)
def test_page(name, page, address):
    """It loads whole from this machine, without errors, shows what it has, and fits a phone."""
    faults = []
    page.on(
        "console", lambda message: faults.append(message.text) if message.type == "error" else 0
    )
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on(
        "request", lambda asked: faults.append(asked.url) if is_foreign(asked.url, address) else 0
    )
    page.on(
        "response", lambda got: faults.append(f"{got.status} {got.url}") if got.status >= 400 else 0
    )
    response = page.goto(address + name, wait_until="networkidle")
    assert response.status == 200
    assert not faults
    formulas, rendered = (
        page.evaluate(f"document.querySelectorAll('{which}').length")
        for which in (".math", "mjx-container")
    )
    assert rendered >= formulas  # one block may have several
    assert not page.evaluate("document.querySelectorAll('mjx-merror').length")
    broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.src)"
    assert page.evaluate(broken) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def is_foreign(url, address):
    return not url.startswith((address, "data:", "blob:"))


@pytest.mark.parametrize("name", PAGES)
def test_links_inside_the_site(name):
    here = SITE / name
    for link in re.findall(r'<a [^>]*href="([^"]*)"', here.read_text()):
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        target = (here.parent / unquote(parts.path)).resolve() if parts.path else here
        assert target.is_file(), link
        if parts.fragment and target.suffix == ".html":
            anchor = re.escape(unquote(parts.fragment))
            assert re.search(rf'\bid="{anchor}"', target.read_text()), link


TUTORIALS = [name for name in PAGES if re.fullmatch(r"tutorials/(?!index)\w+\.html", name)]


@pytest.mark.parametrize("name", TUTORIALS)
def test_a_tutorial_offers_what_it_imports_and_tells_of_a_short_run(name):
    text = (SITE / name).read_text()
    assert re.search(r'href="[^"]*/options\.py"', text)
    if "DOCS_FAST=1" in text:  # in the line above every page
        assert text.count("This is a shortened run") == text.count("sphx-glr-script-out") > 0


CODE = ["docs/gallery.py", "examples/options.py", "pyro_gumbel/relax.py"]


@pytest.mark.parametrize("fast", ["", "1"])
@pytest.mark.parametrize("changed", [None, "DOCS_FAST", *CODE])
def test_tutorials_stay_until_what_made_them_changes(changed, fast, tmp_path, monkeypatch):
    for name in CODE:
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    tutorial = tmp_path / "docs" / "tutorials" / "digits_vae.rst"
    app = SimpleNamespace(srcdir=tmp_path / "docs")
    monkeypatch.setenv("DOCS_FAST", fast)
    forget_stale(app)
    tutorial.touch()
    if changed == "DOCS_FAST":
        monkeypatch.setenv("DOCS_FAST", "" if fast else "1")
    elif changed:
        (tmp_path / changed).write_text("changed")
    forget_stale(app)
    of_package = changed == "pyro_gumbel/relax.py"
    assert tutorial.exists() == (changed is None or (of_package and fast == "1"))
