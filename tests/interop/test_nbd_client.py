"""The nbd source against other servers: what it reads and writes, the limits it keeps, how it says what is wrong."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from nbdfs import eager
from nbdfs.checked import Checked
from nbdfs.eager import Run
from nbdfs.errors import UserError
from nbdfs.nbd.client import Client
from nbdfs.nbd.entering import list_exports
from nbdfs.nbd.target import target_of_uri
from nbdfs.nbd.uri import parse_uri
from nbdfs.source import ALLOCATION, HOLE, ZERO, Caps, Extent, read
from nbdfs.spec import Segment, Spec
from nbdfs.stack import open_stack
from tests.certificates import certificates
from tests.interop.peers import listens
from tests.tools import command

__all__ = ["certificates"]

MIB = 1 << 20


@contextmanager
def serving(folder: Path, *argv: str) -> Iterator[str]:
    """A server that listens on the Unix socket `{}` of its arguments; gives the URI."""
    path = folder / "socket"
    path.unlink(missing_ok=True)
    process = subprocess.Popen([word.replace("{}", str(path)) for word in argv])
    try:
        end = time.monotonic() + 30
        while not listens(path):
            assert process.poll() is None and time.monotonic() < end, "the server did not start"
            time.sleep(0.01)
        yield f"nbd+unix:///?socket={path}"
    finally:
        process.terminate()
        process.wait(30)


def nbdkit(*argv: str) -> Spec:
    return Spec((Segment("nbd", (("timeout", "10"),)),), argv=("nbdkit", *argv))


async def exercise(source: Checked, content: bytearray, *, seed: int = 1, rounds: int = 60) -> None:
    """Random operations, eight at a time on disjoint ranges, and the whole content compared with a model."""
    draw = random.Random(seed)
    writable = Caps.WRITE in source.info.caps
    part = len(content) // 8

    async def worker(number: int) -> None:
        for _ in range(rounds // 8 + 1):
            at = number * part + draw.randrange(part)
            length = draw.randrange(1, min(300_000, (number + 1) * part - at) + 1)
            kind = draw.choice(["read", "write", "zero"] if writable else ["read"])
            if kind == "write":
                data = draw.randbytes(length)
                await source.pwrite(memoryview(data), at, fua=draw.random() < 0.2)
                content[at : at + length] = data
            elif kind == "zero":
                await source.zero(at, length, may_trim=draw.random() < 0.5)
                content[at : at + length] = bytes(length)
            assert await read(source, at, length) == content[at : at + length]

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(worker, number)
    await source.flush()
    for at in range(0, len(content), MIB):
        assert await read(source, at, min(MIB, len(content) - at)) == content[at : at + MIB]


@pytest.mark.parametrize(
    "filters",
    [
        [],
        ["--filter=nozero"],
        ["--filter=noextents"],
        ["--filter=multi-conn", "multi-conn-mode=disable"],
        ["--filter=delay", "rdelay=1ms", "wdelay=1ms"],
        [
            "--filter=blocksize-policy",
            "blocksize-minimum=512",
            "blocksize-maximum=65536",
            "blocksize-error-policy=error",
        ],
        ["--filter=blocksize-policy", "blocksize-minimum=4096", "blocksize-error-policy=error"],
        ["--filter=fua", "fuamode=emulate"],
        ["--no-sr"],
        ["--mask-handshake=0"],
    ],
    ids=lambda filters: "_".join(filters) or "plain",
)
async def test_content_through_nbdkit(filters: list[str]) -> None:
    options = [word for word in filters if word.startswith("--")]
    parameters = [word for word in filters if not word.startswith("--")]
    async with open_stack(nbdkit(*options, "memory", "8M", *parameters)) as source:
        await exercise(source, bytearray(8 * MIB))


async def test_capabilities_and_sizes_are_the_servers() -> None:
    async with open_stack(nbdkit("--no-sr", "memory", "3M", "--filter=nozero")) as source:
        own = source.below.info
    assert own.size == 3 * MIB
    assert Caps.TRIM in own.caps and Caps.FLUSH in own.caps and Caps.FUA in own.caps
    assert Caps.ZERO not in own.caps and Caps.EXTENTS not in own.caps
    async with open_stack(nbdkit("-r", "memory", "3M")) as source:
        assert Caps.WRITE not in source.info.caps


async def test_extents_of_a_sparse_disk() -> None:
    async with open_stack(nbdkit("data", "1 @1048576 1", "size=2M")) as source:
        found = await source.extents(0, 2 * MIB)
    assert [(extent.length, extent.flags) for extent in found] == [
        (32768, 0), (MIB - 32768, HOLE | ZERO), (32768, 0), (MIB - 32768, HOLE | ZERO)]  # fmt: skip


async def test_errors_are_those_of_the_request_alone() -> None:
    zeroes = "dd if=/dev/zero count=$3 iflag=count_bytes 2>/dev/null"
    script = (
        "get_size=echo 1M",
        "can_write=exit 0",
        "pread=[ $4 -lt 524288 ] || { echo EIO bad >&2; exit 1; }; " + zeroes,
        "pwrite=cat >/dev/null; echo ENOSPC full >&2; exit 1",
    )
    async with open_stack(nbdkit("eval", *script)) as source:
        for _ in range(3):
            assert await read(source, 0, 4096) == bytes(4096)
            with pytest.raises(OSError) as caught:
                await read(source, 600_000, 4096)
            assert caught.value.errno == errno.EIO
            with pytest.raises(OSError) as caught:
                await source.pwrite(memoryview(b"x" * 4096), 0)
            assert caught.value.errno == errno.ENOSPC


async def all_up(source: Checked) -> Client:
    """The client of the source, once it has its four connections."""
    client: Client = source.below.client  # type: ignore[attr-defined]
    with trio.fail_after(30):
        while client.links.connections < 4:
            await trio.sleep(0.01)
    return client


async def test_requests_are_spread_over_all_connections(tmp_path: Path) -> None:
    log = tmp_path / "log"
    argv = ["-f", "-U", "{}", "memory", "64M", "--filter=log", f"logfile={log}", "--filter=delay", "rdelay=5ms"]
    with serving(tmp_path, "nbdkit", *argv) as uri:
        async with open_stack(f"nbd,connections=4,readahead=0::{uri}") as source:
            await all_up(source)
            async with trio.open_nursery() as nursery:
                for number in range(64):
                    nursery.start_soon(read, source, number * MIB, 65536)
    connections = [line.split("connection=")[1].split()[0] for line in log.read_text().splitlines() if " Read " in line]
    assert {connection: connections.count(connection) for connection in connections} == {
        str(n): 16 for n in range(1, 5)
    }


async def test_small_requests_that_are_begun_together_leave_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a server answers at once, a connection for each costs more than it brings; large ones are spread still."""
    monkeypatch.setattr("nbdfs.nbd.mux._PROMPT", 60.0)
    log = tmp_path / "log"
    argv = ["-f", "-U", "{}", "memory", "64M", "--filter=log", f"logfile={log}"]
    with serving(tmp_path, "nbdkit", *argv) as uri:
        async with open_stack(f"nbd,connections=4,readahead=0::{uri}") as source, trio.open_nursery() as nursery:
            await all_up(source)
            await read(source, 0, 512)
            for length in (4096, MIB):
                eager.cork()
                for number in range(12):
                    Run(read(source, number * MIB, length), nursery).start()
                eager.uncork()
                with trio.fail_after(30):
                    while source.counters["read"].bytes < 12 * length:
                        await trio.sleep(0.01)
    lines = [line for line in log.read_text().splitlines() if " Read " in line]
    used = {
        length: {line.split("connection=")[1].split()[0] for line in lines if f"count={length:#x} " in line}
        for length in (4096, MIB)
    }
    assert len(used[4096]) == 1
    assert len(used[MIB]) == 4


async def test_long_requests_do_not_drive_all_others_to_one_connection() -> None:
    """nbdkit has 16 threads for a connection: with more stalled requests on one it answers nothing there any more."""
    stack = Spec(
        (Segment("nbd", (("readahead", "0"),)),), argv=("nbdkit", "memory", "8M", "--filter=delay", "rdelay=60")
    )
    async with open_stack(stack) as source, trio.open_nursery() as nursery:
        client = await all_up(source)
        for length in [MIB] * 3 + [4096] * 40:
            nursery.start_soon(read, source, 0, length)
        await trio.testing.wait_all_tasks_blocked()
        assert max(len(link.mux._in_flight) for link in client.links._all) <= 16
        with trio.fail_after(30):
            await source.pwrite(memoryview(bytes(4096)), MIB)
        nursery.cancel_scope.cancel()


async def test_a_killed_server_comes_back(tmp_path: Path) -> None:
    image = tmp_path / "image"
    content = bytearray(random.Random(2).randbytes(8 * MIB))
    image.write_bytes(content)
    argv = ["nbdkit", "-f", "-U", "{}", "file", str(image)]
    stopped = False

    with serving(tmp_path, *argv) as uri:
        pass
    async with AsyncServer(tmp_path, argv) as server:
        async with open_stack(f"nbd,timeout=20::{uri}") as source:
            async with trio.open_nursery() as nursery:

                async def kill() -> None:
                    while not stopped:
                        await trio.sleep(0.3)
                        await server.restart()

                nursery.start_soon(kill)
                while server.restarts < 3:
                    await exercise(source, content, seed=3 + server.restarts, rounds=300)
                stopped = True
    assert image.read_bytes() == content


class AsyncServer:
    """A server that can be killed and started again on the same socket."""

    def __init__(self, folder: Path, argv: list[str]) -> None:
        self._path = folder / "socket"
        self._argv = [word.replace("{}", str(self._path)) for word in argv]
        self.restarts = 0

    async def __aenter__(self) -> AsyncServer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.kill()

    async def start(self) -> None:
        self._path.unlink(missing_ok=True)
        self._process = subprocess.Popen(self._argv, stderr=subprocess.DEVNULL)
        with trio.fail_after(30):
            while not listens(self._path):
                await trio.sleep(0.005)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    async def restart(self) -> None:
        self.restarts += 1
        self.kill()
        await trio.sleep(0.02)
        await self.start()


async def test_a_server_that_stays_away_fails_requests_and_heals(tmp_path: Path) -> None:
    async with AsyncServer(tmp_path, ["nbdkit", "-f", "-U", "{}", "memory", "1M"]) as server:
        async with open_stack(f"nbd,timeout=0.5::nbd+unix:///?socket={tmp_path}/socket") as source:
            assert await read(source, 0, 4096) == bytes(4096)
            server.kill()
            begin = time.monotonic()
            with trio.fail_after(30), pytest.raises(OSError) as caught:
                await read(source, 0, 4096)
            assert caught.value.errno == errno.EIO
            assert time.monotonic() - begin > 0.3  # a lower bound: it holds however slow the machine is
            await server.start()
            with trio.fail_after(30):
                while True:
                    try:
                        assert await read(source, 0, 4096) == bytes(4096)
                        break
                    except OSError:
                        await trio.sleep(0.1)


async def test_a_shrunk_export_is_not_taken_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with AsyncServer(tmp_path, ["nbdkit", "-f", "-U", "{}", "memory", "1M"]) as server:
        async with open_stack(f"nbd,timeout=1::nbd+unix:///?socket={tmp_path}/socket") as source:
            await read(source, 0, 4096)
            server.kill()
            server._argv[-1] = "512k"
            await server.start()
            with pytest.raises(OSError):
                await read(source, 0, 4096)
    assert "its size was 1048576 and is 524288" in caplog.text
    assert "[Errno" not in caplog.text


async def test_a_cancelled_reader_is_released_at_once_and_others_go_on() -> None:
    async with open_stack(nbdkit("memory", "1M", "--filter=delay", "rdelay=60")) as source:
        with trio.fail_after(30):
            for _ in range(3):
                with trio.move_on_after(0.05) as reader:
                    await read(source, 0, 4096)
                assert reader.cancelled_caught
            await source.pwrite(memoryview(b"x" * 512), 0)
            await source.flush()


@pytest.mark.parametrize(
    "argv",
    [["nbdkit", "-f", "-U", "{}", "memory", "1M"], command("serve", "memory:1M", "-U", "{}")],
    ids=["nbdkit", "ours"],
)
async def test_a_thousand_reconnects(tmp_path: Path, argv: list[str]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    async with AsyncServer(tmp_path, argv):
        async with open_stack(f"nbd,connections=1,readahead=0::nbd+unix:///?socket={tmp_path}/socket") as source:
            client = source.below.client  # type: ignore[attr-defined]
            for number in range(1000):
                client.links._all[0].mux._channel.close()
                with trio.fail_after(30):
                    assert await read(source, number, 100) == bytes(100)
    assert len(os.listdir("/proc/self/fd")) < before + 100


async def test_qcow2_and_dirty_bitmap_of_qemu(tmp_path: Path) -> None:
    image = tmp_path / "image.qcow2"
    for line in (
        f"qemu-img create -q -f qcow2 {image} 8M",
        f"qemu-img bitmap --add --enable {image} bits",
        f"qemu-io -c 'write -P 7 1M 64k' {image}",
    ):
        subprocess.run(line, shell=True, check=True, stdout=subprocess.DEVNULL)
    bits = "qemu:dirty-bitmap:bits"
    argv = ["qemu-nbd", "-f", "qcow2", "-B", "bits", "-t", "-e", "4", "-k", "{}", str(image)]
    with serving(tmp_path, *argv) as uri:
        async with open_stack(f"nbd,context={bits}::{uri}") as source:
            assert bits in source.info.contexts
            dirty = await source.extents(0, 8 * MIB, context=bits)
            assert dirty == [Extent(0, MIB, 0), Extent(MIB, 65536, 1), Extent(MIB + 65536, 7 * MIB - 65536, 0)]
            allocated = await source.extents(0, 8 * MIB, context=ALLOCATION)
            assert [extent for extent in allocated if not extent.flags & ZERO] == [Extent(MIB, 65536, 0)]
            content = bytearray(8 * MIB)
            content[MIB : MIB + 65536] = b"\7" * 65536
            await exercise(source, content)
    assert subprocess.run(["qemu-img", "check", "-q", str(image)]).returncode == 0


async def test_nbd_server_of_the_protocols_authors(tmp_path: Path) -> None:
    image, config = tmp_path / "image", tmp_path / "config"
    image.write_bytes(bytes(8 * MIB))
    config.write_text(
        f"[generic]\nunixsock = {tmp_path}/socket\nallowlist = true\n"
        f"[disk]\nexportname = {image}\nflush = true\nfua = true\n"
    )
    pid_file, uri = tmp_path / "pid", f"nbd+unix:///?socket={tmp_path}/socket"
    subprocess.run(["nbd-server", "-C", config, "-p", pid_file], check=True, stderr=subprocess.DEVNULL)
    try:
        with trio.fail_after(30):
            while not (listens(tmp_path / "socket") and pid_file.exists() and pid_file.read_text().strip()):
                await trio.sleep(0.01)
        async with open_stack(uri.replace("///", "///disk")) as source:
            await exercise(source, bytearray(8 * MIB))
        with pytest.raises(UserError, match=r"no export 'other'.*'disk'"):
            async with open_stack(uri.replace("///", "///other")):
                pass
        _, exports = await list_exports(target_of_uri(parse_uri(uri)))
        assert [(export.name, export.size) for export in exports] == [("disk", 8 * MIB)]
    finally:
        os.kill(int(pid_file.read_text()), signal.SIGTERM)


@asynccontextmanager
async def tls_server(folder: Path, certificates: Path, *options: str) -> AsyncIterator[str]:
    argv = ["nbdkit", "-f", "-U", "{}", f"--tls-certificates={certificates}", *options, "memory", "4M"]
    with serving(folder, *argv) as uri:
        yield uri.replace("nbd+", "nbds+")


async def test_tls_with_certificates_both_ways(tmp_path: Path, certificates: Path) -> None:
    async with tls_server(tmp_path, certificates, "--tls=require", "--tls-verify-peer") as uri:
        async with open_stack(f"{uri}&tls-certificates={certificates}") as source:
            await exercise(source, bytearray(4 * MIB))
        async with open_stack(f"nbd,tls-certificates={certificates},tls-hostname=server.example::{uri}") as source:
            assert await read(source, 0, 512) == await read(source, 512, 512)
        facts, _ = await list_exports(target_of_uri(parse_uri(f"{uri}&tls-certificates={certificates}")))
        assert facts.tls and facts.structured


async def test_tls_refusals_in_words(tmp_path: Path, certificates: Path) -> None:
    async with tls_server(tmp_path, certificates, "--tls=require") as uri:
        for spec, complaint in (
            (uri.replace("nbds+", "nbd+"), "requires TLS: use nbds"),
            (
                f"{uri}&tls-certificates={certificates}&tls-hostname=else.example",
                "certificate is not accepted.*else.example",
            ),
            (uri, "certificate is not accepted"),
            (f"{uri}&tls-certificates={tmp_path}", "ca-cert.pem is missing"),
        ):
            with pytest.raises(UserError, match=complaint):
                async with open_stack(spec):
                    pass
        async with open_stack(f"{uri}&tls-verify-peer=0") as source:
            await read(source, 0, 512)
    with serving(tmp_path, "nbdkit", "-f", "-U", "{}", "memory", "1M") as plain:
        with pytest.raises(UserError, match="does not do TLS: use nbd instead of nbds"):
            async with open_stack(plain.replace("nbd+", "nbds+") + f"&tls-certificates={certificates}"):
                pass


async def test_pre_shared_keys_need_a_newer_python(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("alice:00ff\n")
    if hasattr(ssl.SSLContext, "set_psk_client_callback"):
        with serving(tmp_path, "nbdkit", "-f", "-U", "{}", "--tls=require", f"--tls-psk={keys}", "memory", "1M") as uri:
            spec = uri.replace("nbd+", "nbds+") + f"&tls-psk-file={keys}&tls-username=alice"
            async with open_stack(spec) as source:
                assert await read(source, 0, 512) == bytes(512)
    else:
        with pytest.raises(UserError, match=r"needs Python 3\.13"):
            async with open_stack(f"nbds://localhost/?tls-psk-file={keys}"):
                pass


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("nbd+unix:///?socket=/nonexistent/socket", "cannot connect to /nonexistent/socket: No such file"),
        ("nbd://127.0.0.1:1", "cannot connect to 127.0.0.1:1: .*refused"),
        ("nbd://name.invalid", "cannot connect to name.invalid"),
    ],
)
async def test_no_server(spec: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        async with open_stack(spec):
            pass


async def test_oldstyle_server() -> None:
    with pytest.raises(UserError, match="oldstyle protocol"):
        async with open_stack(nbdkit("-o", "memory", "1M")):
            pass


async def test_unknown_export_names_those_there_are(tmp_path: Path) -> None:
    (tmp_path / "disks").mkdir()
    for name in ("one", "two"):
        shutil.copy("/bin/true", tmp_path / "disks" / name)
    with serving(tmp_path, "nbdkit", "-f", "-U", "{}", "file", f"dir={tmp_path}/disks") as uri:
        with pytest.raises(UserError, match=r"no export 'three'.*'one', 'two'"):
            async with open_stack(uri.replace("///", "///three")):
                pass
        _, exports = await list_exports(target_of_uri(parse_uri(uri)))
    assert sorted(export.name for export in exports) == ["one", "two"]


async def test_a_captive_server_that_fails_says_why() -> None:
    with pytest.raises(UserError, match=r"nbdkit ended with exit status 1: .*bogus"):
        async with open_stack(nbdkit("memory", "bogus=1")):
            pass
