"""The reads of an ISO boot from a torrent with one seeder on loopback: nbdfs beside nbdkit under nbdfuse.

    unshare --net sh -c 'ip link set lo up; exec python benchmarks/torrent_boot.py [ROUNDS]'

The pattern is what a BIOS, a boot loader and a live system do: descriptors, a boot image, a kernel and an initial RAM
disk whole, then 64 KiB here and there in a compressed root file system.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.torrents import make_torrent, seeding, tracking

SIZE = 256 << 20
SECTOR = 2048
PIECE = 256 << 10


def pattern() -> Iterator[tuple[int, int]]:
    """The reads: (offset, length)."""
    for sector in (16, 17, 18, 19, 20, 40, 41, 60):
        yield sector * SECTOR, SECTOR
    for start, length in ((3 << 20, 40 << 10), (8 << 20, 8 << 20), (20 << 20, 24 << 20)):
        for at in range(start, start + length, 128 << 10):
            yield at, min(128 << 10, start + length - at)
    chance = random.Random(7)
    for _ in range(60):
        yield chance.randrange(48 << 20, SIZE - (64 << 10)) // 4096 * 4096, 64 << 10


def boot(words: list[str], file: Path) -> float:
    """Seconds from the start of a mounting program to the last read."""
    file.touch()
    start = time.monotonic()
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not (os.path.ismount(file) and file.stat().st_size):
            if process.poll() is not None:
                raise RuntimeError(f"{words[0]} ended early")
            time.sleep(0.005)
        fd = os.open(file, os.O_RDONLY)
        for offset, length in pattern():
            os.pread(fd, length, offset)
        took = time.monotonic() - start
        os.close(fd)
        subprocess.run(["umount", file], check=False)
        process.terminate()
    return took


def main() -> None:
    """Measure in turns and print the medians."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    times: dict[str, list[float]] = {"nbdkit": [], "nbdfs": []}
    with tempfile.TemporaryDirectory() as name, tracking() as tracker:
        home = Path(name)
        (home / "dvd.iso").write_bytes(os.urandom(SIZE))
        torrent = make_torrent(home, "dvd.iso", tracker=tracker.url, piece=PIECE)
        for turn in range(rounds):
            commands = {
                "nbdkit": ["nbdfuse", "-r", str(home / "file"), "--command", "nbdkit", "-s", "torrent", str(torrent)],
                "nbdfs": [sys.executable, "-m", "nbdfs", "mount", f"torrent:{torrent}", str(home / "file")],
            }
            for system in sorted(commands, reverse=bool(turn % 2)):
                with seeding(torrent, home):
                    tracker.wait_for_peers(1)
                    times[system].append(boot(commands[system], home / "file"))
    medians = {system: statistics.median(taken) for system, taken in times.items()}
    print(", ".join(f"{system} {seconds:.2f} s" for system, seconds in medians.items()))
    print(f"nbdfs is {medians['nbdkit'] / medians['nbdfs']:.1f} times as fast")


if __name__ == "__main__":
    main()
