"""The device over a data string: writes, holes and extents, beside a plain bytearray."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from nbdfs.backends.data import content as contents
from nbdfs.backends.data.content import PAGE, Builder, Bytes, Content, cut, page_spans, repeat, resize
from nbdfs.backends.data.evaluate import Evaluator
from nbdfs.backends.data.nodes import Text
from nbdfs.backends.data.source import DataSource
from nbdfs.errors import UsageError, UserError
from nbdfs.ranges import normalise
from nbdfs.source import HOLE, ZERO, Caps, Extent, read
from nbdfs.stack import open_stack

HOLES = HOLE | ZERO


def laid_out(parts: list[tuple[int, Content]], size: int) -> Content:
    builder = Builder()
    for offset, part in parts:
        builder.seek(offset)
        builder.add(part)
    builder.seek(size)
    return builder.content()


sizes = st.one_of(st.integers(1, 9), st.integers(PAGE - 2, PAGE + 2))
parts = st.one_of(
    st.binary(min_size=1, max_size=8).map(Bytes),
    st.builds(lambda size: repeat(Bytes(b"x"), size), sizes),
    st.builds(lambda size: repeat(Bytes(b"\0"), size), sizes),
    st.builds(lambda size: resize(contents.EMPTY, size), sizes),
)


def part_of(whole: Content, first: int, last: int) -> Content:
    """A slice of one byte or more, without about `first` bytes at the start and `last` at the end."""
    start = min(first, whole.size - 1)
    return cut(whole, start, max(start + 1, whole.size - last))


def grown(inner: st.SearchStrategy[Content]) -> st.SearchStrategy[Content]:
    return st.one_of(
        st.builds(repeat, inner, st.integers(1, 4)),
        st.builds(laid_out, st.lists(st.tuples(st.integers(0, 3 * PAGE), inner), max_size=4), st.integers(1, 4 * PAGE)),
        st.builds(part_of, inner, st.integers(0, PAGE + 1), st.integers(0, PAGE + 1)),
    )


trees = st.recursive(parts, grown, max_leaves=8)


def written(content: Content) -> bytes:
    data = bytearray(b"?" * content.size)
    content.read(memoryview(data), 0)
    return bytes(data)


@settings(deadline=None)
@given(content=trees, data=st.data())
def test_reading_a_part_is_reading_all(content: Content, data: st.DataObject) -> None:
    whole = written(content)
    start = data.draw(st.integers(0, content.size - 1))
    stop = data.draw(st.integers(start + 1, content.size))
    part = bytearray(b"?" * (stop - start))
    content.read(memoryview(part), start)
    assert part == whole[start:stop]


@settings(deadline=None)
@given(content=trees, most=st.integers(1, 12), data=st.data())
def test_no_span_hides_data(content: Content, most: int, data: st.DataObject) -> None:
    whole = written(content)
    start = data.draw(st.integers(0, content.size - 1))
    stop = data.draw(st.integers(start + 1, content.size))
    for spans in (
        content.spans(start, stop),
        page_spans(content, start, stop, most),
        page_spans(content, start, stop, 999),
    ):
        found = list(spans)
        assert found[0][0] <= start
        for (low, high, flags), following in zip(found, [*found[1:], None], strict=True):
            assert low < high
            assert following is None or following[0] == high
            assert not flags & ZERO or not any(whole[low:high])
    assert found[-1][1] >= stop, "only too many spans may end before"


@pytest.mark.parametrize(
    ("string", "expected"),
    [
        ("@1M", [(0, 1 << 20, HOLES)]),
        ("1 @1M", [(0, PAGE, 0), (PAGE, (1 << 20) - PAGE, HOLES)]),
        (
            "@32768 1 @65536 1 @131072 0 @163840 0 @1M",
            [(0, 32768, HOLES), (32768, 65536, 0), (98304, 32768, HOLES), (131072, 65536, ZERO),
             (196608, 851968, HOLES)],
        ),
        ("(1 @4K)*1T", [(0, 1 << 52, 0)]),
        ("@1E 1", [(0, 1 << 60, HOLES), (1 << 60, 1, 0)]),
        ("0*1T", [(0, 1 << 40, ZERO)]),
        ("(1 @64K)*2 @256K", [(0, PAGE, 0), (PAGE, PAGE, HOLES), (65536, PAGE, 0), (98304, 163840, HOLES)]),
    ],
)  # fmt: skip
async def test_extents(string: str, expected: list[tuple[int, int, int]]) -> None:
    async with open_stack(f"data:{string}") as door:
        assert await door.extents(0, door.info.size) == [Extent(*one) for one in expected]


async def test_extents_of_countless_runs_are_told_piece_by_piece() -> None:
    async with open_stack("data:(1 @64K)*1T") as door:
        found = await door.extents(1 << 50, 1 << 50)
        assert 1000 < len(found) < 10_000
        assert found[:2] == [Extent(1 << 50, PAGE, 0), Extent((1 << 50) + PAGE, PAGE, HOLES)]


actions = st.lists(
    st.tuples(
        st.sampled_from(["write", "zero", "trim"]),
        st.integers(0, 5 * PAGE),
        st.one_of(st.integers(1, 9), st.integers(PAGE - 1, PAGE + 1), st.integers(1, 5 * PAGE)),
    ),
    max_size=8,
)


@settings(deadline=None)
@given(content=trees, size=st.integers(1, 5 * PAGE), actions=actions, reading=st.booleans())
def test_what_is_written_is_read(
    content: Content, size: int, actions: list[tuple[str, int, int]], reading: bool
) -> None:
    async def run() -> None:
        device = DataSource(resize(content, size))
        model = bytearray(written(resize(content, size)))
        for number, (action, offset, length) in enumerate(actions, 1):
            offset %= size
            length = min(length, size - offset)
            if action == "write":
                data = bytes([number]) * length
                await device.pwrite(memoryview(data), offset)
            else:
                data = bytes(length)
                await (device.zero if action == "zero" else device.trim)(offset, length)
            model[offset : offset + length] = data
            if reading:
                assert await read(device, offset, length) == data
        assert await read(device, 0, size) == model
        at = 0
        while at < size:
            for extent in normalise(await device.extents(at, size - at), at, size - at):
                assert extent.offset == at
                at += extent.length
                assert not extent.flags & ZERO or not any(model[extent.offset : at])

    trio.run(run)


async def test_zeroing_an_exabyte_takes_no_memory() -> None:
    async with open_stack("data:(0x55)*4E") as door:
        await door.pwrite(memoryview(b"here"), 1 << 61)
        await door.zero(1, (1 << 62) - 2)
        assert await read(door, 1 << 61, 4) == bytes(4)
        assert await read(door, 0, 2) == b"\x55\0"
        assert await read(door, (1 << 62) - 2, 2) == b"\0\x55"
        assert await door.extents(PAGE, 1 << 61) == [Extent(PAGE, 1 << 61, HOLES)]


async def test_a_file_that_becomes_shorter_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"x" * 200_000)
    async with open_stack(f"data:<{path}") as door:
        assert Caps.IMMEDIATE not in door.info.caps
        with path.open("r+b") as file:
            file.truncate(1000)
        with pytest.raises(OSError, match="has become shorter"):
            await read(door, 100_000, 10)
        assert await read(door, 0, 10) == b"x" * 10


async def test_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raw").write_bytes(b"R")
    (tmp_path / "string").write_text("<raw*$n # a comment\n")
    monkeypatch.setenv("n", "9")
    for spec, expected in {
        f"data,from={tmp_path}/string:": b"R" * 9,
        f"data,from={tmp_path}/string,set=n=3,size=5:": b"RRR\0\0",
        "data,set=a=1;b=2,size=1:$a $b": b"\1",
        "data:": b"",
        "raw:a b::c,d=é": "a b::c,d=é".encode(),
        "raw,size=2:abc": b"ab",
        "base64:aGVsbG8=": b"hello",
        "base64,size=8:aGk=": b"hi" + bytes(6),
    }.items():
        async with open_stack(spec) as door:
            assert await read(door, 0, door.info.size) == expected, spec


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("data,from=/nosuch:", UserError, "cannot read /nosuch: No such file"),
        ("data,from=/dev/null:1", UsageError, "either in the spec or in /dev/null"),
        ("data,from=/:", UserError, "cannot read /: Is a directory"),
        ("data,set=1:2", UsageError, "'1' sets no variable"),
        ("data,size=-1:", UsageError, "not a size"),
        ("data,script-timeout=soon:", UsageError, "not a duration"),
        ("base64:a b", UserError, "'a b' is not base64"),
        ("raw,size=x:a", UsageError, "not a size"),
    ],
)
async def test_wrong_options(spec: str, error: type[UserError], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        async with open_stack(spec):
            pass
    assert type(caught.value) is error


async def test_a_text_that_is_too_long_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbdfs.backends.data.evaluate._MOST_TEXT", 10)
    (tmp_path / "string").write_text("1 " * 6)
    with pytest.raises(UserError, match="is it a data string"), ExitStack() as files:
        await Evaluator({}, files, 1).file(str(tmp_path / "string"))


async def test_a_long_string() -> None:
    """A hundred thousand bytes written one by one, and words between them."""
    with ExitStack() as files:
        content = await Evaluator({}, files, 1).text(Text("data", "1 2 3 le16:4 " * 20_000))
    assert written(content) == b"\1\2\3\4\0" * 20_000
