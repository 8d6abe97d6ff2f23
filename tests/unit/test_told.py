"""What the manual tells in tables and lists, and shows as printed, is what the code has and prints."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from nbdfs import info, live, registry
from nbdfs.cli import list as listing
from nbdfs.cli.main import main, parser_of
from nbdfs.config.files import use_file
from nbdfs.control.client import Process
from nbdfs.control.methods import Controls
from nbdfs.control.rates import Row
from nbdfs.copying import Summary
from nbdfs.errors import SourceError
from nbdfs.metrics.families import families
from nbdfs.nbd.limits import Limits
from nbdfs.parts import STATISTICS
from nbdfs.records import fields
from nbdfs.registry import SourceDriver
from nbdfs.source import Fetching
from nbdfs.stack import open_stack, plan
from nbdfs.units import parse_duration, parse_size
from tests.conftest import ROOT

COMMON = {"-h", "--help", "--config", "-v", "--verbose"}
MIB = 1 << 20
Said = pytest.CaptureFixture[str]


def page(name: str) -> str:
    return (ROOT / name).read_text()


def code(text: str) -> list[str]:
    """What stands in a text as code."""
    return re.findall(r"`([^`\n]+)`", text)


def rows(text: str, head: str) -> list[list[str]]:
    """The cells of the table whose first cell is `head`."""
    table = re.search(rf"^\| {re.escape(head)} \|.*\n\| ---.*\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert table, head
    return [line.strip("|").split("|") for line in table[1].splitlines()]


def first_cells(text: str, head: str) -> list[str]:
    """The code in the first cells of a table."""
    return [word for cell, *_ in rows(text, head) for word in code(cell)]


def shown(name: str, start: str) -> list[str]:
    """The lines of a page's indented block from the one that begins with `start` on."""
    _, found, rest = page(name).partition(f"    {start}")
    assert found, start
    lines = (start + rest).splitlines()
    end = next((number for number, line in enumerate(lines[1:], 1) if not line.startswith("    ")), None)
    return [line.removeprefix("    ") for line in lines[:end]]


def flags(words: Iterable[str]) -> set[str]:
    return {flag for word in words for flag in re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", word)}


# Options


def options(command: str) -> Iterator[argparse.Action]:
    """What a command takes beside what all take."""
    for action in parser_of(command)._actions:
        if action.option_strings and not COMMON.intersection(action.option_strings):
            yield action


@pytest.mark.parametrize("command", ["copy", "dump", "info"])
def test_the_table_of_options_has_all_and_no_others(command: str) -> None:
    text = page(f"docs/{command}.md")
    told = flags(first_cells(text, "option"))
    assert told <= {flag for action in options(command) for flag in action.option_strings}
    everywhere = flags([text])
    assert [action.dest for action in options(command) if not everywhere.intersection(action.option_strings)] == []


@pytest.mark.parametrize("command", ["copy", "dump", "info"])
def test_the_table_of_options_tells_their_defaults(command: str) -> None:
    known = {flag: action for action in options(command) for flag in action.option_strings}
    for names, meaning in rows(page(f"docs/{command}.md"), "option"):
        default = known[min(flags(code(names)))].default
        if default and not isinstance(default, bool | str):
            told = re.search(r"\(default (\d+\w*)\)", meaning)
            assert told and parse_size(told[1]) == default, names


@pytest.mark.parametrize("command", ["add", "remove", "resize", "list", "top"])
def test_a_synopsis_has_all_options_and_no_others(command: str) -> None:
    line = next(line for line in page("docs/live.md").splitlines() if line.startswith(f"    nbdfs {command} "))
    assert flags([line]) == {flag for action in options(command) for flag in action.option_strings}


def test_the_page_of_the_server_names_all_that_only_it_has() -> None:
    told = flags([page("docs/nbd.md")])
    elsewhere = {flag for action in options("run") for flag in action.option_strings} | {"--background", "--pidfile"}
    own = [action for action in options("serve") if not elsewhere.intersection(action.option_strings)]
    assert [action.dest for action in own if not told.intersection(action.option_strings)] == []


# Lists


def test_questions() -> None:
    sentence = re.search(r"ask one thing: (.*?)\.", page("docs/info.md"), re.DOTALL)
    assert sentence
    assert tuple(code(sentence[1])) == tuple(info.QUESTIONS)


def test_the_summary_of_a_copy() -> None:
    told = first_cells(page("docs/copy.md"), "key")
    assert sorted(told) == sorted(fields(Summary))


def test_limits_of_a_server() -> None:
    text = page("docs/nbd.md")
    limits = Limits()
    told = {code(name)[0].split()[0]: default.strip() for name, default, _ in rows(text, "option")}
    assert int(told["--max-clients"]) == limits.clients
    assert parse_duration(told["--handshake-timeout"].replace(" ", "")) == limits.handshake
    assert (told["--idle-timeout"], limits.idle) == ("none", 0)
    prose = " ".join(text.split())
    for wanted in (
        f"does not move for {limits.stall:g} s",
        f"answered a request within {limits.request:g} s",
        f"at most {limits.client_memory >> 20} MiB for each client and {limits.memory >> 20} MiB in all",
        f"answered, for {limits.stop:g} s at most",
    ):
        assert wanted in prose


async def test_figures() -> None:
    text = page("docs/metrics.md")
    async with live.opened() as exports:
        await exports.add("a", plan("memory:1M"))
        names = {family.name for family in families(exports)}
    ours = {name for name in names if name.startswith("nbdfs_") and not name.startswith("nbdfs_source_")}
    assert {name for name in first_cells(text, "name") if not name.endswith("...")} == ours
    assert sorted(first_cells(text, "`nbdfs_source_...`")) == sorted(STATISTICS)


async def test_the_control_socket() -> None:
    text = page("docs/live.md")
    async with live.opened() as exports:
        await exports.add("a", plan("memory:1M"))
        controls = Controls(exports, "mount")
        for names, parameters, _ in rows(text, "method"):
            for name in code(names):
                method = controls.methods().pop(name)
                assert sorted(code(parameters)) == sorted([*method.parameters, *method.options])
        assert sorted(first_cells(text, "method")) == sorted(controls.methods())
        process = await controls.all()
    told = set(code(text.partition("`--json` gives")[2].partition("\n\n")[0]))
    assert {*process, *process["exports"][0], *process["exports"][0]["read"]} <= told


def test_the_changes_name_all_sources_and_layers() -> None:
    text = page("CHANGELOG.md")
    for kind, head in (True, "Sources"), (False, "Layers"):
        sentence = re.search(rf"^- {head}: (.*?)\.$", text, re.MULTILINE | re.DOTALL)
        assert sentence
        ours = [name for name in registry.names() if isinstance(registry.find(name), SourceDriver) is kind]
        assert sorted(re.findall(r"[\w-]+", sentence[1])) == sorted(set(ours) - {"conf"})


# What is printed


def test_a_dump(capsys: Said) -> None:
    command, *lines = shown("docs/dump.md", "$ nbdfs dump")
    text = command.partition('"')[2].removesuffix('"').replace('\\"', '"')
    assert main(["dump", text]) == 0
    assert capsys.readouterr().out.splitlines() == lines


def test_a_wrong_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    _, *lines = shown("docs/config.md", "$ nbdfs check")
    monkeypatch.chdir(tmp_path)
    Path("disks.toml").write_text(
        '[stack.a]\nspec = "memroy:1G"\n\n\n[mount.vms]\ntarget = "/srv"\nlisen = []\nsource = "conf:a"\n'
    )
    try:
        assert main(["check", "./disks.toml"]) == 1
    finally:
        use_file("")
    assert capsys.readouterr().err.replace(str(tmp_path), "/home/me").splitlines() == lines


def test_a_wrong_data_string(capsys: Said) -> None:
    lines = shown("docs/sources/data.md", "nbdfs: data, line 1")
    assert main(["dump", "data: 65 -> \\bar\n" + lines[1].strip()]) == 1
    assert capsys.readouterr().err.splitlines() == [lines[0].replace("line 1", "line 2"), *lines[1:]]


def test_a_list_of_exports() -> None:
    _, *lines = shown("docs/live.md", "$ nbdfs list")
    facts = {"target": "/mnt/disks", "uris": [], "kind": "mount", "pid": 4711}
    gib = 1 << 30
    used = int(3.1 * gib)
    first = {"name": "vm1/root", "size": 20 * gib, "allocated": used, "state": "in use", "spec": "/srv/vm1.img"}
    second = {"name": "vm2/root", "size": 20 * gib, "allocated": used, "state": "idle", "spec": "cow::/srv/golden.img"}
    listed = [Row(facts, first, 14.0 * MIB, 2.0 * MIB), Row(facts, second, 0.0, 0.0)]
    assert listing._text([Process(Path(), facts)], listed).splitlines() == lines


def without_numbers(lines: Iterable[str]) -> list[str]:
    """Lines without what is another each time: the time, and how long things took."""
    times = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+|\d+\.\d{6}(?= s)|\d+(?= us)|[\d.]+ [KMG]iB/s"
    return [re.sub(times, "N", line) for line in lines]


async def test_a_log(tmp_path: Path) -> None:
    async with open_stack(f"log,file={tmp_path}/log::delay,fast-zero=no::memory:1M") as source:
        await source.pread_into(memoryview(bytearray(512)), 0)
        with pytest.raises(SourceError):
            await source.zero(4096, 4096, may_trim=False, fast=True)
    lines = (tmp_path / "log").read_text().splitlines()
    assert without_numbers(lines) == without_numbers(shown("docs/layers/log.md", "2026-"))


async def test_statistics(tmp_path: Path) -> None:
    async with open_stack(f"stats,file={tmp_path}/stats::null:1G") as source:
        room = memoryview(bytearray(256 << 10))
        for offset in range(0, 1 << 30, len(room)):
            await source.pread_into(room, offset)
    lines = (tmp_path / "stats").read_text().splitlines()
    assert without_numbers(lines) == without_numbers(shown("docs/layers/stats.md", "total: "))


def test_what_is_fetched() -> None:
    (line,) = shown("docs/sources/torrent.md", '{"name": "Fedora.iso"')
    assert list(json.loads(line)) == list(fields(Fetching))
