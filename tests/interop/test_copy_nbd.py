"""Copies to and from NBD servers: other people's servers, errors, delays, kills, and the terminal."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.interop.servers import nbdkit
from tests.tools import TIMEOUT, command, complaint, nbdfs

MIB = 1 << 20


def digest(spec: str | Path) -> str:
    return nbdfs("copy", spec, "null:", "--digest=sha256").stdout.split()[0].decode()


def test_there_and_back(tmp_path: Path) -> None:
    source, back = tmp_path / "source.img", tmp_path / "back.img"
    source.write_bytes(os.urandom(3 * MIB + 512) + bytes(MIB) + os.urandom(MIB - 512))
    with nbdkit(tmp_path, "memory", "5M") as uri:
        nbdfs("copy", "--verify", source, uri)
        nbdfs("copy", uri, back)
        subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "raw", source, uri], check=True, capture_output=True)
    assert back.read_bytes() == source.read_bytes()
    assert back.stat().st_blocks * 512 <= 4 * MIB + 65536


def test_zeroes_replace_what_was_there(tmp_path: Path) -> None:
    with nbdkit(tmp_path, "memory", "4M") as uri:
        nbdfs("copy", "pattern:4M", uri)
        nbdfs("copy", "--verify", "data:@1M 1 @4M", uri)
        rows = json.loads(nbdfs("info", "--map", "--json", uri).stdout)
    assert [row["type"] for row in rows] == [3, 0, 3]


def test_a_disk_that_verifies_what_is_written_to_it(tmp_path: Path) -> None:
    with nbdkit(tmp_path, "sparse-random", "1G", "seed=3", "percent=5") as uri:
        summary = json.loads(nbdfs("copy", "--json", uri, uri).stdout)
    assert summary["copied"] + summary["zeroed"] + summary["skipped"] == 1 << 30
    assert summary["copied"] > 10 * MIB


@pytest.mark.parametrize(
    "faults", ["error,read-rate=0.2,write-rate=0.2,zero-rate=0.2,seed=1", "delay,read=20ms,write=20ms"]
)
def test_the_sparse_random_pair_under_errors_and_delays(faults: str) -> None:
    """Blocks of 1 MiB arrive right or not at all: the destination compares each with what it must be."""
    disk = f"{faults}::sparse-random,seed=5,percent=30,runlength=512k:32M"
    words = ["--json", "--request-size=256k", "--retry=30", disk, disk]
    summary = json.loads(nbdfs("copy", *words).stdout)
    assert summary["copied"] > 5 * MIB
    assert (summary["retries"] > 0) == faults.startswith("error")


def test_errors_of_a_server_are_tried_again(tmp_path: Path) -> None:
    server = ["--filter=error", "pattern", "16M", "error-pread-rate=0.3"]
    with nbdkit(tmp_path, *server) as uri:
        summary = json.loads(
            nbdfs("copy", "--json", "--request-size=256k", "--retry=40", "--digest=sha256", uri, "null:").stdout
        )
        assert "cannot read at byte" in complaint("copy", "--request-size=64k", uri, "null:")
    assert summary["retries"] > 0
    assert summary["digests"]["sha256"] == digest("pattern:16M")


@pytest.mark.parametrize(
    ("fault", "source", "message"),
    [("error-pwrite-rate=1", "pattern:4M", "cannot write"), ("error-zero-rate=1", "null:4M", "cannot zero")],
)
def test_a_destination_that_fails_is_no_success(fault: str, source: str, message: str, tmp_path: Path) -> None:
    with nbdkit(tmp_path, "--filter=error", "--filter=noextents", "memory", "4M", fault) as uri:
        line = complaint("copy", source, uri)
    assert message in line
    assert "is incomplete" in line


def test_a_failed_flush_is_no_success(tmp_path: Path) -> None:
    script = ["eval", "get_size=echo 1048576", "pwrite=cat >/dev/null", "can_write=exit 0", "can_flush=exit 0",
              "flush=echo EIO no >&2; exit 1", "pread=head -c $3 /dev/zero"]  # fmt: skip
    with nbdkit(tmp_path, *script) as uri:
        line = complaint("copy", "pattern:1M", uri)
    assert "cannot flush" in line
    assert "is incomplete" in line


def test_a_server_that_is_too_small_stays_untouched(tmp_path: Path) -> None:
    with nbdkit(tmp_path, "memory", "1M") as uri:
        nbdfs("copy", "pattern:1M", uri)
        assert "too small" in complaint("copy", "null:2M", uri)
        assert digest(uri) == digest("pattern:1M")


def test_a_read_only_server_is_named(tmp_path: Path) -> None:
    with nbdkit(tmp_path, "-r", "memory", "1M") as uri:
        assert "read-only" in complaint("copy", "null:1M", uri)


def test_captive_servers_on_both_sides(tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "8M"], check=True)
    nbdfs("copy", "--verify", "[", "nbdkit", "pattern", "8M", "]", "[", "qemu-nbd", "-f", "qcow2", image, "]")
    raw = tmp_path / "disk.raw"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, raw], check=True)
    assert digest("pattern:8M") == hashlib.sha256(raw.read_bytes()).hexdigest()


def test_a_killed_copy_to_a_server_goes_on(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with nbdkit(tmp_path, "memory", "8M") as uri:
        words = command("copy", "--resume", state, "--request-size=256k", "pattern:8M", uri)
        copy = subprocess.Popen([*words, "--rate=1500k"])
        deadline = time.monotonic() + 20
        while not state.exists() or not json.loads(state.read_text())["done"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        copy.send_signal(signal.SIGKILL)
        copy.wait()
        summary = json.loads(subprocess.run([*words, "--json"], check=True, capture_output=True, timeout=60).stdout)
        assert summary["skipped"] > 0
        assert digest(uri) == digest("pattern:8M")


def test_the_progress_bar_in_a_terminal() -> None:
    """tmux is the terminal: what a person would see, and that the line is drawn in place."""
    socket = f"nbdfs-test-{os.getpid()}"
    tmux = ["tmux", "-L", socket, "-f", "/dev/null"]
    copy = shlex.join(command("copy", "--no-extents", "--rate=4M", "--request-size=64k", "null:16M", "null:"))
    try:
        subprocess.run([*tmux, "new-session", "-d", "-x", "72", "-y", "12", f"{copy}; read wait"], check=True)
        screens = []
        deadline = time.monotonic() + TIMEOUT
        while "right already" not in (screens or [""])[-1] and "copied" not in (screens or [""])[-1]:
            assert time.monotonic() < deadline, screens[-1]
            time.sleep(0.2)
            done = subprocess.run([*tmux, "capture-pane", "-p"], check=True, capture_output=True)
            screens.append(done.stdout.decode())
    finally:
        subprocess.run([*tmux, "kill-server"], check=True)
    bars = [match for screen in screens if (match := re.search(r"(\d+)% \[(#*)(\.*)\] (.*)/s, 0:0\d left", screen))]
    assert bars
    assert all(screen.count("%") <= 1 for screen in screens)
    shares = [int(match[1]) for match in bars]
    assert shares == sorted(shares)
    for match in bars:
        assert abs(len(match[2]) / len(match[2] + match[3]) - int(match[1]) / 100) < 0.06
    assert "100% [" in screens[-1]
    assert "16.0M in " in screens[-1]
