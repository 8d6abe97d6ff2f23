"""Where control sockets are: a folder of the user that nobody else may enter, one socket for each process.

For root it is /run/nbdfs, for others `nbdfs` in $XDG_RUNTIME_DIR or /run/user/UID, and where neither is there,
/tmp/nbdfs-UID.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from nbdfs.errors import UserError

_SUFFIX = ".sock"
_BACKLOG = 16
_TIMEVAL = struct.Struct("@ll")  # seconds and microseconds


def folders() -> list[Path]:
    """The folders that may hold sockets of this user, the first one being where new ones go."""
    user = os.geteuid()
    if user == 0:
        return [Path("/run/nbdfs")]
    above = [os.environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{user}"]
    found = [Path(path, "nbdfs") for path in dict.fromkeys(above) if path and _is_ours(Path(path))]
    return [*found, Path(f"/tmp/nbdfs-{user}")]  # noqa: S108 - only if it is a folder of ours


def sockets() -> Iterator[Path]:
    """The sockets that are there, those of dead processes too."""
    for folder in folders():
        if _is_ours(folder):
            yield from sorted(folder.glob(f"*{_SUFFIX}"))


@contextlib.contextmanager
def listening() -> Iterator[socket.socket]:
    """A socket that listens for this process, for the block.  Raises UserError if there can be none."""
    path = _folder() / f"{os.getpid()}{_SUFFIX}"
    fresh = path.with_suffix(".new")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            fresh.unlink(missing_ok=True)
            listener.bind(str(fresh))
            fresh.chmod(0o600)
            listener.listen(_BACKLOG)
            fresh.replace(path)  # over one that a dead process of this number has left
        except OSError as error:
            raise UserError(f"no control socket {path}: {error.strerror or error}") from error
        try:
            yield listener
        finally:
            with contextlib.suppress(OSError):
                path.unlink()


def connect(path: Path, seconds: float) -> socket.socket | None:
    """A connection to a control socket; None, and the socket is gone, if its process is dead.  Raises OSError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # A socket that does not block would not wait for its turn where many come at once: unix(7), EAGAIN.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(int(seconds), int(seconds % 1 * 1e6)))
    try:
        connection.connect(str(path))
    except (ConnectionRefusedError, FileNotFoundError):
        connection.close()
        path.unlink(missing_ok=True)
        return None
    except BlockingIOError as error:
        connection.close()
        raise TimeoutError(errno.ETIMEDOUT, "too many others wait for its process") from error
    except OSError:
        connection.close()
        raise
    return connection


def _folder() -> Path:
    """The folder for new sockets, made if it is not there."""
    folder = folders()[0]
    try:
        folder.mkdir(0o700, exist_ok=True)
    except OSError as error:
        raise UserError(f"no control socket: cannot make {folder}: {error.strerror}") from error
    if not _is_ours(folder):
        raise UserError(f"no control socket: {folder} is not a folder that only its owner may enter")
    return folder


def _is_ours(folder: Path) -> bool:
    try:
        facts = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.geteuid() and not facts.st_mode & 0o077
