"""What is shown while a torrent is fetched, on a terminal and to a program."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tools import command
from tests.torrents import ALONE, PIECE, Tracker, make_torrent, noise, seeding, write_files

PIECES = 20
SECONDS = 60.0


def prepared(folder: Path, tracker: Tracker) -> str:
    """A torrent; the spec that reads it."""
    write_files(folder, {"disk.img": noise(PIECES * PIECE)})
    torrent = make_torrent(folder, "disk.img", tracker=tracker.url)
    return f"torrent,{ALONE},timeout=60:{torrent}"


def read_until(descriptor: int, enough: Callable[[bytes], bool]) -> bytes:
    """What comes from a descriptor, until it is enough."""
    seen, end = b"", time.monotonic() + SECONDS
    while not enough(seen):
        ready, _, _ = select.select([descriptor], [], [], max(end - time.monotonic(), 0))
        assert ready, seen.decode(errors="replace")
        seen += os.read(descriptor, 65536)
    return seen


def records(lines: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.splitlines(keepends=True) if line.endswith(b"\n")]


@pytest.mark.root
def test_run_tells_a_program_what_a_reader_waits_for_and_what_has_come(tmp_path: Path, tracker: Tracker) -> None:
    spec = prepared(tmp_path, tracker)
    reading, writing = os.pipe()
    words = command("run", f"--progress={writing}", spec, "--", "cat", "{}")
    with subprocess.Popen(words, pass_fds=[writing], stdout=subprocess.DEVNULL) as process:
        os.close(writing)
        lines = read_until(reading, lambda seen: any(0 in record["waiting"] for record in records(seen)))
        assert records(lines)[0] | {"waiting": []} == {
            "name": "disk.img", "pieces": PIECES, "here": 0, "peers": 0, "download_rate": 0, "upload_rate": 0,
            "waiting": [],
        }  # fmt: skip
        with seeding(tmp_path / "disk.img-v1.torrent", tmp_path, upload_limit=PIECES * PIECE // 3):
            assert process.wait(SECONDS) == 0
    with open(reading, "rb") as rest:
        later = records(rest.read())
    assert any(record["peers"] == 1 and record["download_rate"] > 0 for record in later)
    last = later[-1]
    assert last["here"] == PIECES
    assert last["waiting"] == []


@pytest.mark.root
def test_a_mount_on_a_terminal_draws_a_bar(tmp_path: Path, tracker: Tracker) -> None:
    spec = prepared(tmp_path, tracker)
    file = tmp_path / "mounted"
    ours, theirs = pty.openpty()
    with subprocess.Popen(command("mount", spec, file), stderr=theirs) as process:
        os.close(theirs)
        read_until(ours, lambda seen: b"0 of 20 pieces, 0 peers" in seen)
        with seeding(tmp_path / "disk.img-v1.torrent", tmp_path):
            with subprocess.Popen(["cat", file], stdout=subprocess.DEVNULL):
                read_until(ours, lambda seen: b"100% [" in seen and b"20 of 20 pieces" in seen)
        process.terminate()
        assert process.wait(SECONDS) == 0
    os.close(ours)


def test_a_server_shows_nothing_of_a_source_that_fetches_nothing(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    words = command("serve", f"--progress={writing}", "memory:1M", "-U", str(tmp_path / "socket"), "--run", "true")
    done = subprocess.run(words, pass_fds=[writing], timeout=SECONDS, capture_output=True)
    os.close(writing)
    with open(reading, "rb") as lines:
        assert (done.returncode, lines.read(), done.stderr) == (0, b"", b"")
