"""What `mount`, `serve` and `run` share for those who watch them: the log, figures for Prometheus, and progress."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from nbdfs import logs
from nbdfs.errors import UsageError, UserError
from nbdfs.export import Export
from nbdfs.fetching import FetchBar, FetchLines
from nbdfs.nbd.uri import Address, Tcp, Unix, parse_port, socket_path
from nbdfs.progress import Shows, progress_descriptor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of both."""
    group = parser.add_argument_group("watching")
    group.add_argument("--metrics", type=parse_address, metavar="ADDRESS", help="figures for Prometheus over HTTP, at "
                       "HOST:PORT, [IPv6]:PORT or unix:/PATH")  # fmt: skip
    group.add_argument("--progress", metavar="FD|bar|none", default="", help="show what is fetched from peers: JSON "
                       "lines on a descriptor, or a bar on stderr, as mount and serve do on a terminal")  # fmt: skip
    group.add_argument("--log-file", metavar="FILE", default="", help="log there instead of to stderr")
    group.add_argument("--log-format", choices=logs.FORMATS, default="text",
                       help="text, JSON lines, or the journal (default %(default)s)")  # fmt: skip


def parse_address(text: str) -> Address:
    """HOST:PORT, [IPv6]:PORT or unix:/PATH.  Raises UsageError."""
    if text.startswith("unix:"):
        return Unix(socket_path(text.removeprefix("unix:")))
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""  # IPv6 without brackets: where the port begins cannot be told
    with contextlib.suppress(UsageError):
        if host:
            return Tcp(host, parse_port(port))
    raise UsageError(f"--metrics: '{text}' is no address: write HOST:PORT, [IPv6]:PORT or unix:/PATH")


def set_up_log(arguments: argparse.Namespace) -> None:
    """Log as the options say.  Raises UsageError and UserError."""
    if arguments.log_file and arguments.log_format == "journal":
        raise UsageError("the journal is no file: leave out --log-file or --log-format=journal")
    logs.set_up(arguments.verbose, arguments.log_format, arguments.log_file)


@asynccontextmanager
async def live_metrics(address: Address | None, exports: Iterable[Export]) -> AsyncIterator[None]:
    """Tell the figures of exports, which may come and go, for the block if an address is given."""
    if address is None:
        yield
        return
    try:
        from nbdfs.metrics.server import serving_metrics
    except ImportError as error:
        raise UserError(f"--metrics needs {error.name}: pip install 'nbdfs[metrics]'") from error
    async with serving_metrics(address, exports):
        yield


def progress(arguments: argparse.Namespace, *, own_terminal: bool) -> Shows[Iterable[Export]] | None:
    """How to show what is fetched; `own_terminal` says that nobody else draws there.  Raises UsageError."""
    wanted = arguments.progress
    if wanted == "bar" or (not wanted and own_terminal and sys.stderr.isatty()):
        return FetchBar()
    return FetchLines(progress_descriptor(wanted)) if wanted not in ("", "none") else None
