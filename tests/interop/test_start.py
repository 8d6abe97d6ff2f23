"""What the start of a command costs: what it does not need is not imported."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from nbdfs.cli._commands import COMMANDS
from tests.tools import TIMEOUT, command

HEAVY = {"libtorrent", "httpcore2", "numpy", "cryptography", "asyncio"}
NOT_TO_COPY = HEAVY | {"trio", "ssl", "importlib.metadata", "nbdfs.stack", "nbdfs.checked"}


def imported(argv: Sequence[str | Path]) -> set[str]:
    """The modules that a command imports from its start to its end."""
    environment = os.environ | {"PYTHONPROFILEIMPORTTIME": "1"}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT, env=environment)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    modules = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    assert "nbdfs.cli.main" in modules
    return modules


def test_a_copy_between_two_files_needs_no_event_loop(tmp_path: Path) -> None:
    source, destination = tmp_path / "source", tmp_path / "destination"
    source.write_bytes(b"content")
    assert not imported(command("copy", source, destination)) & (NOT_TO_COPY | {"socket", "nbdfs.nbd"})
    assert destination.read_bytes() == b"content"


def test_a_copy_between_two_servers_needs_no_event_loop() -> None:
    assert not imported(beside_nbdkit('"$uri" "$uri"')) & NOT_TO_COPY


def test_a_copy_between_a_server_and_a_file_needs_no_event_loop(tmp_path: Path) -> None:
    image = shlex.quote(str(tmp_path / "image"))
    for ends in (f'"$uri" {image}', f'{image} "$uri"', '"$uri" null:'):
        assert not imported(beside_nbdkit(ends)) & NOT_TO_COPY


def beside_nbdkit(ends: str) -> list[str]:
    """The words that run a copy whose end `$uri` is a small disk of nbdkit."""
    return ["nbdkit", "-U", "-", "memory", "1M", "--run", f"{shlex.join(command('copy'))} {ends}"]


@pytest.mark.parametrize("words", [["--help"], ["sources"], ["info", "memory:1M"], ["run", "memory:1M", "--", "true"]])
def test_heavy_modules_are_imported_by_who_needs_them(words: list[str]) -> None:
    assert not imported(command(*words)) & HEAVY


def test_the_list_of_commands_imports_none() -> None:
    commands = {f"nbdfs.cli.{name}" for name in COMMANDS}
    assert not imported(command("--help")) & commands


@pytest.mark.parametrize("limit", [6, 7])
@pytest.mark.parametrize("words", [["info", "null:1M"], ["copy", "null:1M", "null:"], ["serve", "null:1M", "-U", "-"]])
def test_too_few_open_files_are_told_in_one_line(words: list[str], limit: int) -> None:
    argv = ["sh", "-c", f'ulimit -n {limit}; exec "$@" 3>&- 4>&- 5>&-', "sh", *command(*words)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("nbdfs: ") and "too many open files" in line.lower()


@pytest.mark.parametrize("words", [["mount", "memory:1M", "disk"], ["umount", "disk"], ["add", "/nowhere", "a=b"]])
def test_a_working_directory_that_is_gone_is_told_in_one_line(tmp_path: Path, words: list[str]) -> None:
    argv = ["sh", "-c", 'rmdir "$PWD"; exec "$@"', "sh", *command(*words)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line == "nbdfs: the working directory is gone: change to another one"


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", b"\\xe9\\u6f22"), ("latin-1", b"\xe9\\u6f22"), ("utf-8", "é漢".encode())]
)
def test_names_that_the_locale_has_no_letters_for_are_escaped(tmp_path: Path, encoding: str, shown: bytes) -> None:
    image = tmp_path / "é漢"
    image.write_bytes(bytes(512))
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = subprocess.run(command("info", image), capture_output=True, timeout=TIMEOUT, env=environment)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout


# Runs nbdfs, with a signal when it begins to import a certain module.
INTERRUPTED = """
import os, runpy, signal, sys

module, way = sys.argv[1:]

class Interrupts:
    def find_spec(name, path, target=None):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupts)
if way == "ignored":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
sys.argv[1:] = ["info", "--size", "memory:1M"]
runpy.run_module("nbdfs", run_name="__main__")
"""


@pytest.mark.parametrize("module", ["nbdfs.cli.main", "argparse", "nbdfs.cli.info", "nbdfs.info.report"])
@pytest.mark.parametrize(("way", "status", "told"), [("heeded", 130, ""), ("ignored", 0, "1048576\n")])
def test_an_interrupt_while_it_is_loaded(module: str, way: str, status: int, told: str) -> None:
    argv = [sys.executable, "-c", INTERRUPTED, module, way]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT)
    assert (done.returncode, done.stdout, done.stderr) == (status, told, "")


@pytest.mark.parametrize(
    ("name", "words", "told"),
    [
        ("nbdfs", ["--version"], "nbdfs "),
        ("nbdfs@1", ["--version"], "nbdfs "),  # as pipx install --suffix has it
        ("nbdinfo", ["--version"], "nbdinfo "),
        ("nbdkit", ["--version"], "nbdkit "),
        ("umount.fuse.nbdfs", ["--help"], "usage: umount.nbdfs "),
    ],
)
def test_the_name_it_is_called_by_says_what_it_is(name: str, words: list[str], told: str, tmp_path: Path) -> None:
    program = tmp_path / name
    program.write_text(f"#!{sys.executable}\nimport sys\nfrom nbdfs.__main__ import main\nsys.exit(main())\n")
    program.chmod(0o755)
    done = subprocess.run([program, *words], capture_output=True, text=True, timeout=TIMEOUT)
    assert (done.returncode, done.stdout[: len(told)], done.stderr) == (0, told, "")
