"""The `conf` source: a stack that a configuration file names."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from nbdfs.errors import UsageError
from nbdfs.registry import NoOptions, OpenContext, SourceDriver
from nbdfs.source import Source


@asynccontextmanager
async def _open(argument: str, options: NoOptions, context: OpenContext) -> AsyncIterator[Source]:
    from nbdfs.config.files import current

    async with context.open(current().stack(argument)) as source:
        yield source


@asynccontextmanager
async def _open_tree(argument: str, options: NoOptions, context: OpenContext) -> AsyncIterator[Mapping[str, Source]]:
    from nbdfs.config.files import current
    from nbdfs.stack import plan

    planned = plan(current().stack(argument))
    if planned.source.open_tree is None or planned.layers:
        raise UsageError(f"conf:{argument} has no files of its own: write NAME=SPEC for a file in a directory")
    async with planned.source.open_tree(planned.argument, planned.options, context) as sources:
        yield sources


DRIVER = SourceDriver(
    "conf", "a stack of a configuration file", open=_open, open_tree=_open_tree, argument="NAME"
)  # fmt: skip
