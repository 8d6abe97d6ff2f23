"""Completions, executed in the shells they are for: what is typed, Tab, and what is then on the line."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbdfs import registry
from nbdfs.cli import main
from nbdfs.cli._commands import COMMANDS
from tests.conftest import ROOT
from tests.packaging.terminal import terminal
from tests.tools import nbdfs

# What is typed, and what one Tab makes of it.  FOLDER/live.img is a mount, beside a file that begins in the same way.
CASES = {
    "nbdfs umo": "nbdfs umount",
    "nbdfs luks form": "nbdfs luks format",
    "nbdfs copy --synch": "nbdfs copy --synchronous",
    "nbdfs copy --queue-s": "nbdfs copy --queue-size=",
    "nbdfs luks format --type=luks2 --pbkdf-force-it": "nbdfs luks format --type=luks2 --pbkdf-force-iterations=",
    "nbdfs luks format --pbkdf pb": "nbdfs luks format --pbkdf pbkdf2",
    "nbdfs compat nbdf": "nbdfs compat nbdfuse",
    "nbdfs sources sparse": "nbdfs sources sparse-random",
    "nbdfs mount memo": "nbdfs mount memory:",
    "nbdfs mount nbd+u": "nbdfs mount nbd+unix:",
    "nbdfs mount partit": "nbdfs mount partition::",
    "nbdfs mount cow,memory::partit": "nbdfs mount cow,memory::partition::",
    "nbdfs mount cow::sparse-r": "nbdfs mount cow::sparse-random:",
    "nbdfs mount luks,passphr": "nbdfs mount luks,passphrase=",
    "nbdfs mount cow,memory::cow,over": "nbdfs mount cow,memory::cow,overlay=",
    "nbdfs mount cow,overlay=unu": "nbdfs mount cow,overlay=unusual.img",
    "nbdfs mount cow::nbd,reconnect=ye": "nbdfs mount cow::nbd,reconnect=yes",
    "nbdfs mount unu": "nbdfs mount unusual.img",
    "nbdfs mount cow::unu": "nbdfs mount cow::unusual.img",
    "nbdfs mount file:unu": "nbdfs mount file:unusual.img",
    "nbdfs mount cow::file:unu": "nbdfs mount cow::file:unusual.img",
    "nbdfs mount memory:1G --log-file unu": "nbdfs mount memory:1G --log-file unusual.img",
    "nbdfs mount memory:1G --log-file=unu": "nbdfs mount memory:1G --log-file=unusual.img",
    "nbdfs copy --progress unu": "nbdfs copy --progress unusual.img",
    "nbdfs copy -p unu": "nbdfs copy -p unusual.img",
    "nbdfs info --map unu": "nbdfs info --map unusual.img",
    "nbdfs info --map memo": "nbdfs info --map memory:",
    "nbdfs mount a.img=memo": "nbdfs mount a.img=memory:",
    "nbdfs mount conf:back": "nbdfs mount conf:backup",
    "nbdfs mount cow::conf:back": "nbdfs mount cow::conf:backup",
    "nbdfs umount unu": "nbdfs umount unusual.img",
    "nbdfs umount FOLDER/li": "nbdfs umount FOLDER/live.img",
    "nbdfs add FOLDER/li": "nbdfs add FOLDER/live.img",
    "nbdfs add FOLDER/live.img a.img=memo": "nbdfs add FOLDER/live.img a.img=memory:",
    "nbdfs reload FOLDER/li": "nbdfs reload FOLDER/live.img",
    "nbdfs mount fol": "nbdfs mount folder/",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with files to complete, a mount and a stack of the configuration, and the completions in `share`."""
    folder = tmp_path_factory.mktemp("completion")
    (folder / "unusual.img").touch()
    (folder / "like.img").touch()
    (folder / "folder").mkdir()
    (folder / "nbdfs.toml").write_text('[stack.backup]\nspec = "memory:1M"\n')
    subprocess.run([sys.executable, "packaging/completion.py", folder / "share"], cwd=ROOT, check=True)
    nbdfs("mount", "-b", "memory:1M", folder / "live.img")
    yield folder
    nbdfs("umount", folder / "live.img")


def cases(folder: Path) -> dict[str, str]:
    return {typed.replace("FOLDER", str(folder)): line.replace("FOLDER", str(folder)) for typed, line in CASES.items()}


def test_bash(folder: Path) -> None:
    (folder / "bashrc").write_text(
        f"PS1=; bind 'set bell-style none'; bind 'set enable-bracketed-paste off'; stty -echo\n"
        f". {folder}/share/bash-completion/completions/nbdfs\n"
        "show() { printf '<<%s>>\\n' \"$READLINE_LINE\"; READLINE_LINE=; }\n"
        "bind -x '\"\\C-g\": show'\necho ready\n"
    )
    _check_typed(["bash", "--noprofile", "--rcfile", str(folder / "bashrc"), "-i"], folder)


def test_zsh(folder: Path) -> None:
    (folder / ".zshrc").write_text(
        f"PS1=; unsetopt beep; fpath=({folder}/share/zsh/site-functions $fpath)\n"
        "autoload -Uz compinit; compinit -D -u\n"
        'show() { print -r -- "<<$BUFFER>>"; BUFFER=; }\n'
        "zle -N show; bindkey '^G' show\necho ready\n"
    )
    _check_typed(["zsh", "-d", "-i"], folder)


def _check_typed(shell: list[str], folder: Path) -> None:
    expected = cases(folder)
    with terminal(shell, folder, {"ZDOTDIR": str(folder), "XDG_CONFIG_HOME": str(folder)}) as screen:
        screen.until("ready")
        seen = {}
        for typed in expected:
            screen.type(f"{typed}\t\a")
            seen[typed] = screen.until(r"<<(.*?) ?>>")[1]
    assert seen == expected


def test_fish(folder: Path) -> None:
    script = f"source {folder}/share/fish/vendor_completions.d/nbdfs.fish\n" + "".join(
        f"echo '<<'(complete -C {_quoted(typed)} | string split -f 1 \\t | string join '|')\n"
        for typed in cases(folder)
    )
    done = subprocess.run(
        ["fish", "--no-config", "-c", script], cwd=folder, capture_output=True, text=True, timeout=60,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "LANG": "C.UTF-8", "XDG_CONFIG_HOME": str(folder)},
    )  # fmt: skip
    assert done.stderr == ""
    lines = [line.removeprefix("<<") for line in done.stdout.splitlines()]
    # fish offers words; the = after an option it adds by itself.
    words = {typed: line.split()[-1] for typed, line in cases(folder).items()}
    expected = {typed: word.removesuffix("=") if word.startswith("--") else word for typed, word in words.items()}
    assert dict(zip(words, lines, strict=True)) == expected


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "\\'") + "'"


def test_everything_is_offered(folder: Path) -> None:
    """bash's function, asked as bash asks it, for what argparse and the registry have."""
    script = f"""
        . {folder}/share/bash-completion/completions/nbdfs
        while IFS= read -r line; do
            COMP_LINE=$line COMP_POINT=${{#line}} COMP_WORDBREAKS=' '
            _nbdfs && echo "${{COMPREPLY[*]}}"
        done
    """
    expected = {"nbdfs ": {*COMMANDS}}
    for name in COMMANDS:
        flags = re.findall(r"^  (-.*?)(?:  |$)", main.parser_of(name).format_help(), re.MULTILINE)
        expected[f"nbdfs {name} -"] = {flag for text in flags for flag in re.findall(r"(?<!\S)--?\w[\w-]*", text)}
    for name in registry.names():
        options = {option.name for option in registry.find(name).option_table}
        expected[f"nbdfs mount {name},"] = {f"{name},{option}" for option in options}
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-c", script], input="".join(f"{line}\n" for line in expected), cwd=folder,
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    answers = [{word.removesuffix("=") for word in line.split()} for line in done.stdout.splitlines()]
    assert dict(zip(expected, answers, strict=True)) == expected
