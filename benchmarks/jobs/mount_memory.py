"""A RAM disk mounted over a regular file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from benchmarks.systems import FILE_WORK, NBDFS, SIZE, Enter, Job, System, mounted, raw_file, server

_RAW = "/dev/shm/compare.img"


def job(home: str) -> Job:
    path = f"{home}/disk.img"

    @contextlib.contextmanager
    def nbdfuse() -> Iterator[str]:
        with server(["nbdkit", "-f", "-U", f"{home}/k.sock", "memory", str(SIZE)], f"{home}/k.sock") as uri:
            with mounted(["nbdfuse", path, uri], path):
                yield path

    @contextlib.contextmanager
    def qsd() -> Iterator[str]:
        with raw_file(_RAW, SIZE):
            command = ["qemu-storage-daemon", "--blockdev", f"driver=file,node-name=f,filename={_RAW},discard=unmap",
                       "--export", f"type=fuse,id=e,node-name=f,mountpoint={path},writable=on"]  # fmt: skip
            with mounted(command, path):
                yield path

    def ours(*options: str) -> Enter:
        return lambda: mounted([*NBDFS, "mount", *options, "memory:1G", path], path)

    systems = {
        "nbdfuse": System(nbdfuse, ["nbdfuse", "nbdkit"]),
        "qsd": System(qsd, ["qemu-storage-daemon"]),
        "tmpfs(limit)": System(lambda: raw_file(_RAW, SIZE), []),
        "nbdfs": System(ours(), [NBDFS[0]]),
        "nbdfs-nopassthrough": System(ours("-o", "nopassthrough"), [NBDFS[0]]),
    }
    return Job("A RAM disk mounted over a regular file", systems, FILE_WORK)
