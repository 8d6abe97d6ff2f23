"""Requests fail before the kernel ends a mount whose requests take too long."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from nbdfs.fuse.kernel_limit import kernel_limit


@pytest.mark.parametrize(
    ("default", "most", "limit"),
    [("0", "0", math.inf), ("100", "0", 80), ("0", "50", 40), ("20", "50", 16), ("3", "0", 12), ("?", "50", 40)],
)
def test_the_limit_keeps_within_the_kernels(tmp_path: Path, default: str, most: str, limit: float) -> None:
    (tmp_path / "default_request_timeout").write_text(default + "\n")
    (tmp_path / "max_request_timeout").write_text(most + "\n")
    assert kernel_limit(tmp_path) == limit


def test_a_kernel_without_limits(tmp_path: Path) -> None:
    assert kernel_limit(tmp_path) == math.inf
