"""Reading a torrent file; needs nothing but Python."""

from __future__ import annotations

from nbdfs.backends.torrent import metainfo
from nbdfs.backends.torrent.bencode import BencodeError
from nbdfs.backends.torrent.metainfo import Metainfo, MetainfoError
from nbdfs.errors import UserError


def load(path: str) -> tuple[Metainfo, bytes]:
    """A torrent file: what it says, and its bytes.  Raises UserError."""
    try:
        with open(path, "rb") as file:
            data = file.read(metainfo.LARGEST + 1)
    except OSError as error:
        raise UserError(f"torrent: {path}: {error.strerror}") from error
    try:
        return metainfo.parse(data), data
    except (MetainfoError, BencodeError) as error:
        raise UserError(f"torrent: {path} {error}") from error
