"""From a target to a handshake with its server, and what a server offers to who only asks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from nbdfs.nbd.channel import Channel
from nbdfs.nbd.handshake import Handshake, HandshakeError
from nbdfs.nbd.mux import Mux
from nbdfs.nbd.proto import constants as nbd
from nbdfs.nbd.proto.answers import RemoteExport, ServerFacts
from nbdfs.nbd.target import Target
from nbdfs.records import replace
from nbdfs.undo import unless_done

_HANDSHAKE_TIMEOUT = 15.0  # seconds to connect and shake hands


@asynccontextmanager
async def shaking_hands(target: Target, *, extended: bool = True) -> AsyncIterator[tuple[Channel, Handshake]]:
    """A channel and its handshake, begun.  On an error the channel is closed.

    The block must end within _HANDSHAKE_TIMEOUT too.  Raises OSError that says what is wrong.
    """
    try:
        with trio.move_on_after(_HANDSHAKE_TIMEOUT) as scope:
            channel = await target.connect()
            with unless_done(channel.close):
                handshake = Handshake(channel)
                await handshake.begin(target.tls, target.hostname, extended=extended)
                yield channel, handshake
        if scope.cancelled_caught:
            raise HandshakeError(f"{target.name} does not answer: no handshake within {_HANDSHAKE_TIMEOUT:g} s")
    except ConnectionError as error:
        if reason := await target.gone():
            raise HandshakeError(reason) from error
        raise


def transmission(channel: Channel, handshake: Handshake) -> Mux:
    """The transmission phase, after an export was entered."""
    facts = handshake.facts
    return Mux(channel, structured=facts.structured, extended=facts.extended)


async def list_exports(target: Target, *, all_of_them: bool = True) -> tuple[ServerFacts, list[RemoteExport]]:
    """What a server offers: all its exports, or the target's own.  Raises OSError."""
    async with shaking_hands(target) as (channel, handshake):
        named = await handshake.list_exports() if all_of_them else [(target.export, "")]
        exports = []
        for name, description in named:
            try:
                export = await handshake.info(name)
            except HandshakeError as error:
                if error.reply != nbd.REP_ERR_UNSUP:
                    raise
                export = RemoteExport(name, 0, 0)
            if not export.size:  # old servers find the size out for who enters only
                export = await _by_entering(target, name)
            exports.append(replace(export, description=export.description or description))
        await handshake.abort()
        channel.close()
    return handshake.facts, exports


async def _by_entering(target: Target, name: str) -> RemoteExport:
    """What the server says about an export to who enters it."""
    async with shaking_hands(target) as (channel, handshake):
        export = await handshake.go(name)
        transmission(channel, handshake).disconnect()
    return export
