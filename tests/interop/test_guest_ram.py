"""A guest runs in a mounted file, and its memory is seen from outside while it runs (docs/guest-ram.md)."""

from __future__ import annotations

import subprocess

import pytest

from tests.conftest import ROOT
from tests.mounts import Mounter

MEMORY = 256 << 20
PROOF = ROOT / "tests" / "guest" / "ram-proof"


@pytest.mark.root
@pytest.mark.timeout(600)  # the first run builds the guest
@pytest.mark.parametrize("mount", ["passthrough", "data plane"], indirect=True)
def test_marker_is_in_the_file_at_once(mount: Mounter) -> None:
    file = mount(f"memory:{MEMORY}", name="ram").file
    command = [str(PROOF), "--ram-file", str(file), "--dump", f"cat {file}", "--memory", "256M", "--no-sync"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "at once: marker found 0 times" not in done.stdout
