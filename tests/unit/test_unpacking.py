"""Compressed images: made by the real tools, read at random, damaged in every way."""

from __future__ import annotations

import random
import struct
import subprocess
import zlib
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nbdfs.backends import gzip, xz, zstd
from nbdfs.errors import SourceError, UserError
from nbdfs.source import Caps, read
from nbdfs.stack import open_stack
from nbdfs.unpacking import Format, open_unpacked
from tests.devices import Ram


def image(size: int, seed: int = 1) -> bytes:
    """Something like a disk: text, zeroes, noise."""
    chance = random.Random(seed)
    parts = []
    length = 0
    while length < size:
        kind = chance.randrange(3)
        count = chance.randrange(1, 100_000)
        parts.append((b"all work and no play ", bytes(1), chance.randbytes(1000))[kind] * (count // 20 + 1))
        length += len(parts[-1])
    return b"".join(parts)[:size]


IMAGE = image(5_000_001)
TOOLS = {
    "gzip": ["gzip"],
    "gzip-1": ["gzip", "-1"],
    "xz": ["xz", "-1"],
    "xz-blocks": ["xz", "-1", "--block-size=300000"],
    "xz-threads": ["xz", "-1", "-T2", "--block-size=1MiB"],
    "xz-crc32": ["xz", "-1", "--check=crc32", "--block-size=500000"],
    "zstd": ["zstd"],
    "zstd-checked": ["zstd", "--check", "-19"],
    "zstd-threads": ["zstd", "-T2"],
}


def packed(name: str, content: bytes) -> bytes:
    return subprocess.run([*TOOLS[name], "-c"], input=content, capture_output=True, check=True).stdout


async def check(spec: str, content: bytes) -> None:
    async with open_stack(spec) as source:
        assert source.info.size == len(content)
        assert Caps.WRITE not in source.info.caps
        chance = random.Random(3)
        for _ in range(60):
            offset = chance.randrange(len(content))
            length = min(chance.choice([1, 4096, 200_000]), len(content) - offset)
            assert await read(source, offset, length) == content[offset : offset + length]
            view = source.view(offset, length)
            assert view is None or view == content[offset : offset + length]
        assert await read(source, 0, len(content)) == content


@pytest.mark.parametrize("name", TOOLS)
async def test_files_of_the_real_tools(name: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(packed(name, IMAGE))
    await check(f"{name.partition('-')[0]}::{path}", IMAGE)


@pytest.mark.parametrize("name", ["gzip", "xz", "zstd"])
async def test_several_files_in_one(name: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    parts = [IMAGE[:1_000_000], IMAGE[1_000_000:1_000_001], b"", IMAGE[1_000_001:]]
    path.write_bytes(b"".join(packed(name, part) for part in parts))
    await check(f"{name}::{path}", IMAGE)


@pytest.mark.parametrize(("name", "padding"), [("gzip", 1000), ("xz", 64)])
async def test_padding_with_zeroes(name: str, padding: int, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(packed(name, IMAGE[:100_000]) + bytes(padding))
    await check(f"{name}::{path}", IMAGE[:100_000])


def seekable(content: bytes) -> bytes:
    """As the seekable format of zstd has it: frames, then a skippable frame with their sizes."""
    frames = [(zstandard.compress(content[at : at + 100_000]), len(content[at : at + 100_000]))
              for at in range(0, len(content), 100_000)]  # fmt: skip
    entries = b"".join(struct.pack("<II", len(data), size) for data, size in frames)
    table = entries + struct.pack("<IBI", len(frames), 0, 0x8F92EAB1)
    return b"".join(data for data, _ in frames) + struct.pack("<II", 0x184D2A5E, len(table)) + table


async def test_several_seek_tables(tmp_path: Path) -> None:
    """The last is that of the last file alone."""
    path = tmp_path / "image"
    path.write_bytes(seekable(IMAGE[:100_000]) + seekable(IMAGE[100_000:200_000]))
    await check(f"zstd::{path}", IMAGE[:200_000])
    path.write_bytes(zstandard.compress(IMAGE[:300_000]) + seekable(IMAGE[300_000:]))
    await check(f"zstd::{path}", IMAGE)


async def test_zstd_with_a_seek_table(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(seekable(IMAGE))
    await check(f"zstd::{path}", IMAGE)
    base = Ram(path.read_bytes())
    async with open_unpacked(base, zstd.Zstd()) as source:
        before = sum(length for _, length in base.names("read"))
        assert before < 2 * 256 << 10  # the table, not the file
        await read(source, 2_500_000, 10)


async def test_zstd_with_skippable_frames_and_without_sizes(tmp_path: Path) -> None:
    skippable = struct.pack("<II", 0x184D2A53, 5) + b"hello"
    unsized = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    body = unsized.compress(IMAGE[:700_000]) + unsized.flush()
    path = tmp_path / "image"
    path.write_bytes(skippable + body + skippable + zstandard.compress(IMAGE[700_000:]) + skippable)
    await check(f"zstd::{path}", IMAGE)


@pytest.mark.parametrize("name", ["xz", "zstd"])
async def test_an_image_packed_in_one_piece_is_unpacked_once(name: str, tmp_path: Path) -> None:
    content = image(17_000_000)
    path = tmp_path / "image"
    path.write_bytes(packed(name, content))
    await check(f"{name}::{path}", content)


async def test_places_of_a_gzip_stay_few_and_each_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gzip, "_MOST", 4)
    monkeypatch.setattr(gzip, "_SPAN", 100_000)
    monkeypatch.setattr(gzip, "_STEP", 10_000)
    base = Ram(packed("gzip", IMAGE))
    async with open_unpacked(base, gzip.Gzip()) as source:
        assert len(source._frames) <= 5  # type: ignore[attr-defined]
        assert await read(source, 0, len(IMAGE)) == IMAGE


@pytest.mark.parametrize("name", ["gzip", "xz", "xz-blocks", "zstd", "zstd-checked"])
@pytest.mark.parametrize("cut", [0.0, 0.001, 0.5, 0.999, 1.0])
async def test_a_truncated_file_is_refused(name: str, cut: float, tmp_path: Path) -> None:
    data = packed(name, IMAGE[:1_000_000])
    path = tmp_path / "image"
    path.write_bytes(data[: min(int(len(data) * cut), len(data) - 1)] or b"\0")
    with pytest.raises(UserError, match="damaged: ") as caught:
        async with open_stack(f"{name.partition('-')[0]}::{path}"):
            pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["gzip", "xz", "zstd"])
async def test_what_is_no_such_file(name: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    for content in (b"x" * 100, IMAGE[:100_000], bytes(1000)):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"is no {name} file"):
            async with open_stack(f"{name}::{path}"):
                pass


SMALL = image(40_000)
FORMATS = {"gzip": gzip.Gzip, "xz": xz.Xz, "xz-blocks": xz.Xz, "zstd-checked": zstd.Zstd}
PACKED = {
    "gzip": packed("gzip", SMALL),
    "xz": packed("xz", SMALL),
    "xz-blocks": subprocess.run(
        ["xz", "--block-size=5000", "-c"], input=SMALL, capture_output=True, check=True
    ).stdout,
    "zstd-checked": packed("zstd-checked", SMALL),
}  # fmt: skip


@pytest.mark.parametrize("format", [gzip.Gzip, xz.Xz, zstd.Zstd])
async def test_a_disk_that_holds_something_else_is_not_looked_through(format: type[Format]) -> None:
    base = Ram(bytes(64 << 20))
    with pytest.raises(UserError, match=r"is no \w+ file"):
        async with open_unpacked(base, format()):
            pass
    assert sum(length for _, length in base.names("read")) <= 1 << 20


async def test_long_padding_of_an_xz_file_is_passed_over_in_large_steps() -> None:
    base = Ram(packed("xz", SMALL) + bytes(4 << 20))
    async with open_unpacked(base, xz.Xz()) as source:
        assert await read(source, 0, len(SMALL)) == SMALL
    assert len(base.names("read")) < 40


@pytest.mark.parametrize("name", ["xz-blocks", "zstd"])
async def test_more_pieces_than_fit_into_memory_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbdfs.unpacking._MOST_FRAMES", 2)
    data = PACKED.get(name) or packed(name, b"a") * 3
    with pytest.raises(UserError, match="more than 2 pieces"):
        async with open_unpacked(Ram(data), FORMATS.get(name, zstd.Zstd)()):
            pass


@given(st.sampled_from(sorted(PACKED)), st.lists(st.tuples(st.floats(0, 0.9999), st.integers(0, 255)), max_size=4))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
async def test_damage_gives_an_error_or_the_right_bytes(name: str, damage: list[tuple[float, int]]) -> None:
    data = bytearray(PACKED[name])
    for place, value in damage:
        data[int(place * len(data))] = value
    try:
        async with open_unpacked(Ram(bytes(data)), FORMATS[name]()) as source:
            if source.info.size != len(SMALL):
                return  # only where the checksum that says so was hit too; the size is told
            content = await read(source, 0, len(SMALL))
    except (UserError, OSError):
        return
    assert content == SMALL


@given(st.sampled_from(sorted(FORMATS)), st.binary(max_size=300), st.integers(0, 3))
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
async def test_any_bytes_are_an_error_or_an_image(name: str, tail: bytes, heads: int) -> None:
    data = PACKED[name][: (0, 6, 12, 20)[heads]] + tail
    try:
        async with open_unpacked(Ram(data), FORMATS[name]()) as source:
            if 0 < source.info.size < 1 << 20:
                await read(source, 0, source.info.size)
    except (UserError, OSError):
        pass


def number(value: int) -> bytes:
    """A number of an xz index."""
    groups = bytearray()
    while value >= 0x80:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


async def test_an_xz_index_that_takes_a_whole_stream_for_a_block() -> None:
    header, blocks = PACKED["xz"][:12], PACKED["xz"][12:]
    index = b"\0" + number(1) + number(len(blocks)) + number(2 * len(SMALL))
    index += bytes(-len(index) % 4)
    index += zlib.crc32(index).to_bytes(4, "little")
    footer = struct.pack("<I", len(index) // 4 - 1) + header[6:8]
    end = zlib.crc32(footer).to_bytes(4, "little") + footer + b"YZ"
    async with open_unpacked(Ram(header + blocks + index + end), xz.Xz()) as source:
        with pytest.raises(SourceError, match="shorter than its index says"):
            await read(source, 0, 1)


async def test_frames_that_are_together_larger_than_any_file() -> None:
    head = struct.pack("<IBBQ", 0xFD2FB528, 0xC0, 0x58, 1 << 62)  # magic, 8 bytes of size, window, size
    last_block = (1).to_bytes(3, "little")
    with pytest.raises(UserError, match="larger than a file can be"):
        async with open_unpacked(Ram((head + last_block) * 3), zstd.Zstd()):
            pass
