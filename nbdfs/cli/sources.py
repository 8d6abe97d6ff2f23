"""List the sources and layers there are, or tell all about one: how it is written and the options it takes."""

from __future__ import annotations

import argparse
import json
import shutil
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from nbdfs import registry
from nbdfs.registry import Driver, SourceDriver


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="tell all about this one")
    parser.add_argument("--json", action="store_true", help="answer in JSON")


def run(arguments: argparse.Namespace) -> int:
    names = [arguments.name] if arguments.name else registry.names()
    drivers = [registry.find(name) for name in names]
    if arguments.json:
        records = [_record(driver) for driver in drivers]
        print(json.dumps(records[0] if arguments.name else records, indent=2))
    elif arguments.name:
        print("\n".join(_page(drivers[0])))
    else:
        print("\n".join(_list(drivers)))
    return 0


def _list(drivers: Iterable[Driver]) -> Iterable[str]:
    sources = {driver.synopsis: driver.summary for driver in drivers if isinstance(driver, SourceDriver)}
    layers = {driver.synopsis: driver.summary for driver in drivers if not isinstance(driver, SourceDriver)}
    yield "Sources:"
    yield from _columns(sources)
    yield "\nLayers, each over a source:"
    yield from _columns(layers)
    yield "\n'nbdfs sources NAME' tells the options of one."


def _page(driver: Driver) -> Iterable[str]:
    yield f"{driver.synopsis}\n    {driver.summary}"
    if isinstance(driver, SourceDriver) and driver.schemes:
        yield f"    A URI selects it too: {', '.join(f'{scheme}:' for scheme in driver.schemes)}"
    if driver.extra:
        yield f"    What it needs: pip install 'nbdfs[{driver.extra}]'"
    if driver.option_table:
        yield "\nOptions, each written as ,NAME=VALUE:"
        yield from _columns(
            {
                f"{option.name}={option.kind.name}": f"{option.help} (default {option.default_text})"
                if option.default_text
                else option.help
                for option in driver.option_table
            }
        )


def _columns(rows: Mapping[str, str]) -> Iterable[str]:
    """Words and what they mean, side by side in the width of the terminal."""
    left = min(max(map(len, rows), default=0), 30) + 4
    width = max(shutil.get_terminal_size((100, 24)).columns, left + 30)
    for word, text in rows.items():
        first, *rest = textwrap.wrap(text, width - left)
        if len(word) > left - 4:
            yield f"  {word}"
            word = ""
        yield f"  {word:{left - 2}}{first}"
        yield from (" " * left + line for line in rest)


def _record(driver: Driver) -> Mapping[str, Any]:
    is_source = isinstance(driver, SourceDriver)
    return {
        "name": driver.name,
        "kind": "source" if is_source else "layer",
        "synopsis": driver.synopsis,
        "summary": driver.summary,
        "schemes": list(driver.schemes) if isinstance(driver, SourceDriver) else [],
        "extra": driver.extra,
        "options": [
            {
                "name": option.name,
                "type": option.kind.name,
                "default": option.default_text,
                "secret": option.kind.secret,
                "help": option.help,
            }
            for option in driver.option_table
        ],
    }
