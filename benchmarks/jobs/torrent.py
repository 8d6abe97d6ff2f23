"""A torrent of one 256 MiB file, one seeder on loopback; every figure is from a fresh start of the system under test.

Peers would look for the whole world, so the job runs in a network that ends at loopback (`ALONE`).
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks.systems import NBDFS, Job, System, Work, given, mounted, once, server
from tests.torrents import make_torrent, seeding, tracking

ALONE = True
_SIZE = 256 << 20
_PIECE = 256 << 10
_BOOT = Path(__file__).parent.parent / "data" / "iso_boot.json"  # recorded
_MIDDLE = _SIZE // 2 + 3 * 4096

Mounting = Callable[[Path, str], AbstractContextManager[str]]  # (torrent, folder) to the file of a mount


@contextlib.contextmanager
def _nbdkit(torrent: Path, home: str) -> Iterator[str]:
    socket = f"{home}/t.sock"
    with server(["nbdkit", "-f", "-U", socket, "torrent", str(torrent)], socket) as uri:
        with mounted(["nbdfuse", "-r", f"{home}/file", uri], f"{home}/file") as path:
            yield path


def _nbdfs(torrent: Path, home: str) -> AbstractContextManager[str]:
    return mounted([*NBDFS, "mount", f"torrent:{torrent}", f"{home}/file"], f"{home}/file")


def _boot(path: str, _: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for offset, length in json.loads(_BOOT.read_text())["reads"]:
            os.pread(descriptor, length, offset)
    finally:
        os.close(descriptor)


def _whole(path: str, source: Path) -> None:
    once(["timeout", "120", "cmp", path, str(source)])


def _one_block(path: str, _: Path) -> None:
    once(["timeout", "60", "dd", f"if={path}", "of=/dev/null", "bs=4096", "count=1", f"skip={_MIDDLE // 4096}"])


def _download(torrent: Path, home: str) -> None:
    once(["aria2c", "--dir", home, "--seed-time=0", "--enable-dht=false", "--bt-enable-lpd=false",
          "--file-allocation=none", "--listen-port=17881-17999", str(torrent)])  # fmt: skip


def job(home: str) -> Job:
    image = Path(home, "disk.iso")
    image.write_bytes(os.urandom(_SIZE))

    def seconds(use: Callable[[str, Path], None], mounting: Mounting | None) -> float:
        """From a fresh start to the end of `use`; without a mount, of a download."""
        with tempfile.TemporaryDirectory(dir=home) as place, tracking() as tracker:
            torrent = make_torrent(Path(home), image.name, tracker=tracker.url, piece=_PIECE)
            with seeding(torrent, Path(home)):
                tracker.wait_for_peers(1)
                start = time.monotonic()
                if mounting is None:
                    _download(torrent, place)
                    return time.monotonic() - start
                with mounting(torrent, place) as path:
                    use(path, image)
                    return time.monotonic() - start

    def reading(use: Callable[[str, Path], None], amount: float) -> Work:
        """`amount` a second; a program that only downloads has no figure where not the whole file is read."""
        return lambda mounting, _: 0.0 if mounting is None and use is not _whole else amount / seconds(use, mounting)

    systems = {
        "nbdkit": System(given(_nbdkit), ["nbdkit", "nbdfuse"]),
        "aria2c": System(given(None), ["aria2c"]),
        "nbdfs": System(given(_nbdfs), [NBDFS[0]]),
    }
    work: Mapping[str, Work] = {
        "whole file, from start [MB/s]": reading(_whole, _SIZE / 1e6),
        "4k in the middle, from start [1/s]": reading(_one_block, 1),
        "reads of an ISO boot, from start [1/s]": reading(_boot, 1),
    }
    return Job("A torrent with one seeder", systems, work)
