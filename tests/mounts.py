"""Real mounts for tests: `nbdfs mount` as a process of its own, as root and as a user without privileges."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest

NOBODY = 65534

_SETRESUID, _SETRESGID = 117, 119  # system calls on x86-64
_libc = ctypes.CDLL(None)

Result = TypeVar("Result")

SECONDS = 30.0  # that a mount may take to come up or to end


@dataclass
class Mounted:
    """A mount and the process that serves it."""

    file: Path
    process: subprocess.Popen[str]

    def umount(self) -> None:
        """End it as a user would."""
        subprocess.run(nbdfs("umount", str(self.file)), check=True, timeout=SECONDS)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and give the exit status."""
        self.process.send_signal(number)
        return self.process.wait(SECONDS)


@dataclass
class Mounter:
    """Starts mounts in a way (who, with which options) and ends them all."""

    folder: Path
    prefix: list[str]
    options: tuple[str, ...]
    started: list[Mounted] = field(default_factory=list)

    def __call__(self, spec: str, *words: str, name: str = "disk.img", ready: bool = True) -> Mounted:
        file = self.folder / name
        up = self.folder / f"{file.name}.{len(self.started)}.pid"
        command = [*self.prefix, *nbdfs("mount", *self.options, *words, "-P", str(up), spec, str(file))]
        mounted = Mounted(file, subprocess.Popen(command, text=True, stderr=subprocess.PIPE))
        self.started.append(mounted)
        if ready:
            wait_until(lambda: up.exists() or mounted.process.poll() is not None, f"mount of {spec}")
            if mounted.process.poll() is not None:
                assert mounted.process.stderr
                pytest.fail(f"the mount of {spec} ended: {mounted.process.stderr.read()}")
        return mounted

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command as the user who mounts."""
        whole = [*self.prefix, *command]
        return subprocess.run(whole, check=check, text=True, capture_output=True, timeout=SECONDS, cwd=self.folder)

    def do(self, action: Callable[[], Result]) -> Result:
        """Call a function as the user who mounts: nobody else, not even root, may enter a user's mount.

        It runs in a thread that has given up its privileges for good; only the raw system call does that to one thread.
        """
        if not self.prefix:
            return action()
        with ThreadPoolExecutor(1, initializer=_become_nobody) as thread:
            return thread.submit(action).result(SECONDS)

    def end_all(self) -> None:
        for mounted in self.started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                if mounted.process.poll() is None:
                    mounted.process.terminate()
                mounted.process.wait(SECONDS)
            mounted.process.kill()
            mounted.process.wait()
            if mounted.process.stderr:
                mounted.process.stderr.close()
            if is_mounted(mounted.file):
                subprocess.run(["umount", "-l", str(mounted.file)], check=True)


def _become_nobody() -> None:
    for call in (_SETRESGID, _SETRESUID):
        assert _libc.syscall(call, NOBODY, NOBODY, NOBODY) == 0


def nbdfs(*words: str) -> list[str]:
    """The command line of nbdfs in this Python."""
    return [sys.executable, "-m", "nbdfs", *words]


def is_mounted(file: Path) -> bool:
    return f" {file} " in Path("/proc/self/mountinfo").read_text()


def wait_until(ready: Callable[[], bool], what: str, seconds: float = SECONDS) -> None:
    """Poll a condition; fail the test if it does not come true."""
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            pytest.fail(f"{what}: not within {seconds:g} s")
        time.sleep(0.02)


@contextlib.contextmanager
def opened(file: Path, flags: int = os.O_RDWR) -> Iterator[int]:
    """A descriptor of the file."""
    descriptor = os.open(file, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def fails_with(*numbers: int) -> Iterator[None]:
    """The block must fail with one of these errnos."""
    with pytest.raises(OSError) as caught:
        yield
    assert caught.value.errno in numbers, caught.value


def _mounter(folder: Path, prefix: list[str], options: tuple[str, ...]) -> Iterator[Mounter]:
    mounter = Mounter(folder, prefix, options)
    try:
        yield mounter
    finally:
        mounter.end_all()


@pytest.fixture(params=["passthrough", "data plane", "unprivileged"])
def mount(
    request: pytest.FixtureRequest, tmp_path: Path, nobody_path: Path, unprivileged: list[str]
) -> Iterator[Mounter]:
    """Each way of mounting: root with passthrough where the source allows it, root without, and a user."""
    if request.param == "unprivileged":
        yield from _mounter(nobody_path, unprivileged, ())
    elif os.geteuid():
        pytest.skip("needs root")
    else:
        yield from _mounter(tmp_path, [], ("-o", "nopassthrough") if request.param == "data plane" else ())


@pytest.fixture
def mount_data_plane(tmp_path: Path) -> Iterator[Mounter]:
    """Mounts that the data plane serves, as whoever runs the tests."""
    yield from _mounter(tmp_path, [], ("-o", "nopassthrough"))
