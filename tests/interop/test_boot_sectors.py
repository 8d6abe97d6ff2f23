"""Two boot sectors written as data strings; qemu boots them from `nbdfs run`, and its screen shows what they draw."""

from __future__ import annotations

import json
import math
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.interop.servers import Server, serve
from tests.tools import command

__all__ = ["serve"]

BOOT_TIMEOUT = 60  # seconds
CELL = 9, 16  # pixels of a character in text mode


@dataclass(frozen=True)
class Picture:
    """A screen dump in PPM."""

    width: int
    height: int
    pixels: bytes

    @classmethod
    def read(cls, path: Path) -> Picture:
        magic, width, height, deepest, pixels = path.read_bytes().split(maxsplit=4)
        assert (magic, deepest) == (b"P6", b"255")
        return cls(int(width), int(height), pixels)

    def lit(self, x: int, y: int) -> bool:
        at = 3 * (y * self.width + x)
        return any(self.pixels[at : at + 3])

    def cell(self, column: int, row: int) -> tuple[bool, ...]:
        """The shape of one character."""
        width, height = CELL
        return tuple(self.lit(column * width + x, row * height + y) for y in range(height) for x in range(width))


class Monitor:
    """QEMU's machine protocol, as much of it as is needed."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(BOOT_TIMEOUT)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("rb")
        json.loads(self._lines.readline())
        self.do("qmp_capabilities")

    def do(self, name: str, **arguments: object) -> object:
        self._socket.sendall(json.dumps({"execute": name, "arguments": arguments}).encode() + b"\n")
        while "return" not in (reply := json.loads(self._lines.readline())):
            assert "error" not in reply, reply
        return reply["return"]

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


def wait_for(what: Callable[[], bool], message: str) -> None:
    end = time.monotonic() + BOOT_TIMEOUT
    while not what():
        assert time.monotonic() < end, message
        time.sleep(0.1)


@contextmanager
def booted(spec: str, folder: Path) -> Iterator[Monitor]:
    """A machine that boots from the source."""
    path = folder / "qmp"
    machine = ["qemu-system-x86_64", "-m", "16", "-nodefaults", "-vga", "std", "-display", "none",
               "-drive", "file={},format=raw", "-qmp", f"unix:{path},server=on,wait=off"]  # fmt: skip
    with subprocess.Popen(command("run", spec, "--", *machine), stderr=subprocess.PIPE) as process:
        try:
            wait_for(lambda: path.exists() or process.poll() is not None, "the machine does not start")
            assert process.poll() is None, process.stderr and process.stderr.read().decode()
            monitor = Monitor(path)
            yield monitor
            monitor.do("quit")
            monitor.close()
            assert process.wait(BOOT_TIMEOUT) == 0
        finally:
            process.terminate()


def screen(monitor: Monitor, folder: Path) -> Picture:
    path = folder / "screen.ppm"
    monitor.do("screendump", filename=str(path))
    return Picture.read(path)


def specs(name: str) -> list[str]:
    """The example in the spec itself, and by the file that holds it."""
    path = ROOT / "docs" / "examples" / f"{name}.data"
    return [f"data:{path.read_text()}", f"data,from={path}:"]


def says(picture: Picture, text: str) -> bool:
    """Whether some line has the text's pattern: cells alike where letters are, blank where there is a blank."""
    for row in range(picture.height // CELL[1]):
        cells = [picture.cell(column, row) for column in range(len(text))]
        shapes = dict(zip(text, cells, strict=True))
        alike = all(shapes[letter] == cell for letter, cell in zip(text, cells, strict=True))
        if alike and len(set(shapes.values())) == len(shapes) and not any(shapes[" "]):
            return True
    return False


@pytest.mark.root
def test_hello_world_in_the_spec(tmp_path: Path) -> None:
    with booted(specs("hello")[0], tmp_path) as monitor:
        wait_for(lambda: says(screen(monitor, tmp_path), "hello, world"), "the screen does not say hello")
        shown = str(monitor.do("human-monitor-command", **{"command-line": "xp /4000xb 0xb8000"}))
    cells = [int(word, 16) for line in shown.splitlines() for word in line.split(":")[1].split()]
    assert b"hello, world" in bytes(cells[::2])


@pytest.mark.root
def test_sine_in_the_spec(tmp_path: Path) -> None:
    curve = {(x, round(100 + 60 * math.sin(x * math.pi / 160))) for x in range(320)}

    def drawn() -> set[tuple[int, int]]:
        picture = screen(monitor, tmp_path)
        if (picture.width, picture.height) != (640, 400):  # mode 13h shows each point as four
            return set()
        return {(x, y) for x in range(320) for y in range(200) if picture.lit(2 * x, 2 * y)}

    with booted(specs("sine")[0], tmp_path) as monitor:
        wait_for(lambda: drawn() == curve, "the screen does not show the sine")


def test_both_forms_are_the_same_sector() -> None:
    for name in "hello", "sine":
        sectors = [
            subprocess.run(command("copy", spec, "-"), capture_output=True, check=True, timeout=60).stdout
            for spec in specs(name)
        ]
        assert sectors[0] == sectors[1]
        assert len(sectors[0]) == 512
        assert sectors[0].endswith(b"\x55\xaa")


def test_a_machine_boots_from_an_export(serve: Server, tmp_path: Path) -> None:
    """The sector sends a text to the first serial port; the machine has no disk but our server's."""
    code = "31 C0 8E D8 BE 15 7C BA F8 03 AC 84 C0 74 03 EE EB F8 F4 EB FD"
    said = tmp_path / "serial"
    words = " ".join(f"0x{byte}" for byte in code.split())
    uri = serve(f'data:{words} "booted over NBD" 0 @510 0x55 0xAA').uri
    machine = ["qemu-system-x86_64", "-m", "16", "-nodefaults", "-display", "none", "-serial", f"file:{said}",
               "-drive", f"file={uri},format=raw"]  # fmt: skip
    with subprocess.Popen(machine) as process:
        try:
            wait_for(lambda: said.exists() and said.read_text() == "booted over NBD", "the machine does not boot")
            assert process.poll() is None
        finally:
            process.kill()
