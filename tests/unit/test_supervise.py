"""The PID file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nbdfs.errors import UserError
from nbdfs.supervise import pid_file


def test_it_is_there_for_the_block(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with pid_file(str(path)):
        assert path.read_text() == f"{os.getpid()}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_link_under_the_name_it_is_written_by_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("kept")
    (tmp_path / f"pid.{os.getpid()}").symlink_to(victim)
    with pid_file(str(tmp_path / "pid")):
        assert victim.read_text() == "kept"


def test_a_place_that_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot write the PID file"), pid_file(str(tmp_path / "absent" / "pid")):
        pass
