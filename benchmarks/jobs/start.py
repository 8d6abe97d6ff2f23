"""How soon a mount is usable: 1 / seconds from start to a mounted 1 GiB RAM disk."""

from __future__ import annotations

import time
from collections.abc import Sequence

from benchmarks.systems import NBDFS, Job, System, given, mounted


def job(home: str) -> Job:
    path = f"{home}/disk.img"

    def timed(command: Sequence[str], _: float) -> float:
        start = time.monotonic()
        with mounted(command, path):
            took = time.monotonic() - start
        return 1 / took

    systems = {
        "nbdfuse": System(given(["nbdfuse", path, "--command", "nbdkit", "-s", "memory", "1G"]), ["nbdfuse", "nbdkit"]),
        "nbdfs": System(given([*NBDFS, "mount", "memory:1G", path]), [NBDFS[0]]),
    }
    return Job("From start to a mounted RAM disk", systems, {"mounts per second [1/s]": timed})
