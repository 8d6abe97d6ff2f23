"""Readers of one torrent beside each other: what they ask the seed for, and that none waits for another in vain."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import libtorrent
import pytest
import trio

from nbdfs.registry import OpenContext, find
from nbdfs.source import HOLE, RESIDENT, Source, read
from nbdfs.stack import open_stack
from tests.torrents import ALONE, PIECE, VERSIONS, Seeder, Tracker, make_torrent, noise, seeding, write_files

SECONDS = 60.0
READERS = 8
CHUNK = 128 << 10
MEDIUM, LARGE = 64 << 10, 256 << 10  # pieces
MOST = 1.35  # images,
MOST_BY_LINK = 1.5  # and by magnet links, whose readers meet twice: for the metadata, and for the pieces
FILES = {"many/a": noise(5 * PIECE + 77, 2), "many/b": noise(100, 3), "many/c": noise(9 * PIECE, 4)}


class Crowd:
    """Readers that start together, each as soon as it is up, or one after the other."""

    def __init__(self, torrent: Path | str, content: bytes, seeder: Seeder, start: str) -> None:
        self._torrent = torrent  # or a magnet link
        self._content = content
        self._seeder = seeder
        self._start = start
        self._ready = self._finished = 0

    async def read(self) -> None:
        """Read everything, with every reader."""
        with trio.fail_after(SECONDS):
            async with trio.open_nursery() as nursery:
                for number in range(READERS):
                    nursery.start_soon(self._reader, number)

    async def _reader(self, number: int) -> None:
        if self._start == "one after the other":
            await trio.sleep(number / 2)
        async with open_stack(f"torrent,{ALONE}:{self._torrent}") as source:
            self._ready += 1
            if self._start == "together":
                await self._all_connected()
            for at in range(0, len(self._content), CHUNK):
                expected = self._content[at : at + CHUNK]
                assert await read(source, at, len(expected)) == expected
            self._finished += 1
            while self._finished < READERS:
                await trio.sleep(0.1)

    async def _all_connected(self) -> None:
        while self._ready < READERS or self._seeder.handle.status().num_peers < READERS:
            await trio.sleep(0.05)
        await trio.sleep(1)


STARTS = ("together", "as they come", "one after the other")
SHORT = {
    (1, LARGE, "one after the other"),
    (4, LARGE, "one after the other"),
    (16, LARGE, "together"),
}
CASES = [
    pytest.param(pieces, length, start, marks=[] if (pieces, length, start) in SHORT else [pytest.mark.long])
    for pieces, length in [
        (1, LARGE), (2, LARGE), (4, LARGE), (8, LARGE), (16, LARGE), (17, LARGE), (64, LARGE),
        (16, PIECE), (64, PIECE), (1024, PIECE), (1, 4 << 20), (16, 1 << 20),
    ]
    for start in STARTS
]  # fmt: skip


@pytest.mark.parametrize(("pieces", "length", "start"), CASES)
async def test_eight_readers_ask_a_slow_seeder_for_hardly_more_than_one_image(
    tmp_path: Path, tracker: Tracker, pieces: int, length: int, start: str
) -> None:
    content = noise(pieces * length)
    write_files(tmp_path, {"disk.img": content})
    torrent = make_torrent(tmp_path, "disk.img", tracker=tracker.url, piece=length)
    with seeding(torrent, tmp_path, upload_limit=1 << 20) as seeder:
        await Crowd(torrent, content, seeder, start).read()
        assert seeder.sent <= MOST * len(content)


MAGNETS = [
    pytest.param(version, start, marks=[] if (version, start) == ("v2", "as they come") else [pytest.mark.long])
    for version in VERSIONS
    for start in STARTS
]


@pytest.mark.parametrize(("version", "start"), MAGNETS)
async def test_eight_readers_of_a_magnet_link_ask_a_slow_seeder_for_hardly_more_than_one_image(
    tmp_path: Path, tracker: Tracker, version: str, start: str
) -> None:
    content = noise(16 * MEDIUM)
    write_files(tmp_path, {"disk.img": content})
    torrent = make_torrent(tmp_path, "disk.img", version=version, tracker=tracker.url, piece=MEDIUM)
    with seeding(torrent, tmp_path, upload_limit=1 << 20) as seeder:
        await Crowd(seeder.link(tracker.url), content, seeder, start).read()
        assert seeder.sent <= MOST_BY_LINK * len(content)


@pytest.mark.long
async def test_readers_of_a_torrent_without_its_hashes_get_them_from_peers(tmp_path: Path, tracker: Tracker) -> None:
    content = noise(16 * MEDIUM)
    write_files(tmp_path, {"disk.img": content})
    torrent = make_torrent(tmp_path, "disk.img", version="v2", tracker=tracker.url, piece=MEDIUM)
    bare: Any = libtorrent.bdecode(torrent.read_bytes())
    del bare[b"piece layers"]
    (tmp_path / "bare.torrent").write_bytes(libtorrent.bencode(bare))
    with seeding(torrent, tmp_path, upload_limit=1 << 20) as seeder:
        await Crowd(tmp_path / "bare.torrent", content, seeder, "as they come").read()
        assert seeder.sent <= MOST * len(content)


@asynccontextmanager
async def tree(torrent: Path, **more: str) -> AsyncIterator[dict[str, Source]]:
    """All files of the torrent, by name."""
    driver = find("torrent")
    words = {"listen": "127.0.0.1", "dht": "no", "lsd": "no", **more}
    options = driver.parse_options(list(words.items()))
    async with driver.open_tree(str(torrent), options, OpenContext(True, open_stack)) as files:  # type: ignore
        yield files


async def check(files: dict[str, Source]) -> None:
    for path, source in files.items():
        assert await read(source, 0, source.info.size) == FILES[f"many/{path}"], path


async def resident(source: Source) -> int:
    extents = await source.extents(0, source.info.size, context=RESIDENT)
    return sum(extent.length for extent in extents if not extent.flags & HOLE)


@pytest.mark.parametrize("version", VERSIONS)
async def test_what_came_from_a_reader_is_kept_and_passed_on_to_peers_that_are_none(
    tmp_path: Path, tracker: Tracker, version: str
) -> None:
    write_files(tmp_path, FILES)
    torrent = make_torrent(tmp_path, "many", version=version, tracker=tracker.url)
    kept = str(tmp_path / "cache")
    with trio.fail_after(SECONDS):
        with seeding(torrent, tmp_path):
            tracker.wait_for_peers(1)
            async with tree(torrent) as first:
                await check(first)
                async with tree(torrent, cache=kept) as second:
                    await check(second)
        async with tree(torrent, cache=kept) as second:
            assert [await resident(source) for source in second.values()] == [
                source.info.size for source in second.values()
            ]
            (tmp_path / "copy").mkdir()
            stranger = Seeder(torrent, tmp_path / "copy", complete=False, close_redundant_connections=False)
            while not stranger.handle.status().is_seeding:
                await trio.sleep(0.05)
            stranger.close()


async def test_a_reader_that_sends_hardly_anything_is_waited_for_once(tmp_path: Path, tracker: Tracker) -> None:
    content = noise(64 * PIECE)
    write_files(tmp_path, {"disk.img": content})
    torrent = make_torrent(tmp_path, "disk.img", tracker=tracker.url)
    with seeding(torrent, tmp_path):
        async with open_stack(f"torrent,{ALONE},upload-limit=1k:{torrent}") as slow:
            await read(slow, 0, len(content))
            async with open_stack(f"torrent,{ALONE}:{torrent}") as source:
                with trio.fail_after(SECONDS / 2):
                    for at in range(0, len(content), PIECE):
                        assert await read(source, at, PIECE) == content[at : at + PIECE]


async def test_readers_with_small_caches_that_pass_pieces_on_read_what_was_shared(
    tmp_path: Path, tracker: Tracker
) -> None:
    content = noise(150 * PIECE)
    write_files(tmp_path, {"disk.img": content})
    torrent = make_torrent(tmp_path, "disk.img", tracker=tracker.url)
    spec = f"torrent,{ALONE},cache-size={32 * PIECE}:{torrent}"

    async def reader() -> None:
        async with open_stack(spec) as source:
            for _ in range(2):
                for at in range(0, len(content), 5 * PIECE):
                    assert await read(source, at, 5 * PIECE) == content[at : at + 5 * PIECE]

    with seeding(torrent, tmp_path), trio.fail_after(2 * SECONDS):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(reader)
