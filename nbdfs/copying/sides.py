"""The two sides of a copy, from specs to what is open: devices, standard streams, pipes and files made by the copy.

Invariants: a side is a device (`source`, `destination`), a descriptor (`input_fd`, `output_fd`), or `null:`, which is
neither; nothing is created before the source is open.
"""

from __future__ import annotations

import os
import sys
from contextlib import AsyncExitStack
from typing import Any

from nbdfs.checked import Checked
from nbdfs.copying import files, resume
from nbdfs.copying.options import CopyOptions, check_whole
from nbdfs.errors import UsageError, UserError
from nbdfs.plans import Plan, plan
from nbdfs.records import replace
from nbdfs.source import Backing
from nbdfs.spec import Spec
from nbdfs.stack import open_stack


class Sides:
    """Source and destination.  Raises UsageError if the options contradict them.

    `created` says that the destination was made by this copy, so that all of it was a hole.
    """

    def __init__(self, source: Spec, destination: Spec, options: CopyOptions, *, created: bool = False) -> None:
        self.options = options
        self.source_spec, self.destination_spec = source, destination
        self.source_plan = None if files.is_standard_stream(source) else plan(source)
        stream = files.is_standard_stream(destination) or files.is_null(destination)
        self.destination_plan = None if stream else plan(destination)
        self.source_path = files.plain_path(self.source_plan) if self.source_plan else "-"
        self.destination_path = files.plain_path(self.destination_plan) if self.destination_plan else "-"
        self._refuse_contradictions()
        self.source: Checked | None = None
        self.destination: Checked | None = None
        self.created = created

    @property
    def source_name(self) -> str:
        return str(self.source_plan or self.source_spec)

    @property
    def destination_name(self) -> str:
        return str(self.destination_plan or self.destination_spec)

    async def open(self, stack: AsyncExitStack) -> int | None:
        """Open both sides; give the source's size if that is known.  Raises UserError."""
        size = await self._open_source(stack)
        self._refuse_state_in_place_of_a_side()
        await self._open_destination(stack, size)
        return size

    def facts(self) -> dict[str, Any]:
        """What must be the same when a copy goes on."""
        assert self.source and self.destination
        facts: dict[str, Any] = {
            "source": self.source_name,
            "source size": self.source.info.size,
            "source identity": self.source.info.identity,
            "destination": self.destination_name,
            "destination size": self.destination.info.size,
        }
        if backing := self.source.backing():
            facts["source time"] = os.fstat(backing.fd).st_mtime_ns
        if backing := self.destination.backing():
            facts["destination file"] = os.fstat(backing.fd).st_ino
        return facts

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

    def _refuse_state_in_place_of_a_side(self) -> None:
        """The source is open by now, and the destination may not be there yet."""
        planned = self.destination_plan
        target = planned.argument if planned and planned.source.name == "file" else ""
        for place in resume.places(self.options.resume) if self.options.resume else ():
            if files.is_read(place, self.input_fd) or (target and os.path.realpath(place) == os.path.realpath(target)):
                raise UsageError(f"{place} is one side of the copy, no place for its state: name another state file")

    async def _open_source(self, stack: AsyncExitStack) -> int | None:
        """Open the source; give its size if that is known."""
        self.input_fd: int | None = None
        if self.source_plan is None:
            self.input_fd = sys.stdin.fileno()
            return files.remaining(self.input_fd)
        if files.is_stream(self.source_path):
            self.input_fd = files.open_stream(self.source_path, os.O_RDONLY)
            stack.callback(os.close, self.input_fd)
            return None
        self.source = await stack.enter_async_context(open_stack(_tuned(self.source_plan, self.options), readonly=True))
        check_whole(self.source_name, self.source.info)
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
        if files.is_stream(path):
            self.output_fd = files.open_stream(path, os.O_WRONLY)
            stack.callback(os.close, self.output_fd)
            return
        if path and files.is_read(path, self.input_fd):
            raise UserError(f"{path} is both source and destination")
        if self._creates(path):
            files.create(path, size or 0)
            self.created = True
            if size is None:
                self.output_fd = files.open_stream(path, os.O_WRONLY)
                stack.callback(os.close, self.output_fd)
                return
        state = self.options.resume
        if path and state and not os.path.exists(path):
            resume.StateFile(state, {}).load()  # nobody is to remove what is no state file
            raise UserError(f"{path} is gone, but the state of its copy is there: remove {state} to begin anew")
        self.destination = await stack.enter_async_context(open_stack(_tuned(self.destination_plan, self.options)))
        self._check_destination(self.destination, backing, size)

    def _creates(self, path: str) -> bool:
        """Whether the destination is to be made, or replaced."""
        goes_on = self.created or (self.options.resume and os.path.exists(self.options.resume))
        return bool(path) and files.is_regular(path) and not goes_on

    def _check_destination(self, destination: Checked, backing: Backing | None, size: int | None) -> None:
        name = self.destination_name
        if not destination.writable:
            raise UserError(f"{name} is read-only")
        if size is not None and destination.info.size < size:
            raise UserError(
                f"{name} is too small, {destination.info.size} bytes for the {size} of the source; nothing was written"
            )
        other = destination.backing()
        if backing and other and size and files.overlap(backing, other, size):
            raise UserError(f"source and destination are the same bytes of one file: {name}")


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
    return replace(planned, options=replace(planned.options, **changes))
