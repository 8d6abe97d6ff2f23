"""Copies between an NBD server and a file on tmpfs, and from a server to nothing."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from benchmarks.systems import NBDFS, Job, System, Work, given, once

_PIECE = 1 << 20  # bytes
_DATA = 1024  # pieces


def copied(server: list[str], source: str, destination: Path | str) -> Work:
    """MB a second between a server, `$uri` in the names of the ends, and another end."""

    def measure(command: str, _: float) -> float:
        if isinstance(destination, Path):
            destination.unlink(missing_ok=True)
        run = f"{command} {source} {destination}"
        return _DATA * _PIECE / 1e6 / once(["nbdkit", "-U", "-", *server, "--run", run])

    return measure


def job(home: str) -> Job:
    memory = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="compare-"))
    atexit.register(shutil.rmtree, memory)
    image = memory / "image"
    data = os.urandom(_PIECE)
    with image.open("wb") as file:
        for _ in range(_DATA):
            file.write(data)
    systems = {
        "nbdcopy": System(given("nbdcopy"), ["nbdcopy", "nbdkit"]),
        "nbdfs": System(given(" ".join(NBDFS) + " copy"), [NBDFS[0]]),
    }
    work = {
        "server to file [MB/s]": copied(["file", str(image)], '"$uri"', memory / "destination"),
        "file to server [MB/s]": copied(["memory", f"{_DATA}M"], str(image), '"$uri"'),
        "server to null: [MB/s]": copied(["file", str(image)], '"$uri"', "null:"),
    }
    return Job("A copy between a server and a file, or nothing", systems, work)
