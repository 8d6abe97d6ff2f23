#!/usr/bin/env python3
"""The `http` job of benchmarks/compare; run by itself it takes the same options.

    job_http.py [--rounds N] [--seconds S] [--json FILE] [--only WORD]

Needs nginx, httpdirfs and qemu-block-extra (Debian names) besides what compare needs.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parent
SIZE = 256 << 20
DELAY = 5  # milliseconds


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def web(bench: ModuleType, tmp: str) -> Iterator[str]:
    """nginx on loopback behind the delay: the URL of the image."""
    served = Path(tmp) / "served"
    if not served.exists():
        served.mkdir()
        with (served / "disk.img").open("wb") as image:
            for _ in range(SIZE >> 20):
                image.write(os.urandom(1 << 20))
    inner, outer = free_port(), free_port()
    config = Path(tmp) / "nginx.conf"
    config.write_text(f"""
        user root; daemon off; pid {tmp}/nginx.pid; error_log {tmp}/error.log; worker_processes 1;
        events {{ }}
        http {{ access_log off; sendfile on; keepalive_requests 1000000; autoindex on;
        server {{ listen 127.0.0.1:{inner}; root {served}; }} }}""")
    proxy = [sys.executable, str(HERE / "delay_proxy.py"), str(outer), str(inner), str(DELAY)]
    with bench.background(["nginx", "-c", str(config)], lambda: answers(inner), "nginx"):
        with bench.background(proxy, lambda: answers(outer), "delay_proxy"):
            yield f"http://127.0.0.1:{outer}/disk.img"


def job_http(tmp: str, bench: ModuleType) -> tuple[dict[str, Any], dict[str, Any]]:
    """A 256 MiB image on nginx behind 5 ms of delay, mounted; each round begins with nothing cached."""
    path = os.path.join(tmp, "disk.img")

    @contextlib.contextmanager
    def nbdkit() -> Iterator[str]:
        with web(bench, tmp) as url:
            filters = ["--filter=cache", "--filter=readahead"]
            command = ["nbdkit", "-f", "-r", "-U", f"{tmp}/k.sock", *filters, "curl", url]
            with bench.server(command, f"{tmp}/k.sock", "nbdkit") as uri:
                with bench.mounted(["nbdfuse", "-r", path, uri], path, "nbdfuse"):
                    yield path

    @contextlib.contextmanager
    def httpdirfs() -> Iterator[str]:
        folder = os.path.join(tmp, "mnt")
        os.makedirs(folder, exist_ok=True)
        with web(bench, tmp) as url:
            file = f"{folder}/disk.img"
            command = ["httpdirfs", "-f", url.rpartition("/")[0] + "/", folder]
            with bench.background(command, lambda: os.path.exists(file), "httpdirfs"):
                try:
                    yield file
                finally:
                    bench.subprocess.run(["umount", "-l", folder], stderr=bench.subprocess.DEVNULL)

    @contextlib.contextmanager
    def qsd() -> Iterator[str]:
        with web(bench, tmp) as url:
            command = ["qemu-storage-daemon", "--blockdev", f"driver=http,node-name=h,url={url},read-only=on",
                       "--export", f"type=fuse,id=e,node-name=h,mountpoint={path}"]  # fmt: skip
            with bench.mounted(command, path, "qsd"):
                yield path

    def ours(layers: str) -> Callable[[], contextlib.AbstractContextManager[str]]:
        @contextlib.contextmanager
        def run() -> Iterator[str]:
            with web(bench, tmp) as url:
                with bench.mounted([*bench.NBDFS, "mount", "-r", f"{layers}{url}", path], path, "nbdfs mount"):
                    yield path

        return run

    def whole(file: str, _: float) -> float:
        start = time.monotonic()
        bench.once(["dd", f"if={file}", "of=/dev/null", "bs=1M", "status=none"])
        return SIZE / 1e6 / (time.monotonic() - start)

    def forget(file: str) -> None:
        """Take the file out of the kernel's cache, so that the system under test answers."""
        with open(file, "rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def again(file: str, seconds: float) -> float:
        forget(file)
        return whole(file, seconds)

    random = {"size": SIZE, "rw": "randread", "bs": "4k", "direct": 1}
    work = {
        "randread 4k qd1 [IOPS]": lambda file, s: bench.iops(file, s, **random, ioengine="psync"),
        "randread 4k qd16 [IOPS]": lambda file, s: bench.iops(file, s, **random, ioengine="io_uring", iodepth=16),
        "whole file [MB/s]": whole,
        "second pass [MB/s]": again,
    }
    have = bench.have
    cached = ours("cache,size=512M::readahead::")
    systems = {
        "nbdkit": (nbdkit, have("nbdkit", "nbdfuse", "nginx")),
        "httpdirfs": (httpdirfs, have("httpdirfs", "nginx")),
        "qsd": (qsd, have("qemu-storage-daemon", "nginx")),
        "nbdfs": (cached, have(bench.NBDFS[0], "nginx")),
    }
    return systems, work


def main() -> None:
    spec = importlib.util.spec_from_loader("compare", SourceFileLoader("compare", str(HERE / "compare")))
    assert spec and spec.loader
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)

    def job(tmp: str) -> tuple[dict[str, Any], dict[str, Any]]:
        return job_http(tmp, bench)

    job.__doc__ = job_http.__doc__
    bench.JOBS.clear()
    bench.JOBS["http"] = job
    bench.main()


if __name__ == "__main__":
    main()
