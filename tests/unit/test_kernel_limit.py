"""Requests fail before the kernel ends a mount whose requests take too long."""

from __future__ import annotations

from pathlib import Path

import pytest

from nbdfs.fuse.kernel_limit import within_kernel_limit


@pytest.mark.parametrize(
    ("default", "most", "deadline"),
    [("0", "0", 60), ("100", "0", 60), ("0", "50", 40), ("20", "50", 16), ("3", "0", 12), ("?", "50", 40)],
)
def test_the_deadline_keeps_within_the_kernels(tmp_path: Path, default: str, most: str, deadline: float) -> None:
    (tmp_path / "default_request_timeout").write_text(default + "\n")
    (tmp_path / "max_request_timeout").write_text(most + "\n")
    assert within_kernel_limit(60, tmp_path) == deadline


def test_a_kernel_without_limits(tmp_path: Path) -> None:
    assert within_kernel_limit(60, tmp_path) == 60
