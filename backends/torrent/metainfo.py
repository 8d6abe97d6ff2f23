"""What a torrent says of itself: the info dictionary of BitTorrent v1 (BEP 3), v2 (BEP 52) and both at once.

Everything here comes from strangers.  Whatever does not add up is refused in one line; names are passed on as they
are (`names` makes them safe).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nbdfs.backends.torrent.bencode import Decoder
from nbdfs.errors import UserError
from nbdfs.records import Record, replace
from nbdfs.source import MAX_SIZE

LARGEST = 64 << 20  # bytes of a .torrent file
MOST_FILES = 100_000
_LARGEST_PIECE = 512 << 20
_SHA1 = 20
_BLOCK = 16 << 10  # BEP 52: pieces are powers of two of at least this
_DEEPEST = 100  # folders
_PADDING = b"_____padding_file_"  # the name that older programs gave to padding

Path = tuple[bytes, ...]


class MetainfoError(UserError):
    """The torrent makes no sense; the message goes after its name."""


class File(Record):
    """A file of `length` bytes that begins at byte `offset` of the torrent.

    `path` is as written, below the torrent's own name; it is empty for the file of a torrent of one.  `index` counts
    the files that are not padding.
    """

    path: Path
    length: int
    offset: int
    index: int


class Metainfo(Record):
    """A torrent.  Hashes are hexadecimal and empty where it has none of that version."""

    name: bytes
    files: tuple[File, ...]  # in the order of the torrent, without padding
    piece_length: int
    pieces: int
    v1: str
    v2: str
    private: bool
    trackers: tuple[str, ...] = ()
    web_seeds: tuple[str, ...] = ()
    comment: str = ""
    created_by: str = ""
    creation_date: int = 0  # seconds since 1970

    @property
    def identity(self) -> str:
        """The hash that names the torrent among its peers and in caches."""
        return self.v1 or self.v2


class _Entry(Record):
    path: Path
    length: int
    attributes: bytes
    link: Path | None


def parse(data: bytes) -> Metainfo:
    """The torrent of a .torrent file."""
    if len(data) > LARGEST:
        raise MetainfoError(f"is larger than the {LARGEST >> 20} MiB allowed for a torrent file")
    decoder = Decoder(data)
    torrent = decoder.decode()
    if not isinstance(torrent, dict):
        raise MetainfoError("is not a torrent: it holds no dictionary")
    start, end = decoder.spans.get(b"info", (0, 0))
    return replace(
        _parse_info(torrent.get(b"info"), data[start:end]),
        trackers=tuple(_trackers(torrent)),
        web_seeds=tuple(dict.fromkeys(_texts(torrent.get(b"url-list")))),
        comment=_text(torrent.get(b"comment.utf-8", torrent.get(b"comment"))),
        created_by=_text(torrent.get(b"created by")),
        creation_date=_integer(torrent, b"creation date"),
    )


def parse_info(data: bytes) -> Metainfo:
    """The torrent of an info dictionary alone, as peers hand it out (BEP 9)."""
    return _parse_info(Decoder(data).decode(), data)


def _parse_info(info: Any, text: bytes) -> Metainfo:
    if not isinstance(info, dict):
        raise MetainfoError("has no info dictionary")
    name = info.get(b"name.utf-8") or info.get(b"name")
    if not isinstance(name, bytes) or not name:
        raise MetainfoError("has no name")
    piece_length = _integer(info, b"piece length")
    if not 0 < piece_length <= _LARGEST_PIECE:
        raise MetainfoError(f"has a piece length of {piece_length}")
    is_v2 = info.get(b"meta version") == 2
    is_v1 = b"pieces" in info or not is_v2
    if is_v2 and (piece_length < _BLOCK or piece_length & (piece_length - 1)):
        raise MetainfoError(f"has a piece length of {piece_length}: version 2 wants a power of two from 16 KiB on")
    entries = list(_v2_entries(info.get(b"file tree"), ())) if is_v2 else list(_v1_entries(info))
    if is_v2 and [entry.path for entry in entries] == [(name,)]:
        entries = [replace(entries[0], path=())]
    files, length = _layout(entries, piece_length if is_v2 else 1)
    pieces = -(-length // piece_length)
    if not files or not pieces:
        raise MetainfoError("holds no data")
    if is_v1:
        _check_hashes(info.get(b"pieces"), pieces)
    return Metainfo(
        name, files, piece_length, pieces, hashlib.sha1(text, usedforsecurity=False).hexdigest() if is_v1 else "",
        hashlib.sha256(text).hexdigest() if is_v2 else "", bool(_integer(info, b"private")),
    )  # fmt: skip


def _check_hashes(hashes: Any, pieces: int) -> None:
    if not isinstance(hashes, bytes) or len(hashes) % _SHA1:
        raise MetainfoError("has no piece hashes, or part of one")
    if len(hashes) // _SHA1 != pieces:
        raise MetainfoError(f"has {len(hashes) // _SHA1} piece hashes for {pieces} pieces")


def _v1_entries(info: Mapping[bytes, Any]) -> Iterator[_Entry]:
    if b"files" not in info:
        yield _entry(info, ())
        return
    listed = info[b"files"]
    if not isinstance(listed, list):
        raise MetainfoError("has no list of files")
    for item in listed:
        if not isinstance(item, dict):
            raise MetainfoError("has a file that is no dictionary")
        path = item.get(b"path.utf-8") or item.get(b"path")
        entry = _entry(item, ())
        if b"p" in entry.attributes:  # padding needs no name
            yield entry
            continue
        named = _path(path)
        is_padding = named[-1].startswith(_PADDING)
        yield replace(entry, path=named, attributes=b"p" if is_padding else entry.attributes)


def _v2_entries(tree: Any, above: Path) -> Iterator[_Entry]:
    if not isinstance(tree, dict) or not tree:
        raise MetainfoError("has no file tree")
    for name, below in tree.items():
        path = (*above, name)
        if not name or not isinstance(below, dict):
            raise MetainfoError("has a file without a name")
        leaf = below.get(b"")
        if leaf is None:
            yield from _v2_entries(below, path)
        elif isinstance(leaf, dict) and len(below) == 1:
            yield _entry(leaf, path)
        else:
            raise MetainfoError("has a name that is both a file and a folder")


def _entry(item: Mapping[bytes, Any], path: Path) -> _Entry:
    attributes = item.get(b"attr", b"")
    attributes = attributes if isinstance(attributes, bytes) else b""
    link = _path(item.get(b"symlink path")) if b"l" in attributes else None
    length = 0 if link else _integer(item, b"length", -1)
    if not 0 <= length <= MAX_SIZE:
        raise MetainfoError("has a file without a length, or with an impossible one")
    return _Entry(path, length, attributes, link)


def _path(path: Any) -> Path:
    if not isinstance(path, list) or not path or not all(isinstance(part, bytes) for part in path):
        raise MetainfoError("has a file without a path")
    if len(path) > _DEEPEST:
        raise MetainfoError(f"has a file below {len(path) - 1} folders")
    return tuple(path)


def _layout(entries: Sequence[_Entry], alignment: int) -> tuple[tuple[File, ...], int]:
    """The files with their places, links resolved (those that lead nowhere are left out); the length of all."""
    if len(entries) > MOST_FILES:
        raise MetainfoError(f"has {len(entries)} files, more than the {MOST_FILES} allowed")
    files: list[File] = []
    links: list[tuple[_Entry, File]] = []
    offset = index = 0
    for entry in entries:
        if entry.length:
            offset = -(-offset // alignment) * alignment
        file = File(entry.path, entry.length, offset, index)
        if b"p" not in entry.attributes:
            index += 1
            if entry.link:
                links.append((entry, file))
            else:
                files.append(file)
        offset += entry.length
        if offset > MAX_SIZE:
            raise MetainfoError("is larger than any file can be")
    targets = {file.path: file for file in files}
    files += [replace(targets[entry.link], path=file.path) for entry, file in links if entry.link in targets]
    return tuple(files), offset


def _trackers(torrent: Mapping[bytes, Any]) -> Iterator[str]:
    tiers = torrent.get(b"announce-list")
    found = [url for tier in tiers for url in _texts(tier)] if isinstance(tiers, list) else []
    yield from dict.fromkeys(found or _texts(torrent.get(b"announce")))


def _texts(value: Any) -> list[str]:
    """A string or a list of strings; whatever else is there is left out."""
    items = value if isinstance(value, list) else [value]
    return [text for item in items if (text := _text(item).strip())]


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else ""


def _integer(item: Mapping[bytes, Any], key: bytes, default: int = 0) -> int:
    value = item.get(key, default)
    return value if isinstance(value, int) else default
