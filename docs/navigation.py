"""What mkdocs is told when it makes the site: a folder in the navigation is all of its pages that are not named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    """Put the pages of each folder in its place, its index first."""
    docs = Path(config.docs_dir)
    named = {docs / entry for entry in _entries(config.nav)}
    for entry in config.nav:
        if isinstance(entry, dict):
            for title, below in entry.items():
                if isinstance(below, str) and below.endswith("/"):
                    pages = sorted({*(docs / below).glob("*.md")} - named, key=_index_first)
                    entry[title] = [page.relative_to(docs).as_posix() for page in pages]
    return config


def _entries(nav: Any) -> Iterator[str]:
    """The pages and folders that a navigation names."""
    if isinstance(nav, str):
        yield nav
    else:
        for below in nav.values() if isinstance(nav, dict) else nav:
            yield from _entries(below)


def _index_first(page: Path) -> tuple[bool, str]:
    return page.stem != "index", page.stem
