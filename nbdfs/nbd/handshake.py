"""The client's handshake over a channel: a driver of `proto.client_handshake`."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nbdfs.errors import SourceError
from nbdfs.nbd.proto.answers import RemoteExport, ServerFacts
from nbdfs.nbd.proto.client_handshake import MOST_WANTED, ClientHandshake
from nbdfs.nbd.proto.client_states import State
from nbdfs.nbd.proto.events import ProtocolError
from nbdfs.nbd.proto.input import Input
from nbdfs.nbd.proto.refusals import RefusedError
from nbdfs.source import ALLOCATION

if TYPE_CHECKING:
    import ssl

    from nbdfs.nbd.channel import Channel


class HandshakeError(SourceError):
    """The server refused, or is not what it was taken for.  `reply` is its NBD_REP_ERR, if it sent one."""

    def __init__(self, message: str, reply: int = 0) -> None:
        super().__init__(errno.ECONNREFUSED, message)
        self.reply = reply


class Handshake:
    """One handshake.  `begin` comes first, `go` last; both ends are in the transmission phase then.

    No byte is received that does not belong to the handshake.  The methods raise OSError: HandshakeError for what the
    server refuses, ConnectionError for a lost connection.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._machine = ClientHandshake()
        self._input = Input(MOST_WANTED)

    @property
    def facts(self) -> ServerFacts:
        return self._machine.facts

    async def begin(self, tls: ssl.SSLContext | None, hostname: str, *, extended: bool = True) -> None:
        """Greet, go under TLS if there is a context, and agree on the best form of replies (`extended` allows it)."""
        self._machine = ClientHandshake(tls=tls is not None, extended=extended)
        await self._until_ready(b"")
        if self._machine.state is State.STARTING_TLS:
            assert tls is not None
            await self._channel.start_tls(tls, hostname)
            await self._until_ready(self._machine.tls_started())

    async def list_exports(self) -> list[tuple[str, str]]:
        """The name and description of each export.  Empty if the server does not tell."""
        await self._until_ready(self._machine.list_exports())
        return self._machine.exports

    async def info(self, name: str) -> RemoteExport:
        """What the server says about an export, without entering it; size 0 if the server is too old for that."""
        await self._until_ready(self._machine.info(name))
        return self._machine.export

    async def go(self, name: str, contexts: Sequence[str] = (ALLOCATION,)) -> RemoteExport:
        """Enter an export, with as many of the contexts as it has."""
        with self._refusals():
            said = self._machine.go(name, contexts)
        await self._until_ready(said)
        return self._machine.export

    async def abort(self) -> None:
        """Say goodbye before the transmission phase."""
        self._channel.send_now([self._machine.abort()])

    async def _until_ready(self, said: bytes) -> None:
        """Send, and hear the server out."""
        machine, channel = self._machine, self._channel
        with self._refusals():
            while True:
                if said:
                    await channel.send_rest(memoryview(said))
                if not machine.listening:
                    return
                try:
                    self._input.feed(await channel.recv_exactly(machine.wanted))
                except ConnectionResetError:
                    machine.hung_up()
                    raise
                said = machine.advance(self._input)

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Name the server in what is wrong with it."""
        try:
            yield
        except RefusedError as error:
            raise HandshakeError(f"{self._channel.peer} {error}", error.reply) from error
        except ProtocolError as error:
            raise HandshakeError(f"{self._channel.peer} broke the protocol: {error}") from error
        except ConnectionError as error:
            if error.errno and error.strerror == os.strerror(error.errno):  # the kernel's own words, which name nobody
                raise OSError(error.errno, f"{self._channel.peer}: {error.strerror}") from error
            raise
