"""Fields of a JSON object that is not trusted: each is there, of the right type and in range, or HeaderError."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

from nbdfs.backends.luks.volume import HeaderError

_DECIMAL = re.compile(r"0|[1-9][0-9]{0,19}")
_LARGEST = (1 << 63) - 1  # bytes: no offset or size on a device can be more
_MOST_OBJECTS = 64  # in one list: the format has 32 key slots
_MOST_BYTES = 1024


class Fields:
    """An object of the header; `name` is its path, for messages."""

    def __init__(self, name: str, values: dict[str, Any]) -> None:
        self.name = name
        self.values = values

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def text(self, key: str) -> str:
        """A string that can be shown, not empty."""
        value = self._get(key, str)
        if not value or not value.isprintable():
            raise self._wrong(key, "no plain text")
        return str(value)

    def integer(self, key: str, least: int, most: int) -> int:
        """A number."""
        value = self._get(key, int)
        if isinstance(value, bool) or not least <= value <= most:
            raise self._wrong(key, f"not between {least} and {most}")
        return int(value)

    def decimal(self, key: str) -> int:
        """A 64-bit number, which the format writes as a string; none beyond the size of a file."""
        value = self._get(key, str)
        if not _DECIMAL.fullmatch(value) or int(value) > _LARGEST:
            raise self._wrong(key, "no size or offset")
        return int(value)

    def base64(self, key: str) -> bytes:
        """Some bytes."""
        try:
            value = base64.b64decode(self._get(key, str), validate=True)
        except (binascii.Error, ValueError):
            raise self._wrong(key, "no base64") from None
        if not 0 < len(value) <= _MOST_BYTES:
            raise self._wrong(key, "of a wrong length")
        return value

    def texts(self, key: str) -> list[str]:
        """An array of strings."""
        values = self._get(key, list)
        if len(values) > _MOST_OBJECTS or not all(isinstance(value, str) and value.isprintable() for value in values):
            raise self._wrong(key, "no short list of strings")
        return list(values)

    def numbers(self, key: str) -> list[int]:
        """An array of object names, which are numbers."""
        return [self._number(key, text) for text in self.texts(key)]

    def child(self, key: str) -> Fields:
        """An object."""
        return Fields(f"{self.name}: {key}" if ":" not in self.name else f"{self.name}.{key}", self._get(key, dict))

    def numbered(self, key: str) -> dict[int, Fields]:
        """An object of objects whose names are numbers."""
        objects = self.child(key)
        if len(objects.values) > _MOST_OBJECTS:
            raise self._wrong(key, f"more than {_MOST_OBJECTS} objects")
        return {self._number(key, name): objects.child(name) for name in objects.values}

    def _number(self, key: str, text: str) -> int:
        if not _DECIMAL.fullmatch(text) or int(text) > 1 << 31:
            raise self._wrong(key, "named by something else than numbers")
        return int(text)

    def _get(self, key: str, kind: type[Any]) -> Any:
        if key not in self.values:
            raise self._wrong(key, "missing")
        value = self.values[key]
        if not isinstance(value, kind):
            raise self._wrong(key, "of the wrong type")
        return value

    def _wrong(self, key: str, what: str) -> HeaderError:
        return HeaderError(f"{self.name}.{key} is {what}" if ":" in self.name else f"{self.name}: {key} is {what}")
