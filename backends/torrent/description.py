"""What a torrent file or a magnet link says, for `nbdfs info`: nobody is asked for anything."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from nbdfs.backends.torrent import magnet
from nbdfs.backends.torrent.loading import load
from nbdfs.backends.torrent.names import component, tree


def of_torrent(path: str) -> Mapping[str, Any]:
    """The facts of a torrent file under labels for people; what it does not say is left out."""
    torrent, _ = load(path)
    created = torrent.creation_date
    return _present({
        "name": component(torrent.name),
        "size": sum({file.index: file.length for file in torrent.files}.values()),
        "files": [{"path": name, "size": file.length} for name, file in tree(torrent).items()],
        "pieces": torrent.pieces,
        "piece length": torrent.piece_length,
        "info hash v1": torrent.v1,
        "info hash v2": torrent.v2,
        "private": torrent.private,
        "trackers": list(torrent.trackers),
        "web seeds": list(torrent.web_seeds),
        "comment": torrent.comment,
        "created by": torrent.created_by,
        "created": _date(created),
    })  # fmt: skip


def of_magnet(link: str) -> Mapping[str, Any]:
    """The facts of a magnet link."""
    parts = magnet.parse(link)
    return _present({
        "name": component(parts.name.encode()) if parts.name else "",
        "info hash v1": parts.v1,
        "info hash v2": parts.v2,
        "trackers": list(parts.trackers),
        "web seeds": list(parts.web_seeds),
    })  # fmt: skip


def _present(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    return {label: value for label, value in facts.items() if value not in ("", [])}


def _date(seconds: int) -> str:
    if not 0 < seconds < 1 << 34:
        return ""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")
