"""Any stack against a bytearray: random operations, one after another and several at once, must agree with it."""

from __future__ import annotations

import errno
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nbdfs.checked import Checked
from nbdfs.ranges import RangeSet
from nbdfs.source import ZERO, read
from tests.model.stacks import SIZE, STACKS

KINDS = ("write", "write", "write", "read", "zero", "trim", "extents", "cache", "flush", "view")


@dataclass(frozen=True)
class Step:
    """One operation on a range."""

    kind: str
    offset: int
    length: int
    fill: int = 1
    fua: bool = False
    may_trim: bool = True
    fast: bool = False

    @property
    def end(self) -> int:
        return self.offset + self.length

    @property
    def data(self) -> bytes:
        return bytes((self.fill + index) % 251 for index in range(self.length))


def _range(draw: st.DrawFn) -> tuple[int, int]:
    """An offset and a length, often at or next to a block's edge."""
    edge = st.builds(lambda block, shift: block + shift, st.integers(0, SIZE // 512).map(lambda n: n * 512),
                     st.sampled_from([0, 0, 0, -1, 1, 7]))  # fmt: skip
    place = st.one_of(edge, st.integers(0, SIZE)).map(lambda at: min(max(at, 0), SIZE))
    first, last = sorted((draw(place), draw(place)))
    return (first, last - first) if first < last else (min(first, SIZE - 1), 1)


@st.composite
def steps(draw: st.DrawFn) -> Step:
    offset, length = _range(draw)
    kind = draw(
        st.sampled_from(["read", "write", "write", "write", "zero", "trim", "extents", "cache", "flush", "view"])
    )
    return Step(kind, offset, length, draw(st.integers(1, 250)), draw(st.booleans()), draw(st.booleans()),
                draw(st.booleans()))  # fmt: skip


class Model:
    """What the device must hold: known bytes, and ranges whose content a trim has left open."""

    def __init__(self, door: Checked) -> None:
        self.door = door
        self.bytes = bytearray(SIZE)
        self.open = RangeSet()

    async def do(self, step: Step) -> None:
        await getattr(self, f"do_{step.kind}")(step)

    def set(self, step: Step, data: bytes) -> None:
        self.bytes[step.offset : step.end] = data
        self.open.remove(step.offset, step.end)

    def check(self, offset: int, found: bytes | bytearray) -> None:
        for start, end, is_open in self.open.runs(offset, offset + len(found)):
            if not is_open:
                assert found[start - offset : end - offset] == self.bytes[start:end], f"differs in [{start}, {end})"

    async def do_read(self, step: Step) -> None:
        self.check(step.offset, await read(self.door, step.offset, step.length))

    async def do_write(self, step: Step) -> None:
        await self.door.pwrite(memoryview(step.data), step.offset, fua=step.fua)
        self.set(step, step.data)

    async def do_zero(self, step: Step) -> None:
        try:
            await self.door.zero(step.offset, step.length, may_trim=step.may_trim, fast=step.fast, fua=step.fua)
        except OSError as error:
            assert step.fast
            assert error.errno in (errno.ENOTSUP, errno.EOPNOTSUPP)
        else:
            self.set(step, bytes(step.length))

    async def do_trim(self, step: Step) -> None:
        await self.door.trim(step.offset, step.length, fua=step.fua)
        self.open.add(step.offset, step.end)

    async def do_extents(self, step: Step) -> None:
        at = step.offset
        for extent in await self.door.extents(step.offset, step.length, one=step.fast):
            assert extent.offset == at
            at += extent.length
            if extent.flags & ZERO:
                self.check(extent.offset, bytes(extent.length))
                assert not any(await read(self.door, extent.offset, extent.length))
        assert step.offset < at <= step.end

    async def do_cache(self, step: Step) -> None:
        await self.door.cache(step.offset, step.length)

    async def do_flush(self, step: Step) -> None:
        await self.door.flush()

    async def do_view(self, step: Step) -> None:
        view = self.door.view(step.offset, step.length, writable=step.fua)
        if view is not None:
            self.check(step.offset, bytes(view))
            if step.fua:
                view[:] = step.data
                self.set(step, step.data)
            view.release()


def _disjoint(together: list[Step]) -> list[Step]:
    """Those that overlap none before them: what they leave behind does not hang on their order."""
    taken, chosen = RangeSet(), []
    for step in together:
        if all(not inside for _, _, inside in taken.runs(step.offset, step.end)):
            taken.add(step.offset, step.end)
            chosen.append(step)
    return chosen


async def _play(name: str, batches: list[list[Step]]) -> None:
    with tempfile.TemporaryDirectory() as folder, trio.fail_after(60):
        async with STACKS[name](Path(folder)) as door:
            model = Model(door)
            for batch in batches:
                async with trio.open_nursery() as nursery:
                    for step in _disjoint(batch):
                        nursery.start_soon(model.do, step)
            model.check(0, await read(door, 0, SIZE))


@pytest.mark.parametrize("name", STACKS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(batches=st.lists(st.lists(steps(), min_size=1, max_size=4), min_size=1, max_size=12))
def test_stack_agrees_with_a_bytearray(name: str, batches: list[list[Step]]) -> None:
    trio.run(_play, name, batches)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", STACKS)
@settings(max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(batches=st.lists(st.lists(steps(), min_size=1, max_size=8), min_size=1, max_size=40))
def test_stack_agrees_with_a_bytearray_for_long(name: str, batches: list[list[Step]]) -> None:
    trio.run(_play, name, batches)
