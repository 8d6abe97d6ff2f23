"""What a spec names, looked up and checked: nothing of it is open yet."""

from __future__ import annotations

import os
import re
from typing import Any

from nbdfs import registry, spec
from nbdfs.errors import UsageError
from nbdfs.records import Record
from nbdfs.registry import SPEC, Driver, LayerDriver, Option, SourceDriver
from nbdfs.spec import Segment, Spec

_PASSWORD = re.compile(r"(?<=://)([^/?#@:]*:)[^/?#]*@")  # in the authority of a URI (RFC 3986, 3.2.1)
_QUERY = re.compile(r"^(http(?:s|\+unix)?://[^?]*\?).+", re.DOTALL)  # it may be a signature


class Plan(Record):
    """A spec with its names looked up and its options read."""

    layers: tuple[tuple[LayerDriver, Any], ...]
    source: SourceDriver
    options: Any
    argument: str
    argv: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The spec in canonical form, secrets left out."""
        leaf = without_secrets(self.argument) if not self.argv else f"[ {' '.join(map(without_secrets, self.argv))} ]"
        shown = _shown(self.source, self.options)
        is_path = self.source.name == "file" and leaf.startswith(("/", "."))
        is_uri = leaf.startswith(tuple(f"{scheme}://" for scheme in self.source.schemes))
        if not (is_path or is_uri or self.argv) or "," in shown:
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
            raise UsageError(f"no source knows the scheme '{parsed.scheme}://' of {without_secrets(parsed.argument)}")
        return driver, Segment(driver.name), parsed.argument
    if not os.path.exists(parsed.argument) and registry.in_tree(parsed.argument):
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
    return str(plan(value)) if option.kind is SPEC and isinstance(value, str) else without_secrets(str(value))


def without_secrets(text: str) -> str:
    """An argument or a value as it may be shown: no password in a URI, no query of a web server's."""
    return _QUERY.sub(r"\1***", _PASSWORD.sub(r"\1***@", text))
