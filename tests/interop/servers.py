"""`nbdfs serve` as a process of its own, and the programs of others as its clients."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from nbdfs.nbd.proto import constants as nbd
from tests.tools import command

SECONDS = 30.0
SYSTEM_PYTHON = "/usr/bin/python3"  # the one that has libnbd


@dataclass
class Serving:
    """A server, the URIs it printed, and its log."""

    process: subprocess.Popen[str]
    uris: list[str]
    log: Path

    @property
    def uri(self) -> str:
        return self.uris[0]

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(SECONDS)

    def logged(self) -> str:
        return self.log.read_text()

    def resident(self) -> int:
        """Bytes of memory that are the process's own."""
        fields = Path(f"/proc/{self.process.pid}/statm").read_text().split()
        return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")


Server = Callable[..., Serving]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Server]:
    """Start `nbdfs serve` with these words, on a Unix socket unless they say where."""
    started: list[Serving] = []

    def start(*words: str, where: tuple[str, ...] | None = None, expect: int = 1) -> Serving:
        log = tmp_path / f"server{len(started)}.log"
        place = where if where is not None else ("-U", str(tmp_path / f"s{len(started)}.sock"))
        with log.open("w") as file:
            process = subprocess.Popen(
                command("serve", "-v", *place, *words), text=True, stdout=subprocess.PIPE, stderr=file
            )
        assert process.stdout
        uris = [process.stdout.readline().strip() for _ in range(expect)]
        serving = Serving(process, uris, log)
        started.append(serving)
        assert all(uris), log.read_text()
        return serving

    yield start
    for serving in started:
        serving.process.kill()
        serving.process.wait()
        assert serving.process.stdout
        serving.process.stdout.close()
        assert "Traceback" not in serving.logged(), serving.logged()


def run(*words: str, check: bool = True) -> str:
    """Run another program; give what it prints."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def nbdsh(uri: str, script: str) -> str:
    """Run a script of libnbd's shell, connected as `h`."""
    prologue = f"import nbd, errno\nh = nbd.NBD()\nh.add_meta_context('base:allocation')\nh.connect_uri({uri!r})\n"
    return run(SYSTEM_PYTHON, "-c", prologue + script)


@contextlib.contextmanager
def raw(serving: Serving) -> Iterator[socket.socket]:
    """A socket to the server, for what no client would send."""
    path = serving.uri.partition("socket=")[2]
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(SECONDS)
        sock.connect(path)
        yield sock


def greet(sock: socket.socket) -> None:
    """Answer the greeting, in fixed newstyle without zeroes."""
    receive(sock, 18)
    sock.sendall(struct.pack(">I", 3))


def string(text: str) -> bytes:
    """A string with its length, as the data of options has it."""
    return struct.pack(">I", len(text.encode())) + text.encode()


def ask(sock: socket.socket, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
    """Send an option; the type and data of each reply, up to the last."""
    sock.sendall(struct.pack(">QII", nbd.OPTION_MAGIC, option, len(data)) + data)
    replies: list[tuple[int, bytes]] = []
    while not replies or not (replies[-1][0] == nbd.REP_ACK or replies[-1][0] & nbd.REP_FLAG_ERROR):
        magic, about, kind, length = struct.unpack(">QIII", receive(sock, 20))
        assert (magic, about) == (nbd.REPLY_MAGIC, option)
        replies.append((kind, receive(sock, length)))
    return replies


def enter(sock: socket.socket, *, structured: bool = False, export: str = "") -> None:
    """Shake hands, up to the transmission phase of an export."""
    greet(sock)
    if structured:
        ask(sock, nbd.OPT_STRUCTURED_REPLY)
    sock.sendall(struct.pack(">QI", nbd.OPTION_MAGIC, nbd.OPT_EXPORT_NAME) + string(export))
    receive(sock, 10)


def receive(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        assert part, "the server hung up"
        data += part
    return data


def reply_of(sock: socket.socket, cookie: int = 7) -> int:
    """The error of a simple reply."""
    magic, error, about = struct.unpack(">IIQ", receive(sock, 16))
    assert (magic, about) == (nbd.SIMPLE_REPLY_MAGIC, cookie)
    return int(error)


def request(command: int, offset: int = 0, length: int = 0, *, flags: int = 0, cookie: int = 7) -> bytes:
    return struct.pack(">IHHQQI", nbd.REQUEST_MAGIC, flags, command, cookie, offset, length)


def hung_up(sock: socket.socket) -> bool:
    """Whether the server closes the connection, having sent whatever it likes."""
    try:
        while sock.recv(1 << 16):
            pass
    except ConnectionResetError:
        pass
    return True


def wait_for(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


@contextlib.contextmanager
def nbdkit(folder: Path, *words: str) -> Iterator[str]:
    """An nbdkit server for the block, one in each folder: its URI."""
    socket, pid = folder / "nbdkit.sock", folder / "nbdkit.pid"
    server = subprocess.Popen(["nbdkit", "-f", "-U", socket, "-P", pid, *words], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while not pid.exists() or not pid.stat().st_size:
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield f"nbd+unix:///?socket={socket}"
    finally:
        server.kill()
        server.wait()
        pid.unlink(missing_ok=True)
        socket.unlink(missing_ok=True)
