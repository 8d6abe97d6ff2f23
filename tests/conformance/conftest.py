"""The device under test: a row of the table, opened with a door between all its layers."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nbdfs.checked import Checked
from nbdfs.source import read
from nbdfs.stack import open_stack
from tests.conformance.drivers import ROWS, Row, Subject, Writes


@dataclass
class Device:
    """An open subject beside a model of its content."""

    door: Checked
    row: Row
    subject: Subject
    model: bytearray
    random: random.Random = field(default_factory=lambda: random.Random(7))

    @property
    def size(self) -> int:
        return self.door.info.size

    def sample(self, offset: int, length: int) -> bytes:
        """Bytes that may be written there."""
        if self.row.writes is Writes.SAME_ONLY:
            return self.subject.content[offset : offset + length]
        return self.random.randbytes(length)

    def wrote(self, offset: int, data: bytes) -> None:
        """Tell the model of a write that succeeded."""
        if self.row.writes is Writes.KEPT:
            self.model[offset : offset + len(data)] = data

    async def write(self, offset: int, length: int, *, fua: bool = False) -> None:
        data = self.sample(offset, length)
        await self.door.pwrite(memoryview(data), offset, fua=fua)
        self.wrote(offset, data)

    async def check(self, offset: int = 0, length: int = -1) -> None:
        """The device holds what the model does."""
        end = self.size if length < 0 else offset + length
        step = min(self.door.info.block.maximum, 1 << 20)
        for at in range(offset, end, step):
            size = min(step, end - at)
            found, expected = await read(self.door, at, size), self.model[at : at + size]
            if found != expected:  # not an assert: pytest would compare a million bytes in words
                first = next(index for index in range(size) if found[index] != expected[index])
                pytest.fail(f"differs from byte {at + first} on")

    def ranges(self) -> list[tuple[int, int]]:
        """Offsets and lengths worth trying: the edges, unaligned ones, long ones, all of it."""
        size = self.size
        tries = [(0, 1), (size - 1, 1), (0, 512), (511, 2), (4095, 4098), (1, 65536), (size // 3, size // 3),
                 (size - 513, 513), (0, size)]  # fmt: skip
        longest = self.door.info.block.maximum
        return [(at, length) for at, length in tries if at >= 0 and at + length <= size and 0 < length <= longest]


@pytest.fixture(params=ROWS, ids=str)
def row(request: pytest.FixtureRequest) -> Row:
    return request.param


@pytest.fixture
async def subject(row: Row, tmp_path: Path) -> AsyncIterator[Subject]:
    async with row.prepare(tmp_path) as prepared:
        yield prepared


@pytest.fixture
async def device(row: Row, subject: Subject) -> AsyncIterator[Device]:
    async with open_stack(subject.spec, debug=True) as door:
        yield Device(door, row, subject, bytearray(subject.content))


@pytest.fixture
async def readonly(row: Row, subject: Subject) -> AsyncIterator[Device]:
    async with open_stack(subject.spec, readonly=True, debug=True) as door:
        yield Device(door, row, subject, bytearray(subject.content))
