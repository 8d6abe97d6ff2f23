"""Captive servers: an NBD server that nbdfs starts for itself and that lives no longer than nbdfs.

There are three ways to reach one:

* socket activation, the usual one: the server inherits a listening Unix socket as descriptor 3 (sd_listen_fds(3));
* a private Unix socket, for servers that cannot do that: `{}` in an argument stands for the socket's path;
* its standard input and output (`stdio`), which carry a single connection.

The server gets no other descriptor.  What it prints is logged, and its last lines are told if it fails.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import logging
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from nbdfs import libc
from nbdfs.errors import UserError, reason
from nbdfs.nbd.uri import Unix
from nbdfs.nursery import serving_nursery

log = logging.getLogger(__name__)

START_TIMEOUT = 30.0  # seconds until a private socket must be there
_STOP_TIMEOUT = 5.0  # seconds a server has after SIGTERM
_DYING = 2.0  # seconds from hanging up to the end
_LAST_LINES = 8
_LONGEST_LINE = 4096  # bytes; what a line has beyond that is not shown
_BACKLOG = 128

# $1 is the parent: had it died before PR_SET_PDEATHSIG was set, nobody would end the server.  The shell is replaced by
# the server, so $$ is the server's process id, which LISTEN_PID must be.
_ACTIVATED = '[ "$PPID" = "$1" ] || exit 1; shift; LISTEN_FDS=1 LISTEN_PID=$$ exec "$@" 3<&0 </dev/null'
_PLAIN = '[ "$PPID" = "$1" ] || exit 1; shift; unset LISTEN_FDS LISTEN_PID; exec "$@"'


class Captive:
    """A running captive server."""

    def __init__(
        self, name: str, process: subprocess.Popen[bytes], address: Unix | None, single: socket.socket | None
    ) -> None:
        self.name = name
        self._process = process
        self.address = address
        self._single = single
        self._ended = trio.Event()
        self._lines: collections.deque[str] = collections.deque(maxlen=_LAST_LINES)

    @property
    def single(self) -> bool:
        """Whether there is one connection, and no other after it."""
        return self.address is None

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    async def connect(self) -> socket.socket:
        """A new connection, non-blocking; the caller's to close.  Raises OSError if there is none."""
        if not self.alive:
            raise ConnectionRefusedError(errno.ECONNREFUSED, await self.epitaph())
        if self.address is None:
            if self._single is None:
                raise ConnectionRefusedError(errno.ECONNREFUSED, f"{self.name} has one connection only, and it is gone")
            connection, self._single = self._single, None
            return connection
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            connection.connect(self.address.path)
        except OSError:
            connection.close()
            raise
        return connection

    async def epitaph(self) -> str:
        """How the server ended, empty if it goes on.  Waits a moment for one that just hung up."""
        with trio.move_on_after(_DYING):
            await self._ended.wait()
        return "" if self.alive else self.last_words()

    def last_words(self) -> str:
        """How the server ended, and what it said last."""
        status = self._process.poll()
        if status is None:
            ended = f"{self.name} is running"
        elif status < 0:
            ended = f"{self.name} was ended by {signal.Signals(-status).name}"
        else:
            ended = f"{self.name} ended with exit status {status}"
        return f"{ended}: {' / '.join(self._lines)}" if self._lines else ended

    async def _watch(self, output: int) -> None:
        """Log what the server prints until it ends."""
        async with trio.lowlevel.FdStream(output) as stream:
            partial = b""
            async for data in stream:
                *lines, partial = (partial + data).split(b"\n")
                for line in lines:
                    self._say(line)
                partial = partial[:_LONGEST_LINE]
            self._say(partial)
        await self._exited()  # its files are closed a moment before it has a status
        self._ended.set()

    async def _exited(self) -> None:
        if self.alive:
            descriptor = os.pidfd_open(self._process.pid)
            try:
                await trio.lowlevel.wait_readable(descriptor)
            finally:
                os.close(descriptor)

    def _say(self, line: bytes) -> None:
        text = line[:_LONGEST_LINE].decode(errors="replace").strip()
        if text:
            self._lines.append(text)
            log.info("%s", text)

    async def _until_listening(self) -> None:
        assert self.address is not None
        with trio.move_on_after(START_TIMEOUT):
            while self.alive:
                with contextlib.suppress(OSError):
                    (await self.connect()).close()
                    return
                await trio.sleep(0.01)
            await self._ended.wait()
            raise UserError(self.last_words())
        raise UserError(f"{self.name} does not listen on {self.address}")

    async def _stop(self) -> None:
        if self._single:
            self._single.close()
        if not self.alive:
            return
        _signal_group(self._process, signal.SIGTERM)
        with trio.move_on_after(_STOP_TIMEOUT):
            await self._exited()
        _signal_group(self._process, signal.SIGKILL)  # also what the server left in its process group
        self._process.wait()


@asynccontextmanager
async def captive(argv: Sequence[str], *, stdio: bool = False) -> AsyncIterator[Captive]:
    """Run a server for the block.  Raises UserError if it cannot be started.

    A server that ends at once is found out at the first `connect`.
    """
    if shutil.which(argv[0]) is None:
        raise UserError(f"there is no program '{argv[0]}' to run as a server")
    folder = tempfile.mkdtemp(prefix="nbdfs-")
    try:
        server, output = _start(argv, os.path.join(folder, "socket"), stdio)
        async with serving_nursery() as nursery:
            nursery.start_soon(server._watch, output)
            try:
                if not stdio and _places(argv):
                    await server._until_listening()
                yield server
            finally:
                with trio.CancelScope(shield=True):  # for _STOP_TIMEOUT at most
                    await server._stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _places(argv: Sequence[str]) -> bool:
    return any("{}" in word for word in argv)


def _start(argv: Sequence[str], path: str, stdio: bool) -> tuple[Captive, int]:
    """Start the server from this thread: PR_SET_PDEATHSIG is about the thread that forks, not the process."""
    name = os.path.basename(argv[0])
    reading, writing = os.pipe()
    try:
        if stdio:
            ours, theirs = socket.socketpair()
            with theirs:
                process = _spawn(_PLAIN, argv, theirs.fileno(), theirs.fileno(), writing)
            ours.setblocking(False)
            return Captive(name, process, None, ours), reading
        if _places(argv):
            argv = [word.replace("{}", path) for word in argv]
            process = _spawn(_PLAIN, argv, subprocess.DEVNULL, writing, writing)
            return Captive(name, process, Unix(path), None), reading
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(path)
            listener.listen(_BACKLOG)
            process = _spawn(_ACTIVATED, argv, listener.fileno(), writing, writing)
        return Captive(name, process, Unix(path), None), reading
    except OSError as error:
        os.close(reading)
        raise UserError(f"cannot run {shlex.join(argv)}: {reason(error)}") from error
    finally:
        os.close(writing)


def _spawn(script: str, argv: Sequence[str], stdin: int, stdout: int, stderr: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["/bin/sh", "-c", script, argv[0], str(os.getpid()), *argv],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        preexec_fn=libc.die_with_parent,
        process_group=0,  # a Ctrl-C is for nbdfs, which first writes back what it holds
    )


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
