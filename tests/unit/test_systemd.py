"""What a service manager is told, by a manager that writes it down."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from nbdfs import systemd
from nbdfs.cli import serve
from nbdfs.cli.main import parser_of
from nbdfs.errors import UsageError
from tests.tools import no_more_descriptors

SECONDS = 30.0


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, range(3, 3)),
        ({"LISTEN_PID": "self", "LISTEN_FDS": "2"}, range(3, 5)),
        ({"LISTEN_PID": "1", "LISTEN_FDS": "2"}, range(3, 3)),
        ({"LISTEN_PID": "self", "LISTEN_FDS": "0"}, range(3, 3)),
        ({"LISTEN_PID": "self", "LISTEN_FDS": "two"}, range(3, 3)),
        ({"LISTEN_PID": "self", "LISTEN_FDS": "-1"}, range(3, 3)),
    ],
)
def test_sockets_are_those_of_this_process_and_else_the_usual_place_is_served(
    environment: dict[str, str], expected: range, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value.replace("self", str(os.getpid())))
    assert systemd.activated() is bool(expected)
    place = serve._place(parser_of("serve").parse_args(["memory:1M"]))
    assert len(place.uris) == (0 if expected else 1)
    if expected:
        with pytest.raises(UsageError, match="service manager"):
            serve._place(parser_of("serve").parse_args(["memory:1M", "-b"]))
    assert systemd.descriptors() == expected
    assert not systemd.activated()


class Manager:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind(str(path))

    async def heard(self) -> list[str]:
        """The assignments of the next message."""
        with trio.fail_after(SECONDS):
            await trio.lowlevel.wait_readable(self.socket)
        return self.socket.recv(4096).decode().split("\n")

    def backlog(self) -> list[str]:
        """All messages that were sent meanwhile."""
        messages = []
        while True:
            try:
                messages.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return messages


@pytest.fixture(autouse=True)
def sender() -> Iterator[None]:
    """The process's socket for messages ends with the test."""
    yield
    if systemd._sender.cache_info().currsize:
        systemd._sender().close()
        systemd._sender.cache_clear()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    with manager.socket:
        yield manager


async def test_a_service_tells_when_it_is_up_and_when_it_stops(manager: Manager) -> None:
    async with systemd.service(lambda: "2 files"):
        assert await manager.heard() == ["READY=1", "STATUS=2 files"]
    assert manager.backlog() == ["STOPPING=1"]


async def test_the_watchdog_hears_of_the_loop_and_the_status_follows(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    status = "idle"
    async with systemd.service(lambda: status):
        await manager.heard()
        while await manager.heard() != ["WATCHDOG=1"]:
            pass
        status = "busy"
        while "STATUS=busy" not in await manager.heard():
            pass


async def test_a_stuck_loop_is_not_reported_as_alive(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    async with systemd.service(lambda: ""):
        while await manager.heard() != ["WATCHDOG=1"]:
            pass
        manager.backlog()
        time.sleep(0.1)
        assert manager.backlog() == []


async def test_a_watchdog_over_another_process_is_none_of_ours(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "1000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    async with systemd.service(lambda: ""):
        await trio.sleep(0.05)
    assert not any("WATCHDOG" in message for message in manager.backlog())


async def test_reloading_has_a_beginning_and_an_end(manager: Manager) -> None:
    before = time.monotonic_ns() // 1000
    with systemd.reloading():
        first, stamp = await manager.heard()
        assert first == "RELOADING=1"
        assert before <= int(stamp.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
        assert manager.backlog() == []
    assert await manager.heard() == ["READY=1"]


async def test_a_manager_that_is_gone_ends_nobody(
    manager: Manager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/notify")
    async with systemd.service(lambda: "alone"):
        pass
    assert "cannot tell the service manager" in caplog.text


def test_a_loop_that_the_watchdog_ends_shows_where_it_was_stuck(manager: Manager) -> None:
    program = (
        "import os, signal, trio; from nbdfs import systemd\n"
        "def stuck(): os.kill(os.getpid(), signal.SIGABRT)\n"
        "async def main():\n"
        "    async with systemd.service(lambda: ''):\n"
        "        await trio.testing.wait_all_tasks_blocked()\n"
        "        stuck()\n"
        "import trio.testing; trio.run(main)"
    )
    environment = {**os.environ, "WATCHDOG_USEC": "1000000"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == -6
    assert "in stuck" in done.stderr


async def test_a_process_without_descriptors_is_heard_and_goes_on(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that could not be sent ended the process."""
    monkeypatch.setattr(systemd, "_STATUS_PAUSE", 0.01)
    states = iter(["one", "two"])
    async with systemd.service(lambda: next(states, "three")):
        with no_more_descriptors():
            assert await manager.heard() == ["READY=1", "STATUS=one"]
            assert [await manager.heard() for _ in range(2)] == [["STATUS=two"], ["STATUS=three"]]


def test_that_there_is_nobody_to_tell_is_no_end(
    manager: Manager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(systemd, "_sender", systemd._sender.__wrapped__)
    with no_more_descriptors():
        systemd.notify("READY=1")
    assert "cannot tell the service manager how it goes: Too many open files" in caplog.text
