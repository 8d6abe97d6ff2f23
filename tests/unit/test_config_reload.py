"""What a reload has done is known to the next one, however it ended, and what is missing comes back."""

from __future__ import annotations

import errno
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trio

from nbdfs import live
from nbdfs.config.files import use_file
from nbdfs.config.reload import Reloader
from nbdfs.errors import UserError
from nbdfs.fuse import mounting
from nbdfs.fuse.tree import Tree
from nbdfs.live import Exports
from nbdfs.mount import Files
from tests.unit.test_live import TIMEOUT, made_of, mortal


class Disks:
    """A configuration with one server, whose files are written anew."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, **files: str) -> None:
        fresh = self._path.with_suffix(".new")
        lines = [f"{name} = '{spec}'\n" for name, spec in files.items()]
        fresh.write_text(f"[serve.disks.files]\nkept = 'zero:1M'\n{''.join(lines)}")
        fresh.replace(self._path)
        use_file(str(self._path))

    async def followed_by(self, exports: Exports) -> Reloader:
        reloader = Reloader("disks", exports)
        reloader._applied = {}
        await reloader.reload()
        return reloader


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[Disks]:
    yield Disks(tmp_path / "nbdfs.toml")
    use_file("")


async def test_a_reload_that_was_given_up_is_remembered_as_far_as_it_came(disks: Disks, tmp_path: Path) -> None:
    disks.write()
    with trio.fail_after(TIMEOUT), socket.socket(socket.AF_UNIX) as stalled:
        stalled.bind(str(tmp_path / "socket"))
        stalled.listen()
        async with live.opened() as exports:
            reloader = await disks.followed_by(exports)
            disks.write(fast="zero:2M", slow=f"nbd+unix:///?socket={tmp_path}/socket")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reloader.reload)
                while "fast" not in {export.name for export in exports}:
                    await trio.sleep(0.01)
                nursery.cancel_scope.cancel()
            disks.write(fast="zero:2M")
            assert str(await reloader.reload()) == "nothing to change"
            disks.write()
            assert str(await reloader.reload()) == "removed fast"


async def test_what_was_taken_away_by_hand_comes_back_once_its_entry_changes(disks: Disks) -> None:
    disks.write(a="zero:1M")
    with trio.fail_after(TIMEOUT):
        async with live.opened() as exports:
            reloader = await disks.followed_by(exports)
            await exports.remove("a")
            assert str(await reloader.reload()) == "nothing to change"
            disks.write(a="zero:2M")
            assert str(await reloader.reload()) == "added a"
            await exports.remove("a")
            disks.write()
            assert str(await reloader.reload()) == "nothing to change"


async def test_what_failed_by_itself_is_opened_anew(disks: Disks) -> None:
    crash = trio.Event()
    disks.write(a="zero:1M")
    with pytest.raises(UserError, match="it failed by itself"), trio.fail_after(TIMEOUT):
        async with live.opened() as exports:
            reloader = await disks.followed_by(exports)
            export = await exports.replace("a", made_of(mortal(crash)))
            crash.set()
            await export.closed.wait()
            assert str(await reloader.reload()) == "added a"
            assert str(await reloader.reload()) == "nothing to change"


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), ZeroDivisionError()])
async def test_a_signal_to_reload_ends_nothing_whatever_goes_wrong(
    disks: Disks, error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the mount table cannot be read, and where we are at fault."""

    async def signals() -> AsyncIterator[int]:
        yield signal.SIGHUP

    def fail(path: str) -> None:
        raise error

    monkeypatch.setattr(mounting, "find_mount", fail)
    disks.write()
    with trio.fail_after(TIMEOUT):
        async with live.opened() as exports:
            reloader = await disks.followed_by(exports)
            disks.write(a="zero:1M")
            async with exports.offered_by(Files(Tree(0, 0, 0o600, covers_file=False), "/disks")):
                await reloader.on_signals(signals())
            assert [export.name for export in exports] == ["kept"]
    wanted = "cannot see whether /disks/a is a mount point: Too many" if error.args else "reload failed"
    assert wanted in caplog.text
