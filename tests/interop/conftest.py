"""What the tests beside other programs share."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT
from tests.guests import Guest
from tests.namespaces import own_network
from tests.packaging.debian import repacked
from tests.torrents import Tracker, tracking

NEWER = "99.0"  # the version of the package that is an upgrade


@pytest.fixture
def leaving() -> Iterator[socket.socket]:
    """A network of the test's own; ask for it before anything that listens.  Gives the packets that leave it."""
    with own_network() as packets:
        yield packets


@pytest.fixture
def tracker() -> Iterator[Tracker]:
    """A tracker on loopback."""
    with tracking() as found:
        yield found


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """A guest, switched on for the first time; in /mnt/share are the Debian package and an upgrade of it."""
    made = list((ROOT / "dist").glob("nbdfs_*.deb"))
    assert len(made) == 1, "there is no Debian package in dist/: make deb"
    share = tmp_path_factory.mktemp("share")
    shutil.copy(made[0], share / "nbdfs.deb")
    shutil.move(repacked(made[0], NEWER, tmp_path_factory.mktemp("newer")), share / "newer.deb")
    with Guest(tmp_path_factory.mktemp("guest"), share) as guest:
        yield guest


@pytest.fixture(scope="session")
def installed(machine: Guest) -> Guest:
    """The guest with the package.  What a test starts in it it also ends; test_systemd_guest.py goes on from there."""
    machine.run("dpkg -i /mnt/share/nbdfs.deb", seconds=300)
    return machine
