"""The website builds without warnings or a network, is complete, and works in Chromium from the file system."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from documentation.hooks import formula, notebook, site_links
from documentation.pages import ROOT
from support.devtools import CHROMIUM, opened

import lt_train.methods
import lt_train.testing
import sweeps

CONFIGURATION = ROOT / "tools" / "documentation" / "mkdocs.yml"
UNREACHABLE = "http://127.0.0.1:9"

OVERFLOW = """[...document.querySelectorAll('.md-content *')].filter(e => {
  for (let p = e; p && !p.matches('.md-content'); p = p.parentElement)
    if (/auto|scroll|hidden/.test(getComputedStyle(p).overflowX)) return false;
  return e.getBoundingClientRect().right > document.documentElement.clientWidth + 1;
}).map(e => e.outerHTML.slice(0, 200))"""
"""Elements that reach out of the page and are in no box that scrolls."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the command of `make site`: strict, so every warning about links, anchors and docstrings is an error."""
    place = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(CONFIGURATION)]
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), UNREACHABLE)
    done = subprocess.run(
        [*command, "--site-dir", str(place)],
        env={**os.environ, **proxies, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return place


@pytest.mark.slow
def test_the_api_pages_have_every_public_name(site: Path) -> None:
    pages = "".join(page.read_text() for page in (site / "api").glob("*.html"))
    shown = set(re.findall(r'id="([\w.]+)"', pages))
    table = (ROOT / "docs" / "extending.md").read_text().partition("\n## ")[0]
    bases = {word.removesuffix(".register").rpartition(".")[2] for word in re.findall(r"`([\w.]+)`", table)}
    assert {word for word in bases if not word.islower()} | {*lt_train.methods.__all__} <= {
        name.rpartition(".")[2] for name in shown
    }
    for package in (lt_train, lt_train.testing, sweeps):
        public = getattr(package, "__all__", dir(package))
        names = {f"{package.__name__}.{name}" for name in public}
        assert names - {"lt_train.methods"} <= shown


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
@pytest.mark.parametrize(("width", "dark"), [(1400, False), (400, True)])
def test_every_page_opens_without_errors_and_requests_and_fits(
    site: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    pages = sorted(set(site.rglob("*.html")) - {site / "404.html"})  # a server answers with that one, at any address
    assert len(pages) > 30
    with opened(CHROMIUM, tmp_path / "profile", width=width, dark=dark) as tab:
        for page in pages:
            tab.visit(page.as_uri())
            assert tab.ask("document.documentElement.scrollWidth") <= width, page
            assert tab.ask(OVERFLOW) == [], page
            assert tab.ask("document.body.dataset.mdColorScheme") == ("slate" if dark else "default"), page
            assert tab.seen.errors == [], page
        assert [url for url in tab.seen.requests if url != "about:blank" and not url.startswith(site.as_uri())] == []


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
def test_search_and_dark_mode_work_without_a_server(site: Path, tmp_path: Path) -> None:
    with opened(CHROMIUM, tmp_path / "profile") as tab:
        tab.visit((site / "index.html").as_uri())
        tab.ask("document.querySelector('label[title=\"Switch to dark mode\"]').click()")
        assert tab.ask("document.body.dataset.mdColorScheme") == "slate"
        tab.ask("document.querySelector('#__search').click()")
        tab.until("!document.querySelector('.md-search-result__meta').innerText.startsWith('Initializing')")
        tab.ask(
            "(i => { i.value = 'halving'; i.dispatchEvent(new Event('keyup', {bubbles: true})); })"
            "(document.querySelector('.md-search__input'))"
        )
        found = "[...document.querySelectorAll('.md-search-result__link')].map(a => a.href)"
        tab.until(f"{found}.length")
        assert any(url.startswith((site / "reference" / "kinds.html").as_uri()) for url in tab.ask(found))
        assert tab.seen.errors == []


@pytest.mark.parametrize(
    ("path", "written", "expected"),
    [
        ("README.md", "[a](docs/report.md#x)", "[a](report.md#x)"),
        ("README.md", "![a](docs/images/report.png)", "![a](images/report.png)"),
        ("docs/report.md", "[a](compare.md)", "[a](compare.md)"),
        ("docs/reference/kinds.md", "[glossary.md](../glossary.md)", "[Glossary](../glossary.md)"),
        ("docs/api/sweeps.md", "[a](../../CHANGELOG.md)", "[a](../changelog.md)"),
        ("docs/report.md", "[demo](../sweeps/specs/demo.yaml)", "demo (`sweeps/specs/demo.yaml`)"),
        ("docs/report.md", "[`infra/ray`](../infra/ray)", "`infra/ray`"),
        ("docs/report.md", "[a](missing.md) [b](https://example.org/x)", "[a](missing.md) [b](https://example.org/x)"),
        ("docs/report.md", "```sh\n[a](../README.md)\n```", "```sh\n[a](../README.md)\n```"),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(path: str, written: str, expected: str) -> None:
    assert site_links(written, path, path.removeprefix("docs/")) == expected


def test_a_notebook_becomes_a_page_with_its_outputs(tmp_path: Path) -> None:
    file = tmp_path / "notebook.ipynb"
    v4 = nbformat.v4
    table = {"text/html": "<style>td {}</style>\n<table border=1>\n<tr><td>1</td></tr></table>", "text/plain": "1"}
    outputs = [
        v4.new_output("stream", text="printed\n"),
        v4.new_output("execute_result", table),
        v4.new_output("display_data", {"image/png": "iVBO\nRw0K", "text/plain": "<Figure>"}),
    ]
    cells = [v4.new_markdown_cell("# Title"), v4.new_code_cell("print(1)", outputs=outputs)]
    nbformat.write(v4.new_notebook(cells=cells), file)
    assert notebook(file) == (
        '# Title\n\n<a href="notebook.ipynb" download>Download this page as a notebook</a>\n\n'
        "```python\nprint(1)\n```\n\n"
        "```text\nprinted\n```\n\n<table><tr><td>1</td></tr></table>\n\n"
        '<img alt="" src="data:image/png;base64,iVBORw0K">\n'
    )


def test_a_formula_is_drawn_at_the_height_of_its_text() -> None:
    heights = [float(re.findall(r"height: ([\d.]+)em", formula(tex))[0]) for tex in ("x", r"\sqrt{p(1-p)}")]
    assert 0.4 < heights[0] < heights[1] < 1.5
    assert 'aria-label="a &lt; b"' in formula("a < b")
