"""The `data` source: a device written down as a string."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

from nbdfs.errors import UsageError
from nbdfs.records import Record
from nbdfs.registry import DURATION, PATH, SIZE, TEXT, OpenContext, SourceDriver, option
from nbdfs.source import Source

log = logging.getLogger(__name__)


class DataOptions(Record):
    from_: str = option("", PATH, "read the string from this file; file names in it are relative to its folder")
    set: str = option("", TEXT, "variables: NAME=TEXT, several with ; between; they come before the environment's")
    size: int | None = option(None, SIZE, "cut to this size, or make that long with zeroes")
    script_timeout: float = option(60.0, DURATION, "how long a script may take")


@asynccontextmanager
async def _open(argument: str, options: DataOptions, context: OpenContext) -> AsyncIterator[Source]:
    from nbdfs.backends.data.content import resize
    from nbdfs.backends.data.evaluate import Evaluator, parse_variables
    from nbdfs.backends.data.nodes import Text
    from nbdfs.backends.data.source import DataSource
    from nbdfs.backends.data.tree import tree

    if options.from_ and argument:
        raise UsageError(f"data: the string is either in the spec or in {options.from_}: leave one out")
    with ExitStack() as files:
        evaluator = Evaluator(parse_variables(options.set), files, options.script_timeout)
        if options.from_:
            content = await evaluator.file(options.from_)
        else:
            content = await evaluator.text(Text("data", argument))
        if options.size is not None:
            content = resize(content, options.size)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("data: %s", tree(content))
        async with DataSource(content) as source:
            yield source


DRIVER = SourceDriver(
    "data", "a device written down as a string: bytes, text, files, repeats, offsets", DataOptions,
    open=_open, argument="STRING",
)  # fmt: skip
