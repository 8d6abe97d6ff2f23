"""What a server tells about where it listens."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from nbdfs import live
from nbdfs.cli import _serving
from nbdfs.cli._serving import Place, Service, live_server
from nbdfs.nbd.uri import Unix, Uri


async def test_a_public_address_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_serving, "is_public", lambda _: True)
    place = Place((Uri(Unix(str(tmp_path / "s"))),))
    async with live.opened() as exports, live_server(Service(place), exports):
        pass
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning == f"listening on {tmp_path}/s without TLS: anybody who reaches it may use it"
