"""The engine over sources that fail, lie or are slow: complete and right, or one error that says where."""

from __future__ import annotations

import errno
import hashlib
import random

import pytest
import trio

from nbdfs.backends.null import Null
from nbdfs.checked import Checked
from nbdfs.copying.digests import BlockHash, Digest
from nbdfs.copying.ends import DeviceInput, DeviceOutput, NullOutput
from nbdfs.copying.engine import Engine
from nbdfs.copying.plan import Planner
from nbdfs.copying.verify import CompareOutput
from nbdfs.errors import SourceError
from nbdfs.progress import Progress
from nbdfs.source import ALLOCATION, HOLE, ZERO, Caps, Extent, Source, SourceInfo

STEP = 4096


class Disk(Source):
    """Bytes in memory that take a moment; `fail` is called before each request with its name and offset."""

    def __init__(self, data: bytes | bytearray, *, told: bool = True) -> None:
        self.data = bytearray(data)
        self.requests: list[tuple[str, int, int]] = []
        self.failures: dict[tuple[str, int], list[int]] = {}  # errnos still to come for a request at an offset
        self.delay = random.Random(1)
        caps = Caps.WRITE | Caps.ZERO | Caps.FLUSH | (Caps.EXTENTS if told else Caps.NONE)
        self.info = SourceInfo(len(data), caps, description="disk")

    async def _request(self, name: str, offset: int, length: int) -> None:
        self.requests.append((name, offset, length))
        await trio.sleep(self.delay.random())
        if coming := self.failures.get((name, offset)):
            raise SourceError(coming.pop(0), where="disk")

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        await self._request("read", offset, len(buffer))
        buffer[:] = self.data[offset : offset + len(buffer)]

    async def pwrite(self, data: memoryview, offset: int, *, fua: bool = False) -> None:
        await self._request("write", offset, len(data))
        self.data[offset : offset + len(data)] = data

    async def zero(
        self, offset: int, length: int, *, may_trim: bool = True, fast: bool = False, fua: bool = False
    ) -> None:
        await self._request("zero" if may_trim else "allocate", offset, length)
        self.data[offset : offset + length] = bytes(length)

    async def flush(self) -> None:
        self.requests.append(("flush", 0, 0))

    async def extents(self, offset: int, length: int, *, context: str = ALLOCATION, one: bool = False) -> list[Extent]:
        blocks = range(offset // STEP, -(-(offset + length) // STEP))
        return [
            Extent(max(at * STEP, offset), min((at + 1) * STEP, len(self.data)) - max(at * STEP, offset),
                   0 if any(self.data[at * STEP : (at + 1) * STEP]) else HOLE | ZERO)
            for at in blocks
        ]  # fmt: skip


def content(blocks: str) -> bytes:
    """One block a character: `.` zeroes, other characters themselves."""
    return b"".join(bytes(STEP) if block == "." else block.encode() * STEP for block in blocks)


def engine(source: Disk, destination: Disk | None, **options: object) -> Engine:
    planner = Planner(
        Checked(source), Checked(destination) if destination else None, step=STEP, short_holes=False,
        blank=destination is None,
    )  # fmt: skip
    output = (
        DeviceOutput(Checked(destination), sparse=512, allocated=False, blank=False) if destination else NullOutput()
    )
    settings: dict[str, object] = {"workers": 4, "request_size": STEP, **options}
    return Engine(DeviceInput(Checked(source), planner), output, Progress(source.info.size), **settings)  # type: ignore[arg-type]


async def test_a_copy_is_the_same_and_touches_no_hole(autojump_clock: trio.abc.Clock) -> None:
    source, destination = Disk(content("ab..c....d")), Disk(content(".......x.x"))
    copy = engine(source, destination)
    await copy.run()
    assert copy.failure is None
    assert destination.data == source.data
    wanted = [("write", at * STEP, STEP) for at in (0, 1, 4, 9)] + [("zero", 7 * STEP, STEP)]
    assert sorted(destination.requests) == wanted
    assert (copy.counters.copied, copy.counters.zeroed, copy.counters.skipped) == (4 * STEP, STEP, 5 * STEP)
    assert list(copy.done) == [(0, 10 * STEP)]
    assert copy.progress.done == 10 * STEP


async def test_zeroes_inside_data_are_zeroed(autojump_clock: trio.abc.Clock) -> None:
    data = bytearray(content("a"))
    data[1024:3072] = bytes(2048)
    source, destination = Disk(data), Disk(content("x"))
    copy = engine(source, destination)
    await copy.run()
    assert destination.data == data
    assert sorted(destination.requests) == [("write", 0, 1024), ("write", 3072, 1024), ("zero", 1024, 2048)]
    assert copy.counters.zeroed == 2048


async def test_requests_are_in_flight_together_but_no_more_than_workers(autojump_clock: trio.abc.Clock) -> None:
    source = Disk(content("a" * 40))
    start = trio.current_time()
    await engine(source, Disk(content("." * 40)), workers=8).run()
    assert trio.current_time() - start < 40 * 2 * 0.5 / 4


class Gone(Digest):
    """Stops the copy at the first zeroes that it is given, and counts them all."""

    scope: trio.CancelScope
    seen = 0

    def zero(self, length: int) -> None:
        self.seen += length
        trio.from_thread.run_sync(self.scope.cancel)


async def test_a_stop_is_heard_while_a_huge_hole_is_hashed() -> None:
    digest = Gone("sha256")
    source = Checked(Null(1 << 60))
    planner = Planner(source, None, step=STEP, blank=True)
    copy = Engine(
        DeviceInput(source, planner), NullOutput(), Progress(1 << 60), workers=1, request_size=STEP, hashers=[digest]
    )
    with trio.CancelScope() as digest.scope:
        await copy.run()
    assert digest.seen < 1 << 30


@pytest.mark.parametrize(
    ("side", "request_name", "word"), [("source", "read", "read"), ("destination", "write", "write")]
)
async def test_a_failure_says_what_failed_and_where(
    side: str, request_name: str, word: str, autojump_clock: trio.abc.Clock
) -> None:
    disks = {"source": Disk(content("abcd")), "destination": Disk(content("...."))}
    disks[side].failures[request_name, 2 * STEP] = [errno.EIO]
    copy = engine(disks["source"], disks["destination"])
    await copy.run()
    assert str(copy.failure) == f"cannot {word} at byte {2 * STEP}: disk: Input/output error"
    assert not copy.done.covers(2 * STEP, 3 * STEP)


async def test_a_failed_zeroing_is_no_success(autojump_clock: trio.abc.Clock) -> None:
    destination = Disk(content("xx"))
    destination.failures["zero", 0] = [errno.EIO]
    copy = engine(Disk(content("..")), destination)
    await copy.run()
    assert "cannot zero at byte 0" in str(copy.failure)


async def test_retry_asks_again_and_the_result_is_right(autojump_clock: trio.abc.Clock) -> None:
    source, destination = Disk(content("ab.d")), Disk(content("xxxx"))
    source.failures["read", 0] = [errno.EIO, errno.ETIMEDOUT]
    destination.failures["write", STEP] = [errno.EIO]
    destination.failures["zero", 2 * STEP] = [errno.ESHUTDOWN]
    copy = engine(source, destination, retry=2)
    await copy.run()
    assert copy.failure is None
    assert copy.counters.retries == 4
    assert destination.data == source.data


async def test_retry_ends(autojump_clock: trio.abc.Clock) -> None:
    source = Disk(content("a"))
    source.failures["read", 0] = [errno.EIO] * 10
    copy = engine(source, None, retry=3)
    await copy.run()
    assert copy.failure is not None
    assert source.requests == [("read", 0, STEP)] * 4


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EINVAL])
async def test_retry_knows_when_it_is_no_use(number: int, autojump_clock: trio.abc.Clock) -> None:
    destination = Disk(content("."))
    destination.failures["write", 0] = [number] * 10
    copy = engine(Disk(content("a")), destination, retry=5)
    await copy.run()
    assert copy.failure is not None
    assert [name for name, _, _ in destination.requests] == ["write"]


async def test_hashes_see_all_bytes_in_order_though_replies_come_in_any(autojump_clock: trio.abc.Clock) -> None:
    source = Disk(content("ab...cdefgh..ij"))
    digest, block_hash, plain = Digest("sha256"), BlockHash("sha256/1k"), BlockHash("sha256/1k")
    await engine(source, None, hashers=[digest, block_hash], workers=8).run()
    assert digest.hexdigest() == hashlib.sha256(source.data).hexdigest()
    plain.update(memoryview(source.data))
    assert block_hash.hexdigest() == plain.hexdigest()


async def test_the_rate_is_kept(autojump_clock: trio.abc.Clock) -> None:
    start = trio.current_time()
    await engine(Disk(content("a" * 10)), None, rate=STEP / 2).run()
    assert trio.current_time() - start >= 18


@pytest.mark.parametrize(("wrong", "place"), [("abX.", 2 * STEP), ("abcX", 3 * STEP), ("Xbc.", 0)])
async def test_verification_finds_the_byte(wrong: str, place: int, autojump_clock: trio.abc.Clock) -> None:
    source, destination = Disk(content("abc.")), Disk(content("abc."))
    destination.data[place + 17] ^= 1
    planner = Planner(Checked(source), None, step=STEP)
    check = Engine(
        DeviceInput(Checked(source), planner), CompareOutput(Checked(destination), STEP), Progress(), workers=1,
        request_size=STEP,
    )  # fmt: skip
    await check.run()
    assert str(check.failure) == f"the destination differs at byte {place + 17}"


async def test_verification_of_a_right_copy_passes(autojump_clock: trio.abc.Clock) -> None:
    source = Disk(content("abc..d"))
    planner = Planner(Checked(source), None, step=STEP)
    output = CompareOutput(Checked(Disk(source.data, told=False)), STEP)
    check = Engine(DeviceInput(Checked(source), planner), output, Progress(), workers=3, request_size=STEP)
    await check.run()
    assert check.failure is None
