"""A shell at a terminal of its own, as somebody who types sees it."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

DEADLINE = 5  # seconds


class Terminal:
    """Keys go in by `type`; `until` waits for what the shell shows."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._shown = ""

    def type(self, keys: str) -> None:
        os.write(self._descriptor, keys.encode())

    def until(self, pattern: str) -> re.Match[str]:
        """What matches of that which was shown since the last match."""
        end = time.monotonic() + DEADLINE
        while not (found := re.search(pattern, self._shown)):
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._descriptor], [], [], left)[0]:
                raise AssertionError(f"no {pattern!r} in {self._shown!r}")
            self._shown += os.read(self._descriptor, 65536).decode(errors="replace")
        self._shown = self._shown[found.end() :]
        return found


@contextmanager
def terminal(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Iterator[Terminal]:
    """Run a program at a terminal; its end is forced after the block."""
    master, slave = pty.openpty()
    try:
        process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, cwd=folder, start_new_session=True,
            env={"PATH": os.environ["PATH"], "HOME": str(folder), "TERM": "dumb", "LANG": "C.UTF-8", **environment},
        )  # fmt: skip
        os.close(slave)
        try:
            yield Terminal(master)
        finally:
            process.kill()
            process.wait()
    finally:
        os.close(master)
