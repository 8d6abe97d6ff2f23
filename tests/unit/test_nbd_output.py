"""nbdfs.nbd.output: replies in order, each whole, whoever sends them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
import trio.testing

from nbdfs.nbd.output import FilePart, Output
from nbdfs.nbd.stream import Buffer


class Pipe:
    """A stream that takes `room` bytes until it is given more."""

    peer = "somebody"
    near = False
    can_sendfile = True

    def __init__(self, room: int = 0) -> None:
        self.sent = b""
        self._room = room
        self._more = trio.Event()

    def give(self, room: int) -> None:
        self._room += room
        self._more.set()
        self._more = trio.Event()

    def _take(self, data: bytes) -> int:
        taken = data[: self._room]
        self._room -= len(taken)
        self.sent += taken
        return len(taken)

    def recv_now(self, buffer: memoryview) -> int:
        raise NotImplementedError

    def send_now(self, buffers: Sequence[Buffer]) -> int:
        return self._take(b"".join(buffers))

    def sendfile_now(self, fd: int, offset: int, length: int) -> int:
        return self._take(b"%c" % fd * length)

    async def readable(self) -> None:
        raise NotImplementedError

    async def writable(self) -> None:
        if not self._room:
            await self._more.wait()

    def close(self) -> None:
        return


@pytest.mark.parametrize("before", [0, 1])
async def test_who_flushes_waits_for_the_sender_at_work(nursery: trio.Nursery, before: int) -> None:
    """Also before that one has had its first turn."""
    pipe = Pipe()
    output = Output(pipe, stall=60)
    for _ in range(before + 1):
        with trio.fail_after(10):
            output.put(b"reply")
            output.push(nursery)
            assert output.busy
            nursery.start_soon(_give_later, pipe)
            await output.flush()
            assert not output.busy
    assert pipe.sent == b"reply" * (before + 1)


async def _give_later(pipe: Pipe) -> None:
    await trio.testing.wait_all_tasks_blocked()
    pipe.give(len(b"reply"))


@pytest.mark.parametrize("step", [1, 3, 4, 5, 7, 100])
async def test_parts_of_files_come_in_their_place(nursery: trio.Nursery, step: int) -> None:
    pipe, returned = Pipe(), []
    output = Output(pipe, stall=60)
    output.put(b"ab", b"", b"cd")
    output.owe(lambda: returned.append(pipe.sent))
    output.put_file(b"H", FilePart(ord("f"), 0, 4))
    output.owe(lambda: returned.append(pipe.sent))
    output.put_file(b"I", FilePart(ord("g"), 0, 3))
    output.put(b"end")
    output.push(nursery)
    while output.busy:
        pipe.give(step)
        await trio.testing.wait_all_tasks_blocked()
    assert pipe.sent == b"abcdHffffIgggend"
    assert [len(sent) for sent in returned] == sorted(len(sent) for sent in returned)
    assert all(sent.startswith(whole) for sent, whole in zip(returned, (b"abcd", b"abcdHffff"), strict=True))


async def test_what_is_owed_is_given_back_once_also_after_the_end(nursery: trio.Nursery) -> None:
    pipe, returned = Pipe(2), []
    output = Output(pipe, stall=60)
    for number in range(3):
        output.put(b"reply")
        output.owe(lambda number=number: returned.append(number))  # type: ignore[misc]
    output.push(nursery)
    assert not returned
    output.close()
    assert returned == [0, 1, 2]
    output.put(b"more")
    output.owe(lambda: returned.append(3))
    assert returned == [0, 1, 2, 3]
    pipe.give(100)
    await trio.testing.wait_all_tasks_blocked()
    assert pipe.sent == b"re"


async def test_a_peer_that_takes_nothing_is_given_up(nursery: trio.Nursery, autojump_clock: object) -> None:
    output = Output(Pipe(2), stall=60)
    failed = trio.Event()
    output.failed = failed.set
    output.put(b"reply")
    output.push(nursery)
    await failed.wait()
    with pytest.raises(ConnectionError, match="taken no reply"):
        await output.flush()
