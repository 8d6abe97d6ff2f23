"""Many mounts and servers of a configuration, each a process of its own, so that none can harm another.

The processes are started and told to stop as a service manager would: they say by sd_notify(3) when they are up, SIGHUP
makes them reload, SIGTERM ends them.  They are also told to stop when this process ends, however it does.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import trio

from nbdfs import libc, logs, supervise
from nbdfs.config.commands import Command
from nbdfs.config.files import Config, chosen_file, current
from nbdfs.errors import UserError, reason
from nbdfs.nursery import serving_nursery
from nbdfs.undo import unless_done

log = logging.getLogger(__name__)

_LAST_WORDS = 2.0  # seconds from the end of a process to the end of what it printed
_LONGEST_LINE = 1 << 16  # bytes
_END_TIMEOUT = 100.0  # seconds for flushing and closing everything; then a process is left to itself


class Child:
    """The process of a mount or server.  What it prints is logged, with its name."""

    def __init__(self, command: Command, frame: tuple[object, ...], folder: str, verbose: int) -> None:
        """Start it.  `frame` is what it cannot take over while it runs.  Raises OSError if there can be no process."""
        self.label = f"[{command.kind}.{command.name}]"
        self.frame = frame
        self.up = False
        self.told_to_end = False
        self.settled = trio.Event()  # it is up, or has failed
        self.ended = trio.Event()
        path = os.path.join(folder, str(len(os.listdir(folder))))
        self._notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        file = chosen_file()
        words = [command.kind, *([f"--config={file}"] if file else []), *["-v"] * verbose, command.name]
        with unless_done(self._notices.close):
            self._notices.bind(path)
            self._printed, writing = os.pipe()
            with unless_done(lambda: os.close(self._printed)):
                try:
                    self._process = subprocess.Popen(
                        [*_ourselves(), *words],
                        stdin=subprocess.DEVNULL,
                        stdout=writing,
                        stderr=writing,
                        env={**logs.relayed(writing), "NOTIFY_SOCKET": path},
                        preexec_fn=_end_with(os.getpid()),
                        process_group=0,  # a Ctrl-C is for this process, which then tells all others
                    )
                finally:
                    os.close(writing)
                with unless_done(self._process.terminate):
                    self._ended = os.pidfd_open(self._process.pid)

    def signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)

    def end(self) -> None:
        """Have it end; one that is not up yet does by the signal itself."""
        self.told_to_end = True
        self.signal(signal.SIGTERM)

    async def reload(self) -> None:
        """Have it reload, once it is up: before, SIGHUP would end it."""
        await self.settled.wait()
        self.signal(signal.SIGHUP)

    async def keep(self) -> int:
        """Hear what the process says until it ends; give its exit status."""
        try:
            async with serving_nursery() as nursery:
                nursery.start_soon(self._hear)
                printed = trio.Event()
                nursery.start_soon(self._relay, printed)
                await trio.lowlevel.wait_readable(self._ended)
                with trio.move_on_after(_LAST_WORDS):
                    await printed.wait()
        finally:
            os.close(self._ended)
            self._notices.close()
            self.up = False
            self.settled.set()
            self.ended.set()
        return self._process.wait()

    async def _hear(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._notices)
            if b"READY=1" in self._notices.recv(4096).splitlines():
                self.up = True
                self.settled.set()

    async def _relay(self, printed: trio.Event) -> None:
        async with trio.lowlevel.FdStream(self._printed) as stream:
            partial = b""
            async for data in stream:
                *lines, partial = (partial + data).split(b"\n")
                for line in lines:
                    logs.relay(log, self.label, line)
                partial = partial[-_LONGEST_LINE:]
            if partial:
                logs.relay(log, self.label, partial)
        printed.set()


class Fleet:
    """The processes of the mounts and servers `names`, or of all that the configuration has."""

    def __init__(self, names: Sequence[str], nursery: trio.Nursery, folder: str, verbose: int) -> None:
        self._names = names
        self._nursery = nursery
        self._folder = folder
        self._verbose = verbose
        self._children: dict[str, Child] = {}
        self._turn = trio.Lock()  # held while children are ended to be started again
        self.failed = False  # whether one of them has

    def status(self) -> str:
        """How many are up."""
        up = sum(child.up for child in self._children.values())
        return f"{up} of {len(self._children)} up"

    @property
    def up(self) -> bool:
        """Whether any is up."""
        return any(child.up for child in self._children.values())

    def start(self) -> None:
        """Start all.  Raises UserError if the configuration is wrong or has none of a name."""
        config = current()
        commands = self._wanted(config)
        if not commands:
            raise UserError("the configuration has no mount and no server: write [mount.NAME] or [serve.NAME]")
        for command in commands.values():
            self._start(config, command)

    async def settled(self) -> None:
        """Return when each is up or has failed."""
        for child in list(self._children.values()):
            await child.settled.wait()

    async def ended(self) -> None:
        """Return when none is left."""
        while True:
            async with self._turn:
                running = [child for child in self._children.values() if not child.ended.is_set()]
            if not running:
                return
            await running[0].ended.wait()

    async def reload(self) -> None:
        """Start what is new, end what is gone, start again what has another frame, have all others reload."""
        config = await trio.to_thread.run_sync(current)
        wanted = self._wanted(config)
        async with self._turn:
            async with trio.open_nursery() as nursery:
                for name, child in list(self._children.items()):
                    if name in wanted and child.frame == _frame(config, wanted[name]) and not child.ended.is_set():
                        self._nursery.start_soon(child.reload)
                        del wanted[name]
                    else:
                        nursery.start_soon(self._stop, name)
            for command in wanted.values():
                self._start(config, command)

    async def stop(self) -> None:
        """End all."""
        async with trio.open_nursery() as nursery:
            for name in list(self._children):
                nursery.start_soon(self._stop, name)

    def _wanted(self, config: Config) -> dict[str, Command]:
        return {name: config.command(name) for name in self._names} or dict(config.commands)

    def _start(self, config: Config, command: Command) -> None:
        try:
            child = Child(command, _frame(config, command), self._folder, self._verbose)
        except OSError as error:
            self.failed = True
            log.error("[%s.%s] cannot be started: %s", command.kind, command.name, reason(error))
            return
        self._children[command.name] = child
        self._nursery.start_soon(self._keep, child)

    async def _keep(self, child: Child) -> None:
        status = await child.keep()
        if status and not (child.told_to_end and status == -signal.SIGTERM):
            self.failed = True
            how = f"exit status {status}" if status > 0 else signal.Signals(-status).name
            log.error("%s has failed: %s", child.label, how)
        else:
            log.info("%s has ended", child.label)

    async def _stop(self, name: str) -> None:
        child = self._children.pop(name)
        child.end()
        with trio.move_on_after(_END_TIMEOUT, shield=True) as scope:
            await child.ended.wait()
        if scope.cancelled_caught:
            log.error("%s has not ended within %g s", child.label, _END_TIMEOUT)


@asynccontextmanager
async def fleet(names: Sequence[str], verbose: int) -> AsyncIterator[Fleet]:
    """The processes of mounts and servers, which are started with `start` and end with the block."""
    supervise.allow_many_files()
    with tempfile.TemporaryDirectory(prefix="nbdfs-") as folder:
        async with serving_nursery() as nursery:
            processes = Fleet(names, nursery, folder, verbose)
            try:
                yield processes
            finally:
                await processes.stop()


def _frame(config: Config, command: Command) -> tuple[object, ...]:
    """What a process cannot take over while it runs: the one source of a mounted file, too."""
    return (*command.frame, config.contents(command).get(""))


def _ourselves() -> list[str]:
    """The words that run this program, however it was found."""
    return [sys.executable, *sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv) + 1]]


def _end_with(parent: int) -> Callable[[], None]:
    def prepare() -> None:
        libc.die_with_parent(signal.SIGTERM)
        if os.getppid() != parent:  # it ended before we asked
            os._exit(1)

    return prepare
