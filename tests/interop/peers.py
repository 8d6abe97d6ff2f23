"""The servers whose exports are mounted, each over an image on disk, to be killed and started again."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.interop.servers import run
from tests.mounts import wait_until
from tests.tools import command

PEERS: dict[str, tuple[str, tuple[str, ...]]] = {  # the format of its image, and what serves `{image}` on `{socket}`
    "ours": ("raw", (*command("serve"), "{image}", "-U", "{socket}")),
    "nbdkit": ("raw", ("nbdkit", "-f", "-U", "{socket}", "file", "{image}")),
    "qemu-nbd raw": ("raw", ("qemu-nbd", "-f", "raw", "-t", "-e", "8", "-k", "{socket}", "{image}")),
    "qemu-nbd qcow2": ("qcow2", ("qemu-nbd", "-f", "qcow2", "--cache=writethrough", "-t", "-e", "8", "-k", "{socket}",
                                 "{image}")),
    "qemu-nbd bitmap": ("qcow2", ("qemu-nbd", "-f", "qcow2", "-B", "bits", "-t", "-e", "8", "-k", "{socket}",
                                  "{image}")),
    "nbd-server": ("raw", ("nbd-server", "-C", "{config}", "-p", "{pid}")),
}  # fmt: skip


def listens(path: Path) -> bool:
    """Whether a connection to the socket would be taken."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


@dataclass
class Peer:
    """A server over an image of `size` bytes; `restarts` counts how often it was killed and came back."""

    name: str
    folder: Path
    size: int
    restarts: int = 0

    def __post_init__(self) -> None:
        self.form, self._argv = PEERS[self.name]
        self.socket, self.image, self._pid = self.folder / "socket", self.folder / "image", self.folder / "pid"
        run("qemu-img", "create", "-q", "-f", self.form, str(self.image), str(self.size))
        if self.name == "qemu-nbd bitmap":
            run("qemu-img", "bitmap", "--add", "--enable", str(self.image), "bits")
        config = self.folder / "config"
        config.write_text(
            f"[generic]\nunixsock = {self.socket}\nallowlist = true\n"
            f"[disk]\nexportname = {self.image}\nflush = true\nfua = true\n"
        )
        names = {"image": self.image, "socket": self.socket, "config": config, "pid": self._pid}
        self._argv = tuple(word.format(**names) for word in self._argv)

    @property
    def uri(self) -> str:
        return f"nbd+unix:///{'disk' if self.name == 'nbd-server' else ''}?socket={self.socket}"

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        self.socket.unlink(missing_ok=True)
        self._pid.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            self._argv, process_group=0, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_until(lambda: listens(self.socket), f"start of {self.name}")
        if self.name == "nbd-server":  # it goes on in a process of its own
            wait_until(lambda: self._pid.exists() and self._pid.read_text().strip() != "", "its PID file")

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal, to all of its processes, and wait until it is gone."""
        group = int(self._pid.read_text()) if self.name == "nbd-server" else self._process.pid
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, number)
        self._process.wait(30)
        wait_until(lambda: not listens(self.socket), f"end of {self.name}")

    def restart(self) -> None:
        self.kill()
        self.start()
        self.restarts += 1

    def content(self) -> bytes:
        """What the image holds, as a disk."""
        if self.form == "raw":
            return self.image.read_bytes()
        copy = self.folder / "content"
        run("qemu-img", "convert", "-U", "-f", self.form, "-O", "raw", str(self.image), str(copy))
        return copy.read_bytes()

    def restart_under_load(self, busy: Callable[[], bool], times: int) -> None:
        """Kill and start it again, each time once its image has changed a few times since the last."""
        for _ in range(times):
            changes, last = 0, self.image.stat().st_mtime_ns
            end = time.monotonic() + 30
            while changes < 5:
                assert busy(), f"the load was over after {self.restarts} restarts"
                assert time.monotonic() < end, "the load does not go on"
                time.sleep(0.01)
                now = self.image.stat().st_mtime_ns
                changes, last = changes + (now != last), now
            self.restart()


@contextlib.contextmanager
def serving(name: str, folder: Path, size: int) -> Iterator[Peer]:
    peer = Peer(name, folder, size)
    peer.start()
    try:
        yield peer
    finally:
        peer.kill()


@pytest.fixture(params=PEERS)
def peer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Peer]:
    """Each of the servers, over an empty image of 8 MiB."""
    folder = tmp_path / "peer"
    folder.mkdir()
    with serving(request.param, folder, 8 << 20) as started:
        yield started
