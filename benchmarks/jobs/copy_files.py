"""Copies between two files of one file system, on tmpfs and on disk: as it is, and durable."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from benchmarks.systems import NBDFS, Job, System, Work, given, once

_PIECE = 1 << 20  # bytes
_DATA = 2048  # pieces of data in each file


def written(path: Path, gap: int) -> Path:
    """A file of data with `gap` pieces of hole after each piece, made once."""
    if not path.exists():
        data = os.urandom(_PIECE)
        with path.open("wb") as file:
            for number in range(_DATA):
                file.seek(number * (gap + 1) * _PIECE)
                file.write(data)
            file.truncate(_DATA * (gap + 1) * _PIECE)
            os.fsync(file.fileno())
    return path


def copied(folder: Path, gap: int) -> Work:
    """MB of virtual size a second into a file that is not there yet."""

    def measure(command: str, _: float) -> float:
        source, destination = written(folder / f"source-{gap}", gap), folder / "destination"
        destination.unlink(missing_ok=True)
        took = once(["sh", "-c", command, "sh", str(source), str(destination)])
        return source.stat().st_size / 1e6 / took

    return measure


def job(home: str) -> Job:
    disk, memory = Path(home), Path(tempfile.mkdtemp(dir="/dev/shm", prefix="compare-"))
    atexit.register(shutil.rmtree, memory)
    systems = {
        "cp": System(given('cp --sparse=always "$1" "$2"'), ["cp"]),
        "cp and sync": System(given('cp --sparse=always "$1" "$2" && sync "$2"'), ["cp"]),
        "nbdfs": System(given(" ".join(NBDFS) + ' copy "$1" "$2"'), [NBDFS[0]]),
    }
    work = {
        f"{kind}, {place} [MB/s of virtual size]": copied(folder, gap)
        for place, folder in (("tmpfs", memory), ("disk", disk))
        for kind, gap in (("dense", 0), ("sparse", 7))
    }
    return Job("A copy between two files", systems, work)
