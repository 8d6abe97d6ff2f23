"""Random devices: the same from the same seed, in every order, with as much data as was asked for."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbdfs.backends.random import Noise
from nbdfs.backends.sparse_random import Repeated, Runs, plan_shape
from nbdfs.buffers import fill_zero, is_zero
from nbdfs.checked import Checked
from nbdfs.errors import UserError
from nbdfs.keystream import Keystream
from nbdfs.source import HOLE, ZERO, Extent, read
from nbdfs.stack import open_stack


async def all_extents(door: Checked) -> list[Extent]:
    found, at = [], 0
    while at < door.info.size:
        found += await door.extents(at, door.info.size - at)
        at = found[-1].offset + found[-1].length
    return found


def test_keystream_is_aes_in_counter_mode() -> None:
    """As openssl enc -aes-128-ctr makes it: a seed is to give the same device in every version."""
    stream = Keystream(1, "test")
    assert stream.read(0, 16).hex() == "20e893c1101d0320245f7e22f17fd246"
    assert Keystream(2, "test").read(0, 16) != stream.read(0, 16)
    assert Keystream(1, "other").read(0, 16) != stream.read(0, 16)


@settings(deadline=None)
@given(offset=st.integers(0, 1 << 62), length=st.integers(1, 100), cut=st.integers(0, 100))
def test_keystream_at_any_offset(offset: int, length: int, cut: int) -> None:
    stream = Keystream(3, "test")
    whole = stream.read(offset, length)
    assert stream.read(offset + min(cut, length - 1), 1)[0] == whole[min(cut, length - 1)]
    assert stream.read(offset, 1) + stream.read(offset + 1, length) == stream.read(offset, length + 1)


def test_keystream_across_its_chunks() -> None:
    stream = Keystream(4, "test")
    data = stream.read(5, (2 << 20) + 7)
    assert data[(1 << 20) - 3 : (1 << 20) + 3] == stream.read((1 << 20) + 2, 6)


@pytest.mark.parametrize("block", [1024, 4096, 16384])
@settings(deadline=None)
@given(offset=st.integers(0, 1 << 61), length=st.integers(1, 20_000), where=st.integers(0))
def test_blocks_repeat_a_byte(block: int, offset: int, length: int, where: int) -> None:
    content = Repeated(Keystream(5, "test"), block)
    data = bytearray(length)
    content.fill(memoryview(data), offset)
    for at in range(offset - offset % block, offset + length, block):
        part = data[max(at - offset, 0) : at + block - offset]
        whole = bytearray(1)
        content.fill(memoryview(whole), at)
        assert set(part) == set(whole) != {0}
    assert not content.differs(memoryview(data), offset)
    data[where % length] ^= 1
    assert content.differs(memoryview(data), offset)


def test_noise_is_all_random() -> None:
    noise = Noise(Keystream(6, "test"))
    data = bytearray(100_000)
    noise.fill(memoryview(data), 12345)
    assert all(300 < data.count(value) < 480 for value in range(256))
    assert not noise.differs(memoryview(data), 12345)
    assert noise.differs(memoryview(data), 12346)


@pytest.mark.parametrize("percent", [0, 0.5, 10, 33, 50, 60, 90, 99, 100])
@pytest.mark.parametrize("runlength", [4096, 1 << 16, 16 << 20])
async def test_as_much_data_as_asked_for(percent: float, runlength: int) -> None:
    size = max(3000 * runlength, 1 << 26)
    async with open_stack(f"sparse-random,seed=1,percent={percent},runlength={runlength}:{size}") as door:
        runs = [extent.length for extent in await all_extents(door) if not extent.flags]
    assert sum(runs) / size * 100 == pytest.approx(percent, rel=0.1, abs=0.01)
    if 0 < percent <= 50:
        assert sum(runs) / len(runs) == pytest.approx(runlength, rel=0.6)  # two runs may touch and be one


@settings(deadline=None)
@given(
    size=st.integers(1, 1 << 62),
    percent=st.floats(0, 100),
    runlength=st.integers(1, 1 << 50),
    block=st.sampled_from([1024, 4096, 1 << 20]),
)
def test_every_shape_fits_its_cells(size: int, percent: float, runlength: int, block: int) -> None:
    shape = plan_shape(size, percent, runlength, block)
    assert 0 <= shape.shortest <= shape.longest <= shape.cell
    at = 0
    for start, stop, _ in Runs(Keystream(1, "test"), shape).between(0, min(size, 5 * shape.cell)):
        assert start == at < stop
        at = stop
    assert at == min(size, 5 * shape.cell)


async def test_runs_are_the_same_wherever_one_begins() -> None:
    async with open_stack("sparse-random,seed=9:1E") as door:
        start = 1 << 59
        whole = await door.extents(start, 1 << 34)
        edge = whole[1].offset
        assert await door.extents(edge, whole[1].length) == [whole[1]]
        assert await door.extents(edge - 1, 2) == [Extent(edge - 1, 1, whole[0].flags), Extent(edge, 1, whole[1].flags)]
        assert await door.extents(edge + 5, 1, one=True) == [Extent(edge + 5, 1, whole[1].flags)]


async def test_the_seed_is_the_device() -> None:
    content = []
    for spec in "sparse-random,seed=1:4M", "sparse-random,seed=1:4M", "sparse-random,seed=2:4M", "sparse-random:4M":
        async with open_stack(spec) as door:
            content.append(bytes(await read(door, 0, door.info.size)))
    assert content[0] == content[1]
    assert len(set(content)) == 3


async def test_identity_tells_contents_apart() -> None:
    options = ["seed=1", "seed=2", "seed=1,percent=20", "seed=1,random-content", "seed=1,runlength=8k"]
    identities = set()
    for option in options:
        async with open_stack(f"sparse-random,{option}:1M") as door:
            identities.add(door.info.identity)
    assert len(identities) == len(options)


@pytest.mark.parametrize("option", ["", ",random-content"])
async def test_writes_verify(option: str) -> None:
    async with open_stack(f"sparse-random,seed=1,percent=40{option}:1M") as door:
        data = await read(door, 0, 1 << 20)
        await door.pwrite(memoryview(data), 0)
        for offset in (0, 4095, 500_000, (1 << 20) - 1):
            data[offset] ^= 0x80
            with pytest.raises(OSError, match="are not those expected") as refusal:
                await door.pwrite(memoryview(data), 0)
            assert refusal.value.errno == errno.EIO
            data[offset] ^= 0x80
        for extent in await door.extents(0, 1 << 20):
            for operation in door.zero, door.trim:
                if extent.flags == HOLE | ZERO:
                    await operation(extent.offset, extent.length)
                else:
                    with pytest.raises(OSError, match="is data, not a hole") as refusal:
                        await operation(max(extent.offset - 1, 0), 2)
                    assert refusal.value.errno == errno.EIO


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sparse-random:", "'' is not a size"),
        ("sparse-random,percent=101:1M", "101 percent: write 0 to 100"),
        ("sparse-random,percent=nan:1M", "'nan' is not a number"),
        ("sparse-random,blocksize=512:1M", "not a power of two from 1024 on"),
        ("sparse-random,blocksize=3k:1M", "not a power of two from 1024 on"),
        ("sparse-random,runlength=0:1M", "a runlength of 0"),
        ("sparse-random,seed=x:1M", "'x' is not a whole number"),
        ("random,seeds=1:1M", "did you mean 'seed'"),
        ("ones,byte=256:1M", "256 is no byte"),
    ],
)
async def test_wrong_options(spec: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        async with open_stack(spec):
            pass


@pytest.mark.parametrize("length", [0, 1, 4096, (1 << 20) - 1, 1 << 20, (3 << 20) + 5])
def test_zeroes_in_buffers(length: int) -> None:
    data = bytearray(b"x" * length)
    fill_zero(memoryview(data))
    assert data == bytes(length)
    assert is_zero(memoryview(data))
    for at in {0, length // 2, length - 1} if length else ():
        data[at] = 1
        assert not is_zero(memoryview(data))
        data[at] = 0
