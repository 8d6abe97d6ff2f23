"""`nbdfs info` and `nbdfs dump` on servers and sources of other kinds, beside nbdinfo and nbddump themselves."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from pathlib import Path

import pytest

from tests.mounts import wait_until
from tests.tools import command, complaint, nbdfs

DATA = "data:1 @131072 2 @1048576"


def served(server: list[str], *clients: list[str]) -> list[str]:
    """What clients print that nbdkit runs on its server, `$uri` replaced."""
    script = "; echo @@@; ".join(" ".join(f'"{word}"' for word in client) for client in clients)
    done = subprocess.run(["nbdkit", "-U", "-", *server, "--run", script], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().split("@@@\n")


@pytest.mark.parametrize(
    "server",
    [["memory", "1M"], ["-r", "memory", "1M"], ["--no-sr", "null", "1M"], ["pattern", "5M"], ["null"],
     ["--filter=blocksize-policy", "memory", "1M", "blocksize-minimum=4096", "blocksize-preferred=64k",
      "blocksize-maximum=1M"]],
)  # fmt: skip
def test_json_is_what_nbdinfo_says_and_more(server: list[str]) -> None:
    own, theirs = map(json.loads, served(server, command("info", "--json", "$uri"), ["nbdinfo", "--json", "$uri"]))
    mine, other = own.pop("exports")[0], theirs.pop("exports")[0]
    assert theirs.items() <= own.items()
    assert {**mine, **other} == mine, (mine, other)


def test_text_is_what_nbdinfo_says() -> None:
    own, theirs = served(["-r", "memory", "1M"], command("info", "$uri"), ["nbdinfo", "$uri"])
    added = {"\tcan_block_status_payload: false"}
    assert [line for line in own.splitlines() if line not in added] == theirs.splitlines()


def test_the_list_has_all_exports(tmp_path: Path) -> None:
    for name in ("a b", "%%", "zwölf"):
        (tmp_path / name).write_bytes(b"x" * 1000)
    own, theirs = served(
        ["file", f"dir={tmp_path}"],
        command("info", "--list", "--json", "$uri"),
        ["nbdinfo", "--list", "--json", "$uri"],
    )
    exports = {export["export-name"]: export["uri"] for export in json.loads(own)["exports"]}
    assert exports.keys() == {export["export-name"] for export in json.loads(theirs)["exports"]}
    assert "/a%20b?socket=" in exports["a b"]
    assert "/%25%25?socket=" in exports["%%"]


@pytest.mark.parametrize(
    "words",
    [["--map"], ["--map", "--totals"], ["--map", "--json"], ["--map", "--totals", "--json"], ["--size"]],
)
def test_maps_and_sizes_are_nbdinfos(words: list[str]) -> None:
    server = ["data", "data=1 @131072 2", "size=1M"]
    own, theirs = served(server, command("info", *words, "$uri"), ["nbdinfo", *words, "$uri"])
    if "--json" in words:
        assert json.loads(own) == json.loads(theirs)
    else:
        assert own == theirs


def test_a_part_of_a_map() -> None:
    source = "data:( 1 )*32768 @131072 ( 2 )*32768 @1M"
    told = nbdfs("info", "--map", "--json", "--offset=16k", "--length=130k", source).stdout
    rows = [(row["offset"], row["length"], row["type"]) for row in json.loads(told)]
    assert rows == [(16384, 16384, 0), (32768, 98304, 3), (131072, 18432, 0)]


def test_two_contexts_side_by_side(tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    for words in (
        ["qemu-img", "create", "-q", "-f", "qcow2", image, "1M"],
        ["qemu-io", "-f", "qcow2", "-c", "w 0 64k", image],
        ["qemu-img", "bitmap", "--add", "-f", "qcow2", image, "b0"],
        ["qemu-io", "-f", "qcow2", "-c", "w 128k 64k", image],
    ):
        subprocess.run(list(map(str, words)), check=True, capture_output=True)
    maps = ["--map=base:allocation", "--map=qemu:dirty-bitmap:b0"]
    done = nbdfs("info", *maps, "[", "qemu-nbd", "-r", "-f", "qcow2", "-B", "b0", image, "]")
    rows = [line.split() for line in done.stdout.decode().splitlines()]
    assert ["0", "65536", "0", "data", "0", "clean"] in rows
    assert ["131072", "65536", "0", "data", "1", "dirty"] in rows
    as_json = json.loads(
        nbdfs("info", "--json", *maps, "[", "qemu-nbd", "-r", "-f", "qcow2", "-B", "b0", image, "]").stdout
    )
    assert as_json[0]["contexts"]["qemu:dirty-bitmap:b0"] == {"type": 0, "description": "clean"}


@pytest.mark.parametrize(
    ("server", "words", "status"),
    [
        (["memory", "1M"], ["--can", "write"], 0),
        (["-r", "memory", "1M"], ["--can", "write"], 2),
        (["-r", "memory", "1M"], ["--is", "read-only"], 0),
        (["-r", "memory", "1M"], ["--isnt", "read-only"], 2),
        (["memory", "1M"], ["--cannot", "write"], 2),
        (["memory", "1M"], ["--can", "multi_conn", "--can", "zero"], 0),
        (["--filter=nozero", "memory", "1M"], ["--can", "zero"], 2),
        (["memory", "1M"], ["--has", "structured-reply"], 0),
        (["--no-sr", "memory", "1M"], ["--has", "structured-reply"], 2),
        (["memory", "1M"], ["--is", "tls"], 2),
        (["memory", "1M"], ["--is", "READONLY"], 2),
        (["memory", "1M"], ["--can", "fastzero"], 0),
        (["memory", "1M"], ["--can", "'structured replies'"], 0),
    ],
)
def test_questions(server: list[str], words: list[str], status: int) -> None:
    ask = f"{' '.join(command('info', *words))} $uri"
    done = subprocess.run(["nbdkit", "-U", "-", *server, "--run", ask], capture_output=True, timeout=60)
    assert done.returncode == status, done.stderr.decode()
    assert done.stdout == b""


@pytest.mark.parametrize(
    "words",
    [["--ma"], ["--ma", "--tot"], ["--siz"], ["--no-colo", "--siz"], ["-L", "--cont"]],
)
def test_short_forms_of_options(words: list[str]) -> None:
    server = ["data", "data=1 @131072 2", "size=1M"]
    own, theirs = served(server, command("compat", "nbdinfo", *words, "$uri"), ["nbdinfo", *words, "$uri"])
    assert [line for line in own.splitlines() if "block_status_payload" not in line] == theirs.splitlines()


@pytest.mark.parametrize("words", [["--can"], ["--can", "write"], ["--can", "write", "--zork", "nbd://localhost"]])
def test_misuse_is_no_answer(words: list[str]) -> None:
    theirs = subprocess.run(["nbdinfo", *words], capture_output=True, timeout=60)
    assert complaint("compat", "nbdinfo", *words, status=theirs.returncode)


def test_sources_that_are_not_nbd(tmp_path: Path) -> None:
    facts = json.loads(nbdfs("info", "--json", DATA).stdout)
    assert "protocol" not in facts
    assert facts["exports"][0]["export-size"] == 1 << 20
    image = tmp_path / "disk.img"
    image.write_bytes(b"\x55\xaa" * 4096)
    assert nbdfs("info", "--size", image).stdout == b"8192\n"
    assert b"is_read_only: false" in nbdfs("info", image).stdout
    assert b"is_read_only: true" in nbdfs("info", f"readonly::{image}").stdout


def test_colours_are_shown_when_asked_for_and_say_no_more() -> None:
    for words in (["info"], ["info", "--map"], ["info", "--map", "--totals"], ["info", "--map", "--map"]):
        plain = nbdfs(*words, "--no-color", DATA).stdout
        assert b"\033" not in plain
        assert nbdfs(*words, DATA).stdout == plain
        coloured = nbdfs(*words, "--color", DATA).stdout
        assert coloured != plain
        assert re.sub(rb"\033\[\d*m", b"", coloured) == plain
    assert b"\033[1m  0  data\033[0m" in nbdfs("info", "--map", "--color", "data:1").stdout
    assert b"\033[32m\tcan_trim: true\033[0m" in nbdfs("info", "--color", "memory:1M").stdout


@pytest.mark.parametrize("name", ['a"b', "back\\slash", "é日", "plain"])
def test_the_name_of_an_export_is_written_as_nbdinfo_writes_it(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"abc")
    server = ["file", f"dir={tmp_path}"]
    own, theirs = served(server, command("info", "--list", "$uri"), ["nbdinfo", "--list", "$uri"])
    heads = [[line for line in told.splitlines() if line.startswith("export=")] for told in (own, theirs)]
    assert heads[0] == heads[1] != []


def test_a_name_does_not_command_the_terminal() -> None:
    assert b'source="data:\\"\\u202e\\" # \\u001b[31m":' in nbdfs("info", 'data:"\u202e" # \033[31m').stdout


def test_a_chart_and_a_picture(tmp_path: Path) -> None:
    lines = nbdfs("info", "--map", "--chart", "--no-color", DATA).stdout.decode().splitlines()
    assert len(lines) == 17
    assert set("".join(lines[:-1])) <= set("░▒▓█○·-+*#0.")
    picture = tmp_path / "map.png"
    nbdfs("info", "--map", "--png", picture, DATA)
    told = subprocess.run(["file", "--brief", picture], capture_output=True, check=True).stdout
    assert told.startswith(b"PNG image data, 512 x 512, 8-bit/color RGB")


def test_a_dump_is_nbddumps() -> None:
    server = ["data", 'data=@32768 1 @65535 \\"hello, world!\\" @17825790 \\"spanning\\" @20000000 0']
    own, theirs = served([word.replace("\\", "") for word in server], command("dump", "$uri"), ["nbddump", "$uri"])
    assert own == theirs


@pytest.mark.parametrize(
    ("words", "message", "status"),
    [
        (["info", "nbd+unix:///?socket=/no/such"], "/no/such", 1),
        (["info", "/no/such/file"], "/no/such/file", 1),
        (["info", "--map=x", "null:1M"], "'x'", 1),
        (["info", "--map", "--offset=2M", "null:1M"], "1048576", 1),
        (["info", "--totals", "null:1M"], "--map", 2),
        (["info", "--can", "fly", "null:1M"], "fly", 1),  # 2 would be an answer
        (["info", "--can", "trim", "--size", "null:1M"], "only one", 1),
        (["info", "--can", "trim", "file,nosuch::disk"], "nosuch", 1),
        (["info", "file,nosuch::disk"], "nosuch", 2),
        (["compat", "nbdinfo", "--can", "trim", "disk"], "neither an NBD URI", 1),
        (["compat", "nbdinfo", "disk"], "neither an NBD URI", 1),
        (["info", "--size", "--map", "null:1M"], "only one", 2),
        (["info", "--list", "null:1M"], "nothing to list", 1),
        (["info", "--uri", "null:1M"], "NBD URI", 1),
        (["info", "--map", "--png", "/no/such/x.png", "null:1M"], "/no/such/x.png", 1),
        (["dump", "-o", "2M", "null:1M"], "1048576", 1),
    ],
)
def test_what_cannot_be_told_is_said_in_one_line(words: list[str], message: str, status: int) -> None:
    assert message in complaint(*words, status=status)


def test_nothing_is_printed_if_the_map_breaks_off() -> None:
    done = nbdfs("info", "--map", "error,extents-rate=1::null:1M", status=1)
    assert done.stdout == b""


def test_a_socket_that_is_there_already_leads_to_an_export(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with subprocess.Popen(["nbdkit", "-f", "-U", path, "memory", "3M"]) as server:
        try:
            with socket.socket(socket.AF_UNIX) as client:
                wait_until(lambda: not client.connect_ex(path), "nbdkit")
                words = command("info", "--json", f"nbd,fd={client.fileno()}:")
                done = subprocess.run(words, capture_output=True, timeout=60, pass_fds=[client.fileno()])
        finally:
            server.terminate()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["exports"][0]["export-size"] == 3 << 20


def test_a_captive_server_speaks_on_its_standard_streams() -> None:
    told = nbdfs("info", "--size", "nbd,stdio::", "[", "nbdkit", "-s", "memory", "3M", "]").stdout
    assert int(told) == 3 << 20
