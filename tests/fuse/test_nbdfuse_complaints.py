"""What users of FUSE exports complain about, by its number in a list of such reports: what fails elsewhere works here.

Those that are missing have a test elsewhere: 2, 3, 4, 6, 10 and 20 in `test_nbdfuse.py`, 18 in
`test_nbdfuse_options.py`, 24 in `unit/test_kernel_limit.py`.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuse.remote import MIB, captive, file, nbdfuse, overwrite
from tests.interop.peers import serving
from tests.mounts import fails_with, is_mounted, nbdfs, opened, wait_until

__all__ = ["file"]

pytestmark = pytest.mark.root


@pytest.fixture
def disk(file: Path) -> Iterator[Path]:
    """A sparse disk of 4 MiB in nbdkit, with data in its second MiB."""
    with nbdfuse(file, str(file), *captive("memory", "4M")):
        with file.open("r+b") as out:
            out.seek(MIB)
            out.write(b"x" * MIB)
        yield file


@pytest.fixture
def logged(file: Path, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A mounted disk of 4 MiB, and the log of the requests that reach its server."""
    log = tmp_path / "log"
    with nbdfuse(file, str(file), *captive("memory", "4M", "--filter=log", f"logfile={log}")):
        yield file, log


def test_complaint_1_a_hole_that_was_punched_reads_zero(file: Path) -> None:
    """Also where the server's trim does nothing at all."""
    nothing = ["eval", "get_size=stat -c %s $tmpdir/d || { truncate -s 1M $tmpdir/d; echo 1M; }", "can_write=exit 0",
               "can_trim=exit 0", "trim=exit 0", "can_zero=exit 3",
               "pread=dd if=$tmpdir/d iflag=skip_bytes,count_bytes skip=$4 count=$3 2>/dev/null",
               "pwrite=dd of=$tmpdir/d conv=notrunc oflag=seek_bytes seek=$4 2>/dev/null"]  # fmt: skip
    with nbdfuse(file, str(file), *captive(*nothing)):
        overwrite(file, b"\xff" * MIB)
        subprocess.run(["fallocate", "-p", "-o", "64K", "-l", "128K", str(file)], check=True)
        assert file.read_bytes() == b"\xff" * 65536 + bytes(131072) + b"\xff" * (MIB - 196608)


def test_complaint_5_it_can_be_unmounted_after_the_server_is_gone(file: Path, tmp_path: Path) -> None:
    with serving("nbdkit", tmp_path, MIB) as server, nbdfuse(file, str(file), "--unix", str(server.socket)) as process:
        server.kill()
        subprocess.run(nbdfs("umount", str(file)), check=True, timeout=30)
        assert process.wait(30) == 0
        assert not is_mounted(file)
        server.start()


def test_complaint_7_a_write_at_the_end_is_enospc_also_when_appending(disk: Path) -> None:
    with opened(disk, os.O_WRONLY | os.O_APPEND) as descriptor, fails_with(errno.ENOSPC):
        os.write(descriptor, b"x")


def test_complaint_8_attributes_can_be_set(disk: Path) -> None:
    os.truncate(disk, 4 * MIB)
    disk.chmod(0o640)
    os.chown(disk, 12, 34)
    os.utime(disk, (1, 2))
    found = disk.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o640, 12, 34)
    assert (found.st_atime, found.st_mtime) == (1, 2)
    for step in (["touch"], ["cp", "-p", "/bin/true"], ["rsync", "--inplace", "--times", "/bin/true"]):
        if step[0] != "rsync" or os.path.exists("/usr/bin/rsync"):
            subprocess.run([*step, str(disk)], check=True, timeout=30)
    assert disk.stat().st_size == 4 * MIB


def test_complaint_9_opening_with_truncation_empties_the_disk(disk: Path) -> None:
    with opened(disk, os.O_WRONLY | os.O_TRUNC):
        assert disk.stat().st_size == 4 * MIB
    assert disk.read_bytes() == bytes(4 * MIB)


def test_complaint_11_seeking_ends_at_the_end(disk: Path) -> None:
    with opened(disk, os.O_RDONLY) as descriptor:
        assert os.lseek(descriptor, 0, os.SEEK_DATA) == MIB
        assert os.lseek(descriptor, MIB, os.SEEK_HOLE) == 2 * MIB
        assert os.lseek(descriptor, 2 * MIB, os.SEEK_HOLE) == 2 * MIB
        for whence, offset in ((os.SEEK_DATA, 2 * MIB), (os.SEEK_DATA, 4 * MIB), (os.SEEK_HOLE, 4 * MIB)):
            with fails_with(errno.ENXIO):
                os.lseek(descriptor, offset, whence)


def test_complaint_12_it_can_be_mapped_shared(disk: Path) -> None:
    with opened(disk) as descriptor, mmap.mmap(descriptor, 4 * MIB) as memory:
        memory[5:9] = b"data"
        memory.flush()
    with opened(disk, os.O_RDONLY | os.O_DIRECT) as descriptor, mmap.mmap(-1, 4096) as page:
        assert os.preadv(descriptor, [page], 0) == 4096
        assert page[5:9] == b"data"


def test_complaint_13_what_was_read_stays_cached_over_close_and_open(logged: tuple[Path, Path]) -> None:
    file, log = logged
    file.read_bytes()
    wait_until(lambda: log.read_text().count(" Read ") == log.read_text().count("...Read "), "the last answers")
    before = log.read_text().count(" Read ")
    file.read_bytes()
    assert log.read_text().count(" Read ") == before


def test_complaint_14_closing_flushes(logged: tuple[Path, Path]) -> None:
    file, log = logged
    before = log.read_text().count(" Flush ")
    overwrite(file, b"precious")
    assert log.read_text().count(" Flush ") > before


def test_complaint_15_small_writes_are_gathered_with_writeback(file: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    argv = captive("memory", "4M", "--filter=log", f"logfile={log}")
    with nbdfuse(file, "-o", "writeback", str(file), *argv), opened(file) as descriptor:
        for at in range(0, MIB, 512):
            os.pwrite(descriptor, b"small" * 102 + b"xy", at)
        os.fsync(descriptor)
        assert log.read_text().count(" Write ") <= 64
        assert os.pread(descriptor, 512, MIB - 512) == b"small" * 102 + b"xy"


def test_complaint_16_and_l11_a_reader_of_small_pieces_costs_the_server_few_requests(
    logged: tuple[Path, Path],
) -> None:
    """Python, a way through the kernel and a way over the network are paid for once in 128 KiB, or more."""
    file, log = logged
    with file.open("rb", buffering=0) as disk:
        while disk.read(4096):
            pass
    assert log.read_text().count(" Read ") <= 4 * MIB // (128 << 10)


def test_complaint_17_the_file_system_has_its_size(disk: Path) -> None:
    found = os.statvfs(disk)
    assert found.f_blocks * found.f_frsize == 4 * MIB
    assert found.f_bsize > 0 and 0 <= found.f_bfree <= found.f_blocks


def test_complaint_19_the_directory_can_be_entered(tmp_path: Path) -> None:
    folder = tmp_path / "dir"
    folder.mkdir()
    with nbdfuse(tmp_path / "x", str(folder), *captive("memory", "1M")):
        assert stat.S_IMODE(folder.stat().st_mode) & 0o555 == 0o555
        assert stat.S_IMODE((folder / "nbd").stat().st_mode) == 0o666


STALLED = ("memory", "4M", "--filter=delay", "rdelay=60")  # so long that only a deadline or an interruption ends it


def test_complaints_21_and_22_a_stalled_read_fails_at_its_deadline_and_can_be_killed(file: Path) -> None:
    with nbdfuse(file, "-o", "timeout=2", str(file), *captive(*STALLED)):
        with opened(file, os.O_RDONLY | os.O_DIRECT) as descriptor, mmap.mmap(-1, 4096) as page:
            with fails_with(errno.EIO):
                os.preadv(descriptor, [page], 0)
    with nbdfuse(file, str(file), *captive(*STALLED)):
        with subprocess.Popen(["dd", f"if={file}", "of=/dev/null", "iflag=direct", "count=1", "status=none"]) as reader:
            wait_until(lambda: "disk.img" in " ".join(links(reader.pid)), "the reader's open file")
            reader.kill()
            assert reader.wait(30) == -9


def links(pid: int) -> list[str]:
    """The names of a process's open files."""
    folder = Path(f"/proc/{pid}/fd")
    found = []
    for number in folder.iterdir():
        try:
            found.append(os.readlink(number))
        except FileNotFoundError:
            continue
    return found


def test_complaints_23_and_25_stuck_reads_stop_neither_writes_nor_names(file: Path) -> None:
    """Forty of them, more than there are workers anywhere."""

    def stuck() -> None:
        with opened(file, os.O_RDONLY | os.O_DIRECT) as descriptor, mmap.mmap(-1, 4096) as page:
            with pytest.raises(OSError):
                os.preadv(descriptor, [page], 0)

    with nbdfuse(file, "-o", "timeout=5", str(file), *captive(*STALLED)):
        readers = [threading.Thread(target=stuck) for _ in range(40)]
        for reader in readers:
            reader.start()
        with opened(file, os.O_WRONLY | os.O_DIRECT) as descriptor, mmap.mmap(-1, 4096) as page:
            assert os.pwritev(descriptor, [page], MIB) == 4096
        assert file.stat().st_size == 4 * MIB
        for reader in readers:
            reader.join(60)
            assert not reader.is_alive()
