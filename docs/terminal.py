#!/usr/bin/env python3
"""Draw docs/terminal.svg: what a first session with nbdfs looks like.  Runs the commands for real, as root."""

from __future__ import annotations

import html
import os
import subprocess
import sys
import tempfile
from pathlib import Path

COMMANDS = [
    "nbdfs mount -b memory:1G mem.img --listen nbd+unix:///?socket=sock",
    "ls -ls mem.img",
    "mkfs.ext4 -q mem.img && du -h mem.img",
    "nbdfs info --map --totals mem.img",
    "fio --name=x --filename=mem.img --size=1G --rw=randread --bs=4k --direct=1 --runtime=2 --time_based | grep IOPS",
    "printf 'hello, network' | dd of=mem.img conv=notrunc status=none",
    "nbdfs dump --length 16 'nbd+unix:///?socket=sock'",
    "nbdfs umount mem.img",
]
CHARACTER, LINE, MARGIN = 8.4, 19, 16  # pixels


def main() -> None:
    lines: list[tuple[str, bool]] = []
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with tempfile.TemporaryDirectory() as folder:
        for command in COMMANDS:
            lines.append((f"$ {command}", True))
            done = subprocess.run(["sh", "-c", command], cwd=folder, env={**os.environ, "PATH": path}, text=True,
                                  capture_output=True, check=True)  # fmt: skip
            lines += [(line.rstrip(), False) for line in (done.stdout + done.stderr).splitlines()]
    (Path(__file__).parent / "terminal.svg").write_text(drawing(lines))


def drawing(lines: list[tuple[str, bool]]) -> str:
    """The lines as a picture of a terminal; those that were typed are brighter."""
    width = max(len(text) for text, _ in lines) * CHARACTER + 2 * MARGIN
    height = len(lines) * LINE + 2 * MARGIN
    rows = [
        f'<text x="{MARGIN}" y="{MARGIN + 14 + number * LINE}" fill="{"#ffffff" if typed else "#9fb4c8"}">'
        f"{html.escape(text)}</text>"
        for number, (text, typed) in enumerate(lines)
    ]
    head = (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" '
            'font-family="monospace" font-size="14" xml:space="preserve">')  # fmt: skip
    return "\n".join([head, '<rect width="100%" height="100%" rx="8" fill="#16202b"/>', *rows, "</svg>"]) + "\n"


if __name__ == "__main__":
    main()
