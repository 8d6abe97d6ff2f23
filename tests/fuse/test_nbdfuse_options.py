"""Every option of nbdfuse 1.24 that `test_nbdfuse.py` has no use for; our own server is the one that is mounted."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuse.remote import MIB, file, nbdfuse, overwrite
from tests.interop.servers import Server, serve
from tests.mounts import is_mounted, nbdfs, wait_until
from tests.tools import command

__all__ = ["file", "serve"]

pytestmark = pytest.mark.root

OURS = command("serve", "memory:2M")
STDIO = command("serve", "--stdio", "memory:2M")


def works(file: Path) -> None:
    assert file.stat().st_size == 2 * MIB
    overwrite(file, b"here")
    assert file.read_bytes()[:5] == b"here\0"


@pytest.mark.parametrize(
    "words",
    [["--socket-activation", *OURS], ["--systemd-socket-activation", *OURS], ["--cmd", *STDIO]],
    ids=["socket-activation", "systemd-socket-activation", "cmd"],
)
def test_commands_that_are_servers(file: Path, words: list[str]) -> None:
    with nbdfuse(file, str(file), *words):
        works(file)


def test_tcp(file: Path, serve: Server) -> None:
    port = serve("memory:2M", where=("-i", "127.0.0.1", "-p", "0")).uri.rpartition(":")[2].strip("/")
    with nbdfuse(file, str(file), "--tcp", "localhost", port):
        works(file)


def test_unix_and_uri(file: Path, serve: Server) -> None:
    uri = serve("memory:2M").uri
    for words in (["--unix", uri.partition("socket=")[2]], ["--uri", uri]):
        with nbdfuse(file, str(file), *words):
            works(file)


def test_a_comma_in_a_mount_option(file: Path) -> None:
    with nbdfuse(file, str(file), "-o", r"big_writes,fsname=one\,two,max_read=4096", "--socket-activation", *OURS):
        assert f" {file} fuse.nbdfs " in Path("/proc/self/mounts").read_text()
        assert "one,two " in Path("/proc/self/mounts").read_text()


@pytest.fixture
def connected() -> Iterator[socket.socket]:
    """A socket whose other end is a server."""
    ours, theirs = socket.socketpair()
    with ours, theirs, subprocess.Popen(STDIO, stdin=theirs, stdout=theirs) as server:
        theirs.close()
        try:
            yield ours
        finally:
            server.terminate()


def test_fd(file: Path, connected: socket.socket) -> None:
    os.set_inheritable(connected.fileno(), True)
    with nbdfuse(file, str(file), "--fd", str(connected.fileno()), inherit=(connected.fileno(),)):
        works(file)


def test_vsock_goes_to_that_machine_and_port(file: Path) -> None:
    """Nobody listens there: the complaint tells where it went."""
    done = subprocess.run(
        nbdfs("compat", "nbdfuse", str(file), "--vsock", "1", "4294967000"), capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1
    assert "nbd+vsock" in done.stderr or "vsock" in done.stderr, done.stderr
    assert "4294967000" in done.stderr and len(done.stderr.splitlines()) == 1


def test_readonly(file: Path) -> None:
    for word in ("--readonly", "--read-only"):
        with nbdfuse(file, word, str(file), "[", *OURS, "]"):
            assert stat.S_IMODE(file.stat().st_mode) == 0o444


@pytest.mark.parametrize(
    "words",
    [["-C", "2", "-s", "-d"], ["-C3", "-v", "-o", "allow_other,uid=7,gid=8"],
     ["--connections", "1", "--verbose", "-o", "allow_other", "-o", "kernel_cache"]], ids=" ".join,
)  # fmt: skip
def test_words_that_are_taken(file: Path, words: list[str]) -> None:
    with nbdfuse(file, *words, str(file), "[", *OURS, "]"):
        works(file)
        if "uid=7" in words[-1]:
            assert (file.stat().st_uid, file.stat().st_gid) == (7, 8)


@pytest.mark.parametrize(
    ("word", "number"), [("-P", signal.SIGTERM), ("--pidfile", signal.SIGINT), ("--pid-file", signal.SIGTERM)]
)
def test_pidfile_and_the_signals_that_end_it(file: Path, tmp_path: Path, word: str, number: signal.Signals) -> None:
    pid = tmp_path / "pid"
    process = subprocess.Popen(nbdfs("compat", "nbdfuse", word, str(pid), str(file), "[", *OURS, "]"))
    try:
        wait_until(pid.exists, "the PID file")
        assert int(pid.read_text()) == process.pid
        works(file)
        process.send_signal(number)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
    assert not is_mounted(file) and not pid.exists()


def test_unmounted_from_outside(file: Path) -> None:
    with nbdfuse(file, str(file), "[", *OURS, "]") as process:
        subprocess.run(["fusermount3", "-u", str(file)], check=True)
        assert process.wait(30) == 0


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("--help", "MOUNTPOINT"),
        ("--fuse-help", "allow_other"),
        ("-V", "nbdfuse 1.24"),
        ("--version", "libnbd 1.24"),
        ("--long-options", "--socket-activation"),
        ("--short-options", "-P"),
    ],
)
def test_information(word: str, told: str) -> None:
    done = subprocess.run(nbdfs("compat", "nbdfuse", word), capture_output=True, text=True, timeout=30)
    assert done.returncode == 0 and told in done.stdout


def test_every_long_option_is_known() -> None:
    done = subprocess.run(nbdfs("compat", "nbdfuse", "--long-options"), capture_output=True, text=True, timeout=30)
    assert {
        "--cmd", "--command", "--connections", "--fd", "--fuse-help", "--help", "--long-options", "--pid-file",
        "--pidfile", "--read-only", "--readonly", "--short-options", "--socket-activation",
        "--systemd-socket-activation", "--tcp", "--unix", "--uri", "--verbose", "--version", "--vsock",
    } <= set(done.stdout.split())  # fmt: skip
