"""A 256 MiB image on nginx behind 5 ms of delay, mounted; each round begins with nothing cached."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from benchmarks.systems import NBDFS, Job, System, Work, background, iops, mounted, on_file, once, server
from tests.ports import answers, free_port

_SIZE = 256 << 20
_DELAY = 5  # milliseconds
_PROXY = Path(__file__).parent.parent / "delay_proxy.py"
_CONFIGURATION = """
user root; daemon off; pid {home}/nginx.pid; error_log {home}/error.log; worker_processes 1;
events {{ }}
http {{ access_log off; sendfile on; keepalive_requests 1000000; autoindex on;
server {{ listen 127.0.0.1:{port}; root {home}/served; }} }}
"""


@contextlib.contextmanager
def _web(home: str) -> Iterator[str]:
    """The URL of the image."""
    inner, outer = free_port(), free_port()
    configuration = Path(home, "nginx.conf")
    configuration.write_text(_CONFIGURATION.format(home=home, port=inner))
    with background(["nginx", "-c", str(configuration)], lambda: answers(inner)):
        proxy = [sys.executable, str(_PROXY), str(outer), str(inner), str(_DELAY)]
        with background(proxy, lambda: answers(outer), "delay_proxy"):
            yield f"http://127.0.0.1:{outer}/disk.img"


def _whole(path: str, _: float) -> float:
    return _SIZE / 1e6 / once(["dd", f"if={path}", "of=/dev/null", "bs=1M", "status=none"])


def _again(path: str, seconds: float) -> float:
    """The whole file once more, out of the kernel's cache, so that the system under test answers."""
    with open(path, "rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return _whole(path, seconds)


@contextlib.contextmanager
def _nbdkit(home: str) -> Iterator[str]:
    path, socket = f"{home}/disk.img", f"{home}/k.sock"
    with _web(home) as url:
        command = ["nbdkit", "-f", "-r", "-U", socket, "--filter=cache", "--filter=readahead", "curl", url]
        with server(command, socket) as uri, mounted(["nbdfuse", "-r", path, uri], path):
            yield path


@contextlib.contextmanager
def _httpdirfs(home: str) -> Iterator[str]:
    folder = f"{home}/mnt"
    os.makedirs(folder, exist_ok=True)
    with _web(home) as url:
        command = ["httpdirfs", "-f", url.rpartition("/")[0] + "/", folder]
        with background(command, lambda: os.path.exists(f"{folder}/disk.img")):
            try:
                yield f"{folder}/disk.img"
            finally:
                subprocess.run(["umount", "-l", folder], stderr=subprocess.DEVNULL)


@contextlib.contextmanager
def _qsd(home: str) -> Iterator[str]:
    path = f"{home}/disk.img"
    with _web(home) as url:
        command = ["qemu-storage-daemon", "--blockdev", f"driver=http,node-name=h,url={url},read-only=on",
                   "--export", f"type=fuse,id=e,node-name=h,mountpoint={path}"]  # fmt: skip
        with mounted(command, path):
            yield path


@contextlib.contextmanager
def _nbdfs(home: str) -> Iterator[str]:
    path = f"{home}/disk.img"
    with _web(home) as url, mounted([*NBDFS, "mount", "-r", f"cache,size=512M::readahead::{url}", path], path):
        yield path


_RANDOM = {"size": _SIZE, "rw": "randread", "bs": "4k", "direct": 1}
_WORK: Mapping[str, Work] = {
    "randread 4k qd1 [IOPS]": on_file(iops, **_RANDOM, ioengine="psync"),
    "randread 4k qd16 [IOPS]": on_file(iops, **_RANDOM, ioengine="io_uring", iodepth=16),
    "whole file [MB/s]": _whole,
    "second pass [MB/s]": _again,
}


def job(home: str) -> Job:
    served = Path(home, "served")
    served.mkdir()
    (served / "disk.img").write_bytes(os.urandom(_SIZE))
    systems = {
        "nbdkit": System(partial(_nbdkit, home), ["nbdkit", "nbdfuse", "nginx"]),
        "httpdirfs": System(partial(_httpdirfs, home), ["httpdirfs", "nginx"]),
        "qsd": System(partial(_qsd, home), ["qemu-storage-daemon", "nginx"]),
        "nbdfs": System(partial(_nbdfs, home), [NBDFS[0], "nginx"]),
    }
    return Job("An image behind HTTP with 5 ms of delay", systems, _WORK)
