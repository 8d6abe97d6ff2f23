"""How sources get on that fetch from peers, shown while exports are in use: a bar for people, lines for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import TextIO

from nbdfs import lossy
from nbdfs.export import Export
from nbdfs.progress import draw, human_size
from nbdfs.records import as_dict
from nbdfs.source import Fetching

_SHOWN = 32  # pieces that are named as waited for: a record is written whole or not at all, so it must be short


def fetches(exports: Iterable[Export]) -> list[Fetching]:
    """What the sources of the exports fetch; files that share it count once."""
    sources = (source for export in exports for part in export.source.parts for source in part.sources)
    return list(dict.fromkeys(found for source in sources if (found := source.fetching())))


class FetchBar:
    """One line on a terminal, drawn anew when something changed; nothing where nothing is fetched."""

    def __init__(self, stream: TextIO = sys.stderr) -> None:
        self._stream = stream
        self._last: list[Fetching] = []

    def show(self, exports: Iterable[Export]) -> None:
        found = fetches(exports)
        if found != self._last:
            pieces, here = (sum(getattr(fetch, what) for fetch in found) for what in ("pieces", "here"))
            if draw(self._stream, sentence(found), here / pieces if pieces else None):
                self._last = found

    def finish(self, exports: Iterable[Export], complete: bool) -> None:
        if self._last:
            lossy.write_text(self._stream, "\n")


def sentence(found: Iterable[Fetching]) -> str:
    """Pieces, peers, rates and what is waited for, of all together."""
    found = list(found)
    pieces, here, peers, down, up = (
        sum(getattr(fetch, what) for fetch in found)
        for what in ("pieces", "here", "peers", "download_rate", "upload_rate")
    )
    text = f"{here} of {pieces} pieces, {peers} peers, {human_size(down)}/s down, {human_size(up)}/s up"
    waiting = [piece for fetch in found for piece in fetch.waiting]
    more = f" and {len(waiting) - 1} more" if len(waiting) > 1 else ""
    return f"{text}, waiting for piece {waiting[0]}{more}" if waiting else text


class FetchLines:
    """A JSON object and a newline on a descriptor for each change of each fetch.

    A reader that does not keep up misses records and holds up nobody.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._told: dict[str, Fetching] = {}

    def show(self, exports: Iterable[Export]) -> None:
        for fetch in fetches(exports):
            if self._told.get(fetch.name) != fetch and lossy.write(self._descriptor, _record(fetch)):
                self._told[fetch.name] = fetch

    def finish(self, exports: Iterable[Export], complete: bool) -> None:
        self.show(exports)


def _record(fetch: Fetching) -> bytes:
    facts = as_dict(fetch)
    facts["waiting"] = facts["waiting"][:_SHOWN]
    return json.dumps(facts).encode() + b"\n"
