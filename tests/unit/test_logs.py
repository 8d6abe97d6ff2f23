"""The forms of the log, and the journal's protocol as another program reads it."""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from nbdfs import logs
from nbdfs.cli.main import main
from nbdfs.errors import UserError
from nbdfs.supervise import STOP_SIGNALS

log = logging.getLogger("nbdfs.test")


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    """The tests change the root logger, and one stops a command, which from then on ignores stop signals."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    on_signal = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, action in on_signal.items():
        signal.signal(number, action)
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


def test_text_in_a_file_is_one_stamped_line(tmp_path: Path) -> None:
    file = tmp_path / "log"
    logs.set_up(0, "text", str(file))
    log.warning("a server sent %s", "two\nlines")
    log.info("not worth a line without -v")
    logs.flush()
    (line,) = file.read_text().splitlines()
    assert line.endswith(r" nbdfs: a server sent two\nlines")
    assert line[:4].isdigit()


def test_json_is_one_object_a_line(tmp_path: Path) -> None:
    file = tmp_path / "log"
    logs.set_up(1, "json", str(file))
    log.info("a %s", 'quoted "line"\nand more \udcff')
    try:
        raise ValueError("a fault of ours")
    except ValueError:
        log.exception("failed")
    logs.flush()
    first, second = map(json.loads, file.read_text().splitlines())
    assert (first["level"], first["logger"], first["pid"]) == ("info", "nbdfs.test", os.getpid())
    assert first["message"] == 'a quoted "line"\nand more \udcff'
    assert first["time"][10] == "T" and first["time"].endswith("Z")
    assert "traceback" not in first
    assert "ValueError: a fault of ours" in second["traceback"]


def test_a_traceback_with_a_name_that_is_no_utf_8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs.set_up(0, file=str(tmp_path / "log"))
    log.error("a fault", exc_info=ValueError("caf\udce9 \u20ac"))
    logs.flush()
    assert "ValueError: caf\\udce9 \u20ac" in (tmp_path / "log").read_text()
    assert capsys.readouterr().err == ""


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot log to"):
        logs.set_up(0, "text", str(tmp_path))


def test_a_pipe_without_a_reader_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe: nobody reads from it"):
        logs.set_up(0, file=str(tmp_path / "pipe"))


def test_a_full_disk_tears_no_line_and_all_that_is_lost_is_counted(tmp_path: Path) -> None:
    file = tmp_path / "log"
    logs.set_up(0, "json", str(file))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in (1000, 1001, 1130, 3000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        try:
            for number in range(20):
                log.warning("line %d", number)
            logs.flush()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    log.warning("room again")
    logs.flush()
    messages = [json.loads(line)["message"] for line in file.read_text().splitlines()]
    lost = sum(int(message.split()[0]) for message in messages if "are lost" in message)
    assert lost > 0
    assert lost + sum(message.startswith("line") for message in messages) == 80
    assert "room again" in messages


def test_a_file_that_was_taken_away_is_begun_anew(tmp_path: Path) -> None:
    """As logrotate(8) does it; where no new one can be made, the old one goes on."""
    file, old = tmp_path / "logs" / "log", tmp_path / "logs" / "log.1"
    file.parent.mkdir()
    logs.set_up(0, file=str(file))
    for step, name in (("one", "log"), ("two", "log.1")):
        log.warning(step)
        logs.flush()
        file.replace(old) if name == "log" else file.parent.rename(tmp_path / "gone")
    log.warning("three")
    logs.flush()
    assert [(tmp_path / "gone" / name).read_text().count("nbdfs: ") for name in ("log.1", "log")] == [1, 2]


@pytest.mark.parametrize(
    "line, shown",
    [
        (b"<4>a warning", "<4>[mount.a] a warning"),
        (b"<7>much said", "<7>[mount.a] much said"),
        (b"<9>no priority", "<6>[mount.a] <9>no priority"),
        (b"nbdfs: cannot open it", "<3>[mount.a] cannot open it"),
        (b"nbd://localhost/", "<6>[mount.a] nbd://localhost/"),
        (b"caf\xe9 \x1b[2J", "<6>[mount.a] caf\\udce9 \\x1b[2J"),
    ],
)
def test_what_another_process_says_is_passed_on(
    line: bytes, shown: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as stream, monkeypatch.context() as patched:
        facts = os.fstat(stream.fileno())
        assert logs.relayed(stream.fileno())["NBDFS_LOG_RELAY"] == f"{facts.st_dev}:{facts.st_ino}"
        patched.setattr(logs, "_stderr_takes_priorities", lambda: True)
        logs.set_up(0)
        logs.relay(log, "[mount.a]", line)
        logs.flush()
    assert capfd.readouterr().err == f"{shown}\n"


def test_a_journal_and_a_file_exclude_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--log-format=journal", f"--log-file={tmp_path}/log", "memory:1M", str(tmp_path / "file")]
    assert main(["mount", *words]) == 2
    assert "the journal is no file" in capsys.readouterr().err


# ---- the journal


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """What plays the journal: a datagram socket where nbdfs looks for it."""
    path = str(tmp_path / "journal")
    monkeypatch.setattr(logs, "_JOURNAL", path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(path)
        sock.settimeout(30)
        yield sock


def fields_of(message: bytes) -> dict[str, bytes]:
    """A message of the native protocol, read as its specification has it."""
    fields = {}
    while message:
        line, _, rest = message.partition(b"\n")
        name, equals, content = line.partition(b"=")
        if not equals:
            (length,) = struct.unpack_from("<Q", rest)
            content, rest = rest[8 : 8 + length], rest[8 + length :]
            assert rest.startswith(b"\n")
            rest = rest[1:]
        fields[name.decode()] = content
        message = rest
    return fields


def test_the_journal_gets_fields(journal: socket.socket) -> None:
    logs.set_up(0, "journal")
    log.error("%s: the file has changed", "http://host/x")
    fields = fields_of(journal.recv(1 << 16))
    assert fields["MESSAGE"] == b"http://host/x: the file has changed"
    assert (fields["PRIORITY"], fields["SYSLOG_IDENTIFIER"], fields["LOGGER"]) == (b"3", b"nbdfs", b"nbdfs.test")
    assert fields["CODE_FUNC"] == b"test_the_journal_gets_fields"


def test_lines_in_a_message_cannot_forge_a_field(journal: socket.socket) -> None:
    logs.set_up(0, "journal")
    log.warning("a server says: %s", "no\nPRIORITY=0\n")
    fields = fields_of(journal.recv(1 << 16))
    assert fields["PRIORITY"] == b"4"
    assert fields["MESSAGE"] == b"a server says: no\nPRIORITY=0\n"


def test_a_journal_that_was_restarted_is_found_again(
    journal: socket.socket, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.set_up(0, "journal")
    path = journal.getsockname()
    journal.close()
    log.warning("nobody listens")
    logs.flush()
    assert "nbdfs: nobody listens (the journal does not take it" in capsys.readouterr().err
    os.unlink(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as new:
        new.bind(path)
        new.settimeout(30)
        log.warning("here again")
        assert fields_of(new.recv(1 << 16))["MESSAGE"] == b"here again"


def test_a_journal_that_takes_nothing_holds_up_nobody(
    journal: socket.socket, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.set_up(0, "journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as other, suppress(BlockingIOError):
        while True:
            other.sendto(b"MESSAGE=x\n", journal.getsockname())
    log.warning("it is full")
    logs.flush()
    assert "nbdfs: it is full (the journal does not take it: timed out)" in capsys.readouterr().err


def test_no_journal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(logs, "_JOURNAL", str(tmp_path / "none"))
    with pytest.raises(UserError, match="there is no journal"):
        logs.set_up(0, "journal")


def test_standard_error_that_leads_to_the_journal_has_priorities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "stderr"
    with file.open("w") as stream, monkeypatch.context() as patched:
        facts = os.fstat(stream.fileno())
        saved = os.dup(2)
        os.dup2(stream.fileno(), 2)
        try:
            patched.setenv("JOURNAL_STREAM", f"{facts.st_dev}:{facts.st_ino}")
            patched.setattr(sys, "stderr", stream)
            logs.set_up(1)
            log.warning("careful")
            log.info("by the way")
            logs.flush()
        finally:
            os.dup2(saved, 2)
            os.close(saved)
    assert file.read_text().splitlines() == ["<4>careful", "<6>by the way"]


def test_a_stream_that_is_not_ours_gets_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    logs.set_up(0)
    log.warning("careful")
    logs.flush()
    assert capsys.readouterr().err == "nbdfs: careful\n"


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, socket.socket]]:
    """Sockets where the journal and syslog would be; a test may close one."""
    made = {}
    for name in ("_JOURNAL", "_SYSLOG"):
        made[name] = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        made[name].bind(str(tmp_path / name))
        made[name].setblocking(False)
        monkeypatch.setattr(logs, name, str(tmp_path / name))
    yield made
    for listener in made.values():
        listener.close()


def test_without_a_terminal_the_journal_is_told(system: dict[str, socket.socket]) -> None:
    logs.set_up(0)
    logs.leave_terminal()
    log.warning("a disk is full")
    logs.flush()
    assert b"MESSAGE=a disk is full\n" in system["_JOURNAL"].recv(4096)


def test_without_a_journal_syslog_is_told(system: dict[str, socket.socket]) -> None:
    system["_JOURNAL"].close()
    logs.set_up(1)
    logs.leave_terminal()
    log.info("a client\nsays so")
    logs.flush()
    assert system["_SYSLOG"].recv(4096).rstrip(b"\0") == f"<30>nbdfs[{os.getpid()}]: a client\\nsays so".encode()


def test_with_neither_nothing_is_logged(system: dict[str, socket.socket], capsys: pytest.CaptureFixture[str]) -> None:
    for listener in system.values():
        listener.close()
    logs.set_up(0)
    logs.leave_terminal()
    log.warning("nobody hears this")
    logs.flush()
    assert capsys.readouterr().err == ""


def test_a_log_of_its_own_stays(system: dict[str, socket.socket], tmp_path: Path) -> None:
    logs.set_up(0, "text", str(tmp_path / "log"))
    logs.leave_terminal()
    log.warning("a disk is full")
    logs.flush()
    assert "a disk is full" in (tmp_path / "log").read_text()
    with pytest.raises(BlockingIOError):
        system["_JOURNAL"].recv(4096)


def test_a_command_in_the_background_leaves_the_terminal(
    system: dict[str, socket.socket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def background(leaving: Callable[[], None]) -> Callable[[], None]:
        def ready() -> None:
            leaving()
            log.warning("it is up")
            os.kill(os.getpid(), signal.SIGTERM)

        return ready

    monkeypatch.setattr("nbdfs.supervise.background", background)
    assert main(["serve", "-b", "-U", str(tmp_path / "socket"), "memory:1M"]) == 0
    assert b"MESSAGE=it is up\n" in system["_JOURNAL"].recv(4096)
