"""The wheel and the source distribution that `make dist` has left in dist/, installed as pip and pipx do."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import nbdfs
from nbdfs.cli._commands import COMMANDS
from tests.conftest import ROOT

pytestmark = [pytest.mark.packages, pytest.mark.timeout(600)]

# Nothing is fetched: what nbdfs needs is in the folder that `make wheels` fills.
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(ROOT / "build/wheels"), "PIP_CONFIG_FILE": os.devnull}


def run(*words: str | Path, **environment: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, env={**os.environ, **environment})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel() -> Path:
    (wheel,) = (ROOT / "dist").glob("nbdfs-*.whl")
    return wheel


@pytest.fixture(scope="module")
def sdist() -> Path:
    (sdist,) = (ROOT / "dist").glob("nbdfs-*.tar.gz")
    return sdist


def test_pip(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", tmp_path)
    run(tmp_path / "bin/pip", "install", f"{wheel}[all]", **OFFLINE)
    command = tmp_path / "bin/nbdfs"
    assert run(command, "--version") == f"nbdfs {nbdfs.__version__}\n"
    assert run(command, "info", "--size", "memory:1M") == "1048576\n"
    assert run(command, "copy", "random,seed=1:64k", tmp_path / "copy", "--digest=sha256")
    for name in COMMANDS:
        assert (tmp_path / f"share/man/man1/nbdfs-{name}.1").exists()
    assert "_nbdfs" in (tmp_path / "share/bash-completion/completions/nbdfs").read_text()
    run(tmp_path / "bin/pip", "uninstall", "--yes", "nbdfs")
    assert list(tmp_path.rglob("nbdfs*")) == []


def test_pipx(wheel: Path, tmp_path: Path) -> None:
    places = {"PIPX_HOME": str(tmp_path / "home"), "PIPX_BIN_DIR": str(tmp_path / "bin")}
    run("pipx", "install", f"{wheel}[all]", PIP_FIND_LINKS=OFFLINE["PIP_FIND_LINKS"], **places)
    assert run(tmp_path / "bin/nbdfs", "--version") == f"nbdfs {nbdfs.__version__}\n"
    run("pipx", "uninstall", "nbdfs", **places)
    assert not (tmp_path / "bin/nbdfs").exists()


def test_a_wheel_holds_programs_only(wheel: Path) -> None:
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    stem = f"nbdfs-{nbdfs.__version__}"
    assert tops == {"nbdfs", f"{stem}.data", f"{stem}.dist-info"}


def test_a_source_distribution_is_the_whole_project(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    tracked = set(run("git", "-C", ROOT, "ls-files").splitlines())
    assert tracked - held == set()


def test_a_source_distribution_makes_the_same_wheel(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", tmp_path, sdist)
    (made,) = tmp_path.iterdir()
    assert {entry.filename: entry.CRC for entry in zipfile.ZipFile(made).infolist()} == {
        entry.filename: entry.CRC for entry in zipfile.ZipFile(wheel).infolist()
    }
