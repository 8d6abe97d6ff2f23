"""A copy from one NBD export to another, by lanes."""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass, replace

from nbdfs.copying.direct.connection import Connection, LostError, connect
from nbdfs.copying.direct.lane import Lane
from nbdfs.copying.direct.work import Work
from nbdfs.copying.options import LARGEST_ALIGN, LARGEST_REQUEST, SPARSE, CopyOptions
from nbdfs.copying.plan import Planner
from nbdfs.errors import UserError
from nbdfs.nbd.proto import constants as nbd
from nbdfs.nbd.uri import Tcp, Uri
from nbdfs.plans import Plan
from nbdfs.progress import Display
from nbdfs.source import ALLOCATION, BlockSize, Caps, Extent, SourceInfo
from nbdfs.undo import unless_done

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Remote:
    """An export: where it is, how many connections it may get, and how many seconds its server may take to answer."""

    uri: Uri
    connections: int
    timeout: float


def remote(planned: Plan, options: CopyOptions) -> Remote | None:
    """The export that a plan names; None if more than a plain connection is asked for."""
    from nbdfs.backends.nbd import NbdOptions, uri_of

    given: NbdOptions = planned.options
    usual = NbdOptions()
    if given != replace(usual, connections=given.connections, timeout=given.timeout) or given.timeout <= 0:
        return None
    uri = uri_of(planned.argument, given)
    connections = given.connections if given.connections != usual.connections else options.connections
    return None if uri.tls else Remote(uri, connections, given.timeout)


class _Side:
    """One end as the plan sees it; its map is asked for on the connection of the lane that wants to know."""

    work: Work

    def __init__(self, connection: Connection, of_source: bool) -> None:
        self._of_source = of_source
        export = connection.export
        minimum, preferred, maximum = export.block or (1, 4096, LARGEST_REQUEST)
        caps = Caps.EXTENTS if ALLOCATION in export.contexts else Caps.NONE
        self.info = SourceInfo(
            export.size - export.size % minimum, caps, BlockSize(minimum, preferred, min(maximum, LARGEST_REQUEST))
        )

    async def extents(self, offset: int, length: int) -> list[Extent]:
        return self.work.asking.extents(self._of_source, offset, length)  # type: ignore[no-any-return]


class ExportCopy:
    """The copy.  Making it connects to both servers; raises UserError if one of them refuses or cannot take it.

    `work` is None if their blocks do not fit together, so that some would have to be read before they are written.
    """

    way = "requests"

    def __init__(self, source: Remote, destination: Remote, options: CopyOptions) -> None:
        self._remotes = source, destination
        self._options = options
        self._connections: list[Connection] = []
        self._halted = False
        self._lock = threading.Lock()  # of `_connections` and `_halted`
        self._lanes: list[Lane] = []
        with unless_done(self.close):
            try:
                self._first = self._connect_both()
            except OSError as error:
                raise UserError(str(error.strerror or error)) from error
            self.name = self._first[1].name
            ends = [_Side(connection, side == 0) for side, connection in enumerate(self._first)]
            self._check(ends[0].info.size, ends[1].info.size)
            self.work = self._work(*ends)

    def run(self, display: Display | None) -> None:
        """Copy as much as goes this way; `work` says afterwards how far that was."""
        assert self.work
        shared = all(connection.export.has(nbd.FLAG_CAN_MULTI_CONN) for connection in self._first)
        count = min(remote.connections for remote in self._remotes) if shared else 1
        if not any(isinstance(remote.uri.address, Tcp) for remote in self._remotes):
            count = min(count, os.cpu_count() or 1)  # nothing is far: more lanes than processors would take turns
        in_flight = self._options.queue_size // self._longest
        count = max(1, min(count, in_flight))
        self._depth = max(1, min(self._options.requests, in_flight // count))
        lanes = [self._first_lane, *[self._further_lane] * (count - 1)]
        self.work.carry_out(lanes, self._flush, self._halt, display)

    def _flush(self) -> bool:
        """Flush the destination; False if no connection is left for that.  Raises OSError."""
        for lane in filter(lambda lane: lane.ended, self._lanes):
            try:
                lane.flush()
            except LostError as error:
                log.info("%s", error)
            else:
                return True
        return False

    def close(self) -> None:
        for connection in self._connections:
            connection.close()

    def _connect_both(self) -> tuple[Connection, Connection]:
        source, destination = (connect(remote.uri, remote.timeout, self._opened) for remote in self._remotes)
        return source, destination

    def _opened(self, connection: Connection) -> None:
        with self._lock:
            self._connections.append(connection)
            if self._halted:
                connection.interrupt()

    def _check(self, size: int, room: int) -> None:
        if self._first[1].export.has(nbd.FLAG_READ_ONLY):
            raise UserError(f"{self.name} is read-only")
        if room < size:
            raise UserError(f"{self.name} is too small, {room} bytes for the {size} of the source; nothing was written")

    def _work(self, source: _Side, destination: _Side) -> Work | None:
        options = self._options
        blocks = source.info.block, destination.info.block
        self._longest = min(options.request_size, *(block.maximum for block in blocks))
        align = blocks[1].preferred
        if align > min(LARGEST_ALIGN, self._longest) or self._longest % align:
            align = 1
        align = max(align, *(block.minimum for block in blocks))
        if source.info.size % blocks[1].minimum or self._longest % align:
            return None
        self._whole = blocks[1].minimum > 1
        self._sparse = max(SPARSE, align)
        planner = Planner(
            source,
            destination if options.compare_zeroes else None,
            step=self._longest,
            align=align,
            blank=options.blank,
        )
        source.work = destination.work = work = Work(planner, source.info.size)
        return work

    # Lanes

    def _first_lane(self) -> None:
        self._run_lane(*self._first)

    def _further_lane(self) -> None:
        """A lane with connections of its own; a server that does not let it in goes on with those it has."""
        try:
            ends = self._connect_both()
        except OSError as error:
            log.info("no further connection: %s", error.strerror or error)
        else:
            self._run_lane(*ends)

    def _run_lane(self, source: Connection, destination: Connection) -> None:
        assert self.work
        lane = Lane(
            self.work, source, destination,
            depth=self._depth, longest=self._longest, sparse=self._sparse, blank=self._options.blank,
            whole=self._whole,
        )  # fmt: skip
        self._lanes.append(lane)
        lane.run()

    def _halt(self) -> None:
        """Wake every lane that waits."""
        with self._lock:
            self._halted = True
            for connection in self._connections:
                connection.interrupt()
