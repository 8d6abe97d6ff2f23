"""Build the stack of sources and layers that a spec names, and take it down again.

Opening goes from the leaf up, closing from the top down.  A `blocksize` layer is put on whatever cannot take every
offset, length or request size, so that no other layer need care.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from nbdfs import registry, spec
from nbdfs.checked import Checked
from nbdfs.errors import UsageError, UserError
from nbdfs.parts import part
from nbdfs.registry import SPEC, Driver, LayerDriver, OpenContext, Option, SourceDriver
from nbdfs.source import Source
from nbdfs.spec import Segment, Spec

_LARGEST_REQUEST = 32 << 20  # bytes; what a front end may ask for at once
_PASSWORD = re.compile(r"(?<=://)([^/?#@:]*:)[^/?#@]*@")  # in the authority of a URI (RFC 3986, 3.2.1)


@dataclass(frozen=True)
class Plan:
    """A spec with its names looked up and its options read: nothing of it is open yet."""

    layers: tuple[tuple[LayerDriver, Any], ...]
    source: SourceDriver
    options: Any
    argument: str
    argv: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The spec in canonical form, secrets left out."""
        leaf = _without_password(self.argument) if not self.argv else f"[ {' '.join(self.argv)} ]"
        shown = _shown(self.source, self.options)
        is_path = self.source.name == "file" and leaf.startswith(("/", "."))
        if not (is_path or "://" in leaf or self.argv) or "," in shown:
            leaf = f"{shown}:{leaf}"
        return "".join(f"{_shown(driver, options)}::" for driver, options in self.layers) + leaf


def plan(text: str | Spec) -> Plan:
    """Look up every name of a spec.  Raises UsageError for what is unknown or makes no sense."""
    parsed = spec.parse(text) if isinstance(text, str) else text
    segments = list(parsed.layers)
    source, leaf, argument = _leaf(parsed)
    bare = parsed.source is None or parsed.source.name != leaf.name  # a path, or a URI that tells its driver
    if segments and bare and isinstance(registry.find(segments[-1].name), SourceDriver):
        leaf = segments.pop()  # `http,connections=8::https://host/x`: the options of the leaf itself
        source = _source_driver(leaf.name)
    layers = tuple((_layer_driver(segment.name), segment) for segment in segments)
    return Plan(
        tuple((driver, driver.parse_options(segment.options)) for driver, segment in layers),
        source,
        source.parse_options(leaf.options),
        argument,
        parsed.argv,
    )


def _leaf(parsed: Spec) -> tuple[SourceDriver, Segment, str]:
    if parsed.argv:
        return _source_driver("nbd"), Segment("nbd"), ""
    if parsed.source:
        whole = f"{parsed.source}:{parsed.argument}"
        if not parsed.source.options and (by_scheme := _by_scheme(parsed.source.name)):
            return by_scheme, Segment(by_scheme.name), whole  # a URI without slashes, as magnet:?xt=...
        return _source_driver(parsed.source.name), parsed.source, parsed.argument
    if parsed.scheme:
        driver = registry.find_scheme(parsed.scheme)
        if driver is None:
            raise UsageError(f"no source knows the scheme '{parsed.scheme}://' of {parsed.argument}")
        return driver, Segment(driver.name), parsed.argument
    if not os.path.exists(parsed.argument) and registry.exists(parsed.argument):
        raise UsageError(f"'{parsed.argument}' is no file, and as a source it needs an argument: {parsed.argument}:...")
    return _source_driver("file"), Segment("file"), parsed.argument


def _by_scheme(name: str) -> SourceDriver | None:
    return None if registry.exists(name) else registry.find_scheme(name)


def _source_driver(name: str) -> SourceDriver:
    driver = registry.find(name)
    if not isinstance(driver, SourceDriver):
        raise UsageError(f"{name} is a layer and needs a source under it: {name}::SOURCE")
    return driver


def _layer_driver(name: str) -> LayerDriver:
    driver = registry.find(name)
    if not isinstance(driver, LayerDriver):
        raise UsageError(f"{name} is a source, not a layer: it can only stand at the end of a spec")
    return driver


def _shown(driver: Driver, options: Any) -> str:
    given = [
        (option.name, _shown_value(option, value))
        for option in driver.option_table
        if (value := getattr(options, option.field)) != option.default
    ]
    return str(Segment(driver.name, tuple(given)))


def _shown_value(option: Option, value: object) -> str:
    if option.kind.secret:
        return "***"
    return str(plan(value)) if option.kind is SPEC and isinstance(value, str) else _without_password(str(value))


def _without_password(text: str) -> str:
    return _PASSWORD.sub(r"\1***@", text)


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
        raise UserError(f"{driver.name}: {error}") from error
    except ImportError as error:
        raise UserError(f"{driver.name} needs {error.name}: pip install 'nbdfs[{driver.extra}]'") from error
    block = source.info.block
    if block.minimum > 1 or block.maximum < _LARGEST_REQUEST:
        from nbdfs.backends.blocksize import Blocksize

        return Blocksize(source)
    return source
