"""The manual pages: there is one for everything, roff's own programs find no fault, and they say what --help says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from nbdfs import registry
from nbdfs.cli import main
from nbdfs.cli._commands import COMMANDS
from nbdfs.registry import SourceDriver
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def manual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("man")
    subprocess.run([sys.executable, "packaging/manual.py", folder], cwd=ROOT, check=True, timeout=60)
    return folder


def test_a_page_for_everything(manual: Path) -> None:
    assert {path.name for path in (manual / "man1").iterdir()} == {
        "nbdfs.1",
        *(f"nbdfs-{name}.1" for name in COMMANDS),
    }
    for name in registry.names():
        kind = "source" if isinstance(registry.find(name), SourceDriver) else "layer"
        assert (manual / "man7" / f"nbdfs-{kind}-{name}.7").exists()


def test_mandoc_finds_no_fault(manual: Path) -> None:
    done = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", *manual.glob("man*/*")], capture_output=True, text=True, timeout=60
    )
    assert done.stdout + done.stderr == ""


def test_man_has_no_warnings(manual: Path) -> None:
    done = subprocess.run(
        ["man", "--warnings", "--local-file", "-Tutf8", *manual.glob("man*/*")], capture_output=True, text=True,
        timeout=60, env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "MANWIDTH": "80"},
    )  # fmt: skip
    assert done.stderr == ""
    assert done.returncode == 0


def shown(page: Path) -> str:
    """A page as a terminal shows it, in one line."""
    done = subprocess.run(["mandoc", "-T", "utf8", page], capture_output=True, text=True, check=True, timeout=60)
    return re.sub(r"\s+", " ", re.sub(".\b", "", done.stdout))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_all_its_options(manual: Path, name: str) -> None:
    page = shown(manual / "man1" / f"nbdfs-{name}.1")
    flags = re.findall(r"(?<![\w-])--[\w-]+", main.parser_of(name).format_usage())
    assert flags
    assert [flag for flag in flags if flag not in page] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_leads_to_the_page_that_tells_more(manual: Path, name: str) -> None:
    _, head, after = shown(manual / "man1" / f"nbdfs-{name}.1").partition("SEE ALSO")
    assert head
    assert re.search(r"nbdfs[-.][\w-]+\(\d\)", after)


def test_a_value_that_may_be_left_out_stands_in_brackets(manual: Path) -> None:
    assert "-p[FD], --progress[=FD] " in shown(manual / "man1" / "nbdfs-copy.1")
    assert "--map[=CONTEXT] " in shown(manual / "man1" / "nbdfs-info.1")


@pytest.mark.parametrize("name", registry.names())
def test_a_driver_has_all_its_options(manual: Path, name: str) -> None:
    driver = registry.find(name)
    kind = "source" if isinstance(driver, SourceDriver) else "layer"
    page = shown(manual / "man7" / f"nbdfs-{kind}-{name}.7")
    assert f"nbdfs-{kind}-{name} - " in page
    assert [option.name for option in driver.option_table if f"{option.name}={option.kind.name}" not in page] == []


def test_links_lead_to_other_pages(manual: Path) -> None:
    names = {f"{path.stem}({path.suffix[1:]})" for path in manual.glob("man*/*")}
    for path in manual.glob("man*/*"):
        ours = set(re.findall(r"(?<![.\w])nbdfs(?:-[\w-]+)?\(\d\)", shown(path)))
        assert ours <= names, path
