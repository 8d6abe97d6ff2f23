"""The torrent source beside other programs: aria2 and transmission as peers, qemu and cryptsetup as users."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import libtorrent
import pytest
import trio

from nbdfs.backends.torrent.membership import Membership
from nbdfs.source import read
from nbdfs.stack import open_stack
from tests.ports import free_port
from tests.tools import command, complaint, luks_by_qemu, nbdfs
from tests.torrents import ALONE, PIECE, VERSIONS, make_torrent, noise, seeding, tracking, write_files

SECONDS = 60.0
LEAVING = 5.0  # seconds that it may take
SIZE = 40 * PIECE + 99


@contextlib.contextmanager
def running(words: list[str], home: Path) -> Iterator[None]:
    """A program for the block."""
    with open(home / "log", "wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, env={**os.environ, "HOME": str(home)})
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def aria2(torrent: Path, folder: Path, home: Path) -> list[str]:
    return ["aria2c", "--dir", str(folder), "--check-integrity=true", "--seed-ratio=0.0", "--enable-dht=false",
            "--bt-enable-lpd=false", "--enable-peer-exchange=false", f"--listen-port={free_port()}",
            "--no-conf", str(torrent)]  # fmt: skip


def transmission(torrent: Path, folder: Path, home: Path) -> list[str]:
    (home / "settings.json").write_text(json.dumps({
        "dht-enabled": False, "lpd-enabled": False, "pex-enabled": False, "port-forwarding-enabled": False,
        "utp-enabled": False, "bind-address-ipv4": "127.0.0.1", "download-dir": str(folder),
    }))  # fmt: skip
    return ["transmission-cli", "-g", str(home), "-w", str(folder), "-p", str(free_port()), "-M", str(torrent)]


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[Membership]:
    """The torrents that were joined."""
    found: list[Membership] = []
    join = Membership.join

    def noting(membership: Membership, *arguments: Any) -> None:
        found.append(membership)
        join(membership, *arguments)

    monkeypatch.setattr(Membership, "join", noting)
    return found


def wants_something(torrent: Membership) -> bool:
    """Whether a peer was told that it has something that is wanted."""
    return any(peer.flags & libtorrent.peer_info.interesting for peer in torrent.handle.get_peer_info())


@pytest.mark.parametrize("program", [aria2, transmission])
async def test_other_programs_seed(tmp_path: Path, program: object, joined: list[Membership]) -> None:
    content = noise(SIZE)
    write_files(tmp_path, {"disk.img": content})
    home = tmp_path / "home"
    home.mkdir()
    with tracking() as tracker:
        torrent = make_torrent(tmp_path, "disk.img", tracker=tracker.url)
        with running(program(torrent, tmp_path, home), home):  # type: ignore[operator]
            async with open_stack(f"torrent,{ALONE},timeout=60:{torrent}") as source:
                assert await read(source, 20 * PIECE, 5) == content[20 * PIECE : 20 * PIECE + 5]
                with trio.fail_after(SECONDS):
                    while wants_something(joined[0]):  # then a peer may hang up, but not for good
                        await trio.sleep(0.02)
                assert await read(source, 0, SIZE) == content


async def test_aria2_downloads_from_a_mounted_torrent(tmp_path: Path) -> None:
    content = noise(SIZE)
    write_files(tmp_path, {"disk.img": content})
    home = tmp_path / "home"
    home.mkdir()
    with tracking() as tracker:
        torrent = make_torrent(tmp_path, "disk.img", tracker=tracker.url)
        async with open_stack(f"torrent,{ALONE},timeout=60:{torrent}") as source:
            with seeding(torrent, tmp_path):
                await read(source, 0, SIZE)
            words = ["aria2c", "--dir", str(home), "--seed-time=0", "--enable-dht=false", "--bt-enable-lpd=false",
                     f"--listen-port={free_port()}", "--no-conf", str(torrent)]  # fmt: skip
            with trio.fail_after(SECONDS):
                await trio.run_process(words, capture_stdout=True)
    assert (home / "disk.img").read_bytes() == content


async def test_a_web_seed_is_enough(tmp_path: Path) -> None:
    content = noise(SIZE)
    write_files(tmp_path, {"disk.img": content})

    class Ranges(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            part = content[int(first) : int(last) + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{SIZE}")
            self.send_header("Content-Length", str(len(part)))
            self.end_headers()
            self.wfile.write(part)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ranges)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/disk.img"
        torrent = make_torrent(tmp_path, "disk.img", private=True, web_seed=url)
        async with open_stack(f"torrent,{ALONE},timeout=60:{torrent}") as source:
            assert await read(source, 3 * PIECE, 100) == content[3 * PIECE : 3 * PIECE + 100]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.root
@pytest.mark.parametrize("refusals", [0, 2])
async def test_a_full_disk_fails_the_read_and_room_heals_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusals: int
) -> None:
    resume_data = Membership.resume_data

    async def rarely(membership: Membership) -> bytes:
        """Resume data that does not come in time at first, as from a busy disk."""
        nonlocal refusals
        refusals -= 1
        return b"" if refusals >= 0 else await resume_data(membership)

    monkeypatch.setattr(Membership, "resume_data", rarely)
    content = noise(64 * PIECE)
    write_files(tmp_path, {"disk.img": content})
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "none", small], check=True)
    try:
        with tracking() as tracker:
            torrent = make_torrent(tmp_path, "disk.img", tracker=tracker.url)
            with seeding(torrent, tmp_path):
                async with open_stack(f"torrent,{ALONE},timeout=60,cache={small}:{torrent}") as source:
                    with pytest.raises(OSError, match="No space left"):
                        await read(source, 0, 64 * PIECE)
                    await trio.to_thread.run_sync(
                        partial(subprocess.run, ["mount", "-o", "remount,size=8m", small], check=True)
                    )
                    found = bytearray()
                    with trio.fail_after(SECONDS):
                        while found != content:  # what was half written may fail once more
                            with contextlib.suppress(OSError):
                                found = await read(source, 0, 64 * PIECE)
    finally:
        subprocess.run(["umount", "-l", small], check=True)


@pytest.mark.root
@pytest.mark.parametrize("version", VERSIONS)
def test_a_directory_shows_the_files_and_only_reading_waits(tmp_path: Path, version: str) -> None:
    files = {"many/a.img": noise(SIZE), "many/deep/b.img": noise(77, 2), "many/deep/empty": b""}
    write_files(tmp_path, files)
    target = tmp_path / "mnt"
    target.mkdir()
    with tracking() as tracker:
        torrent = make_torrent(tmp_path, "many", version=version, tracker=tracker.url)
        words = command("mount", "-P", str(tmp_path / "up"), f"torrent,{ALONE},timeout=60:{torrent}", target)
        process = subprocess.Popen(words)
        try:
            wait_for((tmp_path / "up").exists)
            found = {path.relative_to(target): path.stat().st_size for path in target.rglob("*") if path.is_file()}
            assert found == {Path(name).relative_to("many"): len(content) for name, content in files.items()}
            with seeding(torrent, tmp_path):
                for name, content in files.items():
                    assert (target / Path(name).relative_to("many")).read_bytes() == content
            with pytest.raises(OSError, match=r"Read-only|Permission|not permitted"):
                os.close(os.open(target / "a.img", os.O_RDWR))
        finally:
            process.terminate()
            assert process.wait(SECONDS) == 0
        assert not list(target.iterdir())


@pytest.mark.root
def test_a_read_that_nobody_answers_fails_alone_and_the_mount_heals(tmp_path: Path) -> None:
    content = noise(SIZE)
    write_files(tmp_path, {"disk.img": content})
    file = tmp_path / "mounted"
    with tracking() as tracker:
        torrent = make_torrent(tmp_path, "disk.img", tracker=tracker.url)
        words = command("mount", "-P", str(tmp_path / "up"), f"torrent,{ALONE},timeout=1:{torrent}", file)
        with subprocess.Popen(words) as process:
            wait_for((tmp_path / "up").exists)
            with pytest.raises(OSError, match="Input/output error"):
                file.read_bytes()
            assert file.stat().st_size == SIZE

            def is_whole() -> bool:
                with contextlib.suppress(OSError):
                    return file.read_bytes() == content
                return False

            with seeding(torrent, tmp_path):
                wait_for(is_whole)
            process.terminate()
            assert process.wait(SECONDS) == 0


def wait_for(ready: object) -> None:
    end = time.monotonic() + SECONDS
    while not ready():  # type: ignore[operator]
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


@pytest.mark.root
def test_sigterm_in_the_middle_of_a_download_saves_what_came_and_leaves_at_once(tmp_path: Path) -> None:
    write_files(tmp_path, {"disk.img": noise(400 * PIECE)})
    with tracking() as tracker:
        torrent = make_torrent(tmp_path, "disk.img", tracker=tracker.url)
        spec = f"torrent,{ALONE},cache={tmp_path / 'cache'}:{torrent}"
        with seeding(torrent, tmp_path, upload_limit=1 << 20):
            file = tmp_path / "mounted"
            with subprocess.Popen(command("mount", "-P", str(tmp_path / "up"), spec, file)) as process:
                wait_for((tmp_path / "up").exists)
                with subprocess.Popen(["cat", file], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
                    wait_for(
                        lambda: sum(data.stat().st_blocks * 512 for data in tmp_path.glob("cache/*/0")) > 40 * PIECE
                    )
                    process.terminate()
                    assert process.wait(LEAVING) == 0
        shown = nbdfs("info", "--map=nbdfs:resident", "--json", spec)
    extents = json.loads(shown.stdout)
    assert sum(extent["length"] for extent in extents if extent["type"] == 0) >= 20 * PIECE


# Boot code for address 0x7c00: the text goes to the first serial port, then qemu is told to exit with status 33.
BOOT = bytes.fromhex("31c0 8ed8 be197c baf803 ac 84c0 7403 ee ebf8 b010 e6f4 f4 ebfd") + b"booted from a torrent\0"
SECTOR = 2048


def bootable_iso(size: int) -> bytes:
    """An ISO 9660 image that El Torito boots from its middle; the rest is noise."""
    image = bytearray(noise(size))
    middle = size // SECTOR // 2
    validation = bytearray(b"\1\0\0\0" + bytes(24) + b"\0\0\x55\xaa")
    total = sum(int.from_bytes(validation[at : at + 2], "little") for at in range(0, 32, 2))
    validation[28:30] = (-total & 0xFFFF).to_bytes(2, "little")
    entry = b"\x88\0\0\0\0\0" + (4).to_bytes(2, "little") + middle.to_bytes(4, "little") + bytes(20)
    sectors = {
        16: b"\1CD001\1",
        17: b"\0CD001\1" + b"EL TORITO SPECIFICATION".ljust(64, b"\0") + (19).to_bytes(4, "little"),
        18: b"\xffCD001\1",
        19: bytes(validation) + entry,
        middle: BOOT,
    }
    for number, content in sectors.items():
        image[number * SECTOR : (number + 1) * SECTOR] = content.ljust(SECTOR, b"\0")
    return bytes(image)


@pytest.mark.root
def test_qemu_boots_an_iso_from_a_half_downloaded_torrent(tmp_path: Path) -> None:
    size = 64 << 20  # far more than is fetched ahead of a boot
    write_files(tmp_path, {"dvd.iso": bootable_iso(size)})
    cache = tmp_path / "cache"
    with tracking() as tracker:
        torrent = make_torrent(tmp_path, "dvd.iso", tracker=tracker.url)
        with seeding(torrent, tmp_path):
            spec = f"torrent,{ALONE},cache={cache}:{torrent}"
            done = subprocess.run(
                command("run", spec, "--", "qemu-system-x86_64", "-cdrom", "{}", "-boot", "d", "-display", "none",
                        "-serial", "stdio", "-net", "none", "-device", "isa-debug-exit,iobase=0xf4"),
                capture_output=True, timeout=150,
            )  # fmt: skip
    assert b"booted from a torrent" in done.stdout
    assert done.returncode == 33
    (data,) = cache.glob("*/0")
    assert data.stat().st_blocks * 512 < size


async def test_luks_over_a_torrent(tmp_path: Path) -> None:
    key, image = tmp_path / "key", tmp_path / "disk.luks"
    key.write_bytes(b"secret")
    luks_by_qemu(image, key, "2M")
    secret = f"secret,id=s,file={key}"
    options = f"driver=luks,key-secret=s,file.filename={image}"
    subprocess.run(["qemu-io", "-c", "write -P 0x5a 1M 4k", "--object", secret, "--image-opts", options],
                   check=True, stdout=subprocess.DEVNULL)  # fmt: skip
    with tracking() as tracker:
        torrent = make_torrent(tmp_path, "disk.luks", tracker=tracker.url)
        with seeding(torrent, tmp_path):
            async with open_stack(f"luks,passphrase=+{key}::torrent,{ALONE}:{torrent}") as source:
                assert await read(source, 1 << 20, 4096) == b"\x5a" * 4096


def test_bad_torrents_are_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.torrent").write_bytes(b"d4:infod4:name")
    assert "bad.torrent" in complaint("info", f"torrent:{tmp_path}/bad.torrent")
    assert "No such file" in complaint("info", f"torrent:{tmp_path}/none.torrent")
    assert "hexadecimal" in complaint("info", "magnet:?xt=urn:btih:xyz", status=2)


def test_options_that_make_no_sense_are_refused_in_one_line(tmp_path: Path) -> None:
    write_files(tmp_path, {"disk.img": noise(SIZE), "in-the-way": b""})
    torrent = make_torrent(tmp_path, "disk.img")

    def refusal(options: str) -> str:
        return complaint("serve", "-U", str(tmp_path / "socket"), f"torrent,{ALONE},{options}::{torrent}")

    assert "is no proxy" in refusal("proxy=ftp://host:1")
    assert "is no proxy" in refusal("proxy=socks5://host:99999")
    assert f"no cache in {tmp_path}/in-the-way: " in refusal(f"cache={tmp_path}/in-the-way")
    assert "more than cache-size= holds" in refusal(f"prefetch=all,cache-size={20 * PIECE}")
    assert "has no file 'x'" in refusal("file=x")


@pytest.mark.parametrize("by_link", [False, True])
async def test_resume_data_that_is_damaged_costs_no_more_than_a_new_start(tmp_path: Path, by_link: bool) -> None:
    content = noise(SIZE)
    write_files(tmp_path, {"disk.img": content, "other.img": noise(SIZE, 2)})
    with tracking() as tracker:
        torrent = make_torrent(tmp_path, "disk.img", tracker=tracker.url)
        another = libtorrent.write_resume_data_buf(
            libtorrent.load_torrent_file(str(make_torrent(tmp_path, "other.img", tracker=tracker.url)))
        )
        with seeding(torrent, tmp_path) as seeder:
            named = seeder.link() if by_link else torrent
            for damage in (b"", b"no bencode", b"d4:infoi1ee", another, b""):
                async with open_stack(f"torrent,{ALONE},timeout=60,cache={tmp_path}/cache:{named}") as source:
                    assert await read(source, 0, SIZE) == content
                (resume,) = tmp_path.glob("cache/*/resume")
                resume.write_bytes(damage)


def test_info_opens_no_socket(tmp_path: Path) -> None:
    write_files(tmp_path, {"disk.img": noise(PIECE)})
    torrent = make_torrent(tmp_path, "disk.img", tracker="udp://192.0.2.1:6969")
    for spec in (f"torrent:{torrent}", "magnet:?xt=urn:btih:4qf3dxhtmsfhzbnvnzopiepbgzt5bcon&tr=udp://192.0.2.1:6969"):
        calls = tmp_path / "calls"
        traced = ["strace", "-f", "-e", "trace=socket", "-o", calls, *command("info", spec)]
        subprocess.run(traced, check=True, stdout=subprocess.DEVNULL, timeout=SECONDS)
        assert "exited with 0" in calls.read_text()
        assert "socket(" not in calls.read_text()


def test_info_of_a_torrent_and_of_a_magnet_link_asks_nobody(tmp_path: Path) -> None:
    write_files(tmp_path, {"many/a.img": noise(SIZE), "many/b": b"b"})
    with tracking() as tracker:
        torrent = make_torrent(tmp_path, "many", version="hybrid", tracker=tracker.url)
        shown = json.loads(nbdfs("info", "--json", f"torrent:{torrent}").stdout)
        assert tracker.announces == 0
    details = shown["exports"][0]["details"]
    assert details["files"] == [{"path": "a.img", "size": SIZE}, {"path": "b", "size": 1}]
    assert details["trackers"] == [tracker.url]
    assert len(details["info hash v1"]) == 40
    assert len(details["info hash v2"]) == 64
    link = json.loads(nbdfs("info", "--json", "magnet:?xt=urn:btih:4qf3dxhtmsfhzbnvnzopiepbgzt5bcon").stdout)
    assert link["exports"][0]["details"]["info hash v1"] == "e40bb1dcf3648a7c85b56e5cf411e13667d089cd"
