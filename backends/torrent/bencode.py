"""Bencode, the encoding of .torrent files (BEP 3), read with bounds on depth and number of values.

Strings are bytes, dictionaries keep the order of the text.  As the torrents in the world have it, keys may be out
of order and numbers may have leading zeroes.
"""

from __future__ import annotations

import re
from typing import Any

from nbdfs.errors import UserError

MOST_VALUES = 3_000_000
DEEPEST = 100

_INTEGER = re.compile(rb"i(-?[0-9]{1,20})e")
_LENGTH = re.compile(rb"([0-9]{1,10}):")


class BencodeError(UserError):
    """The text is not bencode, or is more than the bounds allow."""


class Decoder:
    """Decodes one value at the start of `data`; what follows it is ignored.

    `spans` tells for each key of the outermost dictionary where its value lies in `data`: hashes are taken of the
    text as it is.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._values = 0
        self.spans: dict[bytes, tuple[int, int]] = {}

    def decode(self) -> Any:
        """The value.  Raises BencodeError."""
        return self._value(0, 0)[0]

    def _value(self, at: int, depth: int) -> tuple[Any, int]:
        """The value that begins at `at`, and where it ends."""
        self._values += 1
        if depth > DEEPEST or self._values > MOST_VALUES:
            raise BencodeError("is nested too deeply or holds too many values")
        match self._data[at : at + 1]:
            case b"d":
                return self._dictionary(at + 1, depth + 1)
            case b"l":
                return self._list(at + 1, depth + 1)
            case b"i":
                number = _INTEGER.match(self._data, at)
                if not number or number[1].startswith(b"-0"):
                    raise BencodeError(f"has no number at byte {at}")
                return int(number[1]), number.end()
        return self._string(at)

    def _string(self, at: int) -> tuple[bytes, int]:
        head = _LENGTH.match(self._data, at)
        if not head:
            what = "ends too soon" if at >= len(self._data) else "is not bencode"
            raise BencodeError(f"{what} (byte {at})")
        end = head.end() + int(head[1])
        if end > len(self._data):
            raise BencodeError(f"is cut short: a string of {int(head[1])} bytes begins at byte {at}")
        return self._data[head.end() : end], end

    def _list(self, at: int, depth: int) -> tuple[list[Any], int]:
        items = []
        while self._data[at : at + 1] != b"e":
            item, at = self._value(at, depth)
            items.append(item)
        return items, at + 1

    def _dictionary(self, at: int, depth: int) -> tuple[dict[bytes, Any], int]:
        items: dict[bytes, Any] = {}
        while self._data[at : at + 1] != b"e":
            key, start = self._string(at)
            items[key], at = self._value(start, depth)
            if depth == 1:
                self.spans[key] = start, at
        return items, at + 1
