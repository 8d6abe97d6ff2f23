"""Stacks as tables: to the text of a spec, and what a spec refers to."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nbdfs import registry, spec
from nbdfs.config.reader import Document, Path
from nbdfs.errors import UsageError
from nbdfs.registry import SPEC, nearest
from nbdfs.relocate import absolute
from nbdfs.secret import Secret
from nbdfs.spec import Segment
from nbdfs.stack import Plan, plan

_STACK = {"spec": "text", "leaf": "text or a table", "layers": "a list"}
_TYPES: Mapping[str, tuple[type, ...]] = {
    "text": (str,),
    "a list": (list,),
    "a table": (dict,),
    "text or a table": (str, dict),
    "a list of texts": (list,),
}


def is_a(value: object, kind: str) -> bool:
    """Whether a value is what `kind` (a key of the table of kinds) says."""
    items = value if isinstance(value, list) and kind.endswith("texts") else ()
    return isinstance(value, _TYPES[kind]) and all(isinstance(item, str) for item in items)


def check_keys(document: Document, path: Path, table: Mapping[str, Any], known: Mapping[str, str]) -> dict[str, Any]:
    """The keys of a table that are known and hold what they must; the others are faults.

    `known` has the kind of each key, empty for one that is checked elsewhere.
    """
    good = {}
    for key, value in table.items():
        here = (*path, key)
        if key not in known:
            where = f"[{'.'.join(path)}]" if path else "a configuration"
            dots = ", and a name has no dots" if isinstance(value, dict) and path else ""
            document.blame(here, f"{where} has no '{key}'{nearest(key, known)}{dots}")
        elif known[key] and not is_a(value, known[key]):
            document.blame(here, f"'{key}' must be {known[key]}")
        else:
            good[key] = value
    return good


def stack_text(document: Document, path: Path, table: Mapping[str, Any]) -> str:
    """The spec that a stack's table stands for; empty if the table is wrong, which is noted."""
    given = check_keys(document, path, table, _STACK)
    if ("spec" in table) == ("leaf" in table) or ("spec" in table and "layers" in table):
        document.blame(path, f'[{".".join(path)}] needs either spec = "...", or leaf and perhaps layers')
        return ""
    if "spec" in given:
        return checked_text(document, (*path, "spec"), given["spec"])
    if "leaf" not in given:
        return ""
    try:
        layers = "".join(f"{_segment(layer, 'layers')}::" for layer in given.get("layers", []))
        text = layers + _leaf(given["leaf"])
    except UsageError as error:
        document.blame((*path, "layers" if "layers" in given else "leaf"), str(error))
        return ""
    return checked_text(document, path, text)


def spec_text(document: Document, path: Path, value: object) -> str:
    """The spec of a value that is a spec or a stack's table; empty if it is wrong, which is noted."""
    if isinstance(value, dict):
        return stack_text(document, path, value)
    if not isinstance(value, str):
        document.blame(path, f"'{path[-1]}' must be a spec, or a table with spec, or leaf and layers")
        return ""
    return checked_text(document, path, value)


def checked_text(document: Document, path: Path, text: str) -> str:
    """A spec whose names and options are all known, else empty, which is noted.

    Relative paths in it are relative to the folder of the file.
    """
    try:
        for planned in plans(plan(text)):
            _look_at_secrets(document, path, planned)
    except UsageError as error:
        document.blame(path, str(error))
        return ""
    return absolute(text, os.path.dirname(document.file))


def plans(planned: Plan) -> Iterator[Plan]:
    """A plan, and those of the specs in its options.  Raises UsageError for a spec that is wrong."""
    yield planned
    for driver, options in (*planned.layers, (planned.source, planned.options)):
        for option in driver.option_table:
            inner = getattr(options, option.field)
            if option.kind is SPEC and inner:
                yield from plans(plan(inner))


def references(text: str) -> Iterable[str]:
    """The stacks that a correct spec names by `conf:NAME`."""
    return [planned.argument for planned in plans(plan(text)) if planned.source.name == "conf"]


def secrets(planned: Plan) -> Iterator[tuple[str, Secret]]:
    """The secrets in the options of a plan, each with where it is, as `luks: passphrase`."""
    for driver, options in (*planned.layers, (planned.source, planned.options)):
        for option in driver.option_table:
            value = getattr(options, option.field)
            if isinstance(value, Secret):
                yield f"{driver.name}: {option.name}", value


def _look_at_secrets(document: Document, path: Path, planned: Plan) -> None:
    for place, secret in secrets(planned):
        if secret.is_literal and _open_to_others(document.file):
            document.warn(path, f"{place} is written here, where others can read it: use +FILE")
        elif exposed := secret.exposed():
            document.warn(path, f"{place}: {exposed}")


def _open_to_others(file: str) -> bool:
    try:
        return bool(os.stat(file).st_mode & stat.S_IRWXO)
    except OSError:
        return False


def _leaf(value: str | Mapping[str, Any]) -> str:
    if isinstance(value, str):
        return value
    if "argv" in value:
        words = value["argv"]
        if len(value) > 1 or not words or not is_a(words, "a list of texts") or any("\0" in word for word in words):
            raise UsageError('a captive server is leaf = {argv = ["PROGRAM", "ARGUMENT", ...]} and nothing else')
        return spec.fold(words)
    argument = value.get("argument", "")
    if not isinstance(argument, str):
        raise UsageError("'argument' must be text")
    segment = _segment({key: item for key, item in value.items() if key != "argument"}, "leaf")
    # A URI brings its own colon: the options of its source stand before it as a layer's would.
    return f"{segment}::{argument}" if spec.parse(argument or ".").scheme else f"{segment}:{argument}"


def _segment(value: object, key: str) -> str:
    """A layer as written in a spec, from that text or from a table with its name and options."""
    if isinstance(value, str):
        return value
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise UsageError(f"what is in '{key}' must be text, or a table with a name and options")
    driver = registry.find(value["name"])
    options = tuple((name, _option_text(name, item)) for name, item in value.items() if name != "name")
    driver.parse_options(options)
    return str(Segment(driver.name, options))


def _option_text(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str | int | float):
        return str(value)
    raise UsageError(f"the option '{name}' must be text, a number, true or false")
