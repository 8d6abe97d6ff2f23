"""Copies between sources of all kinds, judged by other programs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from nbdfs.copying.resume import StateFile
from nbdfs.ranges import RangeSet
from tests.tools import command, complaint, nbdfs

MIB = 1 << 20
DATA = 'data:@65536 ( 0x55 0xAA )*4096 @1M "hello" @3M le32:7 @8M'  # with holes, 8 MiB
SPARSE = "sparse-random,seed=3,percent=30,runlength=128k:8M"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def extents_of(spec: str | Path) -> list[dict[str, object]]:
    return json.loads(nbdfs("info", "--map", "--json", spec).stdout)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A file of 8 MiB: random data, holes, and data that is zero."""
    path = tmp_path / "source.img"
    with path.open("wb") as file:
        file.truncate(8 * MIB)
        for at, length in ((0, 64 << 10), (2 * MIB, MIB), (5 * MIB + 4096, 300_000)):
            file.seek(at)
            file.write(os.urandom(length))
        file.seek(7 * MIB)
        file.write(bytes(MIB // 2))
    return path


@pytest.mark.parametrize("source", [DATA, SPARSE, "pattern:1000000", "null:1M", "zero:0"])
def test_what_a_source_holds_arrives_in_a_file_and_in_memory_and_in_a_pipe(source: str, tmp_path: Path) -> None:
    digest = nbdfs("copy", source, "null:", "--digest", "sha256").stdout.split()[0].decode()
    target = tmp_path / "target.img"
    nbdfs("copy", "--verify", source, target)
    assert sha256(target) == digest
    piped = nbdfs("copy", source, "-").stdout
    assert hashlib.sha256(piped).hexdigest() == digest
    if size := target.stat().st_size:
        nbdfs("copy", "--verify", source, f"memory:{size}")


@pytest.mark.parametrize("source", [DATA, SPARSE, "null:8M"])
def test_holes_stay_holes(source: str, tmp_path: Path) -> None:
    target = tmp_path / "target.img"
    nbdfs("copy", source, target)
    zero = [(row["offset"], row["length"]) for row in extents_of(target) if row["type"] == 3]
    told = [(row["offset"], row["length"]) for row in extents_of(source) if int(str(row["type"])) & 2]
    allocated = target.stat().st_blocks * 512
    assert allocated <= 8 * MIB - sum(int(str(length)) // 4096 * 4096 for _, length in told) + (64 << 10)
    assert zero or allocated == 8 * MIB


def test_a_file_is_copied_by_the_kernel_and_qemu_finds_no_difference(image: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.img"
    summary = json.loads(nbdfs("copy", "--json", image, target).stdout)
    assert summary["way"] == "files"
    assert summary["flushed"] is True
    assert summary["size"] == 8 * MIB
    subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "raw", image, target], check=True, capture_output=True)
    assert target.stat().st_blocks <= image.stat().st_blocks


def test_files_on_two_file_systems_are_copied_by_hand(image: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        target = Path(folder) / "target.img"
        assert target.parent.stat().st_dev != image.stat().st_dev
        summary = json.loads(nbdfs("copy", "--json", "--verify", image, target).stdout)
        assert summary["way"] == "files"
        assert sha256(target) == sha256(image)
        assert target.stat().st_blocks <= image.stat().st_blocks


def test_zeroes_in_data_become_holes_if_they_are_looked_for(image: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.img"
    nbdfs("copy", "--sparse=4k", image, target)
    assert sha256(target) == sha256(image)
    assert target.stat().st_blocks * 512 <= image.stat().st_blocks * 512 - MIB // 2


def test_allocated_leaves_no_hole(image: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.img"
    nbdfs("copy", "--allocated", image, target)
    assert sha256(target) == sha256(image)
    assert target.stat().st_blocks * 512 >= 8 * MIB


def test_an_older_file_is_replaced(image: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.img"
    target.write_bytes(b"x" * 9 * MIB)
    nbdfs("copy", image, target)
    assert sha256(target) == sha256(image)


def test_a_pipe_becomes_a_sparse_file(image: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.img"
    nbdfs("copy", "-", target, stdin=image.read_bytes())
    assert sha256(target) == sha256(image)
    assert target.stat().st_blocks * 512 < 3 * MIB


def test_an_empty_pipe_is_an_empty_file(tmp_path: Path) -> None:
    nbdfs("copy", "-", tmp_path / "target.img", stdin=b"")
    assert (tmp_path / "target.img").read_bytes() == b""


def test_named_pipes_are_read_and_written(image: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(command("copy", image, pipe)) as writer:
        nbdfs("copy", pipe, tmp_path / "target.img")
        assert writer.wait() == 0
    assert sha256(tmp_path / "target.img") == sha256(image)


@pytest.mark.parametrize("prefix", ["", "file:"])
def test_sha256sum_checks_the_digest_of_a_file(prefix: str, image: Path) -> None:
    told = nbdfs("copy", "--digest=sha256", f"{prefix}{image}", "null:").stdout
    assert told == subprocess.run(["sha256sum", image], capture_output=True, check=True).stdout
    subprocess.run(["sha256sum", "--check", "--strict"], input=told, check=True)


def test_the_digest_is_the_one_of_sha256sum(image: Path) -> None:
    own = nbdfs("copy", "--digest=sha256", "--digest=md5", image, "null:").stdout.split()
    for program, at in ("sha256sum", 0), ("md5sum", 2):
        assert subprocess.run([program, image], capture_output=True, check=True).stdout.split()[0] == own[at]


def test_the_block_hash_goes_to_its_file(tmp_path: Path) -> None:
    file = tmp_path / "hash"
    nbdfs("copy", "--blkhash=sha512/512k", "--blkhash-file", file, 'data:"12345678"*512*256', "null:")
    assert file.read_text().startswith("379f7eb1628058c7abbc4c96941ac972074815ea9ef4aca95eefb2b4f9c29f64023f")


def test_a_small_destination_is_refused_before_a_byte_is_written(image: Path, tmp_path: Path) -> None:
    with subprocess.Popen(
        ["nbdkit", "-f", "-U", tmp_path / "sock", "memory", "1M"], stderr=subprocess.DEVNULL
    ) as server:
        line = complaint("copy", image, "memory:1M")
        server.terminate()
    assert "too small" in line
    assert "nothing was written" in line


@pytest.mark.parametrize("kind", ["same", "symlink", "hardlink"])
def test_a_file_is_not_copied_onto_itself(kind: str, image: Path, tmp_path: Path) -> None:
    before = sha256(image)
    target = tmp_path / "other.img"
    if kind == "symlink":
        target.symlink_to(image)
    elif kind == "hardlink":
        target.hardlink_to(image)
    else:
        target = image
    assert "both source and destination" in complaint("copy", image, target)
    assert sha256(image) == before


@pytest.mark.parametrize("source", ["cow::{}", "data:<{}", "readahead::{}"])
def test_a_file_is_not_replaced_by_what_is_made_of_it(source: str, image: Path, tmp_path: Path) -> None:
    before = sha256(image)
    (tmp_path / "link").hardlink_to(image)
    assert "both source and destination" in complaint("copy", source.format(image), tmp_path / "link")
    assert sha256(image) == before


def test_a_file_is_not_copied_onto_itself_by_standard_input(image: Path) -> None:
    before = sha256(image)
    with image.open("rb") as stdin:
        done = subprocess.run(command("copy", "-", image), stdin=stdin, capture_output=True)
    assert done.returncode == 1
    assert b"both source and destination" in done.stderr
    assert sha256(image) == before


@pytest.mark.parametrize("words", [["null:1M"], ["cow::null:1M"]])
def test_a_destination_may_be_held_open_by_whoever_runs_the_copy(words: list[str], tmp_path: Path) -> None:
    """As flock(1) does to lock it."""
    target = tmp_path / "target"
    target.touch()
    with target.open("rb") as held:
        assert subprocess.run(command("copy", *words, target), stdin=held, pass_fds=[held.fileno()]).returncode == 0
    assert target.stat().st_size == MIB


def test_standard_output_may_be_named_by_a_path(image: Path, tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as stdout:
        assert subprocess.run(command("copy", image, "/dev/stdout"), stdout=stdout).returncode == 0
    assert sha256(tmp_path / "out") == sha256(image)


@pytest.mark.parametrize(("source", "destination"), [("x", "s"), ("x", "s.new"), ("s", "x"), ("s.new", "x")])
def test_the_state_takes_the_place_of_neither_side(source: str, destination: str, tmp_path: Path) -> None:
    (tmp_path / source).write_bytes(b"precious")
    assert "no place for its state" in complaint(
        "copy", tmp_path / source, tmp_path / destination, "--resume", tmp_path / "s", status=2
    )
    assert (tmp_path / source).read_bytes() == b"precious"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_state_without_its_destination_is_told_as_such(image: Path, tmp_path: Path) -> None:
    StateFile(str(tmp_path / "state"), {}).save(RangeSet())
    words = ["copy", image, tmp_path / "target", "--resume", tmp_path / "state"]
    assert f"target is gone, but the state of its copy is there: remove {tmp_path}/state" in complaint(*words)


def test_nobody_is_told_to_remove_what_is_no_state(image: Path, tmp_path: Path) -> None:
    other, link = tmp_path / "other", tmp_path / "link"
    other.write_bytes(b"precious")
    link.symlink_to(other)
    for destination in tmp_path / "new", image:
        words = ["copy", image if destination != image else "zero:1k", destination, "--resume"]
        assert complaint(*words, other) == f"nbdfs: {other} is not the state file of a copy: name another one"
        assert f"{link} is no regular file" in complaint(*words, link)
    assert other.read_bytes() == b"precious"


def test_a_device_that_happens_to_be_open_is_no_side(image: Path, tmp_path: Path) -> None:
    shutil.copy(image, tmp_path / "target")  # the state exists, so that the copy goes on with it
    words = command("copy", image, tmp_path / "target", "--resume", os.devnull)
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True)
    assert b"/dev/null is no regular file" in done.stderr


def test_a_full_disk_names_the_partial_destination(image: Path) -> None:
    assert "No space left" in complaint("copy", image, "/dev/full")
    assert "/dev/full is incomplete" in complaint("copy", image, "/dev/full")


def test_a_reader_that_goes_away_is_told_in_one_line(image: Path) -> None:
    shell = " ".join(command("copy", str(image), "-")) + " | head -c 1000 | wc -c; exit ${PIPESTATUS[0]}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, timeout=60)
    assert done.stdout.strip() == b"1000"
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
    assert b"Broken pipe" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_copy_with_one_line(number: int, image: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.img"
    copy = subprocess.Popen(command("copy", "--rate=1M", image, target), stderr=subprocess.PIPE)
    wait_until(lambda: target.exists() and target.stat().st_blocks > 0)
    copy.send_signal(number)
    _, errors = copy.communicate(timeout=20)
    assert copy.returncode == 1
    assert errors.decode().count("\n") == 1
    assert f"{target} is incomplete" in errors.decode()
    assert signal.Signals(number).name in errors.decode()


def wait_until(condition: object) -> None:
    deadline = time.monotonic() + 20
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_killed_copy_goes_on_where_it_was(tmp_path: Path) -> None:
    source, target, state = tmp_path / "source.img", tmp_path / "target.img", tmp_path / "state"
    source.write_bytes(os.urandom(8 * MIB))
    words = command("copy", "--resume", state, source, target)
    copy = subprocess.Popen([*words, "--rate=1500k"])
    wait_until(lambda: state.exists() and json.loads(state.read_text())["done"])
    copy.kill()
    copy.wait()
    claimed = json.loads(state.read_text())["done"]
    content = target.read_bytes()
    original = source.read_bytes()
    for start, stop in claimed:
        assert content[start:stop] == original[start:stop]
    summary = json.loads(subprocess.run([*words, "--json"], check=True, capture_output=True).stdout)
    assert summary["skipped"] == sum(stop - start for start, stop in claimed) > 0
    assert summary["copied"] == 8 * MIB - summary["skipped"]
    assert target.read_bytes() == original
    assert not state.exists()


def test_a_state_file_fits_its_own_copy_only(image: Path, tmp_path: Path) -> None:
    target, state = tmp_path / "target.img", tmp_path / "state"
    copy = subprocess.Popen(command("copy", "--resume", state, "--rate=1M", image, target), stderr=subprocess.PIPE)
    wait_until(lambda: target.exists() and target.stat().st_blocks > 0)
    copy.terminate()
    _, errors = copy.communicate(timeout=20)
    assert f"goes on from {state}" in errors.decode()
    other = tmp_path / "other.img"
    shutil.copy(target, other)
    assert "another copy" in complaint("copy", "--resume", state, image, other)
    os.utime(image)
    assert "another copy" in complaint("copy", "--resume", state, image, target)
    state.write_text("{}")
    assert "not the state file" in complaint("copy", "--resume", state, image, target)


def test_progress_for_programs_ends_with_100(image: Path, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    words = command("copy", f"--progress={writing}", image, tmp_path / "target.img")
    subprocess.run(words, check=True, pass_fds=[writing])
    os.close(writing)
    with open(reading, "rb") as file:
        assert file.read().endswith(b"100/100\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--request-size=64M", "null:1M", "null:"], "request size"),
        (["--sparse=1000", "null:1M", "null:"], "power of two"),
        (["--connections=0", "null:1M", "null:"], "connection"),
        (["null:", "null:1M"], "null:SIZE"),
        (["--verify", "null:1M", "null:"], "--verify"),
        (["--verify", "null:1M", "/dev/null"], "--verify"),
        (["--resume=x", "null:1M", "null:"], "--resume"),
        (["--resume=x", "--digest=sha256", "null:1M", "memory:1M"], "hash"),
        (["--digest=sha257", "null:1M", "null:"], "sha257"),
        (["--blkhash=crc32", "null:1M", "null:"], "crc32"),
        (["--progress=x", "null:1M", "null:"], "descriptor"),
        (["--progress=77", "null:1M", "null:"], "descriptor"),
        (["--rate=0", "null:1M", "null:"], "rate"),
        (["null:1M"], "DST"),
        (["null:1M", "nul:"], "null"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_refused(words: list[str], message: str) -> None:
    assert message in complaint("copy", *words, status=2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["/no/such/file", "null:"], "/no/such/file"),
        (["null:1M", "/no/such/folder/file"], "/no/such/folder/file"),
        (["null:1M", "/"], "/"),
        (["--resume=/no/such/state", "null:1M", "memory:1M"], "/no/such/state"),
    ],
)
def test_ends_that_cannot_be_opened_are_named(words: list[str], message: str) -> None:
    assert message in complaint("copy", *words)
