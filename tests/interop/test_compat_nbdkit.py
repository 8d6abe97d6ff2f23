"""nbdkit's command line, as existing scripts write it."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.interop.servers import SYSTEM_PYTHON, Server, run, serve, wait_for
from tests.tools import command, complaint, nbdfs

__all__ = ["serve"]


def nbdkit(*words: str | Path) -> str:
    """Run nbdkit's command line to its end; give what it prints."""
    return nbdfs("compat", "nbdkit", *words).stdout.decode()


@pytest.mark.parametrize(
    ("words", "size"),
    [
        (("memory", "1M"), 1 << 20),
        (("memory", "size=2M"), 2 << 20),
        (("null",), 0),
        (("data", " ( $a )*8 ", "a=0x55"), 8),
        (("data", "raw=123", "size=512"), 512),
        (("--filter=offset", "null", "offset=512", "range=1k", "size=1M"), 1024),
        (("--filter=truncate", "null", "1M"), 1 << 20),
    ],
)
def test_run(words: tuple[str, ...], size: int) -> None:
    assert nbdkit("-U", "-", *words, "--run", 'nbdinfo --size "$uri"').strip() == str(size)


def test_status_of_the_command_is_passed_on() -> None:
    assert subprocess.run(command("compat", "nbdkit", "memory", "1M", "--run", "exit 9"), timeout=60).returncode == 9


def test_arguments_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "arguments").write_text("size=3M  # a disk\n")
    assert nbdkit("memory", f"@{tmp_path}/arguments", "--run", 'nbdinfo --size "$uri"').strip() == str(3 << 20)


def test_goes_to_the_background_and_writes_its_pid(tmp_path: Path) -> None:
    pid, path = tmp_path / "pid", tmp_path / "sock"
    nbdkit("-P", pid, "-U", path, "-e", "name", "memory", "1M")
    number = int(pid.read_text())
    assert run("nbdinfo", "--size", f"nbd+unix:///any?socket={path}").strip() == str(1 << 20)
    os.kill(number, signal.SIGTERM)
    wait_for(lambda: not path.exists(), "it did not end")


def test_single_client_without_structured_replies() -> None:
    words = command("compat", "nbdkit", "-s", "--no-sr", "memory", "1M")
    script = f"import nbd; h = nbd.NBD(); h.connect_command({words!r}); print(h.get_structured_replies_negotiated())"
    assert run(SYSTEM_PYTHON, "-c", script).strip() == "False"


def test_probes_of_scripts() -> None:
    assert "name=memory" in nbdkit("memory", "--dump-plugin")
    assert "version_major=1" in nbdkit("--dump-config")
    assert nbdkit("--version").startswith("nbdkit 1.")
    assert "--filter" in nbdkit("--long-options").split() and "-U" in nbdkit("--short-options").split()


def test_a_server_on_a_socket_behind_it(serve: Server) -> None:
    path = serve("memory:3M").uri.partition("socket=")[2]
    assert nbdkit("nbd", f"socket={path}", "--run", 'nbdinfo --size "$uri"').strip() == str(3 << 20)


@pytest.mark.parametrize(
    ("words", "complains"),
    [
        (("memori", "1M"), "did you mean 'memory'"),
        (("--filter=lux", "memory", "1M"), "no filter 'lux'"),
        (("memory", "1M", "colour=red"), "key 'colour'"),
        ((), "a plugin is missing"),
        (("-s", "--dump-plugin", "null"), "--dump-plugin serves nobody"),
    ],
)
def test_what_is_not_known_is_an_error(words: tuple[str, ...], complains: str) -> None:
    assert complains in complaint("compat", "nbdkit", *words, status=2)
