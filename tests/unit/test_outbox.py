"""What is logged is written by a thread: nobody who logs waits for a reader, and no more is kept than fits."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from nbdfs import logs, outbox
from nbdfs.outbox import Outbox

log = logging.getLogger("nbdfs.test")

_MANY = 200_000  # lines, more than are kept


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def within(seconds: float, step: Callable[[], object]) -> bool:
    thread = threading.Thread(target=step, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


def log_much() -> None:
    for number in range(_MANY):
        log.warning("line %d of what nobody reads", number)


@pytest.fixture(params=["pipe", "terminal", "stopped terminal"])
def unread(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """Both ends of what is standard error and has no reader."""
    reading, writing = os.pipe() if request.param == "pipe" else os.openpty()
    if "stopped" in request.param:
        termios.tcflow(writing, termios.TCOOFF)
    yield reading, writing
    os.close(reading)
    os.close(writing)


def read_lines(reading: int, writing: int) -> Iterator[str]:
    if os.isatty(writing):
        termios.tcflow(writing, termios.TCOON)
    partial = b""
    while data := os.read(reading, 1 << 16):
        *lines, partial = (partial + data).split(b"\n")
        yield from (line.decode().rstrip() for line in lines)


def test_who_logs_waits_for_no_reader(unread: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", open(unread[1], "w", closefd=False))  # noqa: SIM115
    logs.set_up(0)
    assert within(20, log_much)
    began = time.monotonic()
    logs.flush()
    assert time.monotonic() - began < 5
    lines = read_lines(*unread)
    written = 0
    while "are lost" not in (line := next(lines)):
        assert line == f"nbdfs: line {written} of what nobody reads"
        written += 1
    assert line.startswith(f"nbdfs: {_MANY - written} lines of the log are lost")
    log.warning("here again")
    assert next(lines) == "nbdfs: here again"
    logs.flush()


def test_a_log_file_that_takes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log"
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        logs.set_up(0, file=str(path))
        assert within(20, log_much)
    finally:
        os.close(reading)
    logs.flush()


def test_a_reader_that_left_is_no_trouble(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", closefd=False) as stream, monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", stream)
        logs.set_up(0)
        log.warning("one")
        logs.flush()
        log.warning("two")
        logs.flush()
    os.close(writing)
    assert capfd.readouterr().err == ""


def test_a_stream_that_was_closed_is_no_trouble() -> None:
    stream = io.StringIO()
    handler = logs.StreamLog(stream)
    stream.close()
    for _ in range(2):
        handler.handle(logging.makeLogRecord({"msg": "a line"}))
        handler.flush()


def test_what_could_not_be_written_is_counted() -> None:
    full = True
    written: list[str] = []

    def write(messages: Sequence[str]) -> None:
        if full:
            raise OSError("no space")
        written.extend(messages)

    box = Outbox(write, lambda count: f"{count} lost")
    for message in "a", "b", "c":
        box.put(message, 1)
        assert box.flush()
    full = False
    box.put("d", 1)
    assert box.flush()
    assert written == ["d", "3 lost"]


def test_a_descriptor_that_does_not_block() -> None:
    """As a shell or another program may have left the terminal that all share."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    data = os.urandom(1 << 20)
    thread = threading.Thread(target=outbox.write_all, args=(writing, data), daemon=True)
    thread.start()
    received = bytearray()
    while len(received) < len(data):
        received += os.read(reading, 1 << 16)
    thread.join(20)
    assert received == data
    os.close(reading)
    os.close(writing)


def test_arguments_that_do_not_fit_fail_no_request(capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up(0)
    log.warning("%d lines", "many")
    logs.flush()
    assert "Logging error" in capsys.readouterr().err


def test_a_process_in_the_background_logs_too(tmp_path: Path) -> None:
    """The thread does not come along; what waited before is written once."""
    script = (
        "import logging, os, sys; from nbdfs import logs, supervise\n"
        "logs.set_up(0, file=sys.argv[1]); log = logging.getLogger('test')\n"
        "log.warning('before'); ready = supervise.background(logs.leave_terminal)\n"
        "log.warning('between'); ready(); log.warning('after'); logs.flush()\n"
        "os.write(int(sys.argv[2]), b'done')\n"
    )
    reading, writing = os.pipe()
    command = [sys.executable, "-c", script, str(tmp_path / "log"), str(writing)]
    subprocess.run(command, check=True, pass_fds=[writing], timeout=30)
    os.close(writing)
    assert os.read(reading, 4) == b"done"
    os.close(reading)
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line.rpartition(" ")[2] for line in lines] == ["before", "between", "after"]


def test_nothing_is_left_running_once_it_is_written(tmp_path: Path) -> None:
    logs.set_up(0, file=str(tmp_path / "log"))
    before = threading.active_count()
    log.warning("a line")
    assert threading.active_count() == before + 1
    logs.flush()
    assert threading.active_count() == before
