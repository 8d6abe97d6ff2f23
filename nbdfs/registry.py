"""What sources and layers there are, and the options each one takes.

A driver is one module or folder in `backends/`, named after itself (`-` becomes `_`), that
holds one record, `DRIVER`.  Command line help, `nbdfs sources`, the tables of the manual and the
checks of a spec are all made from that record.  Other packages add drivers by the entry points
`nbdfs.sources` and `nbdfs.layers`, each naming a record.

A driver's options are a class of its own, a `nbdfs.records.Record` whose fields are made with `option()`.  The module
must be cheap to import: what is heavy is imported by `open`.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

from nbdfs.errors import UsageError, UserError
from nbdfs.records import Record, field, fields
from nbdfs.secret import Secret
from nbdfs.source import Source
from nbdfs.units import format_size, parse_duration, parse_size

if TYPE_CHECKING:
    import importlib.metadata


class Kind(Record):
    """The type of an option: how it is called in help, and how its text is read."""

    name: str
    parse: Callable[[str], object]
    secret: bool = False


def _parse_bool(text: str) -> bool:
    try:
        return {"true": True, "yes": True, "on": True, "1": True, "": True,
                "false": False, "no": False, "off": False, "0": False}[text.lower()]  # fmt: skip
    except KeyError:
        raise UsageError(f"'{text}' is neither true nor false") from None


def _parse_int(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise UsageError(f"'{text}' is not a whole number") from None


def _parse_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"'{text}' is not a number")
    return value


SIZE = Kind("SIZE", parse_size)
DURATION = Kind("SECONDS", parse_duration)
INTEGER = Kind("N", _parse_int)
NUMBER = Kind("NUMBER", _parse_float)
BOOLEAN = Kind("BOOL", _parse_bool)
TEXT = Kind("TEXT", str)
PATH = Kind("PATH", str)
SPEC = Kind("SPEC", str)
SECRET = Kind("SECRET", Secret, secret=True)
COMMAND = Kind("COMMAND", str, secret=True)  # for a shell; there may be a token in it


def choice(*values: str) -> Kind:
    """An option that takes one of a few words."""

    def parse(text: str) -> str:
        if text not in values:
            raise UsageError(f"'{text}' is none of {', '.join(values)}")
        return text

    return Kind("|".join(values), parse)


class Option(Record):
    """One option of a driver, as help and checks see it; `field` is its name in the class of options."""

    name: str
    field: str
    kind: Kind
    default: object
    help: str

    @property
    def default_text(self) -> str:
        """The default as one would write it; empty if there is none."""
        if self.default is None or self.kind.secret:
            return ""
        if isinstance(self.default, bool):
            return "yes" if self.default else "no"
        if self.kind is SIZE and isinstance(self.default, int):
            return format_size(self.default)
        if isinstance(self.default, float):
            return f"{self.default:g}"
        return str(self.default)


def option(default: Any, kind: Kind, help: str) -> Any:
    """A field of a class of options; `_` is `-` in the name of the option, one at the end (`from_`) no part of it."""
    return field(default=default, metadata={"kind": kind, "help": help})


def _option_name(field: str) -> str:
    return field.rstrip("_").replace("_", "-")


class NoOptions(Record):
    """The options of a driver that has none."""


class OpenContext(Record):
    """What a driver is told beside its options.

    `readonly`: nobody will write, so open without write access.  `open` opens another spec (for
    an option of kind SPEC), to be closed by the driver.  `argv` is the command of a captive server.
    """

    readonly: bool
    open: Callable[[str], AbstractAsyncContextManager[Source]]
    argv: tuple[str, ...] = ()


class Driver(Record):
    """The record of a source or layer.

    `name` is its word in a spec, `summary` one line of help, `options` a class of options (see `option`), `extra`
    the pip extra that brings what it imports.
    """

    name: str
    summary: str
    options: type[Any] = NoOptions
    extra: str = ""

    @property
    def synopsis(self) -> str:
        """How it is written in a spec."""
        return self.name

    @property
    def option_table(self) -> tuple[Option, ...]:
        return tuple(
            Option(_option_name(name), name, field.metadata["kind"], field.default, field.metadata["help"])
            for name, field in fields(self.options).items()
        )

    def parse_options(self, texts: Iterable[tuple[str, str]]) -> Any:
        """An instance of `options`; unknown names, doubles and wrong values are usage errors."""
        known = {option.name: option for option in self.option_table}
        values: dict[str, object] = {}
        for name, text in texts:
            if name not in known:
                raise UsageError(f"{self.name} has no option '{name}'{nearest(name, known)}")
            field = known[name].field
            if field in values:
                raise UsageError(f"{self.name}: the option '{name}' is given twice")
            try:
                values[field] = known[name].kind.parse(text)
            except UsageError as error:
                raise UsageError(f"{self.name}: {name}: {error}") from error
        return self.options(**values)


class SourceDriver(Driver, kw_only=True):
    """A leaf.  `open(argument, options, context)` gives the source as an async context manager.

    `argument` names what follows the colon in help.  `schemes` are URI schemes that select the driver by themselves;
    it then gets the whole URI as its argument.

    `open_tree`, for a source that holds several files, opens all of them: keys are relative paths with `/`, safe to
    show in a directory (no `..`, none hides another).  `describe(argument, options)` gives what is known without
    opening anything, for `nbdfs info`: values that JSON can hold, under labels for people, in order.
    """

    open: Callable[[str, Any, OpenContext], AbstractAsyncContextManager[Source]]
    argument: str = ""
    schemes: tuple[str, ...] = ()
    open_tree: Callable[[str, Any, OpenContext], AbstractAsyncContextManager[Mapping[str, Source]]] | None = None
    describe: Callable[[str, Any], Mapping[str, Any]] | None = None

    @property
    def synopsis(self) -> str:
        if self.argument.startswith(tuple(f"{scheme}:" for scheme in self.schemes)):
            return self.argument
        return f"{self.name}:{self.argument or 'ARGUMENT'}"


class LayerDriver(Driver, kw_only=True):
    """A layer.  `open(below, options, context)` gives the source as an async context manager.

    `reads_only` says that the layer never writes to what is below, which is then opened without write access: many
    can share one such source, and it may be write-protected.
    """

    open: Callable[[Source, Any, OpenContext], AbstractAsyncContextManager[Source]]
    reads_only: bool = False

    @property
    def synopsis(self) -> str:
        return f"{self.name}::SOURCE"


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or the list of what there is."""
    import difflib  # for who has made a mistake

    names = sorted(known)
    close = difflib.get_close_matches(word, names, 1)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; there are: {', '.join(names)}" if names else "; it takes none"


@functools.cache
def _in_tree() -> Mapping[str, str]:
    import nbdfs.backends

    found = (name for folder in nbdfs.backends.__path__ for name in _modules(folder) if name != "__init__")
    return {name.replace("_", "-"): name for name in found}


def _modules(folder: str) -> Iterator[str]:
    """The modules in a folder, as pkgutil has them, which takes a large module to tell their names."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".py"):
                yield entry.name.removesuffix(".py")
            elif entry.is_dir() and os.path.exists(os.path.join(entry.path, "__init__.py")):
                yield entry.name


@functools.cache
def _entry_points() -> Mapping[str, importlib.metadata.EntryPoint]:
    import importlib.metadata  # slow to import, and needed only for what is not in the tree

    groups = ("nbdfs.sources", "nbdfs.layers")
    return {point.name: point for group in groups for point in importlib.metadata.entry_points(group=group)}


def find(name: str) -> Driver:
    """The driver of that name; a usage error names the nearest there is."""
    if name in _in_tree():
        driver = importlib.import_module(f"nbdfs.backends.{_in_tree()[name]}").DRIVER
    elif name in _entry_points():
        driver = _entry_points()[name].load()
    else:
        raise UsageError(f"there is no source or layer '{name}'{nearest(name, names())}")
    if not isinstance(driver, Driver):
        raise UserError(f"{name}: its registry record is not a Driver")
    return driver


def in_tree(name: str) -> bool:
    """Whether nbdfs comes with a driver of that name."""
    return name in _in_tree()


def exists(name: str) -> bool:
    """Whether there is a driver of that name."""
    return in_tree(name) or name in _entry_points()


def names() -> Sequence[str]:
    """The names of all drivers."""
    return sorted({*_in_tree(), *_entry_points()})


def _others() -> Iterator[str]:
    """The names of the drivers that are not in the tree, looked up once somebody wants them."""
    yield from _entry_points()


def find_scheme(scheme: str) -> SourceDriver | None:
    """The source that a URI of this scheme selects."""
    likely = sorted(_in_tree(), key=lambda name: not scheme.startswith(name))  # most schemes begin with a driver's name
    for name in itertools.chain(likely, _others()):
        driver = find(name)
        if isinstance(driver, SourceDriver) and scheme in driver.schemes:
            return driver
    return None
