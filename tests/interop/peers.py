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

    def restart_under_load(self, start: Callable[[], subprocess.Popen[str]], times: int) -> None:
        """Kill and start it again while a load writes and verifies, each time once its image has changed a few times.

        The load must succeed, and is started again when it ends before the last restart.
        """
        load = start()
        while self.restarts < times:
            if self._changes_under(load):
                self.restart()
            else:
                succeeds(load)
                load = start()
        succeeds(load)

    def _changes_under(self, load: subprocess.Popen[str]) -> bool:
        """Wait until the image has changed a few times; False if the load ends before that."""
        changes, last = 0, self.image.stat().st_mtime_ns
        end = time.monotonic() + 30
        while changes < 5:
            if load.poll() is not None:
                return False
            assert time.monotonic() < end, "the load does not go on"
            time.sleep(0.01)
            now = self.image.stat().st_mtime_ns
            changes, last = changes + (now != last), now
        return True


def fio(file: os.PathLike[str], size: int, *words: str) -> subprocess.Popen[str]:
    """fio writes all blocks of a file at random, then reads and verifies them."""
    return subprocess.Popen(
        ["fio", "--name=verify", f"--filename={file}", f"--size={size}", "--rw=randwrite", "--bs=16k", "--direct=1",
         "--ioengine=psync", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--allow_file_create=0", *words],
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def succeeds(load: subprocess.Popen[str]) -> None:
    told, _ = load.communicate(timeout=60)
    assert load.returncode == 0, told


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
