"""A RAM disk served over NBD on a Unix socket."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Mapping, Sequence

from benchmarks.systems import NBDFS, SIZE, Enter, Job, System, Work, iops, mbps, on_uri, once, raw_file, server


def over(command: Sequence[str], socket: str, fill: bool = False) -> Enter:
    """A server on `socket`; `fill` writes its device, 60 % of it."""

    @contextlib.contextmanager
    def run() -> Iterator[str]:
        with server(command, socket) as uri:
            if fill:
                content = ["[", "nbdkit", "--exit-with-parent", "sparse-random", str(SIZE), "percent=60", "seed=1", "]"]
                subprocess.run(["nbdcopy", "--", *content, uri], check=True)
            yield uri

    return run


def whole(size: int) -> Work:
    """All of an export read by nbdcopy."""
    return lambda uri, _: size / 1e6 / once(["nbdcopy", "--no-extents", uri, "null:"])


def job(home: str) -> Job:
    socket, raw = f"{home}/m.sock", "/dev/shm/compare.img"

    @contextlib.contextmanager
    def qemu_nbd() -> Iterator[str]:
        with raw_file(raw, SIZE):
            with over(["qemu-nbd", "-t", "-e", "16", "-f", "raw", "-k", socket, raw], socket, fill=True)() as uri:
                yield uri

    systems = {
        "nbdkit": System(
            over(["nbdkit", "-f", "-U", socket, "memory", str(SIZE)], socket, fill=True), ["nbdkit", "nbdcopy"]
        ),
        "qemu-nbd": System(qemu_nbd, ["qemu-nbd"]),
        "nbdfs": System(over([*NBDFS, "serve", "memory:1G", "-U", socket], socket, fill=True), [NBDFS[0]]),
    }
    work: Mapping[str, Work] = {
        "nbdcopy to null [MB/s]": whole(SIZE),
        "randread 4k qd1 [IOPS]": on_uri(iops, rw="randread", bs="4k", iodepth=1),
        "randread 4k qd32 [IOPS]": on_uri(iops, rw="randread", bs="4k", iodepth=32),
        "randwrite 4k qd32 [IOPS]": on_uri(iops, rw="randwrite", bs="4k", iodepth=32),
        "seqwrite 256k qd8 [MB/s]": on_uri(mbps, rw="write", bs="256k", iodepth=8),
    }
    return Job("A RAM disk served over NBD", systems, work)
