"""What an NBD server says about itself and its exports."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from nbdfs.backends.nbd import uri_of
from nbdfs.backends.nbd.remote import Remote
from nbdfs.captive import captive
from nbdfs.checked import Checked
from nbdfs.errors import UserError
from nbdfs.info import facts
from nbdfs.info.facts import Facts
from nbdfs.nbd.client import connected
from nbdfs.nbd.entering import list_exports
from nbdfs.nbd.links import ClientOptions
from nbdfs.nbd.proto import constants as nbd
from nbdfs.nbd.proto.answers import RemoteExport, ServerFacts
from nbdfs.nbd.target import Target, target_of_captive, target_of_descriptor, target_of_uri
from nbdfs.nbd.uri import Uri
from nbdfs.records import replace
from nbdfs.stack import Plan

_FLAGS: Mapping[str, int] = {
    "is_rotational": nbd.FLAG_ROTATIONAL,
    "is_read_only": nbd.FLAG_READ_ONLY,
    "can_block_status_payload": nbd.FLAG_BLOCK_STATUS_PAYLOAD,
    "can_cache": nbd.FLAG_SEND_CACHE,
    "can_df": nbd.FLAG_SEND_DF,
    "can_fast_zero": nbd.FLAG_SEND_FAST_ZERO,
    "can_flush": nbd.FLAG_SEND_FLUSH,
    "can_fua": nbd.FLAG_SEND_FUA,
    "can_multi_conn": nbd.FLAG_CAN_MULTI_CONN,
    "can_trim": nbd.FLAG_SEND_TRIM,
    "can_zero": nbd.FLAG_SEND_WRITE_ZEROES,
}


async def exports(planned: Plan, *, listing: bool, probe: bool) -> tuple[ServerFacts, list[Facts]]:
    """The export that the plan names, or all that its server lists.  Raises UserError."""
    try:
        async with _target(planned) as (target, uri):
            server, found = await list_exports(target, all_of_them=listing)
            told = [_facts(export, uri) for export in found]
            if probe:
                for one, export in zip(told, found, strict=True):
                    one.content = await _content(replace(target, export=export.name))
    except OSError as error:
        raise UserError(str(error.strerror or error)) from error
    return server, told


@asynccontextmanager
async def _target(planned: Plan) -> AsyncIterator[tuple[Target, Uri | None]]:
    if planned.argv:
        async with captive(planned.argv, stdio=planned.options.stdio) as server:
            yield target_of_captive(server, planned.options.export), None
    elif planned.options.fd >= 0:
        yield target_of_descriptor(planned.options.fd, planned.options.export), None
    else:
        uri = uri_of(planned.argument, planned.options)
        yield target_of_uri(uri), uri


def _facts(export: RemoteExport, uri: Uri | None) -> Facts:
    name = export.canonical_name or export.name
    return Facts(
        size=export.size,
        flags={flag: export.has(bit) for flag, bit in _FLAGS.items()},
        name=name,
        uri=str(uri.with_export(name)) if uri else "",
        description=export.description,
        contexts=tuple(export.contexts),
        block=export.block,
    )


async def _content(target: Target) -> str:
    """What the content is; empty if the server lets nobody read it this way."""
    try:
        async with connected(target, ClientOptions(connections=1, readonly=True, reconnect=False)) as client:
            return await facts.content(Checked(Remote(client, target.name), readonly=True))
    except OSError:
        return ""
