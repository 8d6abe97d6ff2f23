"""The memory source: what it takes, gives back, locks and refuses."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from nbdfs import budget
from nbdfs.errors import UserError
from nbdfs.source import HOLE, ZERO, Extent, read
from nbdfs.stack import open_stack

PAGE = 4096
TIB = 1 << 40


def allocated(fd: int) -> int:
    return os.fstat(fd).st_blocks * 512


async def test_a_disk_of_any_size_costs_only_what_is_written() -> None:
    async with open_stack("memory:7E") as door:
        await door.pwrite(memoryview(b"far out"), 6 << 60)
        assert await read(door, (6 << 60) - 1, 9) == b"\0far out\0"
        assert await door.extents(0, 7 << 60) == [
            Extent(0, 6 << 60, HOLE | ZERO), Extent(6 << 60, PAGE, 0), Extent((6 << 60) + PAGE, (1 << 60) - PAGE, 3),
        ]  # fmt: skip


async def test_punching_frees_memory() -> None:
    async with open_stack("memory:64M") as door:
        backing = door.backing()
        assert backing is not None
        await door.pwrite(memoryview(b"x" * (8 << 20)), 0)
        assert allocated(backing.fd) == 8 << 20
        await door.trim(0, 4 << 20)
        assert allocated(backing.fd) == 4 << 20
        await door.zero(4 << 20, 4 << 20)
        assert allocated(backing.fd) == 0


async def test_zeroes_that_must_take_space_do() -> None:
    async with open_stack("memory:64M") as door:
        backing = door.backing()
        assert backing is not None
        await door.zero(0, 1 << 20, may_trim=False)
        assert allocated(backing.fd) == 1 << 20


async def test_reading_and_looking_at_holes_takes_nothing() -> None:
    async with open_stack("memory:64M") as door:
        backing = door.backing()
        assert backing is not None
        assert not any(await read(door, 0, 32 << 20))
        assert door.view(0, 1 << 20) is None
        assert allocated(backing.fd) == 0


async def test_a_view_to_write_to_takes_memory_as_far_as_there_is_any(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_stack("memory:64M") as door:
        backing = door.backing()
        assert backing is not None
        place = door.view(4096 + 7, 100, writable=True)
        assert place is not None
        place[:] = b"x" * 100
        place.release()
        assert allocated(backing.fd) == PAGE
        assert await read(door, 4096, 108) == bytes(7) + b"x" * 100 + bytes(1)
    monkeypatch.setattr("nbdfs.budget.available", lambda: 0)
    async with open_stack("memory:64M") as door:
        assert door.view(0, 100, writable=True) is None
        with pytest.raises(OSError, match="used up"):
            await door.pwrite(memoryview(b"x"), 0)


async def test_views_are_of_large_ranges_that_are_there() -> None:
    async with open_stack("memory:64M") as door:
        await door.pwrite(memoryview(b"x" * (1 << 20)), 0)
        view = door.view(4000, 500_000)
        assert view is not None
        assert view.readonly
        assert bytes(view) == b"x" * 500_000
        view.release()
        assert door.view(0, (1 << 20) + 1) is None, "the last byte is in a hole"
        await door.trim(PAGE, PAGE)
        assert door.view(0, 1 << 20) is None


async def test_the_descriptor_cannot_change_its_size() -> None:
    async with open_stack("memory:1M") as door:
        backing = door.backing()
        assert backing is not None
        assert fcntl.fcntl(backing.fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_GROW
        for size in (0, 1 << 19, 2 << 20):
            with pytest.raises(PermissionError):
                os.ftruncate(backing.fd, size)


async def test_extents_come_in_bounded_answers() -> None:
    async with open_stack("memory:32M") as door:
        for page in range(0, 8000, 2):
            await door.pwrite(memoryview(b"x"), page * PAGE)
        found = await door.extents(0, 32 << 20)
        assert len(found) == 1024
        assert found[:2] == [Extent(0, PAGE, 0), Extent(PAGE, PAGE, HOLE | ZERO)]


async def test_a_known_run_of_data_ends_where_a_hole_is_punched() -> None:
    async with open_stack("memory:1M") as door:
        await door.pwrite(memoryview(b"x" * (1 << 20)), 0)
        assert await door.extents(0, 1 << 20) == [Extent(0, 1 << 20, 0)]
        assert await door.extents(PAGE, PAGE) == [Extent(PAGE, PAGE, 0)]
        await door.trim(2 * PAGE, PAGE)
        assert await door.extents(PAGE, 3 * PAGE) == [
            Extent(PAGE, PAGE, 0), Extent(2 * PAGE, PAGE, HOLE | ZERO), Extent(3 * PAGE, PAGE, 0),
        ]  # fmt: skip


async def test_a_full_machine_is_enospc_for_the_writer_only(monkeypatch: pytest.MonkeyPatch) -> None:
    room = 1 << 20
    async with open_stack("memory:1G") as door:
        await door.pwrite(memoryview(b"old" * 1000), 0)
        monkeypatch.setattr(budget, "available", lambda: room)
        written = 0
        with pytest.raises(OSError) as failure:
            while True:
                await door.pwrite(memoryview(b"x" * 65536), 65536 + written)
                written += 65536
                room = max(room - 65536, 0)
        assert failure.value.errno == errno.ENOSPC
        assert written <= 64 << 20, "what is granted in advance is bounded"
        await door.pwrite(memoryview(b"new" * 1000), 0)  # what is there can be written again
        assert await read(door, 0, 3000) == b"new" * 1000
        with pytest.raises(OSError) as failure:
            await door.zero(512 << 20, 256 << 20, may_trim=False)
        assert failure.value.errno == errno.ENOSPC
        room = 1 << 30
        await door.pwrite(memoryview(b"x"), 1 << 29)


async def test_a_disk_larger_than_memory_is_not_handed_to_the_kernel() -> None:
    async with open_stack("memory:1T") as door:
        assert door.backing() is None
    async with open_stack("memory:1M") as door:
        assert door.backing() is not None


def test_what_is_available_heeds_control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = tmp_path / "user" / "job"
    group.mkdir(parents=True)
    (tmp_path / "user" / "memory.max").write_text("max\n")
    (tmp_path / "user" / "memory.current").write_text("5\n")
    (group / "memory.max").write_text(f"{64 << 20}\n")
    (group / "memory.current").write_text(f"{24 << 20}\n")
    (group / "memory.stat").write_text(f"anon 5\nactive_file {1 << 20}\ninactive_file {2 << 20}\n")
    monkeypatch.setattr(budget, "_CGROUPS", {"": (str(tmp_path), "memory.max", "memory.current", "")})
    real = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda self: "0::/user/job\n" if str(self) == "/proc/self/cgroup" else real(self)
    )
    assert budget.available() == (43 << 20) - (4 << 20)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOENT])
def test_what_cannot_be_looked_at_is_no_lack_of_memory(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process may be out of descriptors, a kernel have no control groups."""
    assert budget.available() > 0
    real = Path.read_text

    def read_text(self: Path) -> str:
        if "cgroup" in str(self):
            raise OSError(number, os.strerror(number))
        return real(self)

    monkeypatch.setattr(Path, "read_text", read_text)
    assert budget.Budget().spend(4096)


LOCK_LIMITED = """
import resource, trio
from nbdfs.errors import UserError
from nbdfs.stack import open_stack
resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
async def main():
    try:
        async with open_stack("memory,mlock:64M"):
            print("opened")
    except UserError as error:
        print(error)
trio.run(main)
"""


async def test_mlock_locks_what_is_written() -> None:
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] not in (-1,) and os.geteuid() != 0:
        pytest.skip("needs the right to lock memory")

    def locked() -> int:
        lines = Path("/proc/self/smaps").read_text().split("/memfd:nbdfs-memory")[1].splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("Locked:")))

    async with open_stack("memory,mlock:64M") as door:
        assert locked() == 0, "holes stay holes"
        await door.pwrite(memoryview(b"x" * (1 << 20)), 10)
        assert locked() >= 1024
        assert door.backing() is None


def test_mlock_without_the_right_says_what_to_do(unprivileged: list[str]) -> None:
    done = subprocess.run([*unprivileged, sys.executable, "-c", LOCK_LIMITED], capture_output=True, text=True)
    assert "cannot lock 64M in memory" in done.stdout
    assert "ulimit -l" in done.stdout


async def test_too_few_huge_pages_say_what_to_do() -> None:
    with pytest.raises(UserError, match=r"not enough huge pages for 1T .*vm\.nr_hugepages"):
        async with open_stack("memory,hugepages:1T"):
            pass


async def test_a_large_disk_opens_as_fast_as_a_small_one() -> None:
    """Neither reads, writes nor questions about extents take time in proportion to the size."""
    with trio.fail_after(30):
        for _ in range(20):
            async with open_stack("memory:4T") as door:
                await door.pwrite(memoryview(b"x"), 3 * TIB)
                assert len(await door.extents(0, 4 * TIB)) == 3
