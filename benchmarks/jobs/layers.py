"""What `cow` and `cache` cost over a RAM disk, in requests of 128 KiB."""

from __future__ import annotations

from benchmarks.systems import NBDFS, Enter, Job, System, Work, mbps, mounted, on_file


def job(home: str) -> Job:
    path = f"{home}/disk.img"

    def stack(layers: str) -> Enter:
        return lambda: mounted([*NBDFS, "mount", "-o", "nopassthrough", f"{layers}memory:1G", path], path)

    systems = {
        "bare": System(stack(""), [NBDFS[0]]),
        "nbdfs-cow": System(stack("cow::"), [NBDFS[0]]),
        "nbdfs-cache": System(stack("cache,size=2G::"), [NBDFS[0]]),
    }
    plain = {"bs": "128k", "direct": 1, "ioengine": "psync"}
    work: dict[str, Work] = {
        "seqread 128k [MB/s]": on_file(mbps, rw="read", **plain),
        "randread 128k [MB/s]": on_file(mbps, rw="randread", **plain),
        "seqwrite 128k [MB/s]": on_file(mbps, rw="write", **plain),
        "randwrite 128k [MB/s]": on_file(mbps, rw="randwrite", **plain),
    }
    return Job("Layers over a RAM disk, beside the bare disk", systems, work)
