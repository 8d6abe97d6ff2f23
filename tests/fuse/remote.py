"""Exports mounted by nbdfuse's command line."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mounts import nbdfs, wait_until

MIB = 1 << 20


@contextmanager
def nbdfuse(target: Path, *words: str, inherit: tuple[int, ...] = ()) -> Iterator[subprocess.Popen[bytes]]:
    """nbdfuse's command line, until it is up; it is ended by SIGTERM and must then leave nothing."""
    up = target.with_name(f"{target.name}.up")
    up.unlink(missing_ok=True)
    process = subprocess.Popen([*nbdfs("compat", "nbdfuse"), "-P", str(up), *words], pass_fds=inherit)
    try:
        wait_until(lambda: up.exists() or process.poll() is not None, f"nbdfuse {words}")
        assert process.poll() is None, f"nbdfuse {words} ended"
        yield process
    finally:
        process.terminate()
        process.wait(20)


def overwrite(path: Path, data: bytes) -> None:
    with path.open("r+b") as opened:
        opened.write(data)


def captive(*argv: str) -> list[str]:
    return ["[", "nbdkit", *argv, "]"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.touch()
    return path
