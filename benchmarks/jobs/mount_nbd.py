"""A remote NBD export (nbdkit memory over a Unix socket) mounted over a regular file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from benchmarks.systems import FILE_WORK, NBDFS, SIZE, URI_WORK, Enter, Job, System, Work, mounted, server


def job(home: str) -> Job:
    mounting = remote("An NBD export mounted over a regular file", home, [], FILE_WORK)
    socket = f"{home}/k.sock"
    # What the server alone gives, to fio's own NBD client: no mount over it can be faster.
    alone = System(lambda: server(nbdkit(socket), socket), ["nbdkit"], URI_WORK)
    return replace(mounting, systems={**mounting.systems, "no mount(limit)": alone})


def nbdkit(socket: str, *filters: str) -> list[str]:
    """The server under all of them."""
    return ["nbdkit", "-f", "-U", socket, "memory", str(SIZE), *filters]


def remote(title: str, home: str, filters: Sequence[str], work: Mapping[str, Work], options: Sequence[str] = ()) -> Job:
    """The mounting programs over nbdkit with some filters; nbdfs is mounted with `options`."""
    path, socket = f"{home}/disk.img", f"{home}/k.sock"

    def over(command: Callable[[str], list[str]]) -> Enter:
        @contextlib.contextmanager
        def run() -> Iterator[str]:
            with server(nbdkit(socket, *filters), socket) as uri:
                with mounted(command(uri), path):
                    yield path

        return run

    def qsd(uri: str) -> list[str]:
        return ["qemu-storage-daemon", "--blockdev", f"driver=nbd,node-name=f,server.type=unix,server.path={socket}",
                "--export", f"type=fuse,id=e,node-name=f,mountpoint={path},writable=on"]  # fmt: skip

    systems = {
        "nbdfuse": System(over(lambda uri: ["nbdfuse", path, uri]), ["nbdfuse", "nbdkit"]),
        "qsd": System(over(qsd), ["qemu-storage-daemon", "nbdkit"]),
        "nbdfs": System(over(lambda uri: [*NBDFS, "mount", *options, uri, path]), [NBDFS[0], "nbdkit"]),
    }
    return Job(title, systems, work)
