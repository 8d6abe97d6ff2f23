"""How fetching is shown: the line for people, the lines for programs."""

from __future__ import annotations

import fcntl
import io
import json
import os
from collections.abc import Iterator

import pytest

from nbdfs.checked import Checked
from nbdfs.export import Export
from nbdfs.fetching import FetchBar, FetchLines, sentence
from nbdfs.parts import part
from nbdfs.source import Fetching, Source, SourceInfo
from tests.tools import complaint

IDLE = Fetching("disk.iso", 400, 100, 3, 0, 0, ())
BUSY = Fetching("disk.iso", 400, 120, 3, 1 << 20, 2048, (7, 9))


class Fetcher(Source):
    def __init__(self) -> None:
        self.info = SourceInfo(4096)
        self.now = IDLE

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        raise NotImplementedError

    def fetching(self) -> Fetching:
        return self.now


def export_of(source: Source, name: str = "") -> Export:
    return Export(name, Checked(source, readonly=True, parts=[part("torrent", source)]))


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    os.close(reading)
    os.close(writing)


def test_the_sentence_has_pieces_peers_rates_and_what_is_waited_for() -> None:
    assert sentence([IDLE]) == "100 of 400 pieces, 3 peers, 0/s down, 0/s up"
    assert sentence([BUSY]).endswith("1.00M/s down, 2.00k/s up, waiting for piece 7 and 1 more")


async def test_a_bar_appears_where_something_is_fetched_and_is_drawn_for_changes_only() -> None:
    stream, fetcher = io.StringIO(), Fetcher()
    bar, exports = FetchBar(stream), [export_of(fetcher)]
    bar.show(exports)
    bar.show(exports)
    assert stream.getvalue().count("pieces") == 1
    assert stream.getvalue().startswith("\r 25% ")
    fetcher.now = BUSY
    bar.show(exports)
    bar.finish(exports, True)
    assert "waiting for piece 7" in stream.getvalue()
    assert stream.getvalue().endswith("\n")


async def test_where_nothing_is_fetched_nothing_is_drawn(pipe: tuple[int, int]) -> None:
    class Plain(Fetcher):
        def fetching(self) -> None:  # type: ignore[override]
            return None

    stream, exports = io.StringIO(), [export_of(Plain())]
    bar = FetchBar(stream)
    bar.show(exports)
    bar.finish(exports, True)
    assert not stream.getvalue()


async def test_lines_have_every_figure_and_files_of_one_torrent_count_once(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    lines = FetchLines(writing)
    lines.show([export_of(Fetcher(), "a"), export_of(Fetcher(), "b")])
    assert json.loads(os.read(reading, 4096)) == {
        "name": "disk.iso", "pieces": 400, "here": 100, "peers": 3, "download_rate": 0, "upload_rate": 0,
        "waiting": [],
    }  # fmt: skip


async def test_a_program_that_does_not_read_holds_up_nothing(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    room = fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writing, bytes(room))
    fetcher = Fetcher()
    lines, exports = FetchLines(writing), [export_of(fetcher)]
    lines.show(exports)
    assert os.read(reading, 2 * room) == bytes(room)
    lines.show(exports)
    assert json.loads(os.read(reading, 4096))["here"] == 100


@pytest.mark.parametrize("words", [["mount", "memory:1M", "x"], ["serve", "memory:1M"], ["run", "memory:1M", "true"]])
@pytest.mark.parametrize("wanted", ["99", "-1", "beam"])
def test_a_descriptor_that_is_not_open_is_refused(words: list[str], wanted: str) -> None:
    command, *rest = words
    assert "an open descriptor is wanted" in complaint(command, f"--progress={wanted}", *rest, status=2)
