"""The RPM package that `make rpm` has left in dist/: examined, and installed in an empty folder.

This machine has no distribution of RPM packages, so what it depends on is not there; its programs run with our Python.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import nbdfs
from tests.conftest import ROOT

pytestmark = [pytest.mark.packages, pytest.mark.root, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def rpm() -> Path:
    (package,) = (ROOT / "dist").glob("nbdfs-*.rpm")
    return package


def run(*words: str | Path) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_rpmlint_finds_no_error(rpm: Path) -> None:
    run("rpmlint", "--rpmlintrc", ROOT / "packaging/rpm/nbdfs.rpmlintrc", rpm)


def test_it_needs_the_programs_and_libraries_it_uses(rpm: Path) -> None:
    needed = run("rpm", "-qp", "--requires", rpm).split("\n")
    assert "fuse3" in needed
    assert "libfuse3.so.3()(64bit)" in needed
    assert [name for name in needed if "openblas" in name or "gfortran" in name] == []


def test_it_holds_what_the_debian_package_holds(rpm: Path, package: Path) -> None:
    ours = {Path(line).name for line in run("rpm", "-qpl", rpm).splitlines()}
    listing = run("dpkg-deb", "--contents", package).splitlines()
    theirs = [line.split(" -> ")[0].split()[-1] for line in listing if not line.startswith("d")]
    apart = ("./usr/share/doc/", "./usr/share/lintian/")
    assert {Path(name).name.removesuffix(".gz") for name in theirs if not name.startswith(apart)} <= {
        name.removesuffix(".gz") for name in ours
    }


def test_installed_and_erased(rpm: Path, tmp_path: Path) -> None:
    at = ("rpm", "--root", tmp_path, "--dbpath", "/db")
    run(*at, "--install", "--nodeps", "--noscripts", "--ignorearch", rpm)
    script = "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); runpy.run_module('nbdfs', run_name='__main__')"
    lib = tmp_path / "usr/lib/nbdfs"
    assert run("/usr/bin/python3", "-I", "-B", "-c", script, lib, "--version") == f"nbdfs {nbdfs.__version__}\n"
    assert (tmp_path / "usr/sbin/mount.nbdfs").readlink() == Path("../bin/nbdfs")
    run(*at, "--erase", "--noscripts", "nbdfs")
    assert list(tmp_path.rglob("*nbdfs*")) == []
