"""`nbdinfo` as libnbd has it, by `nbdfs info`."""

from __future__ import annotations

from collections.abc import Sequence

from nbdfs.cli import info
from nbdfs.compat import _peer


def run(argv: Sequence[str]) -> int:
    """Run the command line; give the exit status: 0, 2 for a question whose answer is no.  Raises UserError."""
    parser = _peer.parser("nbdinfo")
    parser.add_argument("spec", metavar="NBD", help="an NBD URI or [ CMD ]")
    info.add_info_arguments(parser)
    arguments = _peer.parse_words(parser, argv)
    with info.misuse_told(arguments):
        _peer.server(arguments.spec)
    return info.run(arguments)
