"""nbdfs.nbd.exports: what strangers are told of an export."""

from __future__ import annotations

import struct

from nbdfs.export import Export
from nbdfs.nbd.exports import ServedExports
from nbdfs.nbd.proto import constants as nbd
from nbdfs.nbd.proto.handshake import Policy, ServerHandshake
from nbdfs.nbd.proto.input import Input
from nbdfs.stack import open_stack
from tests.proto.machines import option, says, string


async def test_where_the_data_lies_is_told_to_nobody() -> None:
    """Neither in the list nor in what is told of an export: its spec may name files of this machine."""
    async with open_stack("memory:1M") as source:
        exports = ServedExports()
        await exports.show(Export("disk", source, "luks,passphrase=+/etc/key::/srv/disk.img"))
        handshake, received = ServerHandshake(exports, Policy()), Input()
        received.feed(struct.pack(">I", 3))
        received.feed(option(nbd.OPT_LIST))
        received.feed(option(nbd.OPT_INFO, string("disk") + struct.pack(">HH", 1, nbd.INFO_DESCRIPTION)))
        said = b"".join(says(handshake, received))
        assert said.count(b"disk") == 1  # its name, in the list
        assert b"/" not in said
        assert b"memory" not in said
