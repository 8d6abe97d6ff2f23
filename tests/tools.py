"""Run commands of nbdfs as a user does, in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TIMEOUT = 60  # seconds


def command(*words: str | Path) -> list[str]:
    """The words that run a command of nbdfs."""
    return [sys.executable, "-m", "nbdfs", *map(str, words)]


def key_file(path: Path, content: bytes) -> Path:
    """Write a file that only its owner may read, as keys are kept."""
    path.touch(0o600)
    path.write_bytes(content)
    return path


def nbdfs(*words: str | Path, stdin: bytes | None = None, status: int = 0) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end.  It must end with `status` and, if that is not 0, say why in one line."""
    done = subprocess.run(command(*words), input=stdin, capture_output=True, timeout=TIMEOUT)
    assert done.returncode == status, done.stderr.decode()
    if status:
        lines = done.stderr.decode().splitlines()
        assert len(lines) == 1, done.stderr.decode()
        assert lines[0].startswith("nbdfs: ")
    return done


def complaint(*words: str | Path, status: int = 1, stdin: bytes | None = None) -> str:
    """The one line with which a command fails."""
    return nbdfs(*words, stdin=stdin, status=status).stderr.decode().strip()
