"""Where the log goes and what a line of it looks like: text or JSON, to standard error or a file, or the journal.

The journal is spoken to in its own protocol (systemd.io, "Native Journal Protocol"), with fields to search for.
Where standard error leads to the journal anyway, each line of text is marked with its priority (sd-daemon(3)); so it is
where another nbdfs, `nbdfs up`, logs what this one says.
In the background, with no file to log to, it is the journal or syslog(3).
Whoever logs never waits for it to be written: see `nbdfs.outbox`.
"""

from __future__ import annotations

import abc
import contextlib
import errno
import logging
import os
import re
import stat
import struct
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple, TextIO

from nbdfs.errors import UserError, printable, reason
from nbdfs.outbox import Outbox, PartlyWrittenError, write_bytes, writing

FORMATS = ("text", "json", "journal")

_JOURNAL = "/run/systemd/journal/socket"
_SYSLOG = "/dev/log"
_DAEMON = 3 << 3  # facility, <sys/syslog.h>
_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)
_PRIORITIES = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}  # syslog(3)
_LEVELS_OF = {str(priority): level for level, priority in _PRIORITIES.items()}
_RELAY = "NBDFS_LOG_RELAY"  # in the environment, as JOURNAL_STREAM: standard error leads to another nbdfs
_LAST_WORD = "nbdfs: "  # of a command that fails
_MARK = re.compile(r"<([2-7])>")
_PATIENCE = 0.2  # seconds that the system gets to take a record: others wait behind it
_MOST_DATAGRAM = 64 << 10  # bytes; far below what a socket takes


def set_up(verbose: int, form: str = "text", file: str = "") -> None:
    """Log warnings, with `verbose` more, in one of FORMATS.  Raises UserError if it cannot be logged there."""
    handler = _handler(form, file)
    logging.basicConfig(level=_LEVELS[min(verbose, 2)], handlers=[handler], force=True)


def leave_terminal() -> None:
    """From now on log to the journal, else to syslog, else nowhere, if it was to standard error: that will be gone."""
    root = logging.getLogger()
    if any(not isinstance(handler, StreamLog) for handler in root.handlers):
        return
    flush()
    root.handlers[:] = [logging.NullHandler()]
    for kind in (JournalHandler, SyslogHandler):
        with contextlib.suppress(OSError):
            root.handlers[:] = [kind()]
            return


def flush() -> None:
    """Have what was logged so far written, if that can be done in a bounded time.  No thread is left then."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def relayed(descriptor: int) -> dict[str, str]:
    """The environment of an nbdfs whose standard error is `descriptor`: it writes there what `relay` reads."""
    return {**os.environ, _RELAY: _stream(descriptor)}


def relay(logger: logging.Logger, label: str, line: bytes) -> None:
    """Log a line that another nbdfs has printed, which has chosen already what is worth it."""
    text = line.decode(errors="surrogateescape")
    mark = _MARK.match(text)
    if mark:
        level, text = _LEVELS_OF.get(mark[1], logging.INFO), text[mark.end() :]
    else:  # its last word is an error
        level = logging.ERROR if text.startswith(_LAST_WORD) else logging.INFO
        text = text.removeprefix(_LAST_WORD)
    logger.handle(logging.LogRecord(logger.name, level, __file__, 0, "%s %s", (label, text), None))


def _handler(form: str, file: str) -> logging.Handler:
    if form == "journal":
        try:
            return JournalHandler()
        except OSError as error:
            raise UserError(
                f"there is no journal ({_JOURNAL}: {error.strerror}): choose another --log-format"
            ) from error
    try:
        handler: QueuedHandler = FileLog(file) if file else StreamLog(sys.stderr)
    except OSError as error:
        unread = error.errno == errno.ENXIO and stat.S_ISFIFO(os.stat(file).st_mode)
        why = "nobody reads from it" if unread else error.strerror
        raise UserError(f"cannot log to {file}: {why}") from error
    handler.setFormatter(JsonFormatter() if form == "json" else _text(bool(file)))
    return handler


def _text(stamped: bool) -> logging.Formatter:
    if not stamped and _stderr_takes_priorities():
        return PriorityFormatter("%(message)s")
    return OneLineFormatter(f"{'%(asctime)s ' if stamped else ''}nbdfs: %(message)s")


class OneLineFormatter(logging.Formatter):
    """A record is one line, whatever a remote end has put into its message; a traceback follows on lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return printable(super().formatMessage(record))


class PriorityFormatter(OneLineFormatter):
    """Lines for standard error that leads to the journal or to another nbdfs, each with its priority."""

    def format(self, record: logging.LogRecord) -> str:
        mark = f"<{_priority(record)}>"
        return "\n".join(mark + line for line in super().format(record).splitlines())


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        import json  # not at the start of every command

        fields = {
            "time": _iso(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=True)


class Entry(NamedTuple):
    """A record on its way."""

    data: bytes  # as it is written
    said: str  # its message


class QueuedHandler(logging.Handler, abc.ABC):
    """Has records written by another thread."""

    def __init__(self) -> None:
        super().__init__()
        self._outbox = Outbox(self.write, self._lost)

    @abc.abstractmethod
    def data(self, record: logging.LogRecord) -> bytes:
        """A record as it is written."""

    @abc.abstractmethod
    def write(self, entries: Sequence[Entry]) -> None:
        """Write records.  Raises OSError if they are lost."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            entry = self._entry(record)
        except (TypeError, ValueError):  # a message and arguments that do not fit together
            self.handleError(record)
        else:
            self._outbox.put(entry, len(entry.data))

    def flush(self) -> None:
        self._outbox.flush()

    def close(self) -> None:
        if self._outbox.flush():
            self.release_descriptor()
        super().close()

    def release_descriptor(self) -> None:
        """Close what only `write` uses."""

    def _entry(self, record: logging.LogRecord) -> Entry:
        return Entry(self.data(record), record.getMessage())

    def _lost(self, count: int) -> Entry:
        lost = logging.makeLogRecord({"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING"})
        lost.msg = f"{count} lines of the log are lost: they could not be written, or not in time"
        return self._entry(lost)


class StreamLog(QueuedHandler):
    """Writes lines to standard error."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._encoding = stream.encoding or "utf-8"

    def data(self, record: logging.LogRecord) -> bytes:
        return f"{self.format(record)}\n".encode(self._encoding, "backslashreplace")

    def write(self, entries: Sequence[Entry]) -> None:
        write_bytes(self._stream, b"".join(entry.data for entry in entries))


class FileLog(QueuedHandler):
    """Adds lines to a file, in UTF-8 whatever the locale; names that are not are escaped.  Raises OSError.

    A file that was renamed or removed, as logrotate(8) does, is begun anew.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = os.path.abspath(path)
        self._descriptor = self._opened()
        self._rest = b""  # of a line that was written in part

    def _opened(self) -> int:
        """The file, or a pipe that has a reader: to wait for one would take for ever."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        return os.open(self._path, flags, 0o666)

    def data(self, record: logging.LogRecord) -> bytes:
        return f"{self.format(record)}\n".encode(errors="backslashreplace")

    def write(self, entries: Sequence[Entry]) -> None:
        self._follow()
        data = b"".join([self._rest, *(entry.data for entry in entries)])
        done = deque([0], maxlen=1)
        try:
            done.extend(writing(self._descriptor, data))
        except OSError as error:
            (written,) = done
            ends = list(accumulate((len(entry.data) for entry in entries), initial=len(self._rest)))
            if written:
                self._rest = data[written : next(end for end in ends if end >= written)]
            raise PartlyWrittenError(sum(start < written for start in ends[:-1]), error) from error
        self._rest = b""

    def _follow(self) -> None:
        """Go on in a new file if ours has its name no more; in ours, if that cannot be had."""
        with contextlib.suppress(OSError):
            if not _is_at(self._path, self._descriptor):
                descriptor = self._opened()
                os.dup2(descriptor, self._descriptor, inheritable=False)
                os.close(descriptor)
                self._rest = b""

    def release_descriptor(self) -> None:
        os.close(self._descriptor)


class SystemHandler(QueuedHandler):
    """Sends records to a datagram socket of the system; what `called` does not take (it is being restarted, say) goes
    to standard error.  Raises OSError if nobody listens there."""

    def __init__(self, path: str, called: str) -> None:
        import socket  # not at the start of every command

        super().__init__()
        self._path = path
        self._called = called
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            probe.connect(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(_PATIENCE)

    def write(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            try:
                # By its name each time: a service that was restarted has a new socket.
                self._socket.sendto(entry.data, self._path)
            except OSError as error:
                said = f"nbdfs: {entry.said} ({self._called} does not take it: {reason(error)})"
                write_bytes(sys.stderr, f"{printable(said)}\n".encode(errors="backslashreplace"))

    def release_descriptor(self) -> None:
        self._socket.close()


class JournalHandler(SystemHandler):
    """Sends records to the journal."""

    def __init__(self) -> None:
        super().__init__(_JOURNAL, "the journal")

    def data(self, record: logging.LogRecord) -> bytes:
        fields = {
            "MESSAGE": record.getMessage(),
            "PRIORITY": str(_priority(record)),
            "SYSLOG_IDENTIFIER": "nbdfs",
            "SYSLOG_PID": str(record.process),
            "LOGGER": record.name,
            "CODE_FILE": record.pathname,
            "CODE_LINE": str(record.lineno),
            "CODE_FUNC": record.funcName or "",
        }
        if record.exc_info:
            fields["TRACEBACK"] = logging.Formatter().formatException(record.exc_info)
        return _journal_message(fields)


class SyslogHandler(SystemHandler):
    """Sends records to syslog(3), as a daemon's."""

    def __init__(self) -> None:
        super().__init__(_SYSLOG, "syslog")

    def data(self, record: logging.LogRecord) -> bytes:
        text = f"<{_DAEMON | _priority(record)}>nbdfs[{record.process}]: {printable(record.getMessage())}"
        return text.encode()[:_MOST_DATAGRAM]


def _journal_message(fields: Mapping[str, str]) -> bytes:
    """Fields in the journal's framing: NAME=value, or where a value has several lines, its name, length and bytes."""
    parts = []
    for name, text in fields.items():
        value = text.encode(errors="surrogateescape")[: _MOST_DATAGRAM // 2]
        if b"\n" in value:
            parts.append(name.encode() + b"\n" + struct.pack("<Q", len(value)) + value + b"\n")
        else:
            parts.append(name.encode() + b"=" + value + b"\n")
    return b"".join(parts)


def _priority(record: logging.LogRecord) -> int:
    return _PRIORITIES.get(record.levelno, 6)


def _iso(seconds: float) -> str:
    """Time in UTC with milliseconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1000):03}Z"


def _is_at(path: str, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _stderr_takes_priorities() -> bool:
    """Whether standard error leads to the journal, JOURNAL_STREAM of systemd.exec(5), or to another nbdfs."""
    try:
        ours = _stream(2)
    except OSError:
        return False
    return ours in (os.environ.get("JOURNAL_STREAM"), os.environ.get(_RELAY))


def _stream(descriptor: int) -> str:
    facts = os.fstat(descriptor)
    return f"{facts.st_dev}:{facts.st_ino}"
