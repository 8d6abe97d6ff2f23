"""Copies between NBD exports and files, which lanes carry out: all that may happen on the way, judged by qemu-img."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.interop.servers import Server, nbdkit, serve
from tests.tools import TIMEOUT, command, complaint, nbdfs

__all__ = ["serve"]

MIB = 1 << 20
LITTLE = "--queue-size=1M"  # so that small copies keep several lanes busy
ALONE = ["multi-conn-mode=disable"]
BLOCKS = ["blocksize-minimum=512", "blocksize-preferred=4k", "blocksize-maximum=128k", "blocksize-error-policy=error"]


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A folder for each of two servers."""
    both = tmp_path / "source", tmp_path / "destination"
    for folder in both:
        folder.mkdir()
    return both


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A disk of 8 MiB: data, holes long and short, zeroes that are stored, and an end on an odd byte."""
    path = tmp_path / "disk.img"
    with open(path, "wb") as file:
        file.write(os.urandom(MIB) + bytes(MIB) + os.urandom(MIB))
        for at in range(4 * MIB, 6 * MIB, 64 << 10):
            file.seek(at)
            file.write(os.urandom(32 << 10))
        file.truncate(8 * MIB - 3)
    return path


def same(one: str | Path, other: str | Path) -> bool:
    judge = ["qemu-img", "compare", "-f", "raw", "-F", "raw", str(one), str(other)]
    return subprocess.run(judge, capture_output=True, timeout=TIMEOUT).returncode == 0


def summary(*words: str | Path) -> dict[str, int]:
    found: dict[str, int] = json.loads(nbdfs("copy", "--json", LITTLE, *words).stdout)
    assert found["copied"] + found["zeroed"] + found["skipped"] == found["size"]
    return found


@pytest.mark.parametrize(
    "destination",
    [[], ["--filter=nozero"], ["--filter=blocksize-policy", *BLOCKS], ["--filter=multi-conn", *ALONE]],
    ids=lambda words: words[0] if words else "plain",
)  # fmt: skip
@pytest.mark.parametrize("source", [[], ["--filter=noextents"]], ids=lambda words: words[0] if words else "mapped")
def test_copies_are_right_whatever_the_servers_can(
    source: list[str], destination: list[str], image: Path, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    there = tmp_path / "there.img"
    there.write_bytes(b"old" * (8 * MIB // 3 + 1))
    there.write_bytes(there.read_bytes()[: 8 * MIB])
    with (
        nbdkit(folders[0], *source, "file", str(image)) as one,
        nbdkit(folders[1], *destination[:1], "file", str(there), *destination[1:]) as two,
    ):
        found = summary("--request-size=256k", one, two)
    assert same_start(image, there)
    assert found["copied"] == 3 * MIB


def same_start(image: Path, there: Path) -> bool:
    content = image.read_bytes()
    return there.read_bytes()[: len(content)] == content


@pytest.mark.parametrize("server", [[], ["--filter=noextents"], ["--filter=multi-conn", *ALONE]])
def test_a_file_becomes_what_the_server_holds(server: list[str], image: Path, folders: tuple[Path, Path]) -> None:
    there = folders[1] / "there.img"
    there.write_bytes(b"old" * (3 * MIB))
    with nbdkit(folders[0], *server[:1], "file", str(image), *server[1:]) as one:
        found = summary("--request-size=256k", one, there)
        assert nbdfs("copy", one, "null:", "--json").returncode == 0
    assert there.read_bytes() == image.read_bytes()
    assert there.stat().st_blocks * 512 <= 3 * MIB + (64 << 10)
    assert found["copied"] == 3 * MIB
    assert found["flushed"] is True


@pytest.mark.parametrize("server", [[], ["--filter=nozero"], ["--filter=multi-conn", *ALONE]])
def test_a_server_gets_what_a_file_holds(server: list[str], image: Path, folders: tuple[Path, Path]) -> None:
    there = folders[1] / "there.img"
    there.write_bytes(b"o" * 8 * MIB)
    with nbdkit(folders[1], *server[:1], "file", str(there), *server[1:]) as two:
        found = summary("--request-size=256k", image, two)
    assert same_start(image, there)
    assert found["copied"] == 3 * MIB
    assert found["flushed"] is True


def test_dense_data_goes_from_a_file_through_the_kernel(folders: tuple[Path, Path]) -> None:
    image, back = folders[0] / "image", folders[1] / "back"
    image.write_bytes(os.urandom(5 * MIB + 7))
    with nbdkit(folders[1], "memory", str(5 * MIB + 7)) as two:
        assert summary("--request-size=64k", image, two)["copied"] == 5 * MIB + 7
        assert summary("--request-size=64k", two, back)["copied"] == 5 * MIB + 7
    assert back.read_bytes() == image.read_bytes()


@pytest.mark.parametrize(
    ("words", "length"), [([], 512 << 10), (["--request-size=1M"], MIB), (["--request-size=64k"], 64 << 10)]
)
def test_the_size_of_a_request_is_the_wanted_one_or_suits_the_servers(
    words: list[str], length: int, folders: tuple[Path, Path]
) -> None:
    log = folders[0] / "log"
    with (
        nbdkit(folders[0], "--filter=log", "pattern", "4M", f"logfile={log}") as one,
        nbdkit(folders[1], "memory", "4M") as two,
    ):
        summary(*words, one, two)
    counts = re.findall(r" Read .* count=(\w+) ", log.read_text())
    assert {int(count, 16) for count in counts} == {length}


def test_what_is_thrown_away_is_read(folders: tuple[Path, Path]) -> None:
    with nbdkit(folders[0], "pattern", "4M") as one:
        found = summary(one, "null:")
        assert (found["copied"], found["flushed"]) == (4 * MIB, False)
    with nbdkit(folders[0], "--filter=error", "pattern", "4M", "error-pread-rate=1") as one:
        assert complaint("copy", one, "null:").endswith("; nothing was written")


def test_zeroes_are_not_sent_to_what_is_blank(image: Path, folders: tuple[Path, Path]) -> None:
    with (
        nbdkit(folders[0], "--filter=noextents", "file", str(image)) as one,
        nbdkit(folders[1], "--filter=error", "memory", "8M", "error-zero-rate=1") as two,
    ):
        assert summary("--destination-is-zero", "--request-size=256k", one, two)["zeroed"] > 3 * MIB
        assert same(image, two)


def test_a_reader_of_progress_that_goes_away_ends_nothing(folders: tuple[Path, Path]) -> None:
    with nbdkit(folders[0], "pattern", "4M") as one, nbdkit(folders[1], "memory", "4M") as two:
        reading, writing = os.pipe()
        os.close(reading)
        copy = subprocess.run(command("copy", f"--progress={writing}", one, two), pass_fds=[writing], timeout=TIMEOUT)
        os.close(writing)
        assert copy.returncode == 0
        assert same(one, two)


def test_a_server_that_answers_reads_with_holes(image: Path, folders: tuple[Path, Path]) -> None:
    path = folders[0] / "qemu.sock"
    qemu = subprocess.Popen(["qemu-nbd", "-t", "-f", "raw", "-r", "-k", path, image])
    try:
        wait_for(path.exists)
        with nbdkit(folders[1], "memory", "8M") as uri:
            nbdfs("copy", "pattern:8M", uri)
            summary(f"nbd+unix:///?socket={path}", uri)
            assert same(image, uri)
    finally:
        qemu.kill()
        qemu.wait()


@pytest.mark.parametrize("connections", [1, 2])
def test_holes_in_replies_of_our_own_server(connections: int, serve: Server, tmp_path: Path) -> None:
    """Runs of 64 KiB whose holes are too short for requests of their own."""
    one, two = serve("sparse-random,seed=5,percent=60,runlength=64k:16M").uri, serve("memory:16M").uri
    nbdfs("copy", f"--connections={connections}", LITTLE, one, two)
    nbdfs("copy", f"--connections={connections}", LITTLE, one, tmp_path / "file")
    assert same(one, two)
    assert same(one, tmp_path / "file")


def test_a_server_that_ends_with_its_only_client(image: Path, folders: tuple[Path, Path]) -> None:
    """It is entered once, and whatever it can or cannot do is made the best of."""
    shutil.copy(image, folders[0] / "image")
    path = folders[0] / "qemu.sock"
    with open(folders[0] / "image", "ab") as file:
        file.truncate(8 * MIB)
    qemu = subprocess.Popen(["qemu-nbd", "-f", "raw", "-k", path, folders[0] / "image"])
    try:
        wait_for(path.exists)
        with nbdkit(folders[1], "memory", "8M") as uri:
            summary(f"nbd+unix:///?socket={path}", uri)
            assert same(image, uri)
        qemu.wait(TIMEOUT)
    finally:
        qemu.kill()
        qemu.wait()


@pytest.mark.parametrize(
    ("source", "destination", "message"),
    [
        (["--filter=error", "pattern", "4M", "error-pread-rate=1"], ["memory", "4M"], "cannot read at byte 0"),
        (["pattern", "4M"], ["--filter=error", "memory", "4M", "error-pwrite-rate=1"], "cannot write at byte 0"),
        (["null", "4M"], ["--filter=error", "--filter=noextents", "memory", "4M", "error-zero-rate=1"], "cannot zero"),
        (["pattern", "4M"], ["full", "4M"], "No space left on device"),
    ],
)
def test_a_request_that_fails_ends_the_copy(
    source: list[str], destination: list[str], message: str, folders: tuple[Path, Path]
) -> None:
    with nbdkit(folders[0], *source) as one, nbdkit(folders[1], *destination) as two:
        line = complaint("copy", "--connections=1", "--requests=1", one, two)
    assert message in line
    assert f"{two} is incomplete, 0 of {4 * MIB} bytes are there" in line


def test_what_fails_is_tried_again_if_asked_for(folders: tuple[Path, Path]) -> None:
    with (
        nbdkit(folders[0], "--filter=error", "pattern", "4M", "error-pread-rate=0.3") as one,
        nbdkit(folders[1], "memory", "4M") as two,
    ):
        assert summary("--retry=40", "--request-size=64k", one, two)["retries"] > 0


def test_a_failed_flush_is_no_success(folders: tuple[Path, Path]) -> None:
    script = ["eval", "get_size=echo 1048576", "pwrite=cat >/dev/null", "can_write=exit 0", "can_flush=exit 0",
              "flush=echo EIO no >&2; exit 1", "pread=head -c $3 /dev/zero"]  # fmt: skip
    with nbdkit(folders[0], "pattern", "1M") as one, nbdkit(folders[1], *script) as two:
        line = complaint("copy", LITTLE, one, two)
    assert "cannot flush the destination" in line
    assert "is incomplete" in line


def test_refusals_come_before_anything_is_written(folders: tuple[Path, Path]) -> None:
    with nbdkit(folders[0], "pattern", "2M") as one, nbdkit(folders[1], "memory", "1M") as two:
        assert "is too small" in complaint("copy", one, two)
        assert "read-only" in complaint("copy", two, one)
    assert "cannot connect" in complaint("copy", one, two)


def test_refusals_leave_files_alone(image: Path, folders: tuple[Path, Path]) -> None:
    there = folders[0] / "there"
    there.write_bytes(b"old")
    with nbdkit(folders[0], "-r", "memory", "8M") as one, nbdkit(folders[1], "memory", "1M") as two:
        assert "is too small" in complaint("copy", image, two)
        assert "read-only" in complaint("copy", image, one)
    assert "cannot connect" in complaint("copy", one, there)
    assert there.read_bytes() == b"old"


@pytest.mark.root
def test_a_full_disk_ends_the_copy(folders: tuple[Path, Path]) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2M", "none", folders[1]], check=True)
    try:
        there = folders[1] / "there"
        with nbdkit(folders[0], "pattern", "8M") as one:
            line = complaint("copy", one, there)
    finally:
        subprocess.run(["umount", folders[1]], check=True)
    assert "cannot write at byte" in line
    assert "No space left on device" in line
    assert f"; {there} is incomplete, " in line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_copy_that_waits(number: signal.Signals, folders: tuple[Path, Path]) -> None:
    with (
        nbdkit(folders[0], "pattern", "64M") as one,
        nbdkit(folders[1], "--filter=delay", "memory", "64M", "delay-write=600") as two,
    ):
        reading, writing = os.pipe()
        words = command("copy", f"--progress={writing}", one, two)
        copy = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, pass_fds=[writing])
        os.close(writing)
        assert os.read(reading, 6) == b"0/100\n"
        copy.send_signal(number)
        _, said = copy.communicate(timeout=TIMEOUT)
        os.close(reading)
    assert copy.returncode == 1
    assert (
        said == f"nbdfs: the copy was stopped by {number.name}; {two} is incomplete, 0 of {64 * MIB} bytes are there\n"
    )


@pytest.mark.parametrize("cut", ["source", "destination"])
def test_the_rest_of_a_copy_whose_connections_break(cut: str, serve: Server, tmp_path: Path) -> None:
    one, two = serve("sparse-random,seed=5,percent=100:16M").uri, serve("memory:16M").uri
    with cutting(tmp_path / "cut.sock", one if cut == "source" else two, MIB) as through:
        ends = (through, two) if cut == "source" else (one, through)
        found = summary("--connections=2", "--request-size=256k", *ends)
    assert found["copied"] == 16 * MIB
    assert same(one, two)


def test_the_rest_of_a_file_whose_connections_break(serve: Server, tmp_path: Path) -> None:
    one, there = serve("sparse-random,seed=5,percent=60,runlength=64k:16M").uri, tmp_path / "there"
    there.write_bytes(b"o" * 16 * MIB)
    with cutting(tmp_path / "cut.sock", one, MIB) as through:
        found = summary("--connections=2", "--request-size=256k", through, there)
    assert found["size"] == 16 * MIB
    assert same(one, there)


def test_the_rest_of_what_a_server_gets_from_a_file(serve: Server, tmp_path: Path) -> None:
    image, two = tmp_path / "image", serve("memory:16M").uri
    image.write_bytes(os.urandom(16 * MIB))
    with cutting(tmp_path / "cut.sock", two, MIB) as through:
        assert summary("--connections=2", "--request-size=256k", image, through)["copied"] == 16 * MIB
    assert same(image, two)


def test_a_copy_whose_server_is_gone_is_no_success(serve: Server, tmp_path: Path) -> None:
    one, two = serve("sparse-random,seed=5,percent=100:16M").uri, serve("memory:16M").uri
    with cutting(tmp_path / "cut.sock", one, MIB, broken=1, afterwards=0) as through:
        line = complaint("copy", "--connections=1", "--request-size=64k", through, two)
    assert f"; {two} is incomplete, " in line


@pytest.mark.parametrize(("queue", "enters"), [("16M", False), ("1M", True)])
def test_a_copy_enters_no_more_often_than_it_has_use_for(queue: str, enters: bool, tmp_path: Path) -> None:
    server = ["nbdkit", "-U", "-", "--filter=limit", "sparse-random", "16M", "percent=100", "limit=2"]
    copy = shlex.join([*command("copy", "-v", f"--queue-size={queue}", "--request-size=512k"), "{uri}", "{uri}"])
    done = subprocess.run(
        [*server, "--run", copy.replace("'{uri}'", '"$uri"')], capture_output=True, text=True, timeout=TIMEOUT
    )
    assert done.returncode == 0, done.stderr
    assert ("no further connection" in done.stderr) == enters


@pytest.mark.parametrize("limit", [5, 6, 7, 9, 12, 14])
def test_a_copy_does_with_the_descriptors_there_are(limit: int) -> None:
    """A lane takes four, beside the three that every process has; without a second lane the first does all."""
    server = ["nbdkit", "-U", "-", "sparse-random", "16M", "percent=100"]
    close = " ".join(f"{descriptor}>&-" for descriptor in range(3, 10))
    copy = f'ulimit -n {limit}; exec {shlex.join(command("copy", LITTLE))} "$uri" "$uri" {close}'
    done = subprocess.run([*server, "--run", copy], capture_output=True, text=True, timeout=TIMEOUT)
    assert (done.returncode == 0) == (limit >= 7), done.stderr
    assert ("too many open files" in done.stderr) == (limit < 7), done.stderr


@contextlib.contextmanager
def cutting(path: Path, uri: str, limit: int, broken: int = 2, afterwards: int = 1 << 40) -> Iterator[str]:
    """A way to a server that breaks: its URI.  `broken` connections pass on `limit` bytes, the others `afterwards`."""
    listener = socket.socket(socket.AF_UNIX)
    sockets = [listener]
    threads: list[threading.Thread] = []

    def begin(target: Callable[..., None], *arguments: object) -> None:
        threads.append(threading.Thread(target=target, args=arguments))
        threads[-1].start()

    def accept() -> None:
        with contextlib.suppress(OSError):  # the block has ended
            for number in itertools.count():
                near, far = listener.accept()[0], socket.socket(socket.AF_UNIX)
                sockets.extend([near, far])
                far.connect(uri.partition("socket=")[2])
                left = [limit if number < broken else afterwards]
                begin(pump, near, far, left)
                begin(pump, far, near, left)

    listener.bind(str(path))
    listener.listen()
    begin(accept)
    try:
        yield f"nbd+unix:///?socket={path}"
    finally:
        for end in sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
        for end in sockets:
            end.close()


def pump(one: socket.socket, other: socket.socket, left: list[int]) -> None:
    """Pass bytes on until there are no more, or no more are `left` for the two directions of a connection."""
    with contextlib.suppress(OSError):
        while left[0] > 0 and (data := one.recv(64 << 10)):
            left[0] -= len(data)
            other.sendall(data)
    for end in (one, other):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
