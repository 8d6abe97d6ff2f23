"""What mkdocs is told when it makes the site: in the navigation a folder stands for all its pages."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    """Put the pages of each folder in its place, its index first."""
    for entry in config.nav:
        if isinstance(entry, dict):
            for title, below in entry.items():
                if isinstance(below, str) and below.endswith("/"):
                    entry[title] = _pages(Path(config.docs_dir), below)
    return config


def _pages(docs: Path, folder: str) -> list[str]:
    pages = sorted((docs / folder).glob("*.md"), key=lambda page: (page.stem != "index", page.stem))
    return [page.relative_to(docs).as_posix() for page in pages]
