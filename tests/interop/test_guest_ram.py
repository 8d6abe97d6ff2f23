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
@pytest.mark.parametrize("dump", ["cat '{file}'", "nbdcopy 'nbd+unix:///?socket={folder}/sock' -"])
def test_marker_is_seen_at_once(mount: Mounter, dump: str) -> None:
    listen = f"nbd+unix:///?socket={mount.folder}/sock"
    file = mount(f"memory:{MEMORY}", "--listen", listen, name="ram").file
    command = [str(PROOF), "--ram-file", str(file), "--dump", dump.format(file=file, folder=mount.folder),
               "--memory", "256M", "--no-sync"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "at once: marker found 0 times" not in done.stdout
