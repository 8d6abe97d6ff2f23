"""What an open stack is made of: one part for each segment of its spec, for those who look at it while it runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from nbdfs.metering import Meter, Metered
from nbdfs.records import Record
from nbdfs.source import Health, Layer, Source

# The names that `Source.statistics` uses, and what they mean.
STATISTICS = {
    "hits_total": "What was asked for and was held: blocks of a cache, pieces of a torrent, parts of reads elsewhere.",
    "misses_total": "What was asked for and had to be fetched first, counted as hits are.",
    "evictions_total": "What was held and had to make room, counted as hits are.",
    "resident_bytes": "Bytes that can be read without fetching them from elsewhere.",
    "dirty_bytes": "Bytes that were written and are not yet where they belong.",
    "overlay_bytes": "Bytes that differ from what lies below.",
    "connections": "Connections to the server that are up.",
    "reconnects_total": "Connections that were made again after one was lost.",
    "retries_total": "Requests that were sent again.",
    "peers": "Peers of the swarm that are connected.",
}


class Part(Record):
    """One segment of a spec, open: `top` is what the segment above it sees, `sources` all that its driver made."""

    name: str
    top: Source
    sources: tuple[Source, ...]
    meter: Meter | None = None

    def statistics(self) -> Mapping[str, int]:
        """The figures of all its sources."""
        return added(source.statistics() for source in self.sources)

    def health(self) -> Health:
        """That of the first of its sources which is not well."""
        return first_trouble(source.health() for source in self.sources)


def part(name: str, source: Source, below: Source | None = None, *, metered: bool = False) -> Part:
    """The part that reaches from `source` down to what lies above `below`, with a meter on it if wanted."""
    sources = tuple(_chain(source, below))
    if not metered:
        return Part(name, source, sources)
    meter = Metered(source)
    return Part(name, meter, sources, meter.meter)


def _chain(top: Source, below: Source | None) -> Iterator[Source]:
    at: Source | None = top
    while at is not None and at is not below:
        yield at
        at = at.below if isinstance(at, Layer) else None


def added(figures: Iterable[Mapping[str, int]]) -> Mapping[str, int]:
    """Statistics of several, name by name."""
    total: Counter[str] = Counter()
    for some in figures:
        total.update(some)
    return total


def first_trouble(healths: Iterable[Health]) -> Health:
    """The first that is not OK; OK if all are."""
    return next((health for health in healths if health is not Health.OK), Health.OK)
