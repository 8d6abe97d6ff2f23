"""The file source: what it opens, whom it shuts out, and what it does when the file changes under it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from nbdfs import throttle
from nbdfs.backends.file import source as file_source
from nbdfs.errors import UsageError, UserError
from nbdfs.source import HOLE, ZERO, Caps, Extent, read
from nbdfs.stack import open_stack
from tests.tools import complaint, nbdfs

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * 4096)
    return path


async def refusal(spec: str, *, readonly: bool = False) -> str:
    """The one line that opening a spec ends with."""
    with pytest.raises(UserError) as error:
        async with open_stack(spec, readonly=readonly):
            pass
    text = str(error.value)
    assert "\n" not in text
    return text


async def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with trio.fail_after(30):
        assert "No such file or directory" in await refusal(str(tmp_path / "absent"))
        assert "is a directory: name a file or a block device" in await refusal(str(tmp_path))
        assert "is a pipe" in await refusal(str(tmp_path / "pipe"))
        assert "is a character device" in await refusal("/dev/null")
        assert "Not a directory" in await refusal("/dev/null/x")


async def test_after_its_end_it_reads_nothing_that_has_its_number_now(image: Path, tmp_path: Path) -> None:
    async with open_stack(str(image)) as source:
        pass
    (tmp_path / "another").write_bytes(b"secret" * 1000)
    with (tmp_path / "another").open("rb"), pytest.raises(OSError, match="Bad file descriptor"):
        await read(source, 0, 512)


async def test_other_machines_and_empty_paths_are_usage_errors() -> None:
    for spec in ("file://host/x", "file:", "file:a\0b"):
        with pytest.raises(UsageError):
            async with open_stack(spec):
                pass


def test_a_file_that_may_not_be_written(image: Path, nobody_path: Path, unprivileged: list[str]) -> None:
    """Asked to write to it: one line that names -r.  With -r: it opens."""
    mine = nobody_path / "protected.img"
    image.rename(mine)
    mine.chmod(0o444)
    for words, status, text in ((["-r"], 0, "1048576"), ([], 1, "use -r to open it for reading only")):
        code = (
            "import sys, trio\nfrom nbdfs.stack import open_stack\nfrom nbdfs.errors import UserError\n"
            "async def main():\n"
            "    try:\n"
            f"        async with open_stack({str(mine)!r}, readonly={'-r' in words}) as door: print(door.info.size)\n"
            "    except UserError as error: print(error); sys.exit(error.exit_status)\n"
            "trio.run(main)"
        )
        done = subprocess.run([*unprivileged, sys.executable, "-c", code], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (status, "")
        assert text in done.stdout


async def test_two_writers_of_one_file_are_kept_apart(image: Path) -> None:
    async with open_stack(str(image)) as door:
        assert "used by another program" in await refusal(str(image))
        async with open_stack(str(image), readonly=True) as reader:
            await door.pwrite(memoryview(b"seen"), 100)
            assert await read(reader, 100, 4) == b"seen"
        async with open_stack(f"file,lock=no:{image}"):
            pass
    async with open_stack(str(image)):
        pass


async def test_qemu_stays_away_from_a_file_we_write_to_and_we_from_its(image: Path) -> None:
    write = ["qemu-io", "-f", "raw", "-c", "write 0 512", str(image)]
    async with open_stack(str(image)):
        done = await trio.run_process(write, check=False, capture_stdout=True, capture_stderr=True)
        assert b"lock" in done.stderr
        assert done.returncode != 0
    subprocess.run(write, check=True, capture_output=True)
    qemu = subprocess.Popen(["qemu-io", "-f", "raw", str(image)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert qemu.stdin
    assert qemu.stdout
    with qemu, qemu.stdin:
        qemu.stdin.write(b"length\n")
        qemu.stdin.flush()
        qemu.stdout.readline()
        assert "used by another program" in await refusal(str(image))


async def test_a_file_that_shrinks_reads_as_an_error_and_is_not_written(image: Path) -> None:
    async with open_stack(str(image)) as door:
        os.truncate(image, 100_000)
        assert await read(door, 99_000, 1000) == (bytes(range(256)) * 4096)[99_000:100_000]
        for offset, length in ((100_000, 1), (99_999, 2), (MIB - 1, 1), (0, MIB)):
            with pytest.raises(OSError) as failure:
                await read(door, offset, length)
            assert failure.value.errno == errno.EIO
        for call in (door.pwrite(memoryview(b"x"), MIB - 1), door.zero(MIB - 4096, 4096)):
            with pytest.raises(OSError) as failure:
                await call
            assert failure.value.errno == errno.EIO
        assert door.read_now(memoryview(bytearray(2000)), 1000, [0, 99_500]) == 1
        assert door.write_now(memoryview(bytes(1000)), 1000, [MIB - 1000]) == 0
        assert image.stat().st_size == 100_000
        found = await door.extents(0, MIB)
        assert all(not extent.flags & ZERO for extent in found), "what is gone is no hole"


async def test_a_file_that_is_deleted_stays_whole(image: Path) -> None:
    async with open_stack(str(image)) as door:
        image.unlink()
        await door.pwrite(memoryview(b"still"), 5)
        await door.flush()
        assert await read(door, 4, 7) == b"\x04still\x0a"


async def test_a_file_that_grows_keeps_the_size_it_was_opened_with(image: Path) -> None:
    async with open_stack(str(image)) as door:
        os.truncate(image, 2 * MIB)
        assert await door.extents(0, MIB) == [Extent(0, MIB, 0)]
        with pytest.raises(OSError):
            await read(door, MIB, 1)


async def test_holes_are_found_and_made(tmp_path: Path) -> None:
    image = tmp_path / "sparse.img"
    with image.open("wb") as file:
        file.truncate(8 * MIB)
    async with open_stack(str(image)) as door:
        assert await door.extents(0, 8 * MIB) == [Extent(0, 8 * MIB, HOLE | ZERO)]
        await door.pwrite(memoryview(b"x" * MIB), MIB)
        await door.flush()
        assert await door.extents(0, 8 * MIB) == [
            Extent(0, MIB, 3), Extent(MIB, MIB, 0), Extent(2 * MIB, 6 * MIB, 3),
        ]  # fmt: skip
        await door.zero(MIB, MIB)
        assert image.stat().st_blocks == 0
        await door.zero(0, MIB, may_trim=False)
        await door.flush()
        assert image.stat().st_blocks * 512 == MIB
        await door.trim(0, MIB)
        assert image.stat().st_blocks == 0


async def test_without_discard_the_space_stays(image: Path) -> None:
    async with open_stack(f"file,discard=no:{image}") as door:
        await door.trim(0, MIB)
        assert not any(extent.flags for extent in await door.extents(0, MIB))
        await door.zero(0, MIB)
        assert not any(await read(door, 0, MIB))
        assert image.stat().st_blocks * 512 >= MIB


async def test_direct_access_of_a_file_with_an_odd_end(image: Path) -> None:
    os.truncate(image, 100_000)
    async with open_stack(f"file,direct:{image}") as door:
        assert door.info.size % 512 == 0
        assert 100_000 - 4096 < door.info.size < 100_000
        missing = door.info.missing
        assert f"the last {100_000 - door.info.size} of 100000 bytes" in missing
        await door.pwrite(memoryview(b"across"), 510)
        assert (await read(door, 509, 8))[1:7] == b"across"
        assert door.backing() is None
    assert image.read_bytes()[510:516] == b"across"
    assert image.stat().st_size == 100_000
    assert missing in nbdfs("info", f"file,direct:{image}").stdout.decode()
    assert f"{missing}; nothing was copied" in complaint("copy", f"file,direct:{image}", "null:1M")


@pytest.mark.parametrize(("sleeps", "last_in_thread"), [(True, True), (False, False)])
async def test_writes_that_wait_for_the_disk_send_the_next_to_a_thread(
    image: Path, monkeypatch: pytest.MonkeyPatch, sleeps: bool, last_in_thread: bool
) -> None:
    """Writes are copies into the page cache, made at once, until they sleep; one that merely takes long does not."""
    threads = []
    real = file_source.write_whole

    def watched(fd: int, data: memoryview, offset: int, flags: int = 0) -> None:
        threads.append(threading.current_thread() is not threading.main_thread())
        real(fd, data, offset, flags)

    async with open_stack(str(image)) as door:
        monkeypatch.setattr(file_source, "write_whole", watched)
        monkeypatch.setattr(throttle, "_sleeps", lambda: len(threads) if sleeps else 0)
        monkeypatch.setattr(throttle, "_SLOW", 60)
        await door.pwrite(memoryview(b"x"), 0)
        monkeypatch.setattr(throttle, "_SLOW", -1)
        for _ in range(3):
            await door.pwrite(memoryview(b"x"), 0)
    assert threads == [False, False, False, last_in_thread]


def test_a_sleep_is_told_from_work() -> None:
    before = throttle._sleeps()
    time.sleep(0.001)
    assert throttle._sleeps() > before


async def test_a_file_in_memory_is_read_without_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:  # a tmpfs, which refuses RWF_NOWAIT
        file.write(b"resident" * 512)
        file.flush()
        async with open_stack(file.name, readonly=True) as source:
            monkeypatch.setattr(trio.to_thread, "run_sync", lambda *_, **__: pytest.fail("a thread was used"))
            assert await read(source, 8, 8) == b"resident"
            monkeypatch.undo()


async def test_a_read_that_hangs_is_cancelled_at_once(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def hang(fd: int, buffer: memoryview, offset: int, flags: int = 0) -> None:
        released.wait(30)
        buffer[:] = b"z" * len(buffer)

    async with open_stack(f"file,direct:{image}") as door:
        monkeypatch.setattr(file_source, "read_whole", hang)
        buffer = bytearray(4096)
        with trio.fail_after(20), trio.move_on_after(0.05) as scope:
            await door.pread_into(memoryview(buffer), 0)
        assert scope.cancelled_caught
        released.set()
        await trio.sleep(0.05)
        assert not any(buffer)


async def test_after_a_failed_sync_no_later_one_succeeds(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "lost")

    async with open_stack(str(image)) as door:
        await door.flush()
        with monkeypatch.context() as patched:
            patched.setattr(os, "fdatasync", fail)
            with pytest.raises(OSError):
                await door.flush()
        for call in (door.flush(), door.zero(0, 4096, fua=True)):
            with pytest.raises(OSError) as failure:
                await call
            assert failure.value.errno == errno.EIO


async def test_only_what_cannot_grow_says_so(image: Path) -> None:
    for readonly in (False, True):
        async with open_stack(str(image), readonly=readonly) as door:
            backing = door.backing()
            assert backing is not None
            assert backing.fixed_size == readonly
            assert bool(door.info.identity) == readonly


@pytest.fixture
def loop_device(image: Path) -> Iterator[str]:
    """A block device over the image."""
    done = subprocess.run(["losetup", "--find", "--show", str(image)], check=True, capture_output=True, text=True)
    yield done.stdout.strip()
    subprocess.run(["losetup", "--detach", done.stdout.strip()], check=True)


@pytest.mark.root
async def test_a_block_device(loop_device: str) -> None:
    async with open_stack(loop_device) as door:
        assert door.info.size == MIB
        assert "is in use" in await refusal(loop_device)
        await door.pwrite(memoryview(b"unaligned"), 1000)
        assert (await read(door, 999, 11))[1:10] == b"unaligned"
        await door.zero(512, 4096 * 3)
        assert not any(await read(door, 512, 4096 * 3))
        await door.zero(100_001, 99_999, may_trim=False, fua=True)
        assert not any(await read(door, 100_001, 99_999))
        await door.trim(MIB // 2, 65536)
        await door.flush()
        assert await door.extents(0, MIB) == [Extent(0, MIB, 0)]
        backing = door.backing()
        assert backing is not None
        assert backing.fixed_size
    async with open_stack(f"file,direct:{loop_device}", readonly=True) as door:
        assert (await read(door, 300_000, 3))[0] == 300_000 % 256
        assert not door.info.caps & Caps.CACHE
