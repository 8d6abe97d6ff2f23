"""The path of a mount, as the mount table has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from nbdfs.errors import UsageError
from nbdfs.mountpoint import mountpoint


@pytest.mark.parametrize("path", [".", "./", "../here", "../here/", "sub/..", "link/../here"])
def test_dots_are_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    here = tmp_path / "here"
    (here / "sub").mkdir(parents=True)
    (here / "link").symlink_to(here)
    monkeypatch.chdir(here)
    assert mountpoint(path) == str(here)


def test_a_link_in_the_last_part_stays(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "way").symlink_to("folder")
    (tmp_path / "folder/link").symlink_to("nowhere")
    assert mountpoint(f"{tmp_path}/way/link") == f"{tmp_path}/folder/link"
    assert mountpoint("/") == "/"


def test_an_empty_name_is_none() -> None:
    with pytest.raises(UsageError, match="is empty"):
        mountpoint("")
