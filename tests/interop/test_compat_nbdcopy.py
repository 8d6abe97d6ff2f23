"""`nbdfs compat nbdcopy`: the command line of libnbd's nbdcopy, and the requests that a server sees of it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.interop.servers import nbdkit
from tests.tools import TIMEOUT, command, complaint

MIB = 1 << 20


def nbdcopy(*words: str | Path, stdin: bytes | None = None) -> bytes:
    done = subprocess.run(command("compat", "nbdcopy", *words), input=stdin, capture_output=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(os.urandom(MIB) + bytes(MIB) + os.urandom(MIB + 17))
    return path


def test_files_pipes_and_servers(image: Path, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    nbdcopy(image, there)
    assert there.read_bytes() == image.read_bytes()
    assert nbdcopy("--", "[", "nbdkit", "--exit-with-parent", "file", image, "]", "-") == image.read_bytes()
    with nbdkit(tmp_path, "memory", "4M") as uri:
        nbdcopy("-", uri, stdin=image.read_bytes())
        nbdcopy("--connections=2", "--flush", uri, back)
    assert back.read_bytes()[: image.stat().st_size] == image.read_bytes()
    nbdcopy(back, "null:")


def test_a_word_that_looks_like_a_spec_is_a_path(tmp_path: Path) -> None:
    (tmp_path / "memory:1M").write_bytes(b"a file of that name")
    done = subprocess.run(
        command("compat", "nbdcopy", "memory:1M", "-"), capture_output=True, timeout=TIMEOUT, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert done.stdout == b"a file of that name"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {("pwrite", 0, 32768), ("zero", 32768, 4 * MIB - 32768), ("pwrite", 4 * MIB, 1)}),
        (["--destination-is-zero"], {("pwrite", 0, 32768), ("pwrite", 4 * MIB, 1)}),
    ],
)
def test_the_requests_that_a_server_sees(words: list[str], expected: set[tuple[str, int, int]], tmp_path: Path) -> None:
    """Data as it is, holes by zeroing; each request is noted by the server."""
    log = tmp_path / "log"
    note = f"echo $1 $4 $3 >> {log}"
    server = ["nbdkit", "--exit-with-parent", "eval", f"get_size=echo {4 * MIB + 1}",
              f"pwrite=cat >/dev/null; {note}", f"zero={note}", "can_zero=exit 0", "can_trim=exit 0"]  # fmt: skip
    source = ["nbdkit", "--exit-with-parent", "data", f"1 @{4 * MIB} 1"]
    nbdcopy("-S", "0", "--request-size=32768", *words, "--", "[", *source, "]", "[", *server, "]")
    seen = {(kind, int(at), int(length)) for kind, at, length in map(str.split, log.read_text().splitlines())}
    assert seen == expected


def test_what_it_cannot_do_is_said_in_one_line(image: Path, tmp_path: Path) -> None:
    with nbdkit(tmp_path, "memory", "1M") as uri:
        assert "too small" in complaint("compat", "nbdcopy", image, uri)
    assert "cannot connect" in complaint("compat", "nbdcopy", uri, "null:")
    assert "is not a size" in complaint("compat", "nbdcopy", "--request-size=x", image, "null:")
