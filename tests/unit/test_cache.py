"""The `cache` layer: never other bytes than what is below, fetched once, kept, and nothing flushed is lost."""

from __future__ import annotations

import errno
import os
import random
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from nbdfs.backends.cache import CacheOptions
from nbdfs.backends.cache.blocks import Blocks
from nbdfs.backends.cache.layer import open_cache
from nbdfs.backends.cache.storage import open_storage
from nbdfs.backends.zero import Zero
from nbdfs.checked import Checked
from nbdfs.errors import UsageError, UserError
from nbdfs.records import replace
from nbdfs.scratch import Scratch
from nbdfs.source import HOLE, RESIDENT, ZERO, Caps, Extent, SourceInfo, read
from nbdfs.stack import open_stack
from tests.devices import EVERYTHING, Ram

CONTENT = random.Random(2).randbytes(300_001)
MODES = ["read", "writethrough", "writeback"]
SMALL = {"block": 4096, "size": 16 * 4096}  # 16 of the 74 blocks: always evicting


@asynccontextmanager
async def cached(base: Ram, **options: object) -> AsyncIterator[Checked]:
    async with open_cache(base, CacheOptions(**options)) as layer:  # type: ignore[arg-type]
        yield Checked(layer)


def places(tmp_path: Path) -> dict[str, str]:
    return {"memory": "", "disk": str(tmp_path / "cache")}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("place", ["memory", "disk"])
@pytest.mark.parametrize("options", [SMALL, {"block": 4096}, {}])
async def test_random_work_against_a_model(mode: str, place: str, options: dict[str, int], tmp_path: Path) -> None:
    base = Ram(CONTENT, identity="x")
    model = bytearray(CONTENT)
    chance = random.Random(4)
    async with cached(base, cache=places(tmp_path)[place], mode=mode, **options) as layer:
        for _ in range(400):
            offset = chance.randrange(len(model))
            length = min(chance.choice([1, 100, 4096, 5000, 50_000]), len(model) - offset)
            match chance.randrange(8):
                case 0 | 1 | 2:
                    data = chance.randbytes(length)
                    await layer.pwrite(memoryview(data), offset)
                    model[offset : offset + length] = data
                case 3:
                    await layer.zero(offset, length)
                    model[offset : offset + length] = bytes(length)
                case 4:
                    await layer.flush()
                    assert base.content == model
                case 5:
                    await layer.cache(offset, length)
                case _:
                    assert await read(layer, offset, length) == model[offset : offset + length]
                    view = layer.view(offset, length)
                    assert view is None or view == model[offset : offset + length]
        assert await read(layer, 0, len(model)) == model
    assert base.content == model


@pytest.mark.parametrize("place", ["memory", "disk"])
async def test_a_read_larger_than_the_room_never_takes_old_bytes_from_below(place: str, tmp_path: Path) -> None:
    """Making room for the first blocks of a read evicts some of the next; those left among them may be dirty."""
    base = Ram(CONTENT, identity="x")
    model = bytearray(CONTENT)
    async with cached(base, cache=places(tmp_path)[place], mode="writeback", **SMALL) as layer:
        await read(layer, 4 * 4096, 8 * 4096)
        model[12 * 4096 : 18 * 4096] = b"w" * (6 * 4096)
        await layer.pwrite(memoryview(bytes(model[12 * 4096 : 18 * 4096])), 12 * 4096)
        assert await read(layer, 0, 18 * 4096) == model[: 18 * 4096]
    assert base.content == model


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("place", ["memory", "disk"])
async def test_many_at_once_in_regions_of_their_own(mode: str, place: str, tmp_path: Path) -> None:
    """Ten tasks write and read 29,998 bytes each, so that every border lies inside a block that two share."""
    base = Ram(CONTENT, identity="x", delay=0.0005)
    model = bytearray(CONTENT)

    async def work(number: int) -> None:
        chance = random.Random(number)
        for _ in range(25):
            start = number * 29_998
            offset = start + chance.randrange(29_998)
            length = min(chance.choice([1, 700, 9000]), start + 29_998 - offset)
            if chance.random() < 0.5:
                data = chance.randbytes(length)
                await layer.pwrite(memoryview(data), offset)
                model[offset : offset + length] = data
            elif chance.random() < 0.1:
                await layer.flush()
            else:
                assert await read(layer, offset, length) == model[offset : offset + length]

    async with cached(base, cache=places(tmp_path)[place], mode=mode, **SMALL) as layer:
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(work, number)
        assert await read(layer, 0, len(model)) == model
    assert base.content == model


async def test_a_block_is_fetched_once_however_many_want_it() -> None:
    base = Ram(CONTENT, delay=0.01)
    async with cached(base) as layer:
        async with trio.open_nursery() as nursery:
            for index in range(20):
                nursery.start_soon(read, layer, index * 1000, 1000)
        assert base.names("read") == [(0, 65536)]
        assert await read(layer, 5, 60_000) == CONTENT[5:60_005]
        assert len(base.log) == 1


async def test_a_cancelled_fetch_is_taken_over_by_the_next() -> None:
    base = Ram(CONTENT, delay=0.05)
    async with cached(base) as layer:

        async def impatient() -> None:
            with trio.move_on_after(0.01):
                await read(layer, 0, 100)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(impatient)
            await trio.sleep(0.005)
            assert await read(layer, 0, 100) == CONTENT[:100]


async def test_an_error_below_is_the_readers_and_is_not_kept() -> None:
    base = Ram(CONTENT)
    base.fail = lambda name, offset, length: errno.EIO
    async with cached(base) as layer:
        with pytest.raises(OSError, match="as asked"):
            await read(layer, 0, 100)
        base.fail = lambda name, offset, length: 0
        assert await read(layer, 0, 100) == CONTENT[:100]


async def test_the_size_is_kept_to(tmp_path: Path) -> None:
    base = Ram(random.Random(1).randbytes(4 << 20), identity="x")
    async with cached(base, cache=str(tmp_path), size=1 << 20, block=4096) as layer:
        for offset in range(0, 4 << 20, 50_000):
            await read(layer, offset, min(50_000, (4 << 20) - offset))
        (file,) = tmp_path.iterdir()
        assert file.stat().st_blocks * 512 < (1 << 20) + 200_000


async def test_what_was_used_last_stays() -> None:
    base = Ram(bytes(64 * 4096))
    async with cached(base, **SMALL) as layer:
        for block in range(64):
            await read(layer, block * 4096, 1)
            await read(layer, 0, 1)
    assert base.names("read").count((0, 4096)) == 1


async def test_extents_and_what_is_resident() -> None:
    base = Ram(bytes(1 << 20))
    async with cached(base, mode="writeback") as layer:
        await layer.pwrite(memoryview(b"x"), 100_000)
        assert await layer.extents(0, 1 << 20) == [
            Extent(0, 65536, HOLE | ZERO),
            Extent(65536, 65536, 0),
            Extent(131072, (1 << 20) - 131072, HOLE | ZERO),
        ]
        assert await layer.extents(0, 1 << 20, context=RESIDENT) == [
            Extent(0, 65536, HOLE),
            Extent(65536, 65536, 0),
            Extent(131072, (1 << 20) - 131072, HOLE),
        ]


async def test_what_is_on_its_way_below_is_no_hole() -> None:
    class Behind(Ram):
        """Tells of extents, late, what was there when it was asked."""

        async def extents(self, *arguments: object, **named: object) -> list[Extent]:
            found = [Extent(0, len(self.content), 0 if any(self.content) else HOLE | ZERO)]
            asked.set()
            await answer.wait()
            return found

    base = Behind(bytes(1 << 20))
    asked, answer, told = trio.Event(), trio.Event(), trio.Event()
    written = trio.Event()

    async def slowly(*arguments: object, **named: object) -> None:
        under_way.set()
        await written.wait()
        base.content[:10] = b"x" * 10

    async def ask() -> None:
        assert (await layer.extents(0, 1 << 20))[0] == Extent(0, 65536, 0)
        told.set()

    under_way = trio.Event()
    base.pwrite = slowly  # type: ignore[method-assign]
    async with cached(base, mode="writeback") as layer, trio.open_nursery() as nursery:
        await layer.pwrite(memoryview(b"x" * 10), 0)
        nursery.start_soon(layer.flush)
        await under_way.wait()
        nursery.start_soon(ask)
        await asked.wait()
        written.set()
        await trio.testing.wait_all_tasks_blocked()
        answer.set()
        await told.wait()


async def test_what_is_in_memory_already_is_not_kept_twice() -> None:
    base = Ram(CONTENT, caps=EVERYTHING | Caps.IMMEDIATE)
    async with open_cache(base, CacheOptions()) as layer:
        assert layer is base


# ---- writing


@pytest.mark.parametrize("mode", MODES)
async def test_a_flush_is_below_when_it_returns(mode: str) -> None:
    base = Ram(CONTENT)
    async with cached(base, mode=mode) as layer:
        await layer.pwrite(memoryview(b"x" * 10), 5)
        assert bool(base.names("write")) is (mode != "writeback")
        await layer.flush()
        assert base.content[5:15] == b"x" * 10
        assert base.log[-1] == ("flush", 0, 0)


async def test_a_failed_write_back_fails_the_flush_and_is_tried_again() -> None:
    base = Ram(CONTENT)
    async with cached(base, mode="writeback") as layer:
        await layer.pwrite(memoryview(b"x" * 10), 5)
        base.fail = lambda name, offset, length: errno.EIO if name == "write" else 0
        with pytest.raises(OSError, match="as asked"):
            await layer.flush()
        assert await read(layer, 5, 10) == b"x" * 10
        base.fail = lambda name, offset, length: 0
        await layer.flush()
        assert base.content[5:15] == b"x" * 10


async def test_a_failed_write_through_leaves_nothing_stale() -> None:
    base = Ram(CONTENT)
    async with cached(base, mode="writethrough") as layer:
        assert await read(layer, 0, 100) == CONTENT[:100]

        def half(name: str, offset: int, length: int) -> int:
            if name == "write":
                base.content[offset : offset + length // 2] = b"h" * (length // 2)
                return errno.EIO
            return 0

        base.fail = half
        with pytest.raises(OSError, match="as asked"):
            await layer.pwrite(memoryview(b"x" * 10), 5)
        assert await read(layer, 0, 100) == base.content[:100]


@pytest.mark.parametrize("mode", ["read", "writethrough"])
async def test_a_write_that_is_cancelled_when_it_is_done_below_leaves_nothing_stale(mode: str) -> None:
    """As one is that a thread carries out: it is cancelled no sooner than at its end."""

    class Shielded(Ram):
        async def pwrite(self, data: memoryview, offset: int, *, fua: bool = False) -> None:
            scope.cancel()
            await super().pwrite(data, offset)

    base = Shielded(CONTENT)
    async with cached(base, mode=mode) as layer:
        assert await read(layer, 0, 100) == CONTENT[:100]
        with trio.CancelScope() as scope:
            await layer.pwrite(memoryview(b"x" * 10), 5)
        assert scope.cancelled_caught
        assert base.content[5:15] == b"x" * 10
        assert await read(layer, 0, 100) == base.content[:100]


async def test_dirty_blocks_are_bounded() -> None:
    base = Ram(bytes(1 << 20))
    async with cached(base, mode="writeback", **SMALL) as layer:
        for offset in range(0, 1 << 20, 4096):
            await layer.pwrite(memoryview(b"x" * 4096), offset)
            assert len(layer.below._blocks.dirty) <= 9  # type: ignore[attr-defined]
            assert len(layer.below._blocks) <= 17  # type: ignore[attr-defined]
    assert base.content == b"x" * (1 << 20)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "tiny"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tiny", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.root
@pytest.mark.parametrize("mode", MODES)
async def test_a_full_cache_disk_loses_nothing(mode: str, tiny_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = Ram(random.Random(1).randbytes(1 << 20), identity="x")
    model = bytearray(base.content)
    async with cached(base, cache=str(tiny_disk), mode=mode, block=4096) as layer:
        for offset in range(0, 1 << 20, 3000):
            data = b"w" * min(2000, (1 << 20) - offset)
            await layer.pwrite(memoryview(data), offset)
            model[offset : offset + len(data)] = data
            assert await read(layer, offset // 2, 5000) == model[offset // 2 : offset // 2 + 5000]
        assert await read(layer, 0, 1 << 20) == model
        await layer.flush()
        assert base.content == model
    assert "takes no more blocks" in caplog.text


@pytest.mark.parametrize("number", [errno.EROFS, errno.ESTALE])
async def test_a_write_that_the_cache_disk_refuses_is_done_below(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = Ram(CONTENT)
    async with cached(base, cache=str(tmp_path), mode="writeback", block=4096) as layer:
        await layer.pwrite(memoryview(b"old" * 3000), 5)

        def refuse(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(Scratch, "write_now", refuse)
            await layer.pwrite(memoryview(b"new" * 10), 100)
            await layer.pwrite(memoryview(b"new" * 10), 50_000)
        for offset, there in ((5, b"old" * 3), (100, b"new" * 10), (50_000, b"new" * 10)):
            assert await read(layer, offset, len(there)) == there
    for offset, there in ((5, b"old" * 3), (100, b"new" * 10), (50_000, b"new" * 10)):
        assert base.content[offset : offset + len(there)] == there


async def test_a_write_that_the_cache_disk_takes_a_part_of_and_that_is_then_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read of it afterwards is what gets below."""
    base = Ram(CONTENT)
    async with cached(base, cache=str(tmp_path), mode="writeback", block=4096) as layer:
        await read(layer, 0, 4096)

        def take_half(scratch: Scratch, data: memoryview, offset: int) -> None:
            real(scratch, data[: len(data) // 2], offset)
            scope.cancel()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        real = Scratch.write_now
        with monkeypatch.context() as patch, trio.CancelScope() as scope:
            patch.setattr(Scratch, "write_now", take_half)
            await layer.pwrite(memoryview(b"x" * 10), 5)
        assert scope.cancelled_caught
        there = await read(layer, 0, 100)
        assert there == CONTENT[:5] + b"x" * 5 + CONTENT[10:100]
    assert base.content[:100] == there


# ---- kept between runs


async def test_what_was_read_is_kept_between_runs(tmp_path: Path) -> None:
    for run in range(2):
        base = Ram(CONTENT, identity="x")
        async with cached(base, cache=str(tmp_path)) as layer:
            assert await read(layer, 0, len(CONTENT)) == CONTENT
        assert bool(base.names("read")) is (run == 0)
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("identity", ["", "other"])
async def test_another_version_starts_anew(tmp_path: Path, identity: str) -> None:
    async with cached(Ram(CONTENT, identity="x"), cache=str(tmp_path)) as layer:
        await read(layer, 0, len(CONTENT))
    async with cached(Ram(CONTENT[::-1], identity=identity), cache=str(tmp_path)) as layer:
        assert await read(layer, 0, len(CONTENT)) == CONTENT[::-1]
    assert len(list(tmp_path.iterdir())) == 1


async def test_two_at_once_do_not_share_a_file(tmp_path: Path) -> None:
    async with cached(Ram(CONTENT, identity="x"), cache=str(tmp_path)) as one:
        async with cached(Ram(CONTENT, identity="x"), cache=str(tmp_path)) as two:
            for layer in one, two:
                assert await read(layer, 0, len(CONTENT)) == CONTENT


@pytest.mark.parametrize("mode", MODES)
async def test_a_session_that_wrote_and_ended_well_is_kept(tmp_path: Path, mode: str) -> None:
    base = Ram(CONTENT, identity="x")
    async with cached(base, cache=str(tmp_path), mode=mode) as layer:
        await read(layer, 0, len(CONTENT))
        await layer.pwrite(memoryview(b"new"), 70_000)
    base.log.clear()
    async with cached(base, cache=str(tmp_path)) as layer:
        assert await read(layer, 0, len(CONTENT)) == base.content
    assert base.names("read") == [(65536, 65536)]  # only what was written to
    assert base.content[70_000:70_003] == b"new"


@pytest.mark.root
async def test_a_file_that_another_user_has_put_there_is_not_believed(tmp_path: Path) -> None:
    base = Ram(CONTENT, identity="x")
    async with cached(base, cache=str(tmp_path)) as layer:
        await read(layer, 0, 100)
    (file,) = tmp_path.iterdir()
    os.chown(file, 65534, 65534)
    with pytest.raises(UserError, match="is of another user"):
        async with cached(base, cache=str(tmp_path)):
            pass


async def test_a_link_that_somebody_has_put_there_is_not_followed(tmp_path: Path) -> None:
    base = Ram(CONTENT, identity="x")
    async with cached(base, cache=str(tmp_path / "cache")):
        pass
    (file,) = (tmp_path / "cache").iterdir()
    (tmp_path / "victim").write_text("kept")
    file.unlink()
    file.symlink_to(tmp_path / "victim")
    with pytest.raises(UserError, match="symbolic link"):
        async with cached(base, cache=str(tmp_path / "cache")):
            pass
    assert (tmp_path / "victim").read_text() == "kept"


@given(st.sets(st.integers(0, 30)), st.integers(0, 30), st.integers(0, 30), st.sampled_from([-100, 100]))
def test_runs_of_present_blocks(present: set[int], first: int, last: int, narrow: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nbdfs.backends.cache.blocks._NARROW", narrow)  # one way, or the other
        blocks = Blocks(open_storage("", SourceInfo(31 * 4096), 4096), 31 * 4096, 4096, 31)
        blocks._present.update(dict.fromkeys(present, False))
        runs = list(blocks.runs(first, last))
    assert [block for start, end, _ in runs for block in range(start, end)] == list(range(first, last))
    assert all((block in present) is here for start, end, here in runs for block in range(start, end))
    assert all(one[2] is not other[2] for one, other in pairwise(runs))
    blocks.storage.close()


class Huge(Zero):
    """A device of 1 TiB that is not in memory."""

    def __init__(self) -> None:
        super().__init__(1 << 40)
        self.info = replace(self.info, caps=self.info.caps & ~Caps.IMMEDIATE)


async def test_the_index_of_a_huge_device_stays_sparse(tmp_path: Path) -> None:
    async with open_cache(Huge(), CacheOptions(cache=str(tmp_path), size=1 << 30)) as layer:
        await read(layer, 0, 1 << 20)
        await read(layer, 1 << 39, 1 << 20)
        await layer.zero(1 << 20, (1 << 40) - (1 << 20))
        assert await read(layer, 1 << 39, 100) == bytes(100)
    async with open_cache(Huge(), CacheOptions(cache=str(tmp_path), size=1 << 30)) as layer:
        resident = [extent for extent in await layer.extents(0, 1 << 40, context=RESIDENT) if not extent.flags]
    assert [(extent.offset, extent.length) for extent in resident] == [(0, 1 << 20)]
    (file,) = tmp_path.iterdir()
    assert file.stat().st_blocks * 512 < 8 << 20


@pytest.mark.parametrize("where", ["header", "index", "content", "size"])
async def test_a_damaged_cache_gives_no_wrong_bytes(tmp_path: Path, where: str) -> None:
    async with cached(Ram(CONTENT, identity="x"), cache=str(tmp_path), block=4096) as layer:
        await read(layer, 0, len(CONTENT))
    (file,) = tmp_path.iterdir()
    chance = random.Random(5)
    bounds = {"header": (0, 100), "index": (4096, 4096 + 74 * 8), "content": (1 << 20, file.stat().st_size)}
    with file.open("r+b") as opened:
        if where == "size":
            opened.truncate((1 << 20) + 100_000)
        else:
            for _ in range(30):
                opened.seek(chance.randrange(*bounds[where]))
                opened.write(chance.randbytes(1))
    base = Ram(CONTENT, identity="x")
    async with cached(base, cache=str(tmp_path), block=4096) as layer:
        assert await read(layer, 0, len(CONTENT)) == CONTENT
        assert base.names("read")
    async with cached(Ram(CONTENT, identity="x"), cache=str(tmp_path), block=4096) as layer:
        assert await read(layer, 0, len(CONTENT)) == CONTENT


async def test_a_write_into_a_damaged_block_does_not_make_it_right(tmp_path: Path) -> None:
    for mode in MODES:
        async with cached(Ram(CONTENT, identity=mode), cache=str(tmp_path), block=4096) as layer:
            await read(layer, 0, len(CONTENT))
        (file,) = tmp_path.iterdir()
        with file.open("r+b") as opened:
            opened.seek((1 << 20) + 4096)
            opened.write(b"damage")
        base = Ram(CONTENT, identity=mode)
        async with cached(base, cache=str(tmp_path), block=4096, mode=mode) as layer:
            await layer.pwrite(memoryview(b"new"), 8000)
            assert await read(layer, 4096, 4096) == CONTENT[4096:8000] + b"new" + CONTENT[8003:8192]


async def test_a_smaller_size_at_the_next_start_is_kept_to(tmp_path: Path) -> None:
    async with cached(Ram(CONTENT, identity="x"), cache=str(tmp_path), block=4096) as layer:
        await read(layer, 0, len(CONTENT))
    async with cached(Ram(CONTENT, identity="x"), cache=str(tmp_path), **SMALL) as layer:
        assert len(layer.below._blocks) <= 16  # type: ignore[attr-defined]
        assert await read(layer, 0, len(CONTENT)) == CONTENT


@pytest.mark.parametrize(("options", "says"), [({"block": 5000}, "power of two"), ({"size": 100}, "16 blocks")])
async def test_options_that_make_no_sense(options: dict[str, int], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        async with cached(Ram(CONTENT), **options):
            pass


@pytest.mark.root
@pytest.mark.parametrize("identity", ["", "x"])
async def test_a_directory_where_evicting_gives_no_space_back(without_holes: Path, identity: str) -> None:
    with pytest.raises(UserError, match=r"cache=.*has no holes"):
        async with cached(Ram(CONTENT, identity=identity), cache=str(without_holes)):
            pass


async def test_a_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cache=.*file"):
        async with cached(Ram(CONTENT), cache=str(tmp_path / "file")):
            pass
    with pytest.raises(UserError, match="mode: 'x' is none of"):
        async with open_stack("cache,mode=x::null:1M"):
            pass
    assert os.listdir(tmp_path) == ["file"]
