"""The manual as a site: mkdocs has nothing to say about it, and every page is in the navigation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def test_site(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.stdout + done.stderr == ""
    assert done.returncode == 0
    pages = {page.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for page in ROOT.glob("docs/**/*.md")}
    front = (tmp_path / "index.html").read_text()
    assert [page for page in pages if f'href="{page}"' not in front] == []
