"""TLS of a client: what is wrong is told before there is a connection."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nbdfs.errors import UserError
from nbdfs.nbd import tls
from nbdfs.nbd.uri import TlsOptions
from tests.tools import key_file


def test_a_user_without_a_name_must_give_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = key_file(tmp_path / "keys", b"alice:00112233\n")
    monkeypatch.setattr(tls, "_need_psk", lambda: None)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)
    with pytest.raises(UserError, match="user 4000000000 has no name here: give tls-username"):
        tls.client_context(TlsOptions(psk_file=str(keys)))
