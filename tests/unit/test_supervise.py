"""The PID file, and the signals that ask to stop."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import trio

from nbdfs.errors import UserError
from nbdfs.supervise import STOP_SIGNALS, pid_file, stop_requests


def test_it_is_there_for_the_block(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with pid_file(str(path)):
        assert path.read_text() == f"{os.getpid()}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_link_under_the_name_it_is_written_by_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("kept")
    (tmp_path / f"pid.{os.getpid()}").symlink_to(victim)
    with pid_file(str(tmp_path / "pid")):
        assert victim.read_text() == "kept"


def test_a_place_that_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write the PID file"), pid_file(str(tmp_path / "absent" / "pid")):
        pass


def test_what_is_no_regular_file_is_left_alone(tmp_path: Path) -> None:
    """As /dev/null, which root could replace."""
    path = tmp_path / "pid"
    os.mkfifo(path)
    with pytest.raises(UserError, match="there is something that is no regular file"), pid_file(str(path)):
        pass
    assert path.is_fifo()
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_stays_where_it_cannot_have_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, destination: str) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(UserError, match=r"cannot write the PID file .*: Permission denied"):
        with pid_file(str(tmp_path / "pid")):
            pass
    assert list(tmp_path.iterdir()) == []


def test_that_of_a_process_that_came_after_us_stays(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with pid_file(str(path)):
        (tmp_path / "new").write_text("another")
        (tmp_path / "new").rename(path)
    assert path.read_text() == "another"


@pytest.fixture
def handlers() -> Iterator[None]:
    """What hears the signals that ask to stop is put back afterwards."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


async def test_no_stop_signal_is_lost_while_who_hears_it_is_put_in_place(
    monkeypatch: pytest.MonkeyPatch, handlers: None
) -> None:
    hear = trio.open_signal_receiver

    def just_before(*numbers: signal.Signals) -> AbstractContextManager[object]:
        os.kill(os.getpid(), signal.SIGTERM)
        return hear(*numbers)

    monkeypatch.setattr(trio, "open_signal_receiver", just_before)
    with stop_requests() as stopped, trio.fail_after(10):
        assert await stopped() == signal.SIGTERM
