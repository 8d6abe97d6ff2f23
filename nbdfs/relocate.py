"""Specs that mean the same in any working directory: relative paths in them are made absolute."""

from __future__ import annotations

import os

from nbdfs import registry, spec
from nbdfs.records import replace
from nbdfs.registry import PATH, SECRET, SPEC, Kind, SourceDriver
from nbdfs.spec import Segment, Spec

_PATHS = ("PATH", "FILE")  # what help calls the argument of a source that takes one


def absolute(text: str, folder: str = "") -> str:
    """A spec with each path that is relative to `folder` (the working directory) made absolute.

    What makes no sense is left as it is, for whoever reads the spec to say so.  So are the words of a captive server.
    """
    folder = folder or os.getcwd()
    parsed = spec.parse(text)
    if parsed.argv:
        return text
    layers = tuple(_segment(layer, folder) for layer in parsed.layers)
    source = _segment(parsed.source, folder) if parsed.source else None
    return str(replace(parsed, layers=layers, source=source, argument=_argument(parsed, folder)))


def _argument(parsed: Spec, folder: str) -> str:
    driver = _leaf_driver(parsed)
    takes_path = driver and driver.argument.startswith(_PATHS) and not parsed.scheme
    return _path(parsed.argument, folder) if takes_path else parsed.argument


def _leaf_driver(parsed: Spec) -> SourceDriver | None:
    name = parsed.source.name if parsed.source else parsed.layers[-1].name if parsed.layers else "file"
    if not registry.exists(name):
        return None  # a URI without slashes, or a mistake
    driver = registry.find(name)
    if isinstance(driver, SourceDriver):
        return driver
    return _leaf_driver(Spec())  # a layer: what is under it is a path


def _path(path: str, folder: str) -> str:
    return os.path.normpath(os.path.join(folder, path)) if path else path


def _segment(segment: Segment, folder: str) -> Segment:
    if not registry.exists(segment.name):
        return segment
    kinds = {option.name: option.kind for option in registry.find(segment.name).option_table}
    return Segment(segment.name, tuple((key, _value(kinds.get(key), value, folder)) for key, value in segment.options))


def _value(kind: Kind | None, value: str, folder: str) -> str:
    if kind is PATH:
        return _path(value, folder)
    if kind is SPEC:
        return absolute(value, folder)
    if kind is SECRET and value.startswith("+"):
        return "+" + _path(value[1:], folder)
    return value
