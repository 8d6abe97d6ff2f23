"""Mounting without root: what fusermount3 may do to us."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nbdfs.errors import UserError
from nbdfs.fuse import mounting, session
from nbdfs.fuse.options import MountOptions


@pytest.fixture
def stuck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Without privileges, and with a fusermount3 that never ends."""
    helper = tmp_path / "fusermount3"
    helper.write_text("#!/bin/sh\nexec sleep 1000\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(mounting, "_SECONDS", 0.2)
    monkeypatch.setattr(mounting, "privileged", lambda: False)
    return str(tmp_path / "disk.img")


def test_a_helper_that_does_not_end_is_one_line(stuck: str) -> None:
    with pytest.raises(UserError, match=r"cannot mount on .*is not done after 0.2 s"):
        mounting.mount(stuck, stat.S_IFREG, MountOptions())
    with pytest.raises(UserError, match=r"cannot unmount .*is not done after 0.2 s"):
        mounting.unmount(stuck)


async def test_a_file_that_may_not_be_opened_is_written_back_by_forgetting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody can have it open for writing all the same."""
    forgotten = []

    async def invalidate(*arguments: Any) -> None:
        forgotten.append(arguments)

    def refuse(*arguments: Any) -> int:
        raise PermissionError

    file = SimpleNamespace(inode=7)
    monkeypatch.setattr(os, "open", refuse)
    mount = SimpleNamespace(target="/nowhere", invalidate=invalidate)
    await session.write_back(cast(Any, mount), "", cast(Any, file), 4096, 512)
    assert forgotten == [(file, 4096, 512)]
