"""What the tests beside other programs share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.torrents import Tracker, tracking


@pytest.fixture
def tracker() -> Iterator[Tracker]:
    """A tracker on loopback."""
    with tracking() as found:
        yield found
