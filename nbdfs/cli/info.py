"""Say what a source is and can do, or show its map; for NBD servers also the protocol and all their exports.

--is, --can and --has X exit with status 0 if it is so and 2 if not, --isnt, --cannot and --hasnt the other way round;
1 means that it could not be found out.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import trio

from nbdfs import info
from nbdfs.checked import Checked
from nbdfs.cli.dump import add_colour_arguments
from nbdfs.errors import SourceError, UsageError, UserError, leaves
from nbdfs.info import chart, colours, maps
from nbdfs.plans import plan
from nbdfs.source import ALLOCATION, HOLE
from nbdfs.spec import parse
from nbdfs.units import parse_size

_CHART_ROWS = 16
_PICTURE = 512  # pixels on each side of a PNG


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("spec", metavar="SPEC", help="the source; with --list, a server or a source of several files")
    add_info_arguments(parser)
    add = parser.add_argument
    add("--offset", type=parse_size, default=0, metavar="SIZE", help="--map: begin there")
    add("--length", type=parse_size, metavar="SIZE", help="--map: no more than that many bytes")
    add("--chart", action="store_true", help="--map: draw it, one character for each part of the source")
    add("--png", metavar="FILE", help="--map: draw it into a PNG file")


def add_info_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that nbdinfo has too."""
    add = parser.add_argument
    add("--json", action="store_true", help="answer in JSON")
    add("--size", action="store_true", help="only the size in bytes")
    add("--uri", action="store_true", help="only the NBD URI")
    add("--map", action="append", nargs="?", const=ALLOCATION, metavar="CONTEXT",
        help="the extents, with =CONTEXT those of another map than base:allocation; may be repeated")  # fmt: skip
    add("--totals", "--total", action="store_true", help="--map: only the sum of each kind")
    add("-L", "--list", action="store_true", help="all exports of the server")
    for words, wanted, text in (
        (("--is", "--can", "--has"), True, f"status 0 if it is so, 2 if not: {', '.join(info.QUESTIONS)}"),
        (("--isnt", "--cannot", "--hasnt"), False, "status 0 if it is not so, 2 if it is"),
    ):
        add(*words, dest="questions", action="append", metavar="X", type=_Question(wanted), help=text)
    add("--content", action="store_true", default=None, help="look what the content is, with file(1) (default for one)")
    add("--no-content", dest="content", action="store_false", help="do not look (default for --list)")
    add_colour_arguments(parser)


class _Question:
    """Reads the X of --is X: the key of `info.QUESTIONS`, and the answer that is asked for."""

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted

    def __call__(self, text: str) -> tuple[str, bool]:
        name = text.lower().replace("_", "-").replace(" ", "-")
        name = info.OTHER_NAMES.get(name, name)
        if name not in info.QUESTIONS:
            raise UserError(f"'{text}' is nothing that can be asked; there are: {', '.join(info.QUESTIONS)}")
        return name, self.wanted


@contextlib.contextmanager
def misuse_told(arguments: argparse.Namespace) -> Iterator[None]:
    """With a question the exit status of a UsageError would be an answer: any other failure's is given then."""
    try:
        yield
    except* UsageError as group:
        if not arguments.questions:
            raise
        raise UserError("; ".join(map(str, leaves(group)))) from group


def run(arguments: argparse.Namespace) -> int:
    with misuse_told(arguments):
        _check(arguments)
        out = io.StringIO()  # nothing is shown unless all could be found out
        status = trio.run(_told, arguments, out)
        sys.stdout.write(out.getvalue())
        return status


def _check(arguments: argparse.Namespace) -> None:
    """Raise UsageError for options that contradict each other."""
    modes = [arguments.size, arguments.uri, bool(arguments.map), arguments.list, bool(arguments.questions)]
    if sum(modes) > 1:
        raise UsageError("only one of --size, --uri, --map, --list and --is, --can, --has makes sense at a time")
    if sum(bool(getattr(arguments, name, None)) for name in ("totals", "chart", "png")) > 1:
        raise UsageError("only one of --totals, --chart and --png makes sense at a time")
    if not arguments.map:
        for name in ("totals", "chart", "png", "offset", "length"):
            if getattr(arguments, name, None):
                raise UsageError(f"--{name} is about a map: give --map too")


async def _told(arguments: argparse.Namespace, out: io.StringIO) -> int:
    try:
        return await _run(arguments, out)
    except SourceError as error:
        raise UserError(f"{plan(arguments.spec)}: {error}") from error


async def _run(arguments: argparse.Namespace, out: io.StringIO) -> int:
    spec = parse(arguments.spec)
    if arguments.map:
        async with info.open_mapped(spec, arguments.map) as source:
            await _map(source, arguments, out)
        return 0
    probe = arguments.content if arguments.content is not None else not arguments.list
    short = arguments.size or arguments.uri or bool(arguments.questions)
    report = await info.report(spec, listing=arguments.list, probe=probe and not short)
    if arguments.questions:
        return 0 if all(report.answer(name) is wanted for name, wanted in arguments.questions) else 2
    if arguments.size or arguments.uri:
        export = report.exports[0]
        value: Any = export.size if arguments.size else export.uri
        if not arguments.size and not value:
            raise UserError(f"{plan(spec)} is not reached by an NBD URI")
        print(json.dumps(value) if arguments.json else value, file=out)
    elif arguments.json:
        print(json.dumps(report.as_json(), indent=2), file=out)
    else:
        coloured = _coloured(arguments)
        out.writelines(f"{colours.of_fact(line) if coloured else line}\n" for line in report.as_text())
    return 0


def _coloured(arguments: argparse.Namespace) -> bool:
    return sys.stdout.isatty() if arguments.colour is None else bool(arguments.colour)


async def _map(source: Checked, arguments: argparse.Namespace, out: io.StringIO) -> None:
    contexts: list[str] = arguments.map
    size = source.info.size
    offset = getattr(arguments, "offset", 0)
    if offset > size:
        raise UserError(f"the source ends at byte {size}: there is nothing at {offset}")
    length = getattr(arguments, "length", None)
    length = size - offset if length is None else min(length, size - offset)
    picture = getattr(arguments, "chart", False) or getattr(arguments, "png", None)
    if len(contexts) > 1 and (picture or arguments.totals):
        raise UsageError("a picture or the totals show one map: give --map once")
    if picture:
        await _draw(source, arguments, offset, length, out)
    elif arguments.totals:
        _print_totals(contexts[0], await maps.totals(source, contexts[0], offset, length), arguments, out)
    elif arguments.json:
        rows = [_row(contexts, row) async for row in maps.rows(source, contexts, offset, length)]
        print("[" + ",\n ".join(map(json.dumps, rows)) + "]", file=out)
    else:
        coloured = _coloured(arguments)
        async for row in maps.rows(source, contexts, offset, length):
            print(_line(contexts, row, coloured), file=out)


def _line(contexts: Iterable[str], row: maps.Row, coloured: bool) -> str:
    line = f"{row.offset:10d}  {row.length:10d}"
    for context, flags in zip(contexts, row.flags, strict=True):
        kind = f"{flags:3d}  {maps.describe(context, flags)}".rstrip()
        line += "  " + (colours.of_extent(context, flags, kind) if coloured else kind)
    return line


def _row(contexts: Iterable[str], row: maps.Row) -> dict[str, Any]:
    place = {"offset": row.offset, "length": row.length}
    kinds = [_kind(context, flags) for context, flags in zip(contexts, row.flags, strict=True)]
    if len(kinds) == 1:
        return place | kinds[0]
    return place | {"contexts": dict(zip(contexts, kinds, strict=True))}


def _kind(context: str, flags: int) -> dict[str, Any]:
    described = maps.describe(context, flags)
    return {"type": flags} | ({"description": described} if described else {})


def _print_totals(context: str, totals: dict[int, int], arguments: argparse.Namespace, out: io.StringIO) -> None:
    whole = sum(totals.values())
    if arguments.json:
        values = [
            {"size": size, "percent": size * 100 / whole} | _kind(context, flags) for flags, size in totals.items()
        ]
        print(json.dumps(values), file=out)
        return
    for flags, size in totals.items():
        line = f"{size:10d} {size * 100 / whole:5.1f}% {flags:3d} {maps.describe(context, flags)}".rstrip()
        print(colours.of_extent(context, flags, line) if _coloured(arguments) else line, file=out)


async def _draw(source: Checked, arguments: argparse.Namespace, offset: int, length: int, out: io.StringIO) -> None:
    context = arguments.map[0]
    columns = shutil.get_terminal_size().columns
    cells = chart.Cells(offset, length, _PICTURE * _PICTURE if arguments.png else columns * _CHART_ROWS)
    async for row in maps.rows(source, [context], offset, length):
        flags = row.flags[0]
        if maps.is_set(context, flags):
            cells.add(cells.full, row.offset, row.length)
        elif context == ALLOCATION and not flags & HOLE:
            cells.add(cells.zero, row.offset, row.length)
    if arguments.png:
        _write(arguments.png, chart.png(cells, min(_PICTURE, cells.count)))
        return
    fancy = sys.stdout.encoding.lower().startswith("utf")
    out.writelines(f"{line}\n" for line in chart.text(cells, columns, colour=_coloured(arguments), fancy=fancy))


def _write(path: str, data: bytes) -> None:
    try:
        with open(path, "wb") as file:
            file.write(data)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
