"""Magnet links (BEP 9, BEP 52): a torrent by its hash alone."""

from __future__ import annotations

import base64
import binascii
import re
import urllib.parse

from nbdfs.errors import UsageError
from nbdfs.records import Record

SCHEME = "magnet:"
_TOPIC = re.compile(r"xt(\.[0-9]+)?")
_V1 = "urn:btih:"
_V2 = "urn:btmh:1220"  # a multihash: SHA-256, 32 bytes


class Magnet(Record):
    """What a link says; hashes are hexadecimal, empty where there is none of that version."""

    v1: str
    v2: str
    name: str
    trackers: tuple[str, ...]
    web_seeds: tuple[str, ...]

    @property
    def identity(self) -> str:
        return self.v1 or self.v2


def parse(link: str) -> Magnet:
    """The parts of a link.  Raises UsageError."""
    items = urllib.parse.parse_qsl(link.removeprefix(SCHEME).removeprefix("?"), keep_blank_values=True)
    topics = [value for key, value in items if _TOPIC.fullmatch(key)]
    v1 = next((_v1(topic) for topic in topics if topic.lower().startswith(_V1)), "")
    v2 = next((_hexadecimal(topic[len(_V2) :], 32) for topic in topics if topic.lower().startswith(_V2)), "")
    if not v1 and not v2:
        raise UsageError("the magnet link names no torrent: xt=urn:btih:HASH or xt=urn:btmh:1220HASH is missing")

    def values(key: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(value for name, value in items if name == key and value))

    return Magnet(v1, v2, next(iter(values("dn")), ""), values("tr"), values("ws"))


def _v1(topic: str) -> str:
    digits = topic[len(_V1) :]
    if len(digits) != 32:
        return _hexadecimal(digits, 20)
    try:
        return base64.b32decode(digits.upper()).hex()
    except binascii.Error:
        raise UsageError(f"the magnet link's hash '{digits}' is not base 32") from None


def _hexadecimal(digits: str, size: int) -> str:
    if not re.fullmatch(rf"[0-9a-fA-F]{{{size * 2}}}", digits):
        raise UsageError(f"the magnet link's hash '{digits}' is not {size * 2} hexadecimal digits")
    return digits.lower()
