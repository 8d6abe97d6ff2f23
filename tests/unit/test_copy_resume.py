"""The state file of a copy, beside what others have put in its place."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from nbdfs.copying import CopyOptions, copy, job
from nbdfs.copying.resume import StateFile
from nbdfs.errors import UserError
from nbdfs.ranges import RangeSet
from nbdfs.spec import parse


def test_it_gives_what_it_was_told(tmp_path: Path) -> None:
    state = StateFile(str(tmp_path / "state"), {"size": 9})
    assert state.load() is None
    state.save(RangeSet([(0, 4)]))
    state.save(RangeSet([(0, 4), (6, 8)]))
    assert list(state.load() or ()) == [(0, 4), (6, 8)]
    assert [file.name for file in tmp_path.iterdir()] == ["state"]


def test_a_link_laid_where_it_is_written_leads_nowhere(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "state.new").symlink_to(victim)
    StateFile(str(tmp_path / "state"), {}).save(RangeSet([(0, 4)]))
    assert victim.read_text() == "precious"
    assert not (tmp_path / "state").is_symlink()


@pytest.mark.parametrize("target", ["/dev/null", "elsewhere"])
def test_what_is_no_regular_file_is_neither_read_nor_replaced(tmp_path: Path, target: str) -> None:
    (tmp_path / "elsewhere").write_text("{}")
    (tmp_path / "state").symlink_to(target)
    with pytest.raises(UserError, match="state is no regular file"):
        StateFile(str(tmp_path / "state"), {}).load()
    assert (tmp_path / "state").is_symlink()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"version": 1}', '{"version": 1, "done": [[0, 1e999]], "copy": {}}', "[" * 100_000, "9" * 5000],
    ids=["empty", "a list", "cut off", "no ranges", "infinite", "deep", "long"],
)
def test_what_is_no_state_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "state").write_text(text)
    with pytest.raises(UserError, match="state is not the state file of a copy"):
        StateFile(str(tmp_path / "state"), {}).load()


class Full:
    """Fails as a full disk does, from the second call on."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *_: object) -> None:
        self.calls += 1
        if self.calls > 1:
            raise OSError(errno.ENOSPC, "No space left on device")


def test_a_state_that_cannot_be_kept_ends_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StateFile, "save", Full())
    monkeypatch.setattr(job, "_SAVE_INTERVAL", 0.01)
    options = CopyOptions(resume=str(tmp_path / "state"), requests=1, connections=1, request_size=4096)
    with pytest.raises(UserError) as raised:
        copy(parse("delay,read=10::pattern:1M"), parse(str(tmp_path / "new")), options)
    said = str(raised.value)
    assert f"cannot keep the state file {tmp_path}/state: No space left on device; " in said
    assert said.endswith("its state could not be kept (No space left on device)")


def test_a_flush_that_fails_before_its_state_is_kept_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "_SAVE_INTERVAL", 0.01)
    (tmp_path / "new").write_bytes(bytes(1 << 20))
    options = CopyOptions(resume=str(tmp_path / "state"), requests=1, connections=1, request_size=4096)
    with pytest.raises(UserError, match=r"^cannot flush the destination: error: Input/output error"):
        copy(parse("delay,read=10::pattern:1M"), parse(f"error,flush-rate=1::{tmp_path}/new"), options)


def test_a_flush_that_fails_is_told_without_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with open(os.devnull) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr(os, "fsync", fails)
        with pytest.raises(UserError, match="cannot flush the destination: Input/output error"):
            copy(parse("-"), parse(str(tmp_path / "new")), CopyOptions())
