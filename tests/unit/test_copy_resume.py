"""The state file of a copy, beside what others have put in its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from nbdfs.copying.resume import StateFile
from nbdfs.errors import UserError
from nbdfs.ranges import RangeSet


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
