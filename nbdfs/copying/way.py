"""The way that bytes move between the two sides of a copy: what stands at each end of the engine, and how it works."""

from __future__ import annotations

import os
from collections.abc import Sequence

import trio

from nbdfs.copying import files
from nbdfs.copying.digests import Hasher
from nbdfs.copying.ends import (
    DeviceInput,
    DeviceOutput,
    GrowingFile,
    Input,
    NullOutput,
    Output,
    StreamInput,
    StreamOutput,
    both_immediate,
)
from nbdfs.copying.engine import Engine
from nbdfs.copying.options import LARGEST_ALIGN, SPARSE, CopyOptions
from nbdfs.copying.plain import STEP, Files
from nbdfs.copying.plan import Planner
from nbdfs.copying.sides import Sides
from nbdfs.progress import Progress
from nbdfs.ranges import RangeSet

_FILE_WORKERS = 2  # copies of plain files in flight: one moves memory while the other waits for a disk


class Way:
    """How the bytes move: `name` is `files`, `memory` or `requests`.  The hashers see all of them."""

    def __init__(self, sides: Sides, options: CopyOptions, hashers: Sequence[Hasher]) -> None:
        self._sides = sides
        self._options = options
        self._hashers = hashers
        self._plain = self._plain_files()
        self._resident = bool(
            sides.source and sides.destination and not hashers and both_immediate(sides.source, sides.destination)
        )
        self.name = "files" if self._plain else "memory" if self._resident else "requests"

    def engine(self, progress: Progress, done: RangeSet) -> Engine:
        """What copies all but what is `done`."""
        options = self._options
        blank = options.blank or (self._sides.created and not options.allocated)
        workers = max(1, min(options.requests * options.connections, options.queue_size // options.longest()))
        if self._plain:
            workers = _FILE_WORKERS
        if self._resident or options.synchronous:
            workers = 1
        output = self._output(blank)
        return Engine(
            self._input(blank, done),
            output,
            progress,
            workers=workers,
            request_size=options.longest(),
            files=self._plain,
            hashers=self._hashers,
            retry=0 if isinstance(output, StreamOutput) else options.retry,  # a part of it may be out already
            rate=options.rate,
            limiter=trio.CapacityLimiter(options.threads or os.cpu_count() or 1),
            done=done,
        )

    def _plain_files(self) -> Files | None:
        """The two files, if both ends are plain files and nobody need see the bytes."""
        sides, options = self._sides, self._options
        seen = self._hashers or options.sparse or options.rate or not options.extents
        if not (sides.source and sides.destination) or seen:
            return None
        source, destination = sides.source.backing(), sides.destination.backing()
        return Files(source, destination, share=not options.allocated) if source and destination else None

    def _input(self, blank: bool, done: RangeSet) -> Input:
        sides, options = self._sides, self._options
        if sides.input_fd is not None:
            return StreamInput(sides.input_fd)
        assert sides.source
        planner = Planner(
            sides.source,
            sides.destination if options.compare_zeroes else None,
            step=STEP if self._plain else options.longest(),
            align=self._align(),
            extents=options.extents,
            short_holes=options.sparse != 0 and not self._plain,
            done=done,
            blank=blank or files.is_null(sides.destination_spec),
            allocated=options.allocated,
        )
        return DeviceInput(sides.source, planner, self._resident)

    def _output(self, blank: bool) -> Output:
        sides, options = self._sides, self._options
        sparse = options.sparse
        if sparse is None:  # zeroes that must be allocated are as well written as zeroed
            sparse = 0 if options.allocated else max(SPARSE, self._align())
        if sides.destination:
            return DeviceOutput(sides.destination, sparse=sparse, allocated=options.allocated, blank=blank)
        if sides.output_fd is None:
            return NullOutput()
        if sides.created:
            return GrowingFile(sides.output_fd, sparse=sparse)
        return StreamOutput(sides.output_fd)

    def _align(self) -> int:
        """What the edges of data are rounded to: the destination's preferred block."""
        block = self._sides.destination.info.block.preferred if self._sides.destination else 1
        usable = block & (block - 1) == 0 and block <= min(LARGEST_ALIGN, self._options.longest())
        return block if usable and self._options.longest() % block == 0 else 1
