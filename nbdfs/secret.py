"""Secrets in options: `+FILE`, `-` (ask on the terminal), `-FD`, or the secret itself.

A secret is read when it is used, never shown, and kept no longer than its reader keeps it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import logging
import os
import stat
import threading
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from typing import BinaryIO

from nbdfs.errors import UsageError, UserError
from nbdfs.units import parse_number

log = logging.getLogger(__name__)

_LONGEST = 8 << 20  # bytes of a secret, as with cryptsetup

_LAST_STANDARD = 2  # descriptor of standard error
_emptied: set[int] = set()  # standard streams that held a secret

_far_away = ContextVar("_far_away", default=False)
_asking = threading.Lock()  # one question at a time on the terminal


@contextlib.contextmanager
def far_away() -> Iterator[None]:
    """For the block and the tasks it starts: who names a secret is not at our terminal and has not our descriptors."""
    token = _far_away.set(True)
    try:
        yield
    finally:
        _far_away.reset(token)


def _asked(prompt: str) -> bytes:
    import getpass  # for who is asked

    with _asking, warnings.catch_warnings():
        warnings.simplefilter("error", getpass.GetPassWarning)
        try:
            return getpass.getpass(f"{prompt}: ").encode()
        except getpass.GetPassWarning:
            raise UserError(f"there is no terminal to ask for the {prompt.lower()} on: use +FILE or -FD") from None
        except UnicodeDecodeError:
            raise UserError(f"the {prompt.lower()} was not typed in the encoding of the locale: use +FILE") from None


def _inherited(text: str) -> int:
    """The descriptor of that number, if it was given to us; one that we have opened ourselves is somebody else's."""
    try:
        descriptor = parse_number(text, "descriptor")
    except UsageError:  # which would show what may be meant for the secret itself
        raise UsageError("a secret that begins with - is -FD, the number of an open descriptor: use +FILE") from None
    try:
        inherited = os.get_inheritable(descriptor)  # as all are that come from another program, and none of ours
    except OverflowError:
        inherited = False
    if not inherited or descriptor in _emptied:
        raise OSError(errno.EBADF, "it was not given to this program, or has been read already")
    if descriptor > _LAST_STANDARD:
        return descriptor
    taken = os.dup(descriptor)  # its number must not become that of another file, which is no standard stream
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, descriptor)
    os.close(null)
    _emptied.add(descriptor)
    return taken


def _part(file: BinaryIO, offset: int, size: int) -> bytes:
    if file.seekable():
        file.seek(offset)
    else:
        while offset and (dropped := file.read(min(offset, _LONGEST))):
            offset -= len(dropped)
    secret = file.read(size or _LONGEST + 1)
    if len(secret) > _LONGEST:
        raise OSError(errno.EFBIG, f"it has more than {_LONGEST >> 20} MiB")
    return secret


def exposed_file(path: str) -> str:
    """Who may read a key file who should not, and what to do; empty if all is well or there is none."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return ""
    if stat.S_ISREG(mode) and mode & stat.S_IRWXO:
        import shlex  # for who has made a mistake

        return f"other users may read the key file {path}: chmod 600 {shlex.quote(path)}"
    return ""


@functools.cache
def _warn(exposed: str) -> None:
    """Say so, once: a secret may be read for a second attempt to open something."""
    if exposed:
        log.warning("%s", exposed)


class Secret:
    """Where a secret is to be read; `str()` and `repr()` tell the place, never the secret."""

    def __init__(self, text: str) -> None:
        self._text = text

    def read(self, prompt: str = "Passphrase", offset: int = 0, size: int = 0) -> bytes:
        """The bytes of the secret, files and descriptors whole, with NUL and newline.

        Of a longer one those from `offset` on, `size` of them or as many as there are; with `size` 0 all.
        """
        text = self._text
        try:
            if text.startswith("+"):
                _warn(self.exposed())
                with open(text[1:], "rb") as file:
                    return _part(file, offset, size)
            if text.startswith("-") and _far_away.get():
                raise UserError(f"the secret {text} would be read by another process, which cannot ask you: use +FILE")
            if text == "-":
                return _part(io.BytesIO(_asked(prompt)), offset, size)
            if text.startswith("-"):
                with os.fdopen(_inherited(text[1:]), "rb") as file:
                    return _part(file, offset, size)
        except (OSError, EOFError) as error:
            why = error.strerror if isinstance(error, OSError) else "nothing was typed"
            raise UserError(f"cannot read the secret {self}: {why}") from error
        log.warning("a secret is written in the command line, where others can see it: use +FILE, - or -FD")
        return _part(io.BytesIO(text.encode("utf-8", "surrogateescape")), offset, size)

    @property
    def is_literal(self) -> bool:
        """Whether the option holds the secret itself, which no one that begins with + or - can be."""
        return not self._text.startswith(("+", "-"))

    @property
    def is_typed(self) -> bool:
        """Whether somebody is asked for it."""
        return self._text == "-"

    def exposed(self) -> str:
        """Who may read the file of the secret who should not, and what to do; empty if all is well or there is none."""
        return exposed_file(self._text[1:]) if self._text.startswith("+") else ""

    def __str__(self) -> str:
        return "***" if self.is_literal else self._text

    def __repr__(self) -> str:
        return f"Secret({self})"
