"""What the tests beside other programs share."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.namespaces import own_network
from tests.torrents import Tracker, tracking


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
