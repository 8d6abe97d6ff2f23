"""nbdfs.nbd.batches: small requests that came together, in one call of the source as far as that does them at once."""

from __future__ import annotations

import random
import socket
from collections.abc import Sequence

import pytest
import trio
import trio.testing

from nbdfs.checked import Checked
from nbdfs.export import Export
from nbdfs.nbd.connection import Connection
from nbdfs.nbd.exports import ServedExports
from nbdfs.nbd.limits import Limits
from nbdfs.nbd.proto import constants as nbd
from nbdfs.nbd.server import Server
from nbdfs.nbd.stream import SocketStream
from nbdfs.source import Caps
from tests.devices import EVERYTHING, Ram
from tests.nbd_talks import ENTER, replies, request, talk

SIZE = 1 << 20


class Batching(Ram):
    """Does `at_once` requests of a batch, and notes how many it was given."""

    batches = True

    def __init__(self, at_once: int, caps: Caps = EVERYTHING) -> None:
        super().__init__(random.Random(1).randbytes(SIZE), caps=caps)
        self.at_once = at_once
        self.given: list[tuple[str, int]] = []

    def read_now(self, buffer: memoryview, length: int, offsets: Sequence[int]) -> int:
        self.given.append(("read", len(offsets)))
        assert len(buffer) == length * len(offsets)
        for at, offset in enumerate(offsets[: self.at_once]):
            buffer[at * length : (at + 1) * length] = self.content[offset : offset + length]
        return min(self.at_once, len(offsets))

    def write_now(self, data: memoryview, length: int, offsets: Sequence[int]) -> int:
        self.given.append(("write", len(offsets)))
        assert len(data) == length * len(offsets)
        for at, offset in enumerate(offsets[: self.at_once]):
            self.content[offset : offset + length] = data[at * length : (at + 1) * length]
        return min(self.at_once, len(offsets))


@pytest.mark.parametrize("caps", [EVERYTHING, EVERYTHING | Caps.IMMEDIATE], ids=["may wait", "immediate"])
@pytest.mark.parametrize("at_once", [0, 1, 5, 1000])
@pytest.mark.parametrize("seed", range(3))
async def test_every_request_is_answered_once(at_once: int, caps: Caps, seed: int) -> None:
    """Reads, writes, and what is never put off, in any order, much or little of it done at once."""
    source = Batching(at_once, caps)
    chance = random.Random(seed)
    model = bytearray(source.content)
    blocks = list(range(0, SIZE // 2, 64 << 10))  # a write to each at most, reads elsewhere: the order is free
    data, lengths, expected = bytearray(), dict[int, int](), dict[int, bytes]()
    for cookie in range(200):
        kind = chance.choice(["read"] * 6 + ["write"] * 3 + ["fua", "flush", "long", "wrong"])
        length = chance.choice([1, 512, 4096, 4096, 4096, 32 << 10])
        if kind in ("read", "long"):
            length = 40 << 10 if kind == "long" else length
            offset = chance.randrange(SIZE // 2, SIZE - length)
            data += request(nbd.CMD_READ, cookie, offset, length)
            lengths[cookie], expected[cookie] = length, bytes(model[offset : offset + length])
        elif kind in ("write", "fua") and blocks:
            offset, payload = blocks.pop(), chance.randbytes(length)
            flags = nbd.CMD_FLAG_FUA if kind == "fua" else 0
            data += request(nbd.CMD_WRITE, cookie, offset, length, flags) + payload
            model[offset : offset + length] = payload
        elif kind == "wrong":
            data += request(nbd.CMD_READ, cookie, SIZE, 512)
        else:
            data += request(nbd.CMD_FLUSH, cookie)
    data += request(nbd.CMD_DISC, 1000)
    step = [1 << 30, 1000, 50_000][seed]
    answers = replies(await talk(Export("", Checked(source)), bytes(data), step), lengths)
    assert sorted(answers) == list(range(200))
    assert {cookie: answers[cookie] for cookie in expected} == {cookie: (0, text) for cookie, text in expected.items()}
    assert source.content == model


@pytest.mark.parametrize("caps", [EVERYTHING, EVERYTHING | Caps.IMMEDIATE], ids=["may wait", "immediate"])
async def test_what_came_together_is_one_call(caps: Caps) -> None:
    source = Batching(1000, caps)
    data = b"".join(request(nbd.CMD_READ, cookie, cookie * 4096, 4096) for cookie in range(16))
    data += b"".join(request(nbd.CMD_WRITE, 16 + cookie, cookie * 4096, 512) + bytes(512) for cookie in range(8))
    door = Checked(source)
    await talk(Export("", door), data + request(nbd.CMD_DISC, 0))
    assert sorted(source.given) == [("read", 16), ("write", 8)]
    assert source.log == []
    assert (door.counters["read"].requests, door.counters["read"].bytes) == (16, 16 * 4096)
    assert (door.counters["write"].requests, door.counters["write"].bytes) == (8, 8 * 512)


@pytest.mark.parametrize("step", [1, 7, 28, 29, 540])
async def test_a_payload_that_comes_in_pieces(step: int) -> None:
    source = Batching(1000)
    data = b"".join(request(nbd.CMD_WRITE, at, at * 512, 512) + bytes([at]) * 512 for at in range(4))
    answers = replies(await talk(Export("", Checked(source)), data, step), {})
    assert answers == dict.fromkeys(range(4), (0, b""))
    assert source.content[:2048] == b"".join(bytes([at]) * 512 for at in range(4))


@pytest.mark.parametrize("ending", [b"", b"x" * 28, request(nbd.CMD_DISC, 0), request(nbd.CMD_WRITE, 9, 0, 512)])
async def test_what_came_before_the_end_is_carried_out(ending: bytes) -> None:
    """Whether the client hangs up, breaks the protocol, says goodbye, or dies in the middle of a payload."""
    source = Batching(1000)
    await talk(Export("", Checked(source)), request(nbd.CMD_WRITE, 1, 0, 512) + bytes(512) + ending)
    assert source.content[:512] == bytes(512)


@pytest.mark.parametrize("caps", [EVERYTHING, EVERYTHING | Caps.IMMEDIATE], ids=["may wait", "immediate"])
async def test_a_failure_is_that_request_s_alone(caps: Caps) -> None:
    source = Batching(2, caps)
    source.fail = lambda name, offset, length: 5 if offset == 3 * 4096 else 0
    data = b"".join(request(nbd.CMD_READ, at, at * 4096, 4096) for at in range(6))
    answers = replies(await talk(Export("", Checked(source)), data), dict.fromkeys(range(6), 4096))
    assert [answers[at][0] for at in range(6)] == [0, 0, 0, nbd.EIO, 0, 0]


async def test_memory_for_what_waits_is_reserved() -> None:
    """What is not done at once waits its turn where a client may have only a few requests in flight."""
    source = Batching(0)
    source.delay = 0.001
    data = b"".join(request(nbd.CMD_WRITE, at, at * 4096, 4096) + bytes([at]) * 4096 for at in range(20))
    limits = Limits(client_memory=80 << 10)
    answers = replies(await talk(Export("", Checked(source)), data, limits=limits), {})
    assert sorted(answers) == list(range(20))
    assert source.content[: 20 * 4096] == b"".join(bytes([at]) * 4096 for at in range(20))


async def test_a_mounted_source_is_asked_the_ordinary_way() -> None:
    """The page cache of the mount has to be asked first."""
    source = Batching(1000)
    asked = []

    async def before(offset: int, length: int) -> None:
        await trio.lowlevel.checkpoint()
        asked.append((offset, length))

    await talk(Export("", Checked(source), before_access=before), request(nbd.CMD_READ, 1, 0, 512))
    assert (asked, source.given) == ([(0, 512)], [])


class Faulty(Batching):
    """Has a fault where it does batches."""

    def read_now(self, buffer: memoryview, length: int, offsets: Sequence[int]) -> int:
        raise ZeroDivisionError


async def test_a_fault_of_the_driver_is_logged_and_its_requests_go_the_ordinary_way(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = Faulty(1000)
    data = request(nbd.CMD_READ, 1, 0, 512) + request(nbd.CMD_READ, 2, 512, 512)
    answers = replies(await talk(Export("", Checked(source)), data), {1: 512, 2: 512})
    assert answers == {1: (0, bytes(source.content[:512])), 2: (0, bytes(source.content[512:1024]))}
    assert "requests that came together failed" in caplog.text


@pytest.mark.parametrize(("at_once", "batches", "taken"), [(0, True, 9), (5, True, 9), (0, False, 33)])
async def test_a_stop_while_the_client_takes_nothing_answers_each_request_once(
    at_once: int, batches: bool, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server waits for room behind requests that came together, and is told to take no more."""
    monkeypatch.setattr(Batching, "batches", batches)
    source = Batching(at_once, EVERYTHING | Caps.IMMEDIATE)
    exports = ServedExports()
    await exports.show(Export("", Checked(source)))
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    connection = Connection(Server(exports), SocketStream(theirs, "client"))
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    lengths = {0: 40 << 10} | dict.fromkeys(range(1, 60), 32 << 10)  # the first is not put off, and takes some room
    asked = b"".join(request(nbd.CMD_READ, at, (at & 7) << 15, length) for at, length in lengths.items())
    said = bytearray()
    with trio.fail_after(30), trio.socket.from_stdlib_socket(ours) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run)
            await client.send(ENTER + asked)
            await trio.testing.wait_all_tasks_blocked()
            connection.stop()
            await trio.testing.wait_all_tasks_blocked()
            while part := await client.recv(1 << 20):
                said += part
    answers = replies(bytes(said[18 + 10 :]), lengths)
    assert answers == {at: (0, source.content[(at & 7) << 15 : ((at & 7) << 15) + lengths[at]]) for at in answers}
    assert sorted(answers) == list(range(taken))
