"""Show the bytes of a source in hex, `*` for rows that repeat the one before.

Holes are not read, so a huge sparse disk is quick.
"""

from __future__ import annotations

import argparse
import logging
import sys

import trio

from nbdfs.dump import Dumper, dump
from nbdfs.errors import SourceError, UserError
from nbdfs.plans import plan
from nbdfs.stack import open_stack
from nbdfs.units import parse_size

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("spec", metavar="SPEC", help="the source")
    add("-o", "--offset", "--skip", type=parse_size, default=0, metavar="SIZE", help="begin there")
    add("-n", "--length", "--limit", type=parse_size, metavar="SIZE", help="show no more than that many bytes")
    add_colour_arguments(parser)


def add_colour_arguments(parser: argparse.ArgumentParser) -> None:
    """--color and --no-color, in their spellings; the default is None: colour on a terminal."""
    parser.add_argument("--color", "--colour", "--colors", "--colours", dest="colour", action="store_true",
                        default=None, help="colour the output (default: on a terminal)")  # fmt: skip
    parser.add_argument("--no-color", "--no-colour", "--no-colors", "--no-colours", dest="colour",
                        action="store_false", help="do not colour the output")  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    trio.run(_dump, arguments)
    return 0


async def _dump(arguments: argparse.Namespace) -> None:
    out = sys.stdout
    colour = out.isatty() if arguments.colour is None else arguments.colour
    fancy = colour and out.encoding.lower().startswith("utf")
    planned = plan(arguments.spec)
    async with open_stack(planned, readonly=True) as source:
        size = source.info.size
        if arguments.offset > size:
            raise UserError(f"{planned} ends at byte {size}: there is nothing at {arguments.offset}")
        length = size - arguments.offset
        if arguments.length is not None:
            length = min(length, arguments.length)
        if source.info.missing:
            log.warning("%s: %s", planned, source.info.missing)
        dumper = Dumper(out.write, colour=colour, fancy=fancy)
        try:
            await dump(source, arguments.offset, length, dumper)
        except SourceError as error:
            raise UserError(f"the dump is incomplete: {error}") from error
        finally:
            out.flush()
