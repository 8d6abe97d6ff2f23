"""The `torrent` source: files of a torrent, fetched from their peers as they are read.

Only the record is here.  The parts: `bencode`, `metainfo`, `magnet` and `names` read what a torrent says of itself,
`opening` joins its swarm, `session` is libtorrent on trio, `torrent` is what is looked after in it (its `membership`,
`pieces`, `request_queue`, `eviction`, `swarm`, `sharing`, `patience`, `circle`, `handover` and `seeding`), `cache` and
`layout` know where pieces lie, and `reader` is a file as a source, with its `readahead`.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from nbdfs.errors import UsageError
from nbdfs.records import Record
from nbdfs.registry import (
    BOOLEAN,
    DURATION,
    INTEGER,
    NUMBER,
    PATH,
    SECRET,
    SIZE,
    TEXT,
    Kind,
    OpenContext,
    SourceDriver,
    choice,
    option,
)
from nbdfs.secret import Secret
from nbdfs.source import MAX_SIZE, Source
from nbdfs.units import parse_size


def _parse_prefetch(text: str) -> int:
    if text in ("all", "none"):
        return MAX_SIZE if text == "all" else 0
    return parse_size(text)


def _parse_listen(text: str) -> str:
    """libtorrent's form: interfaces or addresses with a port, separated by commas."""
    return ",".join(item if _PORT.search(item) else f"{item}:0" for item in text.split(","))


_PORT = re.compile(r"(^|[^:]|\]):[0-9]+s?$")  # not the end of an IPv6 address without brackets
_PREFETCH = Kind("all|none|SIZE", _parse_prefetch)
_LISTEN = Kind("ADDRESS[:PORT]", _parse_listen)


class Options(Record):
    file: str = option("", TEXT, "path or glob of the file to show; default the largest")
    prefetch: int = option(0, _PREFETCH, "fetch all, or so much from the start, also without a read")
    cache: str = option("", PATH, "folder that keeps what was fetched between runs; default a temporary one")
    cache_size: int = option(0, SIZE, "most that is kept on disk, what is unused for longest goes; 0 is no limit")
    timeout: float = option(60.0, DURATION, "how long a read, or a magnet link, waits for peers")
    sequential: bool = option(True, BOOLEAN, "fetch ahead in order; no: the rarest pieces first")
    download_limit: int = option(0, SIZE, "bytes a second; 0 is no limit")
    upload_limit: int = option(0, SIZE, "bytes a second; 0 is no limit")
    connections: int = option(200, INTEGER, "most peers at a time")
    listen: str = option("0.0.0.0:0,[::]:0", _LISTEN, "where peers reach us; several with %2C")
    outgoing: str = option("", TEXT, "address or interface that connections go out from")
    proxy: str = option("", TEXT, "socks5://, socks4:// or http:// [USER@]HOST:PORT for all connections")
    proxy_password: Secret | None = option(None, SECRET, "password for the proxy")
    user_agent: str = option("", TEXT, "name told to trackers and web seeds")
    dht: bool = option(True, BOOLEAN, "find peers in the distributed hash table")
    lsd: bool = option(True, BOOLEAN, "find peers in the local network")
    pex: bool = option(True, BOOLEAN, "exchange addresses of peers with peers")
    upnp: bool = option(False, BOOLEAN, "ask the router to let peers in")
    encryption: str = option("allow", choice("allow", "require", "off"), "obfuscation of connections to peers")
    seed_ratio: float = option(0.0, NUMBER, "stop uploading at so many times what was downloaded; 0 never")
    seed_time: float = option(0.0, DURATION, "stop uploading so long after all is here; 0 never")


@asynccontextmanager
async def _open_tree(argument: str, options: Options, context: OpenContext) -> AsyncIterator[Mapping[str, Source]]:
    from nbdfs.backends.torrent.names import tree
    from nbdfs.backends.torrent.opening import joined, prefetch
    from nbdfs.backends.torrent.reader import TorrentFile

    if options.file:
        raise UsageError("torrent: file= chooses one file, a directory shows all")
    async with joined(argument, options) as torrent, AsyncExitStack() as stack:
        files = tree(torrent.metainfo)
        sources = {path: TorrentFile(torrent, file, path) for path, file in files.items()}
        for source in sources.values():
            await stack.enter_async_context(source)
        prefetch(torrent, files.values(), options.prefetch)
        yield sources


@asynccontextmanager
async def _open(argument: str, options: Options, context: OpenContext) -> AsyncIterator[Source]:
    from nbdfs.backends.torrent.names import choose, component, tree
    from nbdfs.backends.torrent.opening import joined, prefetch
    from nbdfs.backends.torrent.reader import TorrentFile

    async with joined(argument, options) as torrent:
        path, file = choose(tree(torrent.metainfo), options.file, component(torrent.metainfo.name))
        async with TorrentFile(torrent, file, path) as source:
            prefetch(torrent, [file], options.prefetch)
            yield source


def _describe(argument: str, options: Options) -> Mapping[str, Any]:
    """What the torrent file or the magnet link says; nobody is asked."""
    from nbdfs.backends.torrent import magnet
    from nbdfs.backends.torrent.description import of_magnet, of_torrent

    if argument.startswith(magnet.SCHEME):
        return of_magnet(argument)
    return of_torrent(argument)


DRIVER = SourceDriver(
    "torrent",
    "a file of a torrent, fetched as it is read",
    options=Options,
    extra="torrent",
    open=_open,
    argument="FILE.torrent|magnet:?xt=...",
    schemes=("magnet",),
    open_tree=_open_tree,
    describe=_describe,
)
