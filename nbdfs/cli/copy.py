"""Copy one source to another: any spec, file, block device or `[ CMD ]` on either side, `-` for a pipe.

A destination that is a regular file is created, or replaced; anything else must be large enough.  Holes stay holes.
When the command succeeds the copy is complete and flushed.  DST may be null: to throw all away.
"""

from __future__ import annotations

import argparse
import sys
from typing import TextIO

from nbdfs.copying import CopyOptions, Summary, copy
from nbdfs.errors import UsageError, UserError
from nbdfs.progress import Bar, Display, Lines, human_size, progress_descriptor
from nbdfs.records import as_dict, fields
from nbdfs.spec import parse
from nbdfs.units import parse_size


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = CopyOptions()
    add = parser.add_argument
    add("source", metavar="SRC", help="where the bytes come from: a spec, or - for standard input")
    add("destination", metavar="DST", help="where they go: a spec, - for standard output, or null:")
    add_copy_arguments(parser, default)
    add("--no-compare-zeroes", dest="compare_zeroes", action="store_false",
        help="zero what is zero in the source even where the destination says that it is zero already")  # fmt: skip
    add("--verify", action="store_true", help="read both sides again afterwards and compare them")
    add("--resume", default="", metavar="STATEFILE",
        help="keep in STATEFILE what is done, and go on from there if it exists")  # fmt: skip
    add("--retry", type=_count, default=0, metavar="N", help="try a failed request again, up to N times")
    add("--rate", type=_rate, default=0.0, metavar="SIZE", help="read no more than SIZE bytes a second")
    add("--digest", action="append", default=[], metavar="NAME",
        help="print the digest of the content as sha256sum and its kin do (sha256, md5, blake2b, ...)")  # fmt: skip
    add("--json", action="store_true", help="print a summary in JSON")
    add("-q", "--quiet", action="store_true", help="show no progress, also on a terminal")


def add_copy_arguments(parser: argparse.ArgumentParser, default: CopyOptions) -> None:
    """The options that nbdcopy has too."""
    add = parser.add_argument
    add("--allocated", action="store_true", help="allocate all of the destination: no holes")
    add("--blkhash", nargs="?", const="sha256", metavar="NAME[/SIZE]",
        help="print the block hash, which is not what sha256sum prints (default sha256/64k)")  # fmt: skip
    add("--blkhash-file", metavar="FILE", help="write the block hash there instead of printing it")
    add("-C", "--connections", type=_count, default=default.connections, metavar="N",
        help="connections to each NBD server that allows several (default %(default)s)")  # fmt: skip
    add("--destination-is-zero", "--target-is-zero", dest="blank", action="store_true",
        help="take the word for it that the destination reads as zero everywhere")  # fmt: skip
    add("--flush", action="store_true", help="for nbdcopy's sake: a copy is always flushed")
    add("--no-extents", dest="extents", action="store_false", help="read the holes of the source too")
    add("-p", "--progress", nargs="?", const="bar", metavar="FD",
        help="show a progress bar, or with =FD write N/100 lines there")  # fmt: skip
    add("--queue-size", type=parse_size, default=default.queue_size, metavar="SIZE",
        help="the most bytes in flight, on each connection if there are several (default 16M)")  # fmt: skip
    add("--request-size", type=parse_size, metavar="SIZE",
        help="bytes of one request, 32M at the most (default 1M, or 512K to a server on this machine)")  # fmt: skip
    add("-R", "--requests", type=_count, default=default.requests, metavar="N",
        help="the most requests in flight on each connection (default %(default)s)")  # fmt: skip
    add("-S", "--sparse", type=parse_size, metavar="SIZE",
        help="look for zeroes in blocks of SIZE and zero those instead of writing them; 0 looks for none"
        " (default: 4k or the block size the destination prefers; not between two plain files)")  # fmt: skip
    add("--synchronous", action="store_true", help="one request at a time, in order")
    add("-T", "--threads", type=_count, default=0, metavar="N", help="threads that hash, or copy plain files")


def options_of(arguments: argparse.Namespace) -> CopyOptions:
    """The copy options among the arguments, whichever of them the command has."""
    names = fields(CopyOptions)
    given = {name: value for name, value in vars(arguments).items() if name in names}
    return CopyOptions(**given, block_hash=arguments.blkhash, digests=tuple(getattr(arguments, "digest", ())))


def display_of(progress: str | None, quiet: bool) -> Display | None:
    """How progress is shown: as asked for, else a bar if there is a terminal."""
    if progress is not None and progress != "bar":
        return Lines(progress_descriptor(progress))
    if progress == "bar" or (sys.stderr.isatty() and not quiet):
        return Bar(sys.stderr)
    return None


def run(arguments: argparse.Namespace) -> int:
    source, destination = parse(arguments.source), parse(arguments.destination)
    display = display_of(arguments.progress, arguments.quiet)
    summary = copy(source, destination, options_of(arguments), display)
    out = sys.stderr if arguments.destination == "-" else sys.stdout
    if arguments.json:
        import json

        print(json.dumps(as_dict(summary), indent=2), file=out)
    print_hashes(summary, arguments.blkhash_file, silent=arguments.json, out=out)
    if isinstance(display, Bar):
        print(_sentence(summary), file=sys.stderr)
    return 0


def print_hashes(summary: Summary, block_hash_file: str | None, *, silent: bool, out: TextIO) -> None:
    """Print digests as `VALUE  SOURCE`, the block hash alone; it goes to a file if one is named."""
    if not silent:
        name = summary.source.removeprefix("file:")  # sha256sum -c knows files by their paths alone
        for value in summary.digests.values():
            print(f"{value}  {name}", file=out)
    for value in summary.block_hash.values():
        if block_hash_file:
            try:
                with open(block_hash_file, "w", encoding="ascii") as file:
                    file.write(f"{value}\n")
            except OSError as error:
                raise UserError(f"cannot write the block hash to {block_hash_file}: {error.strerror}") from error
        elif not silent:
            print(value, file=out)


def _sentence(summary: Summary) -> str:
    rate = summary.size / summary.seconds if summary.seconds else 0
    parts = {"copied": summary.copied, "zeroed": summary.zeroed, "right already": summary.skipped}
    shares = ", ".join(f"{human_size(size)} {what}" for what, size in parts.items() if size)
    return f"{human_size(summary.size)} in {summary.seconds:.1f} s ({human_size(rate)}/s): {shares or 'nothing to do'}"


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if value < 0:
        raise UsageError(f"'{text}' is not a number of things: write 0, 1, 2, ...")
    return value


def _rate(text: str) -> float:
    value = float(parse_size(text.removesuffix("/s")))
    if not value:
        raise UsageError("a rate of 0 would never end")
    return value
