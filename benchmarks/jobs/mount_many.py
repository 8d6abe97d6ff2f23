"""A mount of 1,000 files of memory: how many it opens, lists and adds in a second, how many a MiB of memory holds."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.systems import NBDFS, Job, System, background, once

_FILES = 1000


def job(home: str) -> Job:
    path = f"{home}/files"
    numbers = itertools.count()
    words = [*NBDFS, "mount", *(f"file{number:04}=memory:1M" for number in range(_FILES)), path]

    @contextmanager
    def mounted() -> Iterator[tuple[int, float]]:
        """The process of the mount, and the seconds it took to come up."""
        os.makedirs(path, exist_ok=True)
        start = time.monotonic()
        with background(words, lambda: os.path.ismount(path)) as process:
            yield process.pid, time.monotonic() - start
            subprocess.run(["umount", path], stderr=subprocess.DEVNULL)

    def held(target: tuple[int, float], _: float) -> float:
        kib = re.search(r"VmRSS:\s*(\d+)", Path(f"/proc/{target[0]}/status").read_text())
        assert kib
        return _FILES / (int(kib[1]) / 1024)

    work = {
        "opened at the start [1/s]": lambda target, _: _FILES / target[1],
        "listed by ls -l [1/s]": lambda target, _: _FILES / once(["ls", "-l", path]),
        "added by a command each [1/s]": lambda target, _: (
            1 / once([*NBDFS, "add", path, f"{next(numbers)}=memory:1M"])
        ),
        "held in memory [1/MiB]": held,
    }
    return Job("1,000 files in one mount", {"nbdfs": System(mounted, [NBDFS[0]])}, work)
