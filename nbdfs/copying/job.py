"""A whole copy: open both sides, choose the way, move the bytes, flush, verify, sum up.

Invariants: a state file claims only what was flushed; a copy is `complete` only once all has arrived and is flushed
where that can be done, and a signal that comes later does not undo that.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

import trio

from nbdfs.copying.digests import BlockHash, Digest, Hasher
from nbdfs.copying.ends import DeviceInput, DeviceOutput, GrowingFile
from nbdfs.copying.engine import CopyError, Engine
from nbdfs.copying.options import Begun, CopyOptions, Summary, incomplete
from nbdfs.copying.plan import Planner
from nbdfs.copying.resume import StateFile
from nbdfs.copying.sides import Sides
from nbdfs.copying.verify import CompareOutput, forget_cached
from nbdfs.copying.way import Way
from nbdfs.errors import SourceError, UserError, reason
from nbdfs.progress import Display, Progress, showing
from nbdfs.ranges import RangeSet
from nbdfs.spec import Spec

_SAVE_INTERVAL = 2.0  # seconds between two flushes that a state file can claim
_SAVE_TIMEOUT = 30.0  # seconds that the last one may take after a failure


async def copy(source: Spec, destination: Spec, options: CopyOptions, display: Display | None, begun: Begun) -> Summary:
    """Copy one spec to another; `-` is a standard stream, `null:` takes everything.  What was `begun` is gone on with.

    On return the copy is complete and flushed.  Raises UserError, one line, if it is not; the line says so when the
    destination was changed.  SIGINT, SIGTERM and SIGHUP stop a copy that way too.
    """
    job = _Job(source, destination, options, display, begun)
    failure: UserError | None = None
    async with AsyncExitStack() as stack:
        try:
            await job.run(stack)
        except UserError as error:  # raised again outside: a nursery below would wrap it
            failure = error
    if failure:
        raise failure
    return job.summary()


class _Job:
    def __init__(
        self, source: Spec, destination: Spec, options: CopyOptions, display: Display | None, begun: Begun
    ) -> None:
        options.check()
        self.begun = begun
        self.options = options
        self.display = display
        self.sides = Sides(source, destination, options, created=self.begun.created)
        self.state: StateFile | None = None
        self.started = time.monotonic()
        self.digests = [Digest(name) for name in options.digests]
        self.block_hash = None if options.block_hash is None else BlockHash(options.block_hash)
        self.complete = False  # everything was written, and flushed where that can be done
        self.flushed = False
        self.verified = False

    async def run(self, stack: AsyncExitStack) -> None:
        try:
            size = await self.sides.open(stack)
        except UserError as error:
            if not self.begun.touched:
                raise
            name = self.sides.destination_name
            raise UserError(f"{error}; {name} is incomplete, {self.begun.done.total} bytes are there") from error
        self.progress = Progress(size)
        done = self._load_state()
        hashers: Sequence[Hasher] = [*self.digests, *([self.block_hash] if self.block_hash else [])]
        self.way = Way(self.sides, self.options, hashers)
        self.engine = self.way.engine(self.progress, done)
        await self._carry_out()

    def summary(self) -> Summary:
        counters, before = self.engine.counters, self.begun.counters
        block_hash = self.block_hash
        return Summary(
            source=self.sides.source_name,
            destination=self.sides.destination_name,
            size=self.progress.done,
            way=self.way.name,
            copied=counters.copied + before.copied,
            zeroed=counters.zeroed + before.zeroed,
            skipped=counters.skipped - before.copied - before.zeroed,
            retries=counters.retries,
            seconds=round(time.monotonic() - self.started, 3),
            flushed=self.flushed,
            verified=self.verified,
            digests={digest.name: digest.hexdigest() for digest in self.digests},
            block_hash={block_hash.name: block_hash.hexdigest()} if block_hash else {},
        )

    def _load_state(self) -> RangeSet:
        if not self.options.resume:
            return self.begun.done
        self.state = StateFile(self.options.resume, self.sides.facts())
        done = self.state.load() or RangeSet()
        try:
            self.state.save(done)  # now, while nothing is lost if that is not possible
        except OSError as error:
            raise UserError(f"cannot write the state file {self.options.resume}: {error.strerror}") from error
        return done

    # Moving

    async def _carry_out(self) -> None:
        """Copy, flush and verify.  Raises UserError if one of them failed or a signal came."""
        failure: str | None = None
        self._interrupted = ""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_signals, nursery.cancel_scope)
            failure = await self._steps()
            nursery.cancel_scope.cancel()
        if failure is None:
            failure = self._interrupted  # a signal that came after all was done changes nothing
        if failure:
            outcome = "what has arrived is not known"
            with trio.move_on_after(_SAVE_TIMEOUT):
                outcome = await self._outcome()
            raise UserError(f"{failure}; {outcome}")

    async def _steps(self) -> str:
        """Do all there is to do; give what went wrong."""
        await self._transfer()
        if self.engine.failure:
            return str(self.engine.failure)
        if self.progress.total is not None and self.progress.done < self.progress.total:
            return f"the source ended after {self.progress.done} bytes"
        try:
            await self.engine.output.finish()
        except OSError as error:
            return f"cannot flush the destination: {reason(error)}"
        self.flushed = isinstance(self.engine.output, DeviceOutput | GrowingFile)
        self.complete = True
        if self.state:
            self.state.remove()
        return await self._verify() if self.options.verify else ""

    async def _transfer(self) -> None:
        """Run the engine, and keep the state file meanwhile."""
        async with trio.open_nursery() as nursery:
            if self.state:
                nursery.start_soon(self._keep_state, nursery.cancel_scope)
            async with showing(self.progress, self.display):
                await self.engine.run()
            nursery.cancel_scope.cancel()

    async def _watch_signals(self, scope: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            async for number in signals:
                self._interrupted = f"the copy was stopped by {signal.Signals(number).name}"
                scope.cancel()

    async def _keep_state(self, scope: trio.CancelScope) -> None:
        try:
            while True:
                await trio.sleep(_SAVE_INTERVAL)
                await self._save_state()
        except OSError as error:
            flushing = isinstance(error, SourceError)
            what = "flush the destination" if flushing else f"keep the state file {self.options.resume}"
            self.engine.failure = CopyError(f"cannot {what}: {reason(error)}")
            scope.cancel()

    async def _save_state(self) -> None:
        assert self.state
        arrived = RangeSet(self.engine.done)
        await self.engine.output.finish()
        await trio.to_thread.run_sync(self.state.save, arrived)

    async def _outcome(self) -> str:
        """What is left of a copy that failed."""
        if self.sides.destination is None and self.sides.output_fd is None:
            return "nothing was written"
        name = self.sides.destination_name
        if self.complete:
            return f"{name} was written, but is not verified"
        text = incomplete(name, self.progress)
        if self.state:
            try:
                await self._save_state()
                text += f"; the same command goes on from {self.options.resume}"
            except OSError as error:
                text += f"; its state could not be kept ({reason(error)})"
        return text

    async def _verify(self) -> str:
        """Compare what was written with the source, read once more; give what is wrong."""
        assert self.sides.source and self.sides.destination
        forget_cached(self.sides.destination)
        planner = Planner(self.sides.source, None, step=self.options.longest(), extents=self.options.extents)
        check = Engine(
            DeviceInput(self.sides.source, planner),
            CompareOutput(self.sides.destination, self.options.longest()),
            Progress(self.progress.total),
            workers=self.engine.workers,
            request_size=self.options.longest(),
            retry=self.options.retry,
        )
        async with showing(check.progress, self.display):
            await check.run()
        self.verified = check.failure is None
        return f"verification failed: {check.failure}" if check.failure else ""
