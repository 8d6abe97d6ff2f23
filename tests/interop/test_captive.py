"""Captive servers, with real programs: started, reached, ended, and dead when nbdfs is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio

from nbdfs.captive import Captive, captive
from nbdfs.errors import UserError

GREETING = b"NBDMAGICIHAVEOPT"
_QEMU = ["qemu-nbd", "--format=raw", "--read-only", "--shared=4", "/bin/sh"]


async def _greeting(server: Captive) -> bytes:
    connection = trio.socket.from_stdlib_socket(await server.connect())
    with connection, trio.fail_after(30):
        return await connection.recv(16)


@pytest.mark.parametrize(
    "argv",
    [["nbdkit", "memory", "1M"], _QEMU, ["nbdkit", "-f", "-U", "{}", "memory", "1M"], [*_QEMU, "-t", "-k", "{}"]],
)
async def test_several_connections(argv: list[str]) -> None:
    async with captive(argv) as server:
        assert not server.single
        for _ in range(3):
            assert await _greeting(server) == GREETING
        assert server.alive
    assert not server.alive


async def test_stdio_has_one_connection() -> None:
    async with captive(["nbdkit", "-s", "memory", "1M"], stdio=True) as server:
        assert server.single
        assert await _greeting(server) == GREETING
        with pytest.raises(ConnectionRefusedError):
            await server.connect()


async def test_last_words_of_a_server_that_does_not_start() -> None:
    async with captive(["sh", "-c", "echo no such disk >&2; exit 3"]) as server:
        with trio.fail_after(30):
            await server._ended.wait()
        with pytest.raises(ConnectionRefusedError, match="sh ended with exit status 3: no such disk"):
            await server.connect()


async def test_last_words_are_not_too_many() -> None:
    async with captive(["sh", "-c", "tr '\\0' x < /dev/zero | head -c 1000000; echo; echo end; exit 3"]) as server:
        with trio.fail_after(30):
            await server._ended.wait()
        assert server.last_words() == f"sh ended with exit status 3: {'x' * 4096} / end"


async def test_private_socket_that_never_comes() -> None:
    with pytest.raises(UserError, match="ended with exit status 7: bad"):
        async with captive(["sh", "-c", "echo bad; exit 7", "{}"]):
            pass


async def test_a_folder_for_temporary_files_whose_name_is_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    with pytest.raises(UserError, match="cannot run nbdkit memory 1M: AF_UNIX path too long"):
        async with captive(["nbdkit", "memory", "1M"]):
            pass


async def test_unknown_program() -> None:
    with pytest.raises(UserError, match="no program 'nbd-nowhere'"):
        async with captive(["nbd-nowhere"]):
            pass


async def test_server_inherits_the_listener_and_nothing_else() -> None:
    os.dup2(1, 77, inheritable=True)
    script = "[ $LISTEN_PID = $$ ] && echo $LISTEN_FDS; exec ls /proc/self/fd"
    try:
        async with captive(["sh", "-c", script]) as server:
            with trio.fail_after(30):
                await server._ended.wait()
            said = list(server._lines)
    finally:
        os.close(77)
    assert said == ["1", "0", "1", "2", "3", "4"]  # 4 is the folder that ls reads


_HOLDER = """
import sys, trio
from nbdfs.captive import captive
async def main():
    async with captive(sys.argv[1:]) as server:
        print(server._process.pid, flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_dies_when_nbdfs_is_killed(number: int) -> None:
    holder = subprocess.Popen([sys.executable, "-c", _HOLDER, "nbdkit", "memory", "1M"], stdout=subprocess.PIPE)
    assert holder.stdout
    with holder, holder.stdout:
        pid = int(holder.stdout.readline())
        os.kill(pid, 0)
        holder.send_signal(number)
        holder.wait(30)
    end = time.monotonic() + 30
    while subprocess.run(["ps", "-o", "stat=", str(pid)], capture_output=True, text=True).stdout.strip(" Z\n"):
        assert time.monotonic() < end, "the server outlived nbdfs"
        time.sleep(0.02)
