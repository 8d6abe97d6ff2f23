"""What the host may lack: the kernel's NBD client, AF_VSOCK and systemd, in the test guest."""

from __future__ import annotations

import shutil
import subprocess
from importlib.metadata import files
from pathlib import Path

import pytest

from tests.conftest import ROOT

NEEDED = ("trio", "attrs", "outcome", "sniffio", "sortedcontainers", "idna", "pyfuse3")


@pytest.mark.guest
@pytest.mark.timeout(1200)  # the first run builds the guest
def test_kernel_vsock_and_systemd(tmp_path: Path) -> None:
    python = tmp_path / "python"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "nbdfs", python / "nbdfs", ignore=ignore)
    shutil.copytree(ROOT / "backends", python / "nbdfs" / "backends", ignore=ignore)
    for name in NEEDED:
        for path in files(name) or ():
            if ".." not in path.parts and path.suffix != ".pyc":
                (python / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path.locate(), python / path)
    shutil.copy(ROOT / "tests" / "guest" / "nbd-job", tmp_path)
    command = [ROOT / "tests/guest/run-in-guest", "--share", tmp_path, "--timeout", "600", "--", "./nbd-job"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1100)
    assert done.returncode == 0, done.stdout + done.stderr
    for part in ("kernel", "vsock", "systemd"):
        assert f"{part}: passed" in done.stdout
