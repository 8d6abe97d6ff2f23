"""`nbdcopy` as libnbd has it, by the copy engine of nbdfs.

Where the two differ nbdfs does more: a copy is always flushed, and a destination that is too small is refused before
anything is written.  As nbdcopy does, and `nbdfs copy` does not, it zeroes what is zero already.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from nbdfs.cli.copy import add_copy_arguments, display_of, options_of, print_hashes
from nbdfs.compat import _peer
from nbdfs.copying import CopyOptions, copy
from nbdfs.plans import plan
from nbdfs.spec import Segment, Spec
from nbdfs.units import format_size


def run(argv: Sequence[str]) -> int:
    """Run the command line; give the exit status.  Raises UserError."""
    parser = _peer.parser("nbdcopy")
    parser.add_argument("source", metavar="SOURCE", help="-, a file or device, an NBD URI or [ CMD ]")
    parser.add_argument("destination", metavar="DESTINATION", help="the same, or null:")
    add_copy_arguments(parser, CopyOptions())
    parser.set_defaults(compare_zeroes=False)
    arguments = _peer.parse_words(parser, argv)
    source, destination = _end(arguments.source), _end(arguments.destination)
    summary = copy(source, destination, options_of(arguments), display_of(arguments.progress, quiet=True))
    if arguments.verbose:
        size = f"{summary.size} ({format_size(summary.size)})"
        for name, end in (("src", source), ("dst", destination)):
            print(f"nbdcopy: {name}: {_kind(end)}_ops\nnbdcopy: {name}: size={size}", file=sys.stderr)
    out = sys.stderr if arguments.destination == "-" else sys.stdout
    print_hashes(summary, arguments.blkhash_file, silent=False, out=out)
    return 0


def _end(word: str) -> Spec:
    """An end as nbdcopy reads it: there a word that is nothing else is a path, whatever is in it."""
    if word == "null:":
        return Spec(source=Segment("null"))
    if "://" in word or word.startswith("["):
        return _peer.server(word)
    return Spec(argument=word)


def _kind(end: Spec) -> str:
    """The name of the end's kind that scripts look for in the output of -v."""
    if end.source:
        return "null"
    if end.argument == "-":
        return "pipe"
    return plan(end).source.name
