"""docs/semantics.md, line by line, through real mounts."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import NOBODY, ROOT
from tests.mounts import SECONDS, Mounter, fails_with, is_mounted, nbdfs, opened, wait_until

SIZE = 8 << 20
SPEC = f"memory:{SIZE}"
BLOCK = 4096
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16  # FALLOC_FL_*

libc = ctypes.CDLL(None, use_errno=True)


def fallocate(file: Path, mode: int, offset: int, length: int) -> None:
    with opened(file, os.O_RDWR) as descriptor:
        if libc.fallocate(descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(length)):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def write_at(file: Path, data: bytes, offset: int, flags: int = 0) -> int:
    with opened(file, os.O_RDWR | flags) as descriptor:
        return os.pwrite(descriptor, data, offset)


def read_at(file: Path, length: int, offset: int) -> bytes:
    with opened(file, os.O_RDONLY) as descriptor:
        return os.pread(descriptor, length, offset)


def test_every_promise_names_its_test() -> None:
    page = (ROOT / "docs" / "semantics.md").read_text()
    named = re.findall(r"`(test_\w+)` \|$", page, re.MULTILINE)
    rows = [line for line in page.splitlines() if line.startswith("| ") and "---" not in line]
    assert len(named) == len(rows) - 1
    assert set(named) <= set(globals())


def test_stat(mount: Mounter) -> None:
    file = mount(SPEC).file

    def look() -> None:
        found = file.stat()
        assert found.st_size == SIZE
        assert stat.S_ISREG(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == 0o600
        assert found.st_uid == (NOBODY if mount.prefix else os.getuid())
        assert found.st_nlink == 1
        file.chmod(0o640)
        assert stat.S_IMODE(file.stat().st_mode) == 0o640
        os.utime(file, (1000, 2000))
        assert (file.stat().st_atime, file.stat().st_mtime) == (1000, 2000)

    mount.do(look)


def test_blocks(mount: Mounter) -> None:
    file = mount(SPEC).file

    def look() -> None:
        assert file.stat().st_blocks == 0
        write_at(file, b"x" * BLOCK * 16, 0)
        wait_until(lambda: file.stat().st_blocks == 16 * BLOCK // 512, "the blocks written")
        fallocate(file, PUNCH_HOLE | KEEP_SIZE, 0, 8 * BLOCK)
        wait_until(lambda: file.stat().st_blocks == 8 * BLOCK // 512, "the blocks left")

    mount.do(look)


def test_times(mount: Mounter) -> None:
    file = mount(SPEC).file

    def look() -> None:
        before = file.stat().st_mtime_ns
        time.sleep(0.05)
        write_at(file, b"x", 0)
        changed = file.stat().st_mtime_ns
        assert changed > before
        os.utime(file, ns=(1, 2))
        assert file.stat().st_mtime_ns == 2
        write_at(file, b"y", 0)
        assert file.stat().st_mtime_ns > changed
        with opened(file, os.O_RDWR | os.O_TRUNC) as descriptor:  # as cp -p does
            os.pwrite(descriptor, b"z", 0)
            os.utime(descriptor, ns=(3, 4))
        assert file.stat().st_mtime_ns == 4

    mount.do(look)


def test_read_at_the_end(mount: Mounter) -> None:
    file = mount(SPEC).file

    def look() -> None:
        assert len(read_at(file, BLOCK, SIZE - 100)) == 100
        assert read_at(file, BLOCK, SIZE) == b""
        assert read_at(file, BLOCK, SIZE + BLOCK) == b""

    mount.do(look)


def test_write_across_the_end(mount: Mounter) -> None:
    file = mount(SPEC).file

    def look() -> None:
        try:
            assert write_at(file, b"y" * BLOCK, SIZE - 100) == 100
        except PermissionError:  # the kernel asked the sealed memfd
            return
        assert read_at(file, BLOCK, SIZE - 100) == b"y" * 100
        assert write_at(file, b"z" * 2 * BLOCK, SIZE - BLOCK, os.O_APPEND & 0) == BLOCK

    mount.do(look)
    assert mount.do(lambda: file.stat().st_size) == SIZE


def test_write_at_the_end(mount: Mounter) -> None:
    file = mount(SPEC).file

    def look() -> None:
        for offset, flags in ((SIZE, 0), (SIZE + BLOCK, 0), (0, os.O_APPEND)):
            with fails_with(errno.ENOSPC, errno.EPERM):
                write_at(file, b"y" * BLOCK, offset, flags)
        assert file.stat().st_size == SIZE

    mount.do(look)


@pytest.mark.parametrize("empty", [
    pytest.param(lambda file: os.close(os.open(file, os.O_WRONLY | os.O_TRUNC)), id="O_TRUNC"),
    pytest.param(lambda file: os.truncate(file, 0), id="truncate"),
])  # fmt: skip
def test_truncate_to_zero(mount: Mounter, empty: Callable[[Path], None]) -> None:
    file = mount(SPEC).file

    def look() -> None:
        write_at(file, b"x" * SIZE, 0)
        assert read_at(file, SIZE, 0) == b"x" * SIZE  # now in the kernel's cache too
        empty(file)
        assert file.stat().st_size == SIZE
        assert read_at(file, SIZE, 0) == bytes(SIZE)

    mount.do(look)


def test_truncate_to_the_present_size(mount: Mounter) -> None:
    file = mount(SPEC).file

    def look() -> None:
        write_at(file, b"x" * BLOCK, 0)
        os.truncate(file, SIZE)
        assert read_at(file, BLOCK, 0) == b"x" * BLOCK
        assert file.stat().st_size == SIZE

    mount.do(look)


def test_truncate_to_another_size(mount: Mounter) -> None:
    file = mount(SPEC).file

    def look() -> None:
        write_at(file, b"x" * BLOCK, 0)
        for size in (1, SIZE - 1, SIZE + 1, SIZE * 2):
            with fails_with(errno.EPERM):
                os.truncate(file, size)
        assert file.stat().st_size == SIZE
        assert read_at(file, BLOCK, 0) == b"x" * BLOCK

    mount.do(look)


@pytest.mark.parametrize("mode", [PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE])
def test_punch_and_zero(mount: Mounter, mode: int) -> None:
    file = mount(SPEC).file

    def look() -> None:
        write_at(file, b"x" * SIZE, 0)
        assert len(read_at(file, SIZE, 0)) == SIZE
        fallocate(file, mode, 1000, 50_000)
        assert read_at(file, SIZE, 0) == b"x" * 1000 + bytes(50_000) + b"x" * (SIZE - 51_000)

    mount.do(look)


def test_allocate(mount: Mounter) -> None:
    file = mount(SPEC).file

    def look() -> None:
        write_at(file, b"x" * BLOCK, 0)
        fallocate(file, 0, 0, SIZE)
        assert read_at(file, BLOCK, 0) == b"x" * BLOCK
        for offset, length in ((SIZE - 1, 2), (SIZE, 1)):
            with fails_with(errno.ENOSPC):
                fallocate(file, 0, offset, length)
        with fails_with(errno.EOPNOTSUPP):
            fallocate(file, 0x08, 0, BLOCK)  # FALLOC_FL_COLLAPSE_RANGE

    mount.do(look)


def test_seek(mount: Mounter) -> None:
    file = mount(SPEC).file
    data = SIZE // 2

    def look() -> None:
        write_at(file, b"x" * BLOCK, data)
        with opened(file, os.O_RDONLY) as descriptor:
            assert os.lseek(descriptor, 0, os.SEEK_HOLE) == 0
            assert os.lseek(descriptor, 0, os.SEEK_DATA) == data
            assert os.lseek(descriptor, data + 5, os.SEEK_DATA) == data + 5
            assert os.lseek(descriptor, data, os.SEEK_HOLE) == data + BLOCK
            assert os.lseek(descriptor, SIZE - 1, os.SEEK_HOLE) == SIZE - 1
            assert os.lseek(descriptor, 0, os.SEEK_END) == SIZE
            for offset, whence in ((SIZE, os.SEEK_HOLE), (SIZE, os.SEEK_DATA), (data + BLOCK, os.SEEK_DATA)):
                with fails_with(errno.ENXIO):
                    os.lseek(descriptor, offset, whence)

    mount.do(look)


def test_synchronous_writes(mount: Mounter) -> None:
    image = mount.folder / "image"
    mount.do(lambda: image.write_bytes(bytes(SIZE)))
    file = mount(str(image)).file
    for flags in (os.O_SYNC, os.O_DSYNC):
        assert mount.do(lambda flags=flags: write_at(file, b"durable", 4090, flags)) == 7  # type: ignore[misc]
        assert image.read_bytes()[4090:4097] == b"durable"


def test_mmap(mount: Mounter) -> None:
    file = mount(SPEC).file

    def look() -> None:
        write_at(file, b"before", 100)
        with opened(file, os.O_RDWR) as descriptor, mmap.mmap(descriptor, SIZE) as memory:
            assert memory[100:106] == b"before"
            memory[5000:5005] = b"store"
            memory.flush()
            assert os.pread(descriptor, 5, 5000) == b"store"
            os.pwrite(descriptor, b"write", 9000)
            assert memory[9000:9005] == b"write"
        assert read_at(file, 5, 5000) == b"store"

    mount.do(look)


def test_statfs(mount: Mounter) -> None:
    file = mount(SPEC).file

    def look() -> None:
        write_at(file, b"x" * 16 * BLOCK, 0)
        found = os.statvfs(file)
        assert found.f_frsize == BLOCK
        assert found.f_blocks == SIZE // BLOCK
        assert 0 < found.f_bfree <= found.f_blocks

    mount.do(look)


def test_read_only(mount: Mounter) -> None:
    file = mount(SPEC, "-r").file

    def look() -> None:
        assert stat.S_IMODE(file.stat().st_mode) == 0o400
        assert read_at(file, BLOCK, 0) == bytes(BLOCK)
        with fails_with(errno.EROFS):
            write_at(file, b"x", 0)
        with fails_with(errno.EROFS):
            os.truncate(file, 0)

    mount.do(look)


def test_nothing_can_be_created(mount: Mounter) -> None:
    (mount.folder / "dir").mkdir()
    os.chown(mount.folder / "dir", *([NOBODY] * 2 if mount.prefix else [os.getuid(), os.getgid()]))
    folder = mount(f"vm/a={SPEC}", name="dir").file

    def look() -> None:
        assert [path.name for path in folder.iterdir()] == ["vm"]
        assert [path.name for path in (folder / "vm").iterdir()] == ["a"]
        assert (folder / "vm" / "a").stat().st_size == SIZE
        with fails_with(errno.EPERM):
            (folder / "new").write_text("x")
        with fails_with(errno.EPERM):
            (folder / "new").mkdir()
        with fails_with(errno.EPERM):
            (folder / "vm" / "a").unlink()
        with fails_with(errno.EPERM):
            (folder / "vm").rename(folder / "other")
        with fails_with(errno.ENOENT):
            (folder / "none").stat()

    mount.do(look)


@pytest.mark.parametrize("way", ["SIGTERM", "SIGINT", "SIGHUP", "umount"])
def test_end(mount: Mounter, way: str) -> None:
    image = mount.folder / "image"
    mount.do(lambda: image.write_bytes(bytes(SIZE)))
    mounted = mount(str(image))
    mount.do(lambda: write_at(mounted.file, b"kept" * BLOCK, 3 * BLOCK))
    if way == "umount":
        mount.run(*nbdfs("umount", str(mounted.file)))
        assert mounted.process.wait(SECONDS) == 0
    else:
        assert mounted.stop(getattr(signal, way)) == 0
    assert not is_mounted(mounted.file)
    assert not mounted.file.exists()
    assert image.read_bytes()[3 * BLOCK : 7 * BLOCK] == b"kept" * BLOCK


def test_killed_process(mount: Mounter) -> None:
    mounted = mount(SPEC)
    mounted.stop(signal.SIGKILL)
    with fails_with(errno.ENOTCONN):
        mount.do(lambda: os.statvfs(mounted.file))  # stat may be answered from what the kernel remembers
    again = mount(SPEC)
    assert mount.do(lambda: read_at(again.file, BLOCK, 0)) == bytes(BLOCK)
    again.stop(signal.SIGKILL)
    mount.run(*nbdfs("umount", str(again.file)))
    assert not is_mounted(again.file)


_READER = """
import mmap, os, signal, sys
path, flags, handled = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "handled"
def interrupted(number, frame): raise KeyboardInterrupt
signal.signal(signal.SIGINT, interrupted if handled else signal.SIG_DFL)
descriptor = os.open(path, os.O_RDONLY | flags)
print(flush=True)
os.preadv(descriptor, [mmap.mmap(-1, 4096)], 0)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("flags, handling", [(0, "fatal"), (os.O_DIRECT, "fatal"), (os.O_DIRECT, "handled")])
def test_interrupted_reader(mount: Mounter, number: int, flags: int, handling: str) -> None:
    file = mount(f"delay,read=1h::{SPEC}").file
    command = [*mount.prefix, sys.executable, "-c", _READER, str(file), str(flags), handling]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as reader:
        try:
            assert reader.stdout
            reader.stdout.readline()
            time.sleep(0.3)  # the request is with the source by now
            reader.send_signal(number)
            assert reader.wait(SECONDS) == -number
        finally:
            reader.kill()
    assert mount.do(file.stat).st_size == SIZE


def test_stalled_source(mount: Mounter) -> None:
    file = mount(f"delay,read=1h::{SPEC}", "-o", "timeout=0.5").file

    def look() -> None:
        with fails_with(errno.EIO):
            read_at(file, BLOCK, 0)
        assert write_at(file, b"x", 0) == 1
        assert file.stat().st_size == SIZE

    mount.do(look)


def test_a_long_truncation_that_gets_on(mount: Mounter) -> None:
    """The deadline is for each step of it."""
    file = mount("delay,zero=400ms::memory:4G", "-o", "timeout=1").file
    mount.do(lambda: os.truncate(file, 0))


def test_flush_fails(mount: Mounter) -> None:
    image = mount.folder / "image"
    mount.do(lambda: image.write_bytes(bytes(SIZE)))
    file = mount(f"error,flush-rate=1::{image}").file

    def look() -> None:
        with opened(file, os.O_RDWR) as descriptor:
            os.pwrite(descriptor, b"x", 0)
            with fails_with(errno.EIO):
                os.fsync(descriptor)
            with fails_with(errno.EIO):
                os.fdatasync(descriptor)
        # The error of the last close is what the block ends with.

    with fails_with(errno.EIO):
        mount.do(look)
