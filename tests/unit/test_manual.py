"""The manual has one page for each source and layer, all of one shape, with the options the registry knows."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nbdfs import registry
from nbdfs.cli.compat import programs
from nbdfs.compat._nbdkit_names import FILTERS, PLUGINS
from nbdfs.registry import SourceDriver
from tests.conftest import ROOT

HEADS = ["## Synopsis", "## Description", "## Options", "## Examples", "## Errors", "## See also"]


def test_pages_and_tables_are_current() -> None:
    done = subprocess.run([sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode == 0


@pytest.mark.parametrize("name", registry.names())
def test_page_has_the_shape_of_all(name: str) -> None:
    folder = "sources" if isinstance(registry.find(name), SourceDriver) else "layers"
    lines = (ROOT / "docs" / folder / f"{name}.md").read_text().splitlines()
    assert lines[0] == f"# {name}"
    assert lines[1].endswith(".")
    assert [line for line in lines if line.startswith("## ")] == HEADS


def test_the_page_on_other_programs_names_all_that_there_is() -> None:
    page = (ROOT / "docs" / "compat.md").read_text()
    assert [name for name in programs() if name not in page] == []
    assert [name for name in (*PLUGINS, *FILTERS) if f"`{name}`" not in page] == []
