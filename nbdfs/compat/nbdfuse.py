"""`nbdfuse` as libnbd has it: an NBD export as a file.

Where the two differ nbdfs does more: `-o` takes comma lists, several connections go to a captive server too, and the
mount heals when the server comes back.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence

import trio

from nbdfs import mount, supervise
from nbdfs.compat import _peer
from nbdfs.control.methods import Controls
from nbdfs.control.server import controlled
from nbdfs.errors import UsageError
from nbdfs.fuse.options import HELP, MountOptions, parse_options, split_options
from nbdfs.fuse.target import clear_stale
from nbdfs.nbd.uri import Tcp, Unix, Uri, Vsock, parse_port, parse_vsock_number
from nbdfs.records import replace
from nbdfs.spec import Segment, Spec
from nbdfs.stack import plan
from nbdfs.units import parse_number

_FILE = "nbd"  # what the file is called in a directory
# FUSE options for what is so here anyway, or has no counterpart.
_SUPERFLUOUS = {"kernel_cache", "auto_cache", "noauto_cache", "big_writes", "async_read", "sync_read", "clone_fd",
                "atomic_o_trunc", "max_read", "max_write", "max_readahead", "max_background", "max_idle_threads",
                "attr_timeout", "entry_timeout", "negative_timeout", "hard_remove", "use_ino"}  # fmt: skip

Words = list[str]
# How the server is reached: the option that says so, and the spec that its words make.
_MODES: Mapping[str, Callable[[Words], Spec]] = {
    "uri": lambda words: _peer.server(words[0]),
    "unix": lambda words: _uri(Uri(Unix(os.path.abspath(words[0])))),
    "tcp": lambda words: _uri(Uri(Tcp(words[0], parse_port(words[1])))),
    "vsock": lambda words: _uri(Uri(Vsock(parse_vsock_number(words[0], "CID"), parse_vsock_number(words[1], "port")))),
    "fd": lambda words: Spec(source=Segment("nbd", (("fd", str(_number(words[0]))),))),
    "command": lambda words: Spec((Segment("nbd", (("stdio", ""),)),), argv=tuple(words)),
    "socket_activation": lambda words: Spec(argv=tuple(words)),
}


def run(argv: Sequence[str]) -> int:
    """Run the command line; give the exit status.  Raises UserError."""
    parser = _peer.parser("nbdfuse")
    _add_arguments(parser)
    arguments = _peer.parse_words(parser, argv)
    if arguments.fuse_help:
        print(HELP)
        return 0
    if not arguments.mountpoint:
        raise UsageError("write where the file shall be, then the server: nbdfuse MOUNTPOINT[/FILENAME] URI")
    spec = _with_options(_spec(arguments), (("connections", str(arguments.connections)), ("discard", "")))
    options = _options(arguments)
    name, target = _place(arguments.mountpoint, options.subtype)
    order = mount.Order({name: plan(spec)}, target, options, allow_empty=True)
    trio.run(_serve, order, arguments.pidfile)
    return 0


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("mountpoint", nargs="?", metavar="MOUNTPOINT[/FILENAME]", help="a directory, a name in one, or a file to cover")
    add("server", nargs="?", metavar="URI|[ CMD ]", help="the server: an NBD URI, or a command that is one")
    add("-C", "--connections", type=_number, default=4, metavar="N", help="use N connections, if the server shares")
    add("-r", "--readonly", "--read-only", action="store_true", help="let nobody write")
    add("-o", dest="options", action="append", default=[], metavar="OPTS", help="mount options (see --fuse-help)")
    add("-P", "--pidfile", "--pid-file", metavar="FILE", help="write the process id there once the mount is up")
    add("-s", action="store_true", help="accepted; there is one thread anyway")
    add("-d", dest="verbose", action="count", help="as -v")
    add("--fuse-help", action="store_true", help="list the mount options")
    rest = argparse.REMAINDER
    add("--command", "--cmd", nargs=rest, metavar="CMD", help="run a server that speaks on its stdin and stdout")
    add("--socket-activation", "--systemd-socket-activation", nargs=rest, metavar="CMD",
        help="run a server with socket activation")  # fmt: skip
    add("--fd", nargs=1, metavar="N", help="a connected socket that was inherited")
    add("--tcp", nargs=2, metavar=("HOST", "PORT"), help="a server's TCP port")
    add("--unix", nargs=1, metavar="SOCKET", help="a server's Unix socket")
    add("--uri", nargs=1, metavar="URI", help="a server's URI")
    add("--vsock", nargs=2, metavar=("CID", "PORT"), help="a virtual machine's port")


def _spec(arguments: argparse.Namespace) -> Spec:
    given = {mode: words for mode in _MODES if (words := getattr(arguments, mode)) is not None}
    if arguments.server is not None:
        given["uri"] = [*given.get("uri", ()), arguments.server]
    if len(given) != 1 or len(given.get("uri", " ")) != 1:
        raise UsageError("name one server: a URI, [ CMD ], --command, --fd, --tcp, --unix or --vsock")
    ((mode, words),) = given.items()
    if not words:
        raise UsageError(f"--{mode.replace('_', '-')} needs a command")
    return _MODES[mode](words)


def _with_options(spec: Spec, options: tuple[tuple[str, str], ...]) -> Spec:
    """`spec` with further options of its leaf."""
    if spec.source:
        return replace(spec, source=Segment("nbd", (*spec.source.options, *options)))
    own = spec.layers[0].options if spec.layers else ()
    return replace(spec, layers=(Segment("nbd", (*own, *options)),))


def _place(mountpoint: str, subtype: str) -> tuple[str, str]:
    """The name of the file, empty if a file is covered, and what is mounted on."""
    clear_stale(os.path.abspath(mountpoint), subtype)
    if os.path.isdir(mountpoint):
        return _FILE, mountpoint
    if os.path.exists(mountpoint):
        return "", mountpoint
    directory, name = os.path.split(mountpoint)
    directory = directory or "."
    if not name or not os.path.isdir(directory):
        raise UsageError(f"{mountpoint} is no directory, no file and no name in a directory")
    return name, directory


def _options(arguments: argparse.Namespace) -> MountOptions:
    items = (item for text in arguments.options for item in split_options(text))
    wanted = [item for item in items if item.partition("=")[0] not in _SUPERFLUOUS]
    options = parse_options([*wanted, *(["ro"] if arguments.readonly else [])])
    return options if options.mode is not None else replace(options, mode=0o444 if options.readonly else 0o666)


async def _serve(order: mount.Order, pidfile: str | None) -> None:
    async with (
        mount.mounted(order) as mounted,
        controlled(Controls(mounted.exports, "mount", mounted.session.target).methods()),
    ):
        with supervise.pid_file(pidfile):
            await mounted.over()


def _uri(uri: Uri) -> Spec:
    return _peer.server(str(uri))


def _number(text: str) -> int:
    return parse_number(text, "number")
