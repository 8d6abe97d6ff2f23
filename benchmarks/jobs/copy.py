"""Copy tools between the same NBD servers (nbdkit sparse-random, which verifies what is written to it)."""

from __future__ import annotations

from benchmarks.systems import NBDFS, Job, System, Work, given, once


def to_itself(gigabytes: int, *parameters: str) -> Work:
    """MB of virtual size a second of a copy from a sparse-random export to itself."""

    def measure(command: str, _: float) -> float:
        server = ["nbdkit", "-U", "-", "sparse-random", f"{gigabytes}G", "seed=7", *parameters, "--run", command]
        return gigabytes * 1e3 / once(server)

    return measure


def job(home: str) -> Job:
    systems = {
        "nbdcopy": System(given('nbdcopy "$uri" "$uri"'), ["nbdcopy", "nbdkit"]),
        "qemu-img": System(given('qemu-img convert -n -f raw -O raw "$uri" "$uri"'), ["qemu-img"]),
        "nbdfs": System(given(" ".join(NBDFS) + ' copy "$uri" "$uri"'), [NBDFS[0]]),
    }
    work = {
        "sparse-random 8G to itself [MB/s of virtual size]": to_itself(8),
        "sparse-random 2G 100% to itself [MB/s]": to_itself(2, "percent=100"),
    }
    return Job("A copy between NBD exports", systems, work)
