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
        (("--filter=truncate", "null", "1M", "truncate=0"), 0),
        (("--filter=truncate", "null", "1M", "truncate=2000", "round-up=512"), 2048),
        (("--filter=blocksize", "null", "1000", "minblock=512", "maxdata=1k"), 512),
        (("memory", "1M", "allocator=malloc,mlock=true"), 1 << 20),
        (("data", "1", "allocator=sparse", "size=512"), 512),
        (("--filter=cow", "memory", "1M", "cow-on-read=false", "cow-on-cache=0"), 1 << 20),
        (("--filter=cache", "memory", "1M", "cache-on-read=true", "cache-low-threshold=50"), 1 << 20),
    ],
)
def test_run(words: tuple[str, ...], size: int) -> None:
    assert nbdkit("-U", "-", *words, "--run", 'nbdinfo --size "$uri"').strip() == str(size)


@pytest.mark.parametrize(("family", "address"), [("-4", "127.0.0.1"), ("-6", "::1")])
def test_one_of_the_addresses_of_localhost(family: str, address: str) -> None:
    script = (
        "ss --no-header --listening --tcp --numeric --processes | awk -v pid=pid=$PPID, 'index($0, pid) {print $4}'"
    )
    said = nbdkit(family, "-p", "0", "null", "--run", script).split()
    assert [place.rpartition(":")[0].strip("[]") for place in said] == [address]


def test_no_fork_stays_in_the_foreground(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    with subprocess.Popen(command("compat", "nbdkit", "--no-fork", "-U", path, "memory", "1M")) as process:
        wait_for(path.exists, "it does not serve")
        assert process.poll() is None
        process.terminate()
    assert process.returncode == 0


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


def test_an_export_of_a_server_that_is_told_in_parts(serve: Server, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    serving = serve("a=memory:1M", "b=memory:2M", where=("-U", str(path), "-p", "0"), expect=4)
    port = next(uri for uri in serving.uris if uri.startswith("nbd://")).split(":")[2].partition("/")[0]
    for place in ([f"socket={path}"], ["hostname=localhost", f"port={port}"]):
        assert nbdkit("nbd", *place, "export=b", "--run", 'nbdinfo --size "$uri"').strip() == str(2 << 20)


def test_names_and_short_forms_of_options(tmp_path: Path) -> None:
    words = ["--pid-file", tmp_path / "pid", "--read-only", "--new-style", "--export-name=x", "--filt", "cow"]
    assert nbdkit(*words, "memory", "1M", "--ru", "echo $exportname; cat " + str(tmp_path / "pid")).startswith("x\n")
    assert "ambiguous option: --tls-" in complaint("compat", "nbdkit", "--tls-=x", "memory", "1M")


@pytest.mark.parametrize(
    ("words", "complains"),
    [
        (("memori", "1M"), "did you mean 'memory'"),
        (("--filter=lux", "memory", "1M"), "no filter 'lux'"),
        (("memory", "1M", "colour=red"), "key 'colour'"),
        (("memory", "1M", "allocator=zstd"), "allocator: 'zstd' is not possible here"),
        (("memory", "1M", "allocator=malloc,hugepages=yes"), "'hugepages=yes' is not possible here"),
        (("data", "1", "allocator=malloc,mlock=true"), "only the memory plugin"),
        (("nbd", "export=x"), "nbd needs one of uri=, socket= and hostname="),
        (("nbd", "nbd://localhost", "export=x"), "export= does not go with uri="),
        (("nbd", "socket=x", "port=1"), "port= goes with the last one only"),
        (("nbd", "hostname=localhost", "port=nbd"), "no port"),
        (("nbd", "nbd://localhost", "retry=5"), "retry: '5' is not possible here: start the server first"),
        (("file", "x", "fadvise=soon"), "there are normal, random, sequential"),
        (("--filter=cow", "memory", "1M", "cow-on-read=true"), "put --filter=cache behind"),
        (("--filter=cow", "memory", "1M", "cow-on-cache=/file"), "put --filter=cache behind"),
        (("--filter=cache", "memory", "1M", "cache-on-read=false"), "what is read is always kept"),
        (("--filter=cache", "memory", "1M", "cache-high-threshold=x"), "'x' is no number"),
        (("--filter=xz", "memory", "1M", "xz-max-block=x"), "'x' is not a size"),
        (("--swap", "memory", "1M"), "--swap"),
        (("-4", "-i", "::1", "memory", "1M"), "they go with no other"),
        (("--log=stderr", "memory", "1M"), "goes with -f"),
        (("--log=syslog", "memory", "1M"), "invalid choice: 'syslog'"),
        (("-p", "65536", "memory", "1M"), "no port"),
        ((), "a plugin is missing"),
        (("-s", "--dump-plugin", "null"), "--dump-plugin serves nobody"),
        (("memory",), "memory needs size="),
        (("-s", "memory", "1M", "--run", "true"), "-s goes with no address and no --run"),
        (("-s", "-U", "-", "memory", "1M"), "-s goes with no address and no --run"),
    ],
)
def test_what_is_not_known_is_an_error(words: tuple[str, ...], complains: str) -> None:
    assert complains in complaint("compat", "nbdkit", *words)
