"""Secrets in options: `+FILE`, `-` (ask on the terminal), `-FD`, or the secret itself.

A secret is read when it is used, never shown, and kept no longer than its reader keeps it.
"""

from __future__ import annotations

import getpass
import logging
import os

from nbdfs.errors import UserError

log = logging.getLogger(__name__)


class Secret:
    """Where a secret is to be read; `str()` and `repr()` tell the place, never the secret."""

    def __init__(self, text: str) -> None:
        self._text = text

    def read(self, prompt: str = "Passphrase") -> bytes:
        """The bytes of the secret: files and descriptors whole, with NUL and newline."""
        text = self._text
        try:
            if text.startswith("+"):
                with open(text[1:], "rb") as file:
                    return file.read()
            if text == "-":
                return getpass.getpass(f"{prompt}: ").encode()
            if text.startswith("-") and text[1:].isdigit():
                with os.fdopen(int(text[1:]), "rb") as file:
                    return file.read()
        except (OSError, EOFError) as error:
            raise UserError(f"cannot read the secret {self}: {error}") from error
        log.warning("a secret is written in the command line, where others can see it: use +FILE, - or -FD")
        return text.encode()

    def __str__(self) -> str:
        return self._text if self._text.startswith(("+", "-")) else "***"

    def __repr__(self) -> str:
        return f"Secret({self})"
