"""A virtual machine that stays up over many tests: Debian with systemd, on a disk that keeps what is written."""

from __future__ import annotations

import base64
import itertools
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

from tests.conftest import ROOT

_BOOT = 300.0  # seconds, also where the machine is emulated, beside other work
_PATIENCE = 180.0  # seconds for what takes a few
_END = 180.0  # seconds for the guest to shut down
_BUILD = 600.0  # seconds, if the guest is not built yet


class Guest:
    """The machine; `share` is a folder whose copy is at /mnt/share in it."""

    def __init__(self, folder: Path, share: Path) -> None:
        self.console = folder / "console"
        self._words = [ROOT / "tests/guest/boot-systemd", folder / "disk", self.console, folder / "shell", share]
        self._socket = folder / "shell"
        self._nonces = itertools.count(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None

    def __enter__(self) -> Guest:
        subprocess.run([ROOT / "tests/guest/build-systemd"], check=True, timeout=_BUILD)
        self.boot()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process:
            self._process.kill()
            self._gone()

    def boot(self) -> None:
        """Switch on, and wait until everything that shall run at boot was started."""
        self.console.unlink(missing_ok=True)
        self._process = subprocess.Popen(self._words)
        end = time.monotonic() + _BOOT
        while "GUEST-SHELL-UP" not in self.said():
            assert self._process.poll() is None, f"the guest ended while booting: {self.said()}"
            assert time.monotonic() < end, f"the guest is not up within {_BOOT:g} s: {self.said()}"
            time.sleep(0.2)
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(str(self._socket))
        self.run("systemctl is-system-running --wait || true", seconds=_BOOT)

    def said(self) -> str:
        """What the console showed since the last boot."""
        return self.console.read_text(errors="replace") if self.console.exists() else ""

    def attempt(self, script: str, *, seconds: float = _PATIENCE) -> tuple[int, str]:
        """Run a shell script as root, which ends at the first command that fails: exit status, and all it printed."""
        assert self._connection, "the guest is off"
        self._connection.settimeout(seconds)
        nonce = self._send(script)
        answer = b""
        while not (answer.endswith(b"\n") and nonce.encode() in answer):
            try:
                received = self._connection.recv(1 << 16)
            except TimeoutError:
                raise AssertionError(f"not within {seconds:g} s: {script}\n{self.said()[-2000:]}") from None
            assert received, f"the guest ended during: {script}\n{self.said()[-2000:]}"
            answer += received
        output, _, status = answer.decode().rpartition(nonce)
        _, late, fresh = output.rpartition("command-")  # an answer that nobody waited for any more
        output = fresh.partition("\n")[2] if late else fresh
        return int(status), base64.b64decode(output).decode(errors="replace")

    def run(self, script: str, *, seconds: float = _PATIENCE) -> str:
        """As `attempt`, for a script that must succeed: what it printed."""
        status, output = self.attempt(script, seconds=seconds)
        if status:
            journal = self.attempt("journalctl -b -o cat --no-hostname | tail -n 40")[1]
            raise AssertionError(f"{script}\nexit status {status}: {output}\nthe journal:\n{journal}")
        return output.strip()

    def write(self, path: str, text: str) -> None:
        """Make a file in the machine."""
        self.run(f"base64 -d >{path} <<<{base64.b64encode(text.encode()).decode()}")

    def until(self, condition: str, *, seconds: float = _PATIENCE) -> None:
        """Wait until a shell command succeeds."""
        loop = f"until {condition}; do [ $(date +%s) -lt $end ]; sleep 0.2; done"
        self.run(f"end=$(($(date +%s) + {seconds:.0f})); {loop}", seconds=seconds + 30)

    def end(self, how: str) -> str:
        """`poweroff` or `reboot`, and wait until the machine is off: what its console said."""
        assert self._process
        before = len(self.said())
        self._send(f"systemctl {how} --no-block")  # which may end the shell before it answers
        try:
            self._process.wait(_END)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{how} hangs: {self.said()[before:]}") from None
        self._gone()
        return self.said()[before:]

    def _send(self, script: str) -> str:
        assert self._connection
        nonce = f"command-{next(self._nonces)}"
        self._connection.sendall(f"{nonce} {base64.b64encode(script.encode()).decode()}\n".encode())
        return nonce

    def _gone(self) -> None:
        assert self._process
        self._process.wait()
        self._process = None
        if self._connection:
            self._connection.close()
            self._connection = None
