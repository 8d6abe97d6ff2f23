"""Exports of each server, mounted: fio verifies, checksums agree, a server killed under load loses nothing."""

from __future__ import annotations

import hashlib
import os

import pytest

from tests.interop.peers import PEERS, Peer, fio, peer, succeeds
from tests.mounts import Mounter, mount_data_plane

__all__ = ["mount_data_plane", "peer"]

pytestmark = pytest.mark.root

# After a kill qemu-nbd has no use for a bitmap that was not closed, and says so; all others come back.
RETURNING = [name for name in PEERS if name != "qemu-nbd bitmap"]


def test_fio_verifies_and_checksums_agree(peer: Peer, mount_data_plane: Mounter) -> None:
    mounted = mount_data_plane(peer.uri)
    succeeds(fio(mounted.file, peer.size))
    content = os.urandom(3 << 20) + bytes(2 << 20) + os.urandom(peer.size - (5 << 20))
    with mounted.file.open("r+b") as disk:
        disk.write(content)
    digest = hashlib.sha256(mounted.file.read_bytes()).hexdigest()
    assert digest == hashlib.sha256(content).hexdigest()
    mounted.umount()
    assert mounted.process.wait(30) == 0
    assert hashlib.sha256(peer.content()).hexdigest() == digest


@pytest.mark.parametrize("peer", RETURNING, indirect=True)
def test_a_server_killed_under_load_loses_nothing(peer: Peer, mount_data_plane: Mounter) -> None:
    """fio writes and verifies while the server is killed and started again."""
    mounted = mount_data_plane(peer.uri)
    peer.restart_under_load(lambda: fio(mounted.file, peer.size, "--rate_iops=,250"), 2)
