"""What goes wrong while something is mounted: nothing acknowledged is lost, and no mount dies of it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.mounts import SECONDS, Mounter, is_mounted, wait_until

BLOCK = 4096
SIZE = 8 << 20


def make_image(mount: Mounter) -> Path:
    image = mount.folder / "image"
    mount.do(lambda: image.write_bytes(bytes(SIZE)))
    return image


# Writes blocks until an error, and says of each that was acknowledged where it is and which seed made it.
_LOAD = """
import mmap, os, random, sys
path, flags, worker = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
chance, page = random.Random(worker), mmap.mmap(-1, 4096)
descriptor = os.open(path, os.O_WRONLY | flags)
try:
    for seed in range(10**9):
        block = chance.randrange(worker, 2048, 4)
        page[:] = b"%d," % seed * 300 + bytes(4096 - 300 * len(b"%d," % seed))
        os.pwrite(descriptor, page, block * 4096)
        print(block, seed, flush=True)
except OSError:
    pass
"""


@pytest.mark.parametrize("flags", [0, os.O_DIRECT, os.O_DSYNC], ids=["buffered", "direct", "synchronous"])
def test_sigterm_under_load_loses_nothing(mount: Mounter, flags: int, tmp_path: Path) -> None:
    """Every write that returned before the end is in the file afterwards."""
    image = make_image(mount)
    mounted = mount(str(image))
    command = [*mount.prefix, sys.executable, "-c", _LOAD, str(mounted.file), str(flags)]
    logs = [tmp_path / f"load-{worker}" for worker in range(4)]
    with ExitStack() as stack:
        loads = []
        for worker, log in enumerate(logs):
            load = subprocess.Popen([*command, str(worker)], stdout=stack.enter_context(log.open("w")))
            stack.callback(load.wait)
            stack.callback(load.kill)
            loads.append(load)
        wait_until(lambda: all(log.stat().st_size for log in logs), "all writers")
        assert mounted.stop(signal.SIGTERM) == 0
        assert not is_mounted(mounted.file)
        for load in loads:
            load.wait(SECONDS)
    content = image.read_bytes()
    lost = 0
    for log in logs:
        newest = {int(block): seed for block, seed in map(str.split, log.read_text().splitlines())}
        assert newest
        lost += sum(not content.startswith(f"{seed},{seed},".encode(), block * BLOCK) for block, seed in newest.items())
    assert lost <= len(logs), "only the write under way in each may have been made and not been acknowledged"


def test_a_file_that_shrinks_while_mounted(mount: Mounter) -> None:
    image = make_image(mount)
    mount.do(lambda: image.write_bytes(b"x" * SIZE))
    file = mount(str(image)).file
    os.truncate(image, SIZE // 2)

    def look() -> None:
        with file.open("r+b", buffering=0) as disk:
            assert os.pread(disk.fileno(), BLOCK, 0) == b"x" * BLOCK
            with pytest.raises(OSError) as failure:
                os.pread(disk.fileno(), BLOCK, SIZE - BLOCK)
            assert failure.value.errno == errno.EIO
            with pytest.raises(OSError) as failure:
                os.pwrite(disk.fileno(), b"y" * BLOCK, SIZE - BLOCK)
            assert failure.value.errno == errno.EIO
            assert os.pread(disk.fileno(), BLOCK, BLOCK) == b"x" * BLOCK
        assert file.stat().st_size == SIZE

    mount.do(look)
    assert image.stat().st_size == SIZE // 2


def test_a_file_that_is_deleted_while_mounted(mount: Mounter) -> None:
    image = make_image(mount)
    mounted = mount(str(image))
    mount.do(image.unlink)

    def look() -> None:
        with mounted.file.open("r+b", buffering=0) as disk:
            disk.write(b"still there")
            os.fsync(disk.fileno())
            assert os.pread(disk.fileno(), 11, 0) == b"still there"

    mount.do(look)
    assert mounted.stop() == 0


@pytest.fixture
def read_only_folder(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Makes a folder read-only for everybody by a mount of its own."""
    mounted: list[Path] = []

    def protect(folder: Path) -> None:
        subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
        mounted.append(folder)
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)

    yield protect
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.root
def test_over_a_file_in_a_read_only_directory(mount: Mounter, read_only_folder: Callable[[Path], None]) -> None:
    folder = mount.folder / "protected"
    mount.do(folder.mkdir)
    file = folder / "disk.img"
    mount.do(lambda: file.write_text("below"))
    if mount.prefix:  # fusermount3 asks that the user may write to the file, so only the directory is protected
        folder.chmod(0o555)
    else:
        read_only_folder(folder)
    with pytest.raises(OSError):
        mount.do((folder / "other").touch)
    mounted = mount(f"memory:{SIZE}", name="protected/disk.img")

    def look() -> None:
        with file.open("r+b") as disk:
            disk.write(b"above")
        assert file.read_bytes()[:5] == b"above"

    mount.do(look)
    assert mounted.stop() == 0
    assert file.read_text() == "below"


@pytest.fixture
def small_group() -> Iterator[list[str]]:
    """The words before a command that run it in a control group with 192 MiB of memory."""
    tops = {"/sys/fs/cgroup/memory": "memory.limit_in_bytes", "/sys/fs/cgroup": "memory.max"}
    for top, limit in tops.items():
        group = Path(top) / f"nbdfs-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / limit).exists():
                (group / limit).write_text(str(192 << 20))
                yield ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]
                return
        finally:
            wait_until(lambda: not (group / "cgroup.procs").read_text(), "the end of all in the group")  # noqa: B023
            group.rmdir()
    pytest.skip("no control group of our own can limit memory here")


@pytest.mark.root
def test_memory_that_runs_out_is_enospc_for_the_writer(tmp_path: Path, small_group: list[str]) -> None:
    mount = Mounter(tmp_path, small_group, ())
    mount.do = lambda action: action()  # type: ignore[method-assign,assignment]
    try:
        mounted = mount("memory:1T")
        with mounted.file.open("r+b", buffering=0) as disk:
            written = 0
            with pytest.raises(OSError) as failure:
                while written < 1 << 30:
                    written += os.pwrite(disk.fileno(), b"x" * (1 << 20), written)
            assert failure.value.errno == errno.ENOSPC
            assert written >= 32 << 20
            assert os.pread(disk.fileno(), 4, 0) == b"xxxx"
            assert os.pwrite(disk.fileno(), b"over", 0) == 4, "what is there can be written again"
            os.truncate(mounted.file, 0)
            assert os.pwrite(disk.fileno(), b"y" * (1 << 20), 1 << 39) == 1 << 20
        assert mounted.stop() == 0
    finally:
        mount.end_all()


# The command with a source that has a fault of its own in it.
_FAULTY = """
import sys
from nbdfs.backends.null import Null
from nbdfs.cli.main import main
async def broken(self, *arguments, **options): raise ZeroDivisionError("a fault in the source")
Null.pwrite = Null.extents = broken
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.root
def test_a_fault_in_a_handler_is_eio_and_a_traceback(tmp_path: Path) -> None:
    file, up, log = tmp_path / "disk.img", tmp_path / "pid", tmp_path / "log"
    words = ["mount", "--log-file", str(log), "-P", str(up), "null:1M", str(file)]
    with subprocess.Popen([sys.executable, "-c", _FAULTY, *words]) as process:
        try:
            wait_until(up.exists, "the mount")
            with file.open("r+b", buffering=0) as disk:
                for _ in range(3):
                    with pytest.raises(OSError) as failure:
                        os.pwrite(disk.fileno(), b"x", 0)
                    assert failure.value.errno == errno.EIO
                with pytest.raises(OSError) as failure:
                    os.lseek(disk.fileno(), 0, os.SEEK_DATA)
                assert failure.value.errno == errno.EIO
                assert os.pread(disk.fileno(), 4, 0) == bytes(4)
        finally:
            process.terminate()
        assert process.wait(SECONDS) == 0
    text = log.read_text()
    assert "Traceback" in text
    assert "ZeroDivisionError: a fault in the source" in text
