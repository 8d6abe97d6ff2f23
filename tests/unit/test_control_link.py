"""The way from the data plane to pyfuse3: what is on the other side always fits into the socket's buffer."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import trio

from nbdfs.fuse import wire
from nbdfs.fuse.control_link import ControlLink
from nbdfs.fuse.wire import InitReply, InitRequest, Opcode

STEP = 64 << 10


class Ends:
    """A link with the kernel's end of its device and pyfuse3's end of its socket."""

    def __init__(self) -> None:
        device, self.kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.device = device
        self.link = ControlLink(device.fileno(), _no_init)
        self.control = socket.socket(fileno=self.link.theirs)
        self.kernel.setblocking(False)

    def close(self) -> None:
        for end in (self.link, self.control, self.kernel, self.device):
            end.close()

    def forward(self, opcode: int, unique: int, size: int = 0) -> None:
        body = wire.IO_IN.pack(1, 0, size, 0, 0, 0, 0)
        header = wire.IN_HEADER.pack(wire.IN_HEADER.size + len(body), opcode, unique, 1, 0, 0, 0, 0, 0)
        self.link.forward(opcode, unique, memoryview(bytearray(header + body)))

    def asked(self) -> list[memoryview]:
        """The requests that are on the other side now."""
        found = []
        while True:
            try:
                found.append(memoryview(self.control.recv(1 << 20)))
            except BlockingIOError:
                return found

    async def answer(self, message: memoryview, size: int) -> None:
        """Reply, and wait until the kernel has the reply."""
        self.control.send(wire.reply(number(message), bytes(size)))
        with trio.fail_after(5):
            await trio.lowlevel.wait_readable(self.kernel)
        assert len(self.kernel.recv(1 << 20)) == wire.OUT_HEADER.size + size


def _no_init(_: InitRequest) -> InitReply:
    raise NotImplementedError


def number(message: memoryview) -> int:
    return int(wire.IN_HEADER.unpack_from(message)[2])


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.close()


async def test_a_directory_is_read_in_steps_and_by_one_at_a_time(ends: Ends, nursery: trio.Nursery) -> None:
    nursery.start_soon(ends.link.carry_replies)
    for unique in range(2, 12, 2):
        ends.forward(Opcode.READDIRPLUS, unique, 1 << 20)
    for unique in range(2, 12, 2):
        (request,) = ends.asked()
        assert number(request) == unique
        assert wire.SIZE_IN.unpack_from(request, wire.SIZE) == (STEP,)
        await ends.answer(request, STEP)
    assert not ends.asked()


async def test_no_more_requests_go_over_than_are_answered(ends: Ends, nursery: trio.Nursery) -> None:
    nursery.start_soon(ends.link.carry_replies)
    for unique in range(2, 402, 2):
        ends.forward(Opcode.OPEN + 1000, unique)
    waiting = ends.asked()
    assert len(waiting) == 64
    seen = []
    while waiting:
        seen.append(number(waiting[0]))
        await ends.answer(waiting.pop(0), 16)
        waiting += ends.asked()
        assert len(waiting) <= 64
    assert seen == list(range(2, 402, 2))


def test_forgotten() -> None:
    header = wire.IN_HEADER.pack(0, 0, 0, 7, 0, 0, 0, 0, 0)
    assert list(wire.forgotten(Opcode.FORGET, memoryview(header + wire.FORGET_IN.pack(3)))) == [(7, 3)]
    body = wire.BATCH_FORGET_IN.pack(2, 0) + wire.FORGET_ONE.pack(5, 1) + wire.FORGET_ONE.pack(6, 2)
    assert list(wire.forgotten(Opcode.BATCH_FORGET, memoryview(header + body))) == [(5, 1), (6, 2)]
