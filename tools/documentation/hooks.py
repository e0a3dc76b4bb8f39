"""Hooks of the documentation site (`mkdocs.yml`): pages from outside docs/, links to files, notebooks and formulas.

The Markdown files are written for the repository, where links lead to any file. In the site, a link to a file that is a
page becomes a link to the page; a link to another file becomes its path. Missing files are left to the strict check
of MkDocs. Nothing is loaded from other hosts.
"""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path
from typing import Any

import nbformat
from matplotlib.path import Path as Outline
from matplotlib.textpath import TextPath
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

__all__ = ["formula", "notebook", "on_files", "on_page_content", "on_page_markdown", "site_links"]

ROOT = Path(__file__).parents[2]

OUTSIDE = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "infra/README.md": "infra.md"}
"""Pages of the site by their path in the repository, besides those of docs/."""

_LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<file>[^)#:\s]+)(?P<anchor>#[^)\s]*)?\)")
_FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
_STEPS = {Outline.MOVETO: "M", Outline.LINETO: "L", Outline.CURVE3: "Q", Outline.CURVE4: "C", Outline.CLOSEPOLY: "Z"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside docs/, and a page for every notebook."""
    for path, name in OUTSIDE.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / path)))
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            files.append(File.generated(config, _as_page(file.src_uri), content=notebook(Path(file.abs_src_path))))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links. The home page is the README of the repository; the list in docs/README.md is the navigation."""
    name = page.file.src_uri
    if name == "README.md":
        page.meta["hide"] = ["navigation"]
        return site_links(_with_cards((ROOT / "README.md").read_text()), "README.md", name)
    path = next((path for path, page_name in OUTSIDE.items() if page_name == name), f"docs/{name}")
    return site_links(markdown, path, name)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Draw formulas, which needs no script in the browser."""
    return _FORMULA.sub(lambda found: formula(html.unescape(found[2]).strip(), block=found[1] == "div"), content)


def _with_cards(readme: str) -> str:
    """The README with its table of pages as cards below the introduction."""
    text, table = re.split(r"^## Documentation\n", readme, flags=re.MULTILINE)
    rows = re.findall(r"^\| (\w[\w ]*) \| (.*) \|\n", table, flags=re.MULTILINE)[1:]
    cards = "".join(f"- **{title.capitalize()}**\n\n    {pages}\n\n" for title, pages in rows)
    end = table.rpartition("|\n")[2]
    introduction, image, rest = text.partition("\n![")
    return f'{introduction}\n<div class="grid cards" markdown>\n\n{cards}</div>\n{image}{rest}{end}'


def site_links(markdown: str, path: str, name: str) -> str:
    """Text of the page `name` with its links rewritten, which are relative to `path` in the repository."""

    def link(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), found["file"]))
        if not (ROOT / target).exists():
            return found[0]
        there = _page_of(target)
        if there is None:
            return found["text"] if target in found["text"] else f"{found['text']} (`{target}`)"
        text = _title(ROOT / target) if found["text"].endswith(".md") else found["text"]
        there = posixpath.relpath(there, posixpath.dirname(name) or ".")
        return f"{found['image']}[{text}]({there}{found['anchor'] or ''})"

    parts = _FENCED.split(markdown)
    return "".join(part if part.startswith("```") else _LINK.sub(link, part) for part in parts)


def _title(page: Path) -> str:
    return page.read_text().partition("\n")[0].removeprefix("# ")


def _page_of(path: str) -> str | None:
    """The page or image of the site for a file of the repository, or None."""
    if path in ("README.md", "docs"):
        return "README.md"
    if path.startswith("docs/"):
        return _as_page(path.removeprefix("docs/"))
    return OUTSIDE.get(path)


def _as_page(name: str) -> str:
    return name.removesuffix(".ipynb") + ".md" if name.endswith(".ipynb") else name


def notebook(path: Path) -> str:
    """A notebook as Markdown: its text, its code, and the outputs that are stored in it."""
    parts = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        elif cell.cell_type == "code":
            parts.append(f"```python\n{cell.source}\n```")
            parts += [_output(output) for output in cell.outputs]
    parts.insert(1, f'<a href="{path.name}" download>Download this page as a notebook</a>')
    return "\n\n".join(parts) + "\n"


def _output(output: Any) -> str:
    """The richest form of an output that needs no script."""
    data = output.get("data", {})
    if "image/png" in data:
        return f'<img alt="" src="data:image/png;base64,{"".join(data["image/png"].split())}">'
    if "text/html" in data:
        table = re.sub(r"<style.*?</style>", "", data["text/html"], flags=re.DOTALL)
        return re.sub(r"\s*\n\s*", "", re.sub(r"<table[^>]*>", "<table>", table))
    text = output.get("text") or data.get("text/plain") or "\n".join(output.get("traceback", ()))
    return f"```text\n{text.rstrip()}\n```"


def formula(tex: str, *, block: bool = False) -> str:
    """A formula as SVG in the colour and size of the text around it. 1 em is 10 units."""
    outline = TextPath((0, 0), f"${tex}$", size=10, prop={"math_fontfamily": "cm"})
    path = " ".join(
        _STEPS[step] + ("" if step == Outline.CLOSEPOLY else " ".join(f"{number:.2f}" for number in numbers))
        for numbers, step in outline.iter_segments(simplify=False)
    )
    left, bottom, right, top = outline.get_extents().extents
    left, bottom, right, top = left - 0.3, min(bottom, 0) - 0.3, right + 0.3, top + 0.3
    return (
        f'<svg class="formula{" block" if block else ""}" role="img" aria-label="{html.escape(tex)}" '
        f'viewBox="{left:.2f} {-top:.2f} {right - left:.2f} {top - bottom:.2f}" '
        f'style="height: {(top - bottom) / 10:.2f}em; vertical-align: {bottom / 10:.2f}em">'
        f'<path transform="scale(1 -1)" d="{path}"/></svg>'
    )
