"""The command beside a mount or a server: its exit status, and its end with us."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import trio

from nbdfs.cli import _beside
from nbdfs.cli._beside import command_status
from nbdfs.errors import UserError

never = trio.sleep_forever


def asked_once_there(path: Path, number: int = signal.SIGINT) -> _beside.Stopped:
    """A request to stop by a signal, which comes once there is a file."""

    async def stopped() -> int:
        while not path.exists():
            await trio.sleep(0.01)
        return number

    return stopped


def has_ended(pid: str) -> bool:
    """Whether a process is gone, but perhaps for its new parent to look."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 3", 3), ("kill -KILL $$", 137)])
async def test_the_status_is_that_of_the_command(script: str, status: int) -> None:
    assert await command_status(["sh", "-c", script], never) == status


async def test_a_command_that_cannot_be_run() -> None:
    with pytest.raises(ExceptionGroup) as raised:
        await command_status(["/nowhere/true"], never)
    assert raised.group_contains(UserError, match="cannot run /nowhere/true: No such file")


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("touch {}; exec sleep 1000", 128 + signal.SIGTERM),
        ("trap 'exit 0' TERM; touch {}; while :; do sleep .01; done", 0),
        ("trap '' TERM; touch {}; echo $$ > {}; while :; do sleep .01; done", 128 + signal.SIGKILL),
    ],
)
async def test_a_command_that_is_ended_tells_how(
    tmp_path: Path, script: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_beside, "_END_TIMEOUT", 0.5)
    there = tmp_path / "there"
    words = ["sh", "-c", script.replace("{}", str(there))]
    assert await command_status(words, asked_once_there(there)) == status
    with pytest.raises(ChildProcessError):  # none is left that nobody has waited for
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)


@pytest.mark.parametrize(
    "script",
    [
        "sleep 1000 & echo $! > {}.new; mv {}.new {}; wait; exit 0",
        "(sh -c 'echo $$ > {}.new; mv {}.new {}; sleep 1000; :'); exit 0",
        "(trap '' TERM; sh -c 'echo $$ > {}.new; mv {}.new {}; while :; do sleep .01; done'); exit 0",
    ],
    ids=["child", "grandchild", "stubborn"],
)
async def test_what_a_command_has_begun_ends_with_it(
    tmp_path: Path, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_beside, "_END_TIMEOUT", 0.5)
    there = tmp_path / "there"
    words = ["sh", "-c", script.replace("{}", str(there))]
    assert await command_status(words, asked_once_there(there)) == 128 + signal.SIGTERM
    assert has_ended(there.read_text().strip())


async def test_what_a_command_leaves_behind_is_left(tmp_path: Path) -> None:
    assert await command_status(["sh", "-c", f"sleep 1000 & echo $! > {tmp_path}/pid"], never) == 0
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


async def test_a_signal_before_the_command_has_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trio.lowlevel, "open_process", lambda _: trio.sleep_forever())
    assert await command_status(["true"], asked_once_there(tmp_path)) == 128 + signal.SIGINT
