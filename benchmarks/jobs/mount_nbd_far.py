"""A remote NBD export whose server answers reads and writes 2 ms late."""

from __future__ import annotations

from benchmarks.jobs.mount_nbd import remote
from benchmarks.systems import Job, iops, mbps, on_file

_DELAY = ["--filter=delay", "rdelay=2ms", "wdelay=2ms"]


def job(home: str) -> Job:
    work = {
        "seqread 1M buffered [MB/s]": on_file(mbps, rw="read", bs="1M", ioengine="psync", invalidate=1),
        "write 4k buffered [IOPS]": on_file(iops, rw="write", bs="4k", ioengine="psync", fsync_on_close=1),
    }
    title = "An NBD export 2 ms away; nbdfs with -o writeback"
    return remote(title, home, _DELAY, work, ["-o", "writeback"])
