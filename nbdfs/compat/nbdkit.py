"""`nbdkit` as its command line has it, for the sources and layers that there are here.

Where the two differ nbdfs is the stricter: without an address it listens on localhost only, and what it does not know
is an error.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence

import trio

from nbdfs import libc, live, logs, supervise, systemd
from nbdfs.cli import _serving
from nbdfs.cli._serving import Place, Service
from nbdfs.cli.main import Parser
from nbdfs.cli.serve import serve_exports
from nbdfs.compat import _peer
from nbdfs.compat._nbdkit_names import FILTERS, PLUGINS, VARIANTS, Filter, Key, Plugin
from nbdfs.errors import UsageError, UserError, reason
from nbdfs.nbd.uri import Tcp, Uri
from nbdfs.registry import nearest
from nbdfs.spec import Segment, Spec
from nbdfs.stack import Plan, plan

VERSION = "1.48.1"  # of nbdkit: the one whose command line this is


def run(argv: Sequence[str]) -> int:
    """Run the command line; give the exit status.  Raises UserError."""
    parser = _parser()
    arguments = parser.parse_intermixed_args(list(argv))
    logs.set_up(2 if arguments.verbose else 0)
    if "data.AST=1" in arguments.debug:
        logging.getLogger("nbdfs.backends.data").addHandler(_DataTrees())
    if arguments.dump_config:
        major, minor, _ = VERSION.split(".")
        print(f"name=nbdkit\nversion={VERSION}\nversion_major={major}\nversion_minor={minor}\ntls=yes\nzstd=no")
        return 0
    if not arguments.words:
        raise UsageError("a plugin is missing: write nbdkit PLUGIN [KEY=VALUE...]")
    name, *words = _with_files(arguments.words)
    if arguments.dump_plugin:
        if arguments.single or arguments.run is not None:
            raise UsageError("--dump-plugin serves nobody: leave out -s and --run")
        print(_dump(name, arguments.filter))
        return 0
    planned = plan(_spec(name, words, arguments.filter))
    what = _service(arguments)
    if arguments.exit_with_parent:
        libc.die_with_parent()
    foreground = arguments.foreground or arguments.single or arguments.run is not None
    foreground = foreground or arguments.exit_with_parent or systemd.activated()
    if arguments.log == "stderr" and not foreground:
        raise UsageError("--log=stderr goes with -f: a server in the background has no terminal")
    if arguments.log == "null":
        logging.disable()
    ready = (lambda: None) if foreground else supervise.background(logs.leave_terminal)
    return trio.run(_serve, planned, what, arguments, ready)


def _parser() -> Parser:
    parser = Parser(prog="nbdkit", description=__doc__)
    add = parser.add_argument
    add("words", nargs="*", metavar="PLUGIN [KEY=VALUE...]", help=", ".join(PLUGINS))
    add("--filter", action="append", default=[], metavar="FILTER", help=", ".join(FILTERS))
    add("-U", "--unix", action="append", default=[], metavar="SOCKET", help="a Unix socket, - for a private one")
    _serving.add_port_argument(parser)
    add("-i", "--ipaddr", "--ip-addr", metavar="ADDRESS", help="the TCP address (the default is localhost)")
    add("-e", "--exportname", "--export-name", "--export", default="", metavar="NAME", help="the export in $uri")
    add("-r", "--readonly", "--read-only", action="store_true", help="let nobody write")
    add("-f", "--foreground", "--no-fork", action="store_true", help="stay in the foreground")
    add("-P", "--pidfile", "--pid-file", metavar="FILE", help="write the process id there")
    add("-s", "--single", "--stdin", action="store_true", help="serve one client on standard input and output")
    add("--run", metavar="CMD", help="run a shell command, then stop with its exit status")
    add("--vsock", action="store_true", help="listen for virtual machines")
    add("-v", "--verbose", action="store_true", help="say more")
    add("--exit-with-parent", action="store_true", help="end when the parent does")
    add("--dump-plugin", action="store_true", help="tell about the plugin")
    add("--dump-config", action="store_true", help="tell about the program")
    add("--no-sr", action="store_true", help="no structured replies")
    _peer.add_option_lists(parser)
    add("-V", "--version", action="version", version=f"nbdkit {VERSION} (nbdfs)")
    _serving.add_tls_arguments(parser)
    add("-D", "--debug", action="append", default=[], help=argparse.SUPPRESS)
    add("--log", choices=("default", "stderr", "null"), default="default", help="where messages go")
    for words, address in ((("-4", "--ipv4-only"), "127.0.0.1"), (("-6", "--ipv6-only"), "::1")):
        add(*words, dest="family", action="store_const", const=address, help=f"listen on {address} instead")
    add("-t", "--threads", type=int, help="accepted; the number follows from the work")
    add("-n", "--newstyle", "--new-style", action="store_true", help="accepted; there is no other")
    return parser


def _with_files(words: Sequence[str]) -> list[str]:
    """The words, each @FILE replaced by the words in that file (a data string may begin with @ too)."""
    found: list[str] = []
    for word in words:
        if not word.startswith("@") or not os.path.isfile(word[1:]):
            found.append(word)
            continue
        try:
            with open(word[1:], encoding="utf-8") as file:
                found += shlex.split(file.read(), comments=True)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read arguments from {word[1:]}: {reason(error)}") from error
    return found


def _plugin(name: str) -> Plugin:
    if name not in PLUGINS:
        raise UsageError(f"there is no plugin '{name}' here{nearest(name, PLUGINS)}")
    return PLUGINS[name]


def _filter(name: str) -> Filter:
    if name not in FILTERS:
        raise UsageError(f"there is no filter '{name}' here{nearest(name, FILTERS)}")
    return FILTERS[name]


def _spec(name: str, words: Sequence[str], filters: Sequence[str]) -> Spec:
    """The stack that a plugin, its filters and their keys make."""
    plugin = _plugin(name)
    pairs = [_pair(plugin, word) for word in words]
    plugin = next((VARIANTS[name, key] for key, _ in pairs if (name, key) in VARIANTS), plugin)
    taken = [dict(_filter(name).fixed) for name in filters]
    options = dict(plugin.fixed)
    given: dict[str, str] = {}
    for key, value in pairs:
        at = next((at for at, filter in enumerate(filters) if key in _filter(filter).keys), None)
        if at is not None:
            taken[at] |= _options(key, _filter(filters[at]).keys[key], value)
        elif key in plugin.argument:
            given[key] = value
        elif key in plugin.keys:
            options |= _options(key, plugin.keys[key], value)
        elif plugin.source == "data" and key.isidentifier():
            os.environ[key] = value  # a variable of the string, which looks there for it
        else:
            raise UsageError(f"nbdkit: neither {name} nor its filters have a key '{key}' here")
    if plugin.argument and not (given or plugin.default):
        raise UsageError(f"nbdkit: {name} needs {plugin.argument[0]}=")
    argument = plugin.made(given) if given else plugin.default
    layers = tuple(
        Segment(_filter(filter).layer, tuple(own.items()))
        for filter, own in zip(filters, taken, strict=True)
        if own or not _filter(filter).idle
    )
    return Spec(layers, Segment(plugin.source, tuple(options.items())), "", argument)


def _pair(plugin: Plugin, word: str) -> tuple[str, str]:
    """KEY=VALUE, where the plugin's magic key may be left out."""
    key, equals, value = word.partition("=")
    if equals and key.replace("-", "").replace("_", "").isalnum() and key[:1].isalpha():
        return key, value
    if plugin.argument:
        return plugin.argument[0], word
    raise UsageError(f"nbdkit: '{word}' is not KEY=VALUE")


def _options(name: str, key: Key, value: str) -> dict[str, str]:
    try:
        return dict.fromkeys(key.option.split(), key.value(value))
    except UsageError as error:
        raise UsageError(f"nbdkit: {name}: {error}") from error


class _DataTrees(logging.Handler):
    """`-D data.AST=1`: what a data string comes to, between nbdkit's marks."""

    def emit(self, record: logging.LogRecord) -> None:
        for line in "BEGIN AST", record.getMessage().removeprefix("data: "), "END AST":
            print(f"nbdkit: debug: {line}", file=sys.stderr)


def _dump(name: str, filters: Sequence[str]) -> str:
    """What --dump-plugin prints, as scripts look for it."""
    _plugin(name)
    for filter in filters:
        _filter(filter)
    features = {"memory": ["mlock=yes", "zstd=no"], "data": ["data_base64=yes", "zstd=no"]}
    return "\n".join([f"path={sys.argv[0]}", f"name={name}", f"version={VERSION}", *features.get(name, [])])


def _service(arguments: argparse.Namespace) -> Service:
    if arguments.family:
        if arguments.ipaddr is not None or arguments.vsock:
            raise UsageError("-4 and -6 choose between the addresses of localhost: they go with no other")
        arguments.ipaddr = arguments.family
    arguments.listen, arguments.max_clients = [], _serving.DEFAULTS.clients
    arguments.handshake_timeout, arguments.idle_timeout = _serving.DEFAULTS.handshake, _serving.DEFAULTS.idle
    uris, private = _serving.address_uris(
        arguments.unix, arguments.ipaddr, arguments.port, arguments.vsock, arguments.exportname
    )
    if arguments.single:
        if uris or private or arguments.run is not None:
            raise UsageError("-s goes with no address and no --run")
        place = Place(stdio=True)
    elif uris or private or os.environ.get("LISTEN_FDS"):
        place = Place(uris, private)
    else:
        place = Place(private=True) if arguments.run is not None else Place((Uri(Tcp(), arguments.exportname),))
    return _serving.service(arguments, place, structured=not arguments.no_sr, any_name=True)


async def _serve(planned: Plan, what: Service, arguments: argparse.Namespace, ready: Callable[[], None]) -> int:
    async with live.opened(readonly=arguments.readonly, allow_empty=True) as exports:
        await exports.open_all({arguments.exportname: planned})
        return await serve_exports(what, exports, run=arguments.run, pidfile=arguments.pidfile, ready=ready, show=False)
