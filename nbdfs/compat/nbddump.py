"""`nbddump` as libnbd has it, by `nbdfs dump`."""

from __future__ import annotations

from collections.abc import Sequence

from nbdfs.cli import dump
from nbdfs.compat import _peer


def run(argv: Sequence[str]) -> int:
    """Run the command line; give the exit status.  Raises UserError."""
    parser = _peer.parser("nbddump")
    dump.add_arguments(parser)
    arguments = _peer.parse_words(parser, argv)
    _peer.server(arguments.spec)
    return dump.run(arguments)
