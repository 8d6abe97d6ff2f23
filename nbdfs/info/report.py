"""Find out all that can be told about a spec."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from nbdfs.checked import Checked
from nbdfs.errors import NotWritableError, UserError
from nbdfs.info import facts
from nbdfs.info.facts import Facts
from nbdfs.records import Record, replace
from nbdfs.registry import OpenContext
from nbdfs.spec import Spec
from nbdfs.stack import Plan, open_stack, plan


class Connection(Record):
    """How an NBD server is spoken with.  `protocol` is as nbdinfo has it, `packets` simple, structured or extended."""

    protocol: str
    tls: bool
    packets: str


class Report(Record):
    """One export or, of a server or a source of several files, all of them."""

    exports: Sequence[Facts]
    connection: Connection | None = None

    def answer(self, question: str) -> bool:
        """The answer to a question of `QUESTIONS` about the first export."""
        return QUESTIONS[question](self)

    def as_json(self) -> dict[str, Any]:
        """A value for JSON, as nbdinfo's."""
        result: dict[str, Any] = {}
        if link := self.connection:
            result = {
                "protocol": link.protocol,
                "TLS": link.tls,
                "structured": link.packets != "simple",
                "extended": link.packets == "extended",
            }
        return result | {"exports": [export.as_json() for export in self.exports]}

    def as_text(self) -> Iterator[str]:
        """Lines for people."""
        if link := self.connection:
            yield f"protocol: {link.protocol} {'with' if link.tls else 'without'} TLS, using {link.packets} packets"
        for export in self.exports:
            yield from export.as_text()


def _flag(name: str) -> Callable[[Report], bool]:
    return lambda report: report.exports[0].flags[name]


def _link(test: Callable[[Connection], bool]) -> Callable[[Report], bool]:
    return lambda report: report.connection is not None and test(report.connection)


QUESTIONS: Mapping[str, Callable[[Report], bool]] = {
    "block-status-payload": _flag("can_block_status_payload"),
    "cache": _flag("can_cache"),
    "connect": lambda report: True,
    "df": _flag("can_df"),
    "extended-headers": _link(lambda link: link.packets == "extended"),
    "fast-zero": _flag("can_fast_zero"),
    "flush": _flag("can_flush"),
    "fua": _flag("can_fua"),
    "multi-conn": _flag("can_multi_conn"),
    "read": lambda report: True,
    "read-only": _flag("is_read_only"),
    "rotational": _flag("is_rotational"),
    "structured-reply": _link(lambda link: link.packets != "simple"),
    "tls": _link(lambda link: link.tls),
    "trim": _flag("can_trim"),
    "write": lambda report: not report.exports[0].flags["is_read_only"],
    "zero": _flag("can_zero"),
}

# As nbdinfo has them too.
OTHER_NAMES: Mapping[str, str] = {
    "readonly": "read-only",
    "fastzero": "fast-zero",
    "multiconn": "multi-conn",
    **dict.fromkeys(("sr", "structured", "structured-replies"), "structured-reply"),
}


async def report(spec: Spec, *, listing: bool, probe: bool) -> Report:
    """Open the source and tell what it is; with `listing` all exports of a server, or files of a source.

    `probe` also looks at the content.  Raises UserError if it cannot be opened.
    """
    planned = plan(spec)
    if planned.source.name == "nbd" and not planned.layers:
        from nbdfs.info import remote

        server, exports = await remote.exports(planned, listing=listing, probe=probe)
        packets = "extended" if server.extended else "structured" if server.structured else "simple"
        return Report(exports, Connection(server.protocol, server.tls, packets))
    if listing:
        return Report([export async for export in _files(planned, probe)])
    if probe and planned.source.describe and not planned.layers:  # looking at the content would be asking others for it
        return Report([facts.of_description(str(planned), planned.source.describe(planned.argument, planned.options))])
    async with _opened(planned) as source:
        return Report([await _facts(source, planned, probe)])


@asynccontextmanager
async def open_mapped(spec: Spec, contexts: Sequence[str]) -> AsyncIterator[Checked]:
    """Open a source so that it has these contexts, as far as it can."""
    planned = plan(spec)
    if planned.source.name == "nbd":
        asked = "+".join(dict.fromkeys([*planned.options.context.split("+"), *contexts])).strip("+")
        planned = replace(planned, options=replace(planned.options, context=asked))
    async with open_stack(planned, readonly=True) as source:
        yield source


@asynccontextmanager
async def _opened(planned: Plan) -> AsyncIterator[Checked]:
    """The source, writable if it can be: only then is it known what may be done to it."""
    async with AsyncExitStack() as stack:
        try:
            source = await stack.enter_async_context(open_stack(planned))
        except NotWritableError:
            source = await stack.enter_async_context(open_stack(planned, readonly=True))
        yield source


async def _facts(source: Checked, planned: Plan, probe: bool) -> Facts:
    describe = planned.source.describe
    found = facts.of_source(source, str(planned), describe(planned.argument, planned.options) if describe else {})
    if probe:
        found.content = await facts.content(source)
    return found


async def _files(planned: Plan, probe: bool) -> AsyncIterator[Facts]:
    open_tree = planned.source.open_tree
    if open_tree is None or planned.layers:
        raise UserError(f"{planned} is one source: there is nothing to list")
    context = OpenContext(True, lambda inner: open_stack(inner, readonly=True))
    async with open_tree(planned.argument, planned.options, context) as tree:
        for name, source in tree.items():
            checked = Checked(source, readonly=True)
            found = facts.of_source(checked, name, {})
            if probe:
                found.content = await facts.content(checked)
            yield found
