"""A whole copy: open both ends, choose the way, move the bytes, flush, verify, sum up."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import trio

from nbdfs.checked import Checked
from nbdfs.copying import files
from nbdfs.copying.digests import BlockHash, Digest, Hasher
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
from nbdfs.copying.engine import CopyError, Engine
from nbdfs.copying.options import LARGEST_ALIGN, SPARSE, Begun, CopyOptions, Summary, incomplete
from nbdfs.copying.plain import STEP
from nbdfs.copying.plan import Planner
from nbdfs.copying.resume import StateFile
from nbdfs.copying.verify import CompareOutput, forget_cached
from nbdfs.errors import UsageError, UserError
from nbdfs.progress import Display, Progress, showing
from nbdfs.ranges import RangeSet
from nbdfs.source import Backing
from nbdfs.spec import Spec
from nbdfs.stack import Plan, open_stack, plan

_FILE_WORKERS = 2  # copies of plain files in flight: one moves memory while the other waits for a disk
_SAVE_INTERVAL = 2.0  # seconds between two flushes that a state file can claim
_SAVE_TIMEOUT = 30.0  # seconds that the last one may take after a failure


async def copy(
    source: Spec, destination: Spec, options: CopyOptions, display: Display | None = None, begun: Begun | None = None
) -> Summary:
    """Copy one spec to another; `-` is a standard stream, `null:` takes everything.  What was `begun` is gone on with.

    On return the copy is complete and flushed.  Raises UserError, one line, if it is not; the line says so when the
    destination was changed.  SIGINT, SIGTERM and SIGHUP stop a copy that way too.
    """
    job = _Job(source, destination, options, display, begun or Begun())
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
        self.source_spec, self.destination_spec = source, destination
        self.source_plan = None if files.is_standard_stream(source) else plan(source)
        stream = files.is_standard_stream(destination) or files.is_null(destination)
        self.destination_plan = None if stream else plan(destination)
        self.source_path = files.plain_path(self.source_plan) if self.source_plan else "-"
        self.destination_path = files.plain_path(self.destination_plan) if self.destination_plan else "-"
        self._refuse_contradictions()
        self.source: Checked | None = None
        self.destination: Checked | None = None
        self.state: StateFile | None = None
        self.created = False  # the destination was made by us, so all of it is a hole
        self.started = time.monotonic()
        self.digests = [Digest(name) for name in options.digests]
        self.block_hash = None if options.block_hash is None else BlockHash(options.block_hash)
        self.complete = False  # everything was written, and flushed where that can be done
        self.flushed = False
        self.verified = False

    async def run(self, stack: AsyncExitStack) -> None:
        try:
            size = await self._open_source(stack)
            await self._open_destination(stack, size)
        except UserError as error:
            if not self.begun.done:
                raise
            name = self._name(self.destination_plan, self.destination_spec)
            raise UserError(f"{error}; {name} is incomplete, {self.begun.done.total} bytes are there") from error
        self.progress = Progress(size)
        done = self._load_state()
        self.engine = self._engine(done)
        await self._carry_out()

    def summary(self) -> Summary:
        counters, before = self.engine.counters, self.begun.counters
        block_hash = self.block_hash
        return Summary(
            source=self._name(self.source_plan, self.source_spec),
            destination=self._name(self.destination_plan, self.destination_spec),
            size=self.progress.done,
            way=self.way,
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

    def _refuse_contradictions(self) -> None:
        options = self.options
        if files.is_null(self.source_spec):
            raise UsageError("null: needs a size to be a source: null:SIZE")
        in_order = any(path == "-" or files.is_stream(path) for path in (self.source_path, self.destination_path))
        if options.verify and in_order:
            raise UsageError("--verify reads both sides again: neither may be a pipe or null:")
        if options.resume and in_order:
            raise UsageError("--resume needs two sides that can be read at any place: no pipe, no null:")
        if options.resume and (options.digests or options.block_hash is not None):
            raise UsageError("--resume does not see all bytes, so it gives no hash: copy the result to null: for one")

    # Opening

    async def _open_source(self, stack: AsyncExitStack) -> int | None:
        """Open the source; give its size if that is known."""
        if self.source_plan is None:
            self.input_fd = sys.stdin.fileno()
            return files.remaining(self.input_fd)
        if files.is_stream(self.source_path):
            self.input_fd = files.open_stream(self.source_path, os.O_RDONLY)
            stack.callback(os.close, self.input_fd)
            return None
        self.source = await stack.enter_async_context(open_stack(_tuned(self.source_plan, self.options), readonly=True))
        return self.source.info.size

    async def _open_destination(self, stack: AsyncExitStack, size: int | None) -> None:
        self.output_fd: int | None = None
        if self.destination_plan is None:
            if not files.is_null(self.destination_spec):
                self.output_fd = sys.stdout.fileno()
                if os.isatty(self.output_fd):
                    raise UserError("the bytes of a disk would garble the terminal: redirect them, or name a file")
            return
        path = self.destination_path
        backing = self.source.backing() if self.source else None
        if path and backing and files.same_file(backing, path):
            raise UserError(f"{path} is both source and destination")
        if files.is_stream(path):
            self.output_fd = files.open_stream(path, os.O_WRONLY)
            stack.callback(os.close, self.output_fd)
            return
        if path and files.is_regular(path) and not (self.options.resume and os.path.exists(self.options.resume)):
            files.create(path, size or 0)
            self.created = True
            if size is None:
                self.output_fd = files.open_stream(path, os.O_WRONLY)
                stack.callback(os.close, self.output_fd)
                return
        self.destination = await stack.enter_async_context(open_stack(_tuned(self.destination_plan, self.options)))
        self._check_destination(self.destination, backing, size)

    def _check_destination(self, destination: Checked, backing: Backing | None, size: int | None) -> None:
        name = self._name(self.destination_plan, self.destination_spec)
        if not destination.writable:
            raise UserError(f"{name} is read-only")
        if size is not None and destination.info.size < size:
            raise UserError(
                f"{name} is too small, {destination.info.size} bytes for the {size} of the source; nothing was written"
            )
        other = destination.backing()
        if backing and other and size and files.overlap(backing, other, size):
            raise UserError(f"source and destination are the same bytes of one file: {name}")

    def _load_state(self) -> RangeSet:
        if not self.options.resume:
            return self.begun.done
        self.state = StateFile(self.options.resume, self._facts())
        done = self.state.load() or RangeSet()
        try:
            self.state.save(done)  # now, while nothing is lost if that is not possible
        except OSError as error:
            raise UserError(f"cannot write the state file {self.options.resume}: {error.strerror}") from error
        return done

    def _facts(self) -> dict[str, Any]:
        """What must be the same when a copy goes on."""
        assert self.source and self.destination
        facts: dict[str, Any] = {
            "source": self._name(self.source_plan, self.source_spec),
            "source size": self.source.info.size,
            "source identity": self.source.info.identity,
            "destination": self._name(self.destination_plan, self.destination_spec),
            "destination size": self.destination.info.size,
        }
        if backing := self.source.backing():
            facts["source time"] = os.fstat(backing.fd).st_mtime_ns
        if backing := self.destination.backing():
            facts["destination file"] = os.fstat(backing.fd).st_ino
        return facts

    # Choosing the way

    def _engine(self, done: RangeSet) -> Engine:
        options = self.options
        hashers: Sequence[Hasher] = [*self.digests, *([self.block_hash] if self.block_hash else [])]
        plain = self._plain_files(hashers)
        resident = bool(
            self.source and self.destination and not hashers and both_immediate(self.source, self.destination)
        )
        self.way = "files" if plain else "memory" if resident else "requests"
        blank = options.blank or (self.created and not options.allocated)
        workers = max(1, min(options.requests * options.connections, options.queue_size // options.request_size))
        if plain:
            workers = _FILE_WORKERS
        if resident or options.synchronous:
            workers = 1
        output = self._output(blank)
        return Engine(
            self._input(plain is not None, resident, blank, done),
            output,
            self.progress,
            workers=workers,
            request_size=options.request_size,
            files=plain,
            hashers=hashers,
            retry=0 if isinstance(output, StreamOutput) else options.retry,  # a part of it may be out already
            rate=options.rate,
            limiter=trio.CapacityLimiter(options.threads or os.cpu_count() or 1),
            done=done,
        )

    def _plain_files(self, hashers: Sequence[Hasher]) -> tuple[Backing, Backing] | None:
        """The two files, if both ends are plain files and nobody need see the bytes."""
        options = self.options
        if not (self.source and self.destination) or hashers or options.sparse or options.rate or not options.extents:
            return None
        source, destination = self.source.backing(), self.destination.backing()
        return (source, destination) if source and destination else None

    def _input(self, plain: bool, resident: bool, blank: bool, done: RangeSet) -> Input:
        if not self.source:
            return StreamInput(self.input_fd)
        options = self.options
        planner = Planner(
            self.source,
            self.destination if options.compare_zeroes else None,
            step=STEP if plain else options.request_size,
            align=self._align(),
            extents=options.extents,
            short_holes=options.sparse != 0 and not plain,
            done=done,
            blank=blank or files.is_null(self.destination_spec),
            allocated=options.allocated,
        )
        return DeviceInput(self.source, planner, resident)

    def _output(self, blank: bool) -> Output:
        options = self.options
        sparse = options.sparse
        if sparse is None:  # zeroes that must be allocated are as well written as zeroed
            sparse = 0 if options.allocated else max(SPARSE, self._align())
        if self.destination:
            return DeviceOutput(self.destination, sparse=sparse, allocated=options.allocated, blank=blank)
        if self.output_fd is None:
            return NullOutput()
        if self.created:
            return GrowingFile(self.output_fd, sparse=sparse)
        return StreamOutput(self.output_fd)

    def _align(self) -> int:
        """What the edges of data are rounded to: the destination's preferred block."""
        block = self.destination.info.block.preferred if self.destination else 1
        usable = block & (block - 1) == 0 and block <= min(LARGEST_ALIGN, self.options.request_size)
        return block if usable and self.options.request_size % block == 0 else 1

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
            return f"cannot flush the destination: {error}"
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
            self.engine.failure = CopyError(f"cannot keep the state file {self.options.resume}: {error}")
            scope.cancel()

    async def _save_state(self) -> None:
        assert self.state
        arrived = RangeSet(self.engine.done)
        await self.engine.output.finish()
        await trio.to_thread.run_sync(self.state.save, arrived)

    async def _outcome(self) -> str:
        """What is left of a copy that failed."""
        if self.destination is None and self.output_fd is None:
            return "nothing was written"
        name = self._name(self.destination_plan, self.destination_spec)
        if self.complete:
            return f"{name} was written, but is not verified"
        text = incomplete(name, self.progress)
        if self.state:
            try:
                await self._save_state()
                text += f"; the same command goes on from {self.options.resume}"
            except OSError as error:
                text += f"; its state could not be kept ({error})"
        return text

    async def _verify(self) -> str:
        """Compare what was written with the source, read once more; give what is wrong."""
        assert self.source and self.destination
        forget_cached(self.destination)
        planner = Planner(self.source, None, step=self.options.request_size, extents=self.options.extents)
        check = Engine(
            DeviceInput(self.source, planner),
            CompareOutput(self.destination, self.options.request_size),
            Progress(self.progress.total),
            workers=self.engine.workers,
            request_size=self.options.request_size,
            retry=self.options.retry,
        )
        async with showing(check.progress, self.display):
            await check.run()
        self.verified = check.failure is None
        return f"verification failed: {check.failure}" if check.failure else ""

    def _name(self, planned: Plan | None, spec: Spec) -> str:
        return str(planned) if planned else str(spec)


def _tuned(planned: Plan, options: CopyOptions) -> Plan:
    """The plan with its source set up for a copy, where the spec leaves that open.

    The wanted number of connections; and no read-ahead, which is for readers that ask for one thing at a time.
    """
    tuned = {"connections": options.connections, "readahead": 0}
    known = {option.name: option.default for option in planned.source.option_table}
    changes = {
        name: value
        for name, value in tuned.items()
        if name in known and getattr(planned.options, name) == known[name] and isinstance(known[name], int)
    }
    return dataclasses.replace(planned, options=dataclasses.replace(planned.options, **changes))
