"""What the jobs share: starting the systems under test, and the work that fio does on them.

A job is a module of benchmarks/jobs with a function `job(home)`: it gets a folder of its own and gives a `Job`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NBDFS = os.environ.get("NBDFS", "nbdfs").split()
SIZE = 1 << 30  # bytes of a device under test

Enter = Callable[[], AbstractContextManager[Any]]  # starts a system; gives what its workloads work on
Work = Callable[[Any, float], float]  # (target, seconds) to a figure; higher is better


@dataclass(frozen=True)
class System:
    """A program under test and the programs it needs; `work` is what it does of its job where not all or otherwise."""

    enter: Enter
    programs: Sequence[str]
    work: Mapping[str, Work] | None = None

    @property
    def present(self) -> bool:
        return all(shutil.which(program) for program in self.programs)


@dataclass(frozen=True)
class Job:
    """Systems that can do the same work, by name; one whose name ends in `(limit)` is no peer but what could be had."""

    title: str
    systems: Mapping[str, System]
    work: Mapping[str, Work]


def wait_until(ready: Callable[[], bool], what: str, seconds: float = 20.0, step: float = 0.02) -> None:
    """Wait for a condition; RuntimeError if it does not come true."""
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise RuntimeError(f"{what}: not ready after {seconds:.0f} s")
        time.sleep(step)


@contextlib.contextmanager
def background(argv: Sequence[str], ready: Callable[[], bool], what: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """Run `argv` until the block ends; enter the block once ready() is true."""
    what = what or argv[0]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)

        def up() -> bool:
            if process.poll() is not None:
                log.seek(0)
                raise RuntimeError(f"{what} ended early: {log.read().decode(errors='replace')[-400:]}")
            return ready()

        try:
            wait_until(up, what, step=0.005)
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@contextlib.contextmanager
def mounted(argv: Sequence[str], path: str, what: str = "") -> Iterator[str]:
    """Run a foreground mounting program; `path` is the regular file it covers."""
    Path(path).touch()
    try:
        with background(argv, lambda: os.path.ismount(path) and os.stat(path).st_size > 0, what):
            yield path
            subprocess.run(["umount", path], stderr=subprocess.DEVNULL)
    finally:
        subprocess.run(["umount", "-l", path], stderr=subprocess.DEVNULL)


@contextlib.contextmanager
def server(argv: Sequence[str], socket: str) -> Iterator[str]:
    """Run an NBD server on a Unix socket; gives its URI."""
    Path(socket).unlink(missing_ok=True)
    with background(argv, lambda: os.path.exists(socket)):
        yield f"nbd+unix:///?socket={socket}"


@contextlib.contextmanager
def raw_file(path: str, size: int) -> Iterator[str]:
    """A sparse file for the block."""
    with open(path, "wb") as out:
        out.truncate(size)
    try:
        yield path
    finally:
        os.unlink(path)


def given(target: object) -> Enter:
    """A system that needs no start: its workloads get `target`."""
    return lambda: contextlib.nullcontext(target)


def once(argv: Sequence[str]) -> float:
    """Run to the end; seconds it took."""
    start = time.monotonic()
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=600)
    if ended.returncode:
        raise RuntimeError(f"{argv[0]}: {ended.stderr[-300:]}")
    return time.monotonic() - start


def fio(seconds: float, *, size: int = SIZE, **options: object) -> tuple[dict[str, Any], dict[str, Any]]:
    """One fio job; its figures for reads and for writes."""
    argv = ["fio", "--name=x", f"--size={size}", f"--runtime={seconds}", "--time_based", "--output-format=json"]
    argv += [f"--{key}={value}" for key, value in options.items()]
    ended = subprocess.run(argv, capture_output=True, text=True, timeout=seconds * 6 + 60)
    if ended.returncode:
        raise RuntimeError("fio: " + (ended.stderr or ended.stdout)[-300:])
    job = json.loads(ended.stdout[ended.stdout.index("{") :])["jobs"][0]
    return job["read"], job["write"]


def iops(seconds: float, **options: object) -> float:
    """Requests a second."""
    read, write = fio(seconds, **options)  # type: ignore[arg-type]
    return float(read["iops"] + write["iops"])


def mbps(seconds: float, **options: object) -> float:
    """MB (10^6 bytes) a second."""
    read, write = fio(seconds, **options)  # type: ignore[arg-type]
    return float((read["bw_bytes"] + write["bw_bytes"]) / 1e6)


def on_file(measure: Callable[..., float], **options: object) -> Work:
    """fio on a file."""
    return lambda path, seconds: measure(seconds, filename=path, **options)


def on_uri(measure: Callable[..., float], **options: object) -> Work:
    """fio's NBD client."""
    return lambda uri, seconds: measure(seconds, ioengine="nbd", uri=uri, **options)


_DEEP = {"direct": 1, "ioengine": "io_uring", "iodepth": 16}
_PLAIN = {"direct": 1, "ioengine": "psync"}
URI_WORK: Mapping[str, Work] = {
    "randread 4k direct qd1 [IOPS]": on_uri(iops, rw="randread", bs="4k", iodepth=1),
    "randread 4k direct qd16 [IOPS]": on_uri(iops, rw="randread", bs="4k", iodepth=16),
    "randwrite 4k direct qd1 [IOPS]": on_uri(iops, rw="randwrite", bs="4k", iodepth=1),
    "randwrite 4k direct qd16 [IOPS]": on_uri(iops, rw="randwrite", bs="4k", iodepth=16),
    "seqread 1M direct [MB/s]": on_uri(mbps, rw="read", bs="1M", iodepth=1),
    "seqwrite 1M direct [MB/s]": on_uri(mbps, rw="write", bs="1M", iodepth=1),
}
FILE_WORK: Mapping[str, Work] = {
    "randread 4k direct qd1 [IOPS]": on_file(iops, rw="randread", bs="4k", **_PLAIN),
    "randread 4k direct qd16 [IOPS]": on_file(iops, rw="randread", bs="4k", **_DEEP),
    "randwrite 4k direct qd1 [IOPS]": on_file(iops, rw="randwrite", bs="4k", **_PLAIN),
    "randwrite 4k direct qd16 [IOPS]": on_file(iops, rw="randwrite", bs="4k", **_DEEP),
    "seqread 1M direct [MB/s]": on_file(mbps, rw="read", bs="1M", **_PLAIN),
    "seqwrite 1M direct [MB/s]": on_file(mbps, rw="write", bs="1M", **_PLAIN),
    "seqread 1M buffered [MB/s]": on_file(mbps, rw="read", bs="1M", ioengine="psync", invalidate=1),
    "mmap randwrite 4k [IOPS]": on_file(iops, rw="randwrite", bs="4k", ioengine="mmap"),
}
