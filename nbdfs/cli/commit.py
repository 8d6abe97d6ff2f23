"""Write the overlay of a cow layer back into what it lies over, and empty it.

nbdfs commit cow,overlay=FILE::SOURCE

The source must be writable and nothing else may use it meanwhile.  An interrupted commit loses nothing: run it again.
"""

from __future__ import annotations

import argparse
import sys

import trio

from nbdfs import progress, spec, stack
from nbdfs.backends import cow
from nbdfs.errors import UsageError, UserError, reason
from nbdfs.plans import Plan, plan
from nbdfs.source import Caps


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("spec", metavar="SPEC", help="cow,overlay=FILE::SOURCE")


def run(arguments: argparse.Namespace) -> int:
    parsed = spec.parse(arguments.spec)
    if not parsed.layers or parsed.layers[0].name != "cow":
        raise UsageError(f"'{plan(parsed)}' has no cow layer in front: write cow,overlay=FILE::SOURCE")
    options = cow.DRIVER.parse_options(parsed.layers[0].options)
    if not options.overlay:
        raise UsageError("cow without overlay=FILE keeps nothing that could be written back")
    below = spec.Spec(parsed.layers[1:], parsed.source, parsed.scheme, parsed.argument)
    trio.run(_commit, options, plan(below))
    return 0


async def _commit(options: cow.CowOptions, below: Plan) -> None:
    from nbdfs.backends.cow.commit import commit, committed_bytes
    from nbdfs.backends.cow.layer import describe_base
    from nbdfs.backends.cow.overlay import open_overlay

    async with stack.open_stack(below) as base:
        if Caps.WRITE not in base.info.caps:
            raise UserError(f"{below} is read-only: nothing can be written back to it")
        was = await describe_base(base)
        overlay = open_overlay(options.overlay, was, options.block, accept=options.accept_base, committing=True)
        try:
            state = progress.Progress(committed_bytes(overlay))
            display = progress.Bar() if sys.stderr.isatty() else None
            async with progress.showing(state, display):
                await commit(overlay, base, was, state.advance)
        except OSError as error:
            raise UserError(f"the commit stopped, and nothing is lost: {reason(error)}; run it again") from error
        finally:
            overlay.close()
