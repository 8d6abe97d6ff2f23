"""A directory that is mounted when somebody first looks into it: autofs, with us as the mount helper."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mounts import SECONDS, is_mounted, nbdfs

# What systemd does for an automount unit: the first argument is the directory, the rest mounts there.  The kernel lets
# only this process group pass until the mount is said to be ready.
_AUTOMOUNTER = """
import ctypes, fcntl, os, struct, subprocess, sys
AUTOFS_IOC_READY, AUTOFS_IOC_FAIL, PACKET = 0x9360, 0x9361, 304
folder, *command = sys.argv[1:]
reading, writing = os.pipe()
data = f"fd={writing},pgrp={os.getpgrp()},minproto=5,maxproto=5,direct"
assert ctypes.CDLL(None).mount(b"test", folder.encode(), b"autofs", 0, data.encode()) == 0
root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
print("waiting", flush=True)
token, = struct.unpack_from("8xI", os.read(reading, PACKET))
status = subprocess.run(command).returncode
fcntl.ioctl(root, AUTOFS_IOC_FAIL if status else AUTOFS_IOC_READY, token)
print(status, flush=True)
"""


@pytest.mark.root
def test_automount_comes_up_at_the_first_look(tmp_path: Path) -> None:
    folder, pid = tmp_path / "automount", tmp_path / "pid"
    folder.mkdir()
    command = nbdfs("mount", "-b", "-P", str(pid), "a=memory:1M", "b=data:1", str(folder))
    words = [sys.executable, "-c", _AUTOMOUNTER, str(folder), *command]
    automounter = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, process_group=0)
    assert automounter.stdout
    try:
        assert automounter.stdout.readline() == "waiting\n"
        listing = subprocess.run(["ls", folder], capture_output=True, text=True, timeout=SECONDS)
        assert listing.stdout.split() == ["a", "b"], listing.stderr
        assert automounter.stdout.readline() == "0\n"
        subprocess.run(nbdfs("umount", str(folder)), check=True, timeout=SECONDS)
        assert not pid.exists()
    finally:
        os.killpg(automounter.pid, signal.SIGKILL)
        automounter.communicate()
        while is_mounted(folder):
            subprocess.run(["umount", "-l", folder], check=True, timeout=SECONDS)
