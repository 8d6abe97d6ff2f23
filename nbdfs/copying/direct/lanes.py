"""A copy by lanes between ends of any kind that lanes know."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from nbdfs.copying.direct.connection import LostError
from nbdfs.copying.direct.lane import Intake, Lane, Outlet
from nbdfs.copying.direct.work import Work
from nbdfs.copying.options import LARGEST_ALIGN, SPARSE, CopyOptions, check_whole
from nbdfs.copying.plan import Mapped, Planner
from nbdfs.progress import Display
from nbdfs.source import SourceInfo
from nbdfs.undo import unless_done

log = logging.getLogger(__name__)


class End(Protocol):
    """One end of a copy: how many lanes it takes, and how many bytes it is well asked for at once (`request`)."""

    name: str
    lanes: int
    request: int
    work: Work  # set once it is planned

    @property
    def info(self) -> SourceInfo: ...
    def interrupt(self) -> None:
        """Wake every lane that waits for it."""

    def close(self) -> None: ...


class SourceEnd(End, Mapped, Protocol):
    """An open source."""

    def intake(self, longest: int, whole: bool) -> Intake:
        """What one lane reads from, pieces of at most `longest` bytes; `whole` asks for each in one chunk.

        Raises OSError if there is none for a further lane.
        """


class DestinationEnd(End, Protocol):
    """A destination.

    `created` says that it was made by this copy, `blank` that zeroes need not be written there, `flushes` that what is
    there can be made durable, `map` tells what is zero there already.
    """

    created: bool
    blank: bool
    flushes: bool

    @property
    def map(self) -> Mapped | None: ...

    def accept(self, size: int) -> None:
        """Be ready for a copy of so many bytes.  Raises UserError if it cannot be."""

    def outlet(self, blank: bool) -> Outlet:
        """What one lane writes to.  Raises OSError if there is none for a further lane."""


class LaneCopy:
    """The copy.  Making it opens both ends; raises UserError if one of them refuses or cannot take it.

    `work` is None if their blocks do not fit together, so that some would have to be read before they are written.
    """

    way = "requests"

    def __init__(
        self, source: Callable[[], SourceEnd], destination: Callable[[], DestinationEnd], options: CopyOptions
    ) -> None:
        self._options = options
        self._ends: list[End] = []
        self._lanes: list[Lane] = []
        with unless_done(self.close):
            self._ends.append(source_end := source())
            check_whole(source_end.name, source_end.info)
            self._ends.append(destination_end := destination())
            self._source, self._destination = source_end, destination_end
            self._destination.accept(self._source.info.size)
        self.name = self._destination.name
        self.created, self.flushes = self._destination.created, self._destination.flushes
        self.work = self._work()

    def run(self, display: Display | None) -> None:
        """Copy as much as goes this way; `work` says afterwards how far that was."""
        assert self.work
        # More than there are processors: while one waits to be woken, others have something to do.
        count = min(end.lanes for end in self._ends)
        self._depth = max(1, min(self._options.requests, self._options.queue_size // self._longest))
        first = self._lane()
        self.work.carry_out([first.run, *[self._further_lane] * (count - 1)], self._flush, self._halt, display)

    def close(self) -> None:
        for end in self._ends:
            end.close()

    def _work(self) -> Work | None:
        """Plan the copy."""
        source, destination, options = self._source, self._destination, self._options
        blocks = source.info.block, destination.info.block
        usual = max(end.request for end in self._ends)
        self._longest = min(options.longest(usual), *(block.maximum for block in blocks))
        align = blocks[1].preferred
        if align > min(LARGEST_ALIGN, self._longest) or self._longest % align:
            align = 1
        align = max(align, *(block.minimum for block in blocks))
        if source.info.size % blocks[1].minimum or self._longest % align:
            return None
        self._whole = blocks[1].minimum > 1
        self._sparse = max(SPARSE, align)
        self._blank = options.blank or destination.blank
        planner = Planner(
            source,
            destination.map if options.compare_zeroes else None,
            step=self._longest,
            align=align,
            blank=self._blank,
        )
        source.work = destination.work = work = Work(planner, source.info.size)
        return work

    def _flush(self) -> bool:
        """Flush the destination; False if no lane is left that could.  Raises OSError."""
        for lane in filter(lambda lane: lane.ended, self._lanes):
            try:
                lane.flush()
            except LostError as error:
                log.info("%s", error)
            else:
                return True
        return False

    def _halt(self) -> None:
        """Wake every lane that waits."""
        for end in self._ends:
            end.interrupt()

    # Lanes

    def _lane(self) -> Lane:
        """A lane with connections of its own.  Raises OSError if there is none to be had."""
        assert self.work
        source = self._source.intake(self._longest, self._whole)
        destination = self._destination.outlet(self._blank)
        lane = Lane(self.work, source, destination, depth=self._depth, sparse=self._sparse)
        self._lanes.append(lane)
        return lane

    def _further_lane(self) -> None:
        """One lane more, if those there are do not do; a server or the system may have no room for it."""
        assert self.work
        if not self.work.wants_more_lanes():
            return
        try:
            lane = self._lane()
        except OSError as error:
            log.info("no further connection: %s", error.strerror or error)
        else:
            lane.run()
