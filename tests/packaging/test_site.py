"""The manual as a site: mkdocs has nothing to say about it, and every page is in the navigation."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.stdout + done.stderr == ""
    assert done.returncode == 0
    return folder


def test_every_page_is_in_the_navigation(site: Path) -> None:
    pages = {page.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for page in ROOT.glob("docs/**/*.md")}
    front = (site / "index.html").read_text()
    assert [page for page in pages if f'href="{page}"' not in front] == []


def test_no_list_or_table_is_taken_for_text(site: Path) -> None:
    """Markdown of GitHub takes some for what they are without the blank line that mkdocs wants before them."""
    pages = {page.relative_to(site).as_posix(): page.read_text() for page in site.rglob("*.html")}
    mark = re.compile(r"^(- |\d+\. |\| )", re.MULTILINE)
    paragraphs = {name: re.findall(r"<p>(.*?)</p>", text, re.DOTALL) for name, text in pages.items()}
    assert {name: texts for name, found in paragraphs.items() if (texts := list(filter(mark.search, found)))} == {}
