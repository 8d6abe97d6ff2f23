"""File names from a torrent, made safe to show in a directory.

Invariants of `tree`: every key is a relative path whose components are neither empty nor `.` nor `..`, hold no slash
and no NUL, and are at most 255 bytes of UTF-8; no key is a folder of another; every file has a key.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping

from nbdfs.backends.torrent.metainfo import File, Metainfo
from nbdfs.errors import UserError

_LONGEST = 255  # bytes of a component: NAME_MAX
_LISTED = 20  # names in an error message


def component(name: bytes, room: int = 0) -> str:
    """One component of a path; `room` bytes are left free for a suffix."""
    text = name.decode(errors="replace").replace("/", "_").replace("\0", "_")
    if text in ("", ".", ".."):
        return "_"
    raw = text.encode()
    if len(raw) > _LONGEST - room:
        dot = raw.rfind(b".")
        extension = raw[dot:] if 0 < len(raw) - dot <= 16 and dot > 0 else b""
        stem = raw[: _LONGEST - room - len(extension)].decode(errors="ignore")
        return stem + extension.decode(errors="ignore")
    return text


def tree(metainfo: Metainfo) -> dict[str, File]:
    """The files under safe paths, in the order of the torrent; the torrent's own name is not among the folders."""
    safe = [(_components(file, metainfo), file) for file in metainfo.files]
    folders = {path[:depth] for path, _ in safe for depth in range(1, len(path))}
    taken: dict[str, File] = {}
    tries: dict[tuple[str, ...], int] = {}
    for path, file in safe:
        unique = path
        while unique in folders or "/".join(unique) in taken:
            tries[path] = tries.get(path, 1) + 1
            unique = (*path[:-1], _numbered(path[-1], tries[path]))
        taken["/".join(unique)] = file
    return taken


def choose(files: Mapping[str, File], wanted: str, name: str) -> tuple[str, File]:
    """The file that `wanted` (a path or a glob, with or without the torrent's name) means; the largest if empty."""
    if not files:
        raise UserError("the torrent has no files")
    if not wanted:
        return max(files.items(), key=lambda item: item[1].length)
    short = wanted.removeprefix(f"{name}/")
    for path in (wanted, short):
        if path in files:
            return path, files[path]
    found = [path for path in files if fnmatch.fnmatchcase(path, wanted) or fnmatch.fnmatchcase(path, short)]
    if not found:
        raise UserError(f"the torrent has no file '{wanted}'; it has: {_list(files)}")
    if len(found) > 1:
        raise UserError(f"'{wanted}' is {len(found)} files, choose one: {_list(found)}")
    return found[0], files[found[0]]


def _components(file: File, metainfo: Metainfo) -> tuple[str, ...]:
    return tuple(component(part) for part in file.path or (metainfo.name,))


def _numbered(name: str, number: int) -> str:
    suffix = f" ({number})"
    stem, dot, extension = name.rpartition(".")
    if not stem:
        stem, dot, extension = name, "", ""
    shortened = component(stem.encode(), len((suffix + dot + extension).encode()))
    return f"{shortened}{suffix}{dot}{extension}"


def _list(paths: Iterable[str]) -> str:
    names = list(paths)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
