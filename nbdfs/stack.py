"""Build the stack of sources and layers that a spec names, and take it down again.

Opening goes from the leaf up, closing from the top down.  A `blocksize` layer is put on whatever cannot take every
offset, length or request size, so that no other layer need care.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

from nbdfs.checked import Checked
from nbdfs.errors import UserError, reason
from nbdfs.parts import part
from nbdfs.plans import Plan, plan
from nbdfs.registry import Driver, LayerDriver, OpenContext
from nbdfs.source import Source
from nbdfs.spec import Spec

__all__ = ["Plan", "behind_door", "open_stack", "plan"]

_LARGEST_REQUEST = 32 << 20  # bytes; what a front end may ask for at once


@asynccontextmanager
async def open_stack(
    text: str | Spec | Plan, *, readonly: bool = False, debug: bool = False, metered: bool = False
) -> AsyncIterator[Checked]:
    """Open what a spec names, behind its door.

    `readonly` opens without write access.  `debug` puts a door between all layers too, so that each one's contract is
    enforced.  `metered` counts and times what crosses the boundary above each layer.  Raises UsageError or UserError,
    one line each, if it cannot be opened.
    """
    planned = text if isinstance(text, Plan) else plan(text)

    def context(above: Sequence[tuple[LayerDriver, Any]]) -> OpenContext:
        only = readonly or any(driver.reads_only for driver, _ in above)

        def nested(inner: str) -> AbstractAsyncContextManager[Source]:
            return open_stack(inner, readonly=only, debug=debug)

        return OpenContext(only, nested, planned.argv)

    layers = planned.layers
    async with AsyncExitStack() as stack:
        leaf = planned.source.open(planned.argument, planned.options, context(layers))
        parts = [part(planned.source.name, await _enter(stack, planned.source, leaf), metered=metered)]
        for depth, (driver, options) in reversed(list(enumerate(layers))):
            below = parts[0].top
            opening = driver.open(Checked(below) if debug else below, options, context(layers[:depth]))
            parts.insert(0, part(driver.name, await _enter(stack, driver, opening), below, metered=metered))
        yield Checked(parts[0].top, readonly=readonly, parts=parts)


def behind_door(name: str, source: Source, *, readonly: bool, metered: bool = False) -> Checked:
    """A source of the driver `name` that was not opened by `open_stack`, behind its door."""
    only = part(name, source, metered=metered)
    return Checked(only.top, readonly=readonly, parts=[only])


async def _enter(stack: AsyncExitStack, driver: Driver, opening: AbstractAsyncContextManager[Source]) -> Source:
    try:
        source = await stack.enter_async_context(opening)
    except OSError as error:
        raise UserError(f"{driver.name}: {reason(error)}") from error
    except ImportError as error:
        raise UserError(f"{driver.name} needs {error.name}: pip install 'nbdfs[{driver.extra}]'") from error
    block = source.info.block
    if block.minimum > 1 or block.maximum < _LARGEST_REQUEST:
        from nbdfs.backends.blocksize import Blocksize

        return Blocksize(source)
    return source
