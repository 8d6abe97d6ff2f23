"""Mounting without root: what fusermount3 may do to us."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from nbdfs.errors import UserError
from nbdfs.fuse import mounting
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
