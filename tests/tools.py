"""Run commands of nbdfs as a user does, in a process of their own."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
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


def luks_by_qemu(image: Path, key: Path, size: int | str, *, iter_time: int = 10, options: str = "") -> None:
    """An empty LUKS1 image of so many bytes of data, its key derived in `iter_time` ms; `options` are qemu-img's."""
    words = ["qemu-img", "create", "-q", "-f", "luks", "--object", f"secret,id=s,file={key}"]
    words += ["-o", f"key-secret=s,iter-time={iter_time}{options}", str(image), str(size)]
    for _ in range(20):  # qemu gives up where it cannot measure how long its key derivation takes, on a busy machine
        made = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT)
        if "accurate CPU usage" not in made.stderr:
            break
    assert made.returncode == 0, made.stderr


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


@contextlib.contextmanager
def no_more_descriptors() -> Iterator[None]:
    """For the block this process can open nothing."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.dup(0)
    os.close(free)  # the lowest number that is free: all below are taken
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
