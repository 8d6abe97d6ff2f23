"""nbdfs.nbd.immediate: small requests to memory, alone and in runs, with pages that are there and with holes."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from nbdfs.checked import Checked
from nbdfs.export import Export
from nbdfs.nbd.proto import constants as nbd
from nbdfs.source import Caps, read
from nbdfs.stack import open_stack
from tests.devices import EVERYTHING, Ram
from tests.nbd_talks import replies, request, talk

SIZE = 1 << 20
PAGE = 4096
LARGE = 64 << 10


@pytest.mark.parametrize("spec", ["memory:1M", "offset,offset=1M::memory:2M"])
@pytest.mark.parametrize("step", [1 << 30, 28 + PAGE + 5, 60_000, 333])
@pytest.mark.parametrize("seed", range(3))
async def test_every_request_is_answered_once(spec: str, step: int, seed: int) -> None:
    """Runs of reads and writes, cut anywhere, over a disk of which half is written."""
    chance = random.Random(seed)
    async with open_stack(spec) as source:
        model = bytearray(SIZE)
        for page in chance.sample(range(SIZE // PAGE), SIZE // PAGE // 2):
            model[page * PAGE : (page + 1) * PAGE] = data = chance.randbytes(PAGE)
            await source.pwrite(memoryview(data), page * PAGE)
        blocks = list(range(0, SIZE // 2, PAGE))  # a write to each at most, reads elsewhere: the order is free
        chance.shuffle(blocks)
        said, lengths, expected = bytearray(), dict[int, int](), dict[int, bytes]()
        cookie = 0
        while len(blocks) > 40:
            length = chance.choice([1, 512, PAGE, PAGE, PAGE])
            reads = chance.random() < 0.5
            for _ in range(chance.randrange(1, 40)):
                if reads:
                    offset = chance.randrange(SIZE // 2, SIZE - length)
                    said += request(nbd.CMD_READ, cookie, offset, length)
                    lengths[cookie], expected[cookie] = length, bytes(model[offset : offset + length])
                else:
                    offset, payload = blocks.pop(), chance.randbytes(length)
                    said += request(nbd.CMD_WRITE, cookie, offset, length) + payload
                    model[offset : offset + length] = payload
                cookie += 1
        answers = replies(await talk(Export("", source), bytes(said), step), lengths)
        assert sorted(answers) == list(range(cookie))
        assert {at: answers[at] for at in expected} == {at: (0, data) for at, data in expected.items()}
        content = bytearray(SIZE)
        await source.pread_into(memoryview(content), 0)
        assert content == model
        counted = source.counters["read"].requests + source.counters["write"].requests
        assert counted == cookie + SIZE // PAGE // 2 + 1


@pytest.mark.parametrize("step", [1 << 30, 28 + LARGE, 28 + LARGE + 28, 28 + LARGE + 5, 10_007])
@pytest.mark.parametrize("seed", range(3))
async def test_large_writes_leave_what_follows_in_step(step: int, seed: int) -> None:
    """Payloads that are received in place, in a hole or over data, with any request behind them, cut anywhere."""
    chance = random.Random(seed)
    async with open_stack("memory:4M") as source:
        half = chance.randbytes(2 << 20)
        await source.pwrite(memoryview(half), 0)
        model = bytearray(half) + bytearray(2 << 20)
        said, expected = bytearray(), dict[int, bytes]()
        for cookie, block in enumerate(chance.sample(range(4 << 20 >> 17), 32)):
            offset, kind = block << 17, chance.randrange(4)
            length = chance.choice([PAGE, 333]) if kind < 2 else chance.choice([LARGE, LARGE, 100_000])
            if kind == 0:
                said += request(nbd.CMD_READ, cookie, offset, length)
                expected[cookie] = bytes(model[offset : offset + length])
            else:
                payload = chance.randbytes(length)
                said += request(nbd.CMD_WRITE, cookie, offset, length) + payload
                model[offset : offset + length] = payload
        lengths = {cookie: len(data) for cookie, data in expected.items()}
        answers = replies(await talk(Export("", source), bytes(said), step), lengths)
        assert answers == {cookie: (0, expected.get(cookie, b"")) for cookie in range(32)}
        assert await read(source, 0, 4 << 20) == model


class Faulty(Ram):
    """Has a fault where it is asked for many views."""

    def views(self, length: int, offsets: Sequence[int], *, writable: bool = False) -> Sequence[memoryview | None]:
        raise ZeroDivisionError


async def test_a_fault_of_the_driver_is_logged_and_its_requests_go_the_ordinary_way(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = Faulty(random.Random(1).randbytes(SIZE), caps=EVERYTHING | Caps.IMMEDIATE)
    reads = b"".join(request(nbd.CMD_READ, at, at * 512, 512) for at in range(4))
    writes = b"".join(request(nbd.CMD_WRITE, 4 + at, (4 + at) * 512, 512) + bytes(512) for at in range(4))
    answers = replies(await talk(Export("", Checked(source)), reads + writes), dict.fromkeys(range(4), 512))
    assert answers == {at: (0, bytes(source.content[at * 512 : (at + 1) * 512]) if at < 4 else b"") for at in range(8)}
    assert source.content[4 * 512 : 8 * 512] == bytes(4 * 512)
    assert "memory of requests failed" in caplog.text


async def test_memory_that_is_used_up_fails_each_write_that_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the run to pages that are there succeed."""
    async with open_stack("memory:1M") as source:
        await source.pwrite(memoryview(b"x" * PAGE), 2 * PAGE)
        monkeypatch.setattr("nbdfs.budget.Budget.spend", lambda self, length: False)
        writes = b"".join(request(nbd.CMD_WRITE, at, at * PAGE, PAGE) + b"y" * PAGE for at in range(4))
        answers = replies(await talk(Export("", source), writes), {})
        assert [answers[at][0] for at in range(4)] == [nbd.ENOSPC, nbd.ENOSPC, 0, nbd.ENOSPC]
