"""Uploads end where a limit of seeding is reached, and go on when more was downloaded."""

from __future__ import annotations

import datetime
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("libtorrent", reason="the torrent extra is not installed")

from nbdfs.backends.torrent.seeding import Seeding

SLOTS = 50


class Slots:
    """A session of which only the upload slots count."""

    def __init__(self) -> None:
        self.session = self
        self.now = SLOTS

    def apply_settings(self, settings: dict[str, Any]) -> None:
        self.now = settings["unchoke_slots_limit"]


def seeding(slots: Slots, *, here: bytes = b"\1\1", ratio: float = 0.0, seconds: float = 0.0) -> Seeding:
    options = SimpleNamespace(connections=SLOTS, seed_ratio=ratio, seed_time=seconds)
    return Seeding(slots, SimpleNamespace(here=here, present=here.count(1)), options)  # type: ignore[arg-type]


def status(down: int = 0, up: int = 0, seconds: float = 0.0) -> SimpleNamespace:
    """That of a torrent that has been a seed for so long, and wanted nothing for long before."""
    times = {"seeding_duration": datetime.timedelta(seconds=seconds), "finished_duration": datetime.timedelta(hours=1)}
    return SimpleNamespace(all_time_download=down, all_time_upload=up, **times)


def test_the_ratio_is_that_of_what_was_downloaded_until_now() -> None:
    slots = Slots()
    limits = seeding(slots, ratio=2.0)
    for down, up, expected in [(0, 0, SLOTS), (10, 19, SLOTS), (10, 20, 0), (11, 21, SLOTS), (100, 300, 0)]:
        limits.look(status(down, up))
        assert slots.now == expected, (down, up)


@pytest.mark.parametrize(("here", "expected"), [(b"\1\1", 0), (b"\1\0", SLOTS)])
def test_the_time_counts_from_when_all_is_here(here: bytes, expected: int) -> None:
    slots = Slots()
    limits = seeding(slots, here=here, seconds=5.0)
    limits.look(status(seconds=4.9))
    assert slots.now == SLOTS
    limits.look(status(seconds=5.0))
    assert slots.now == expected
