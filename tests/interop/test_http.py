"""The `http` source against nginx."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trustme

from nbdfs.errors import UserError
from nbdfs.source import read
from nbdfs.stack import open_stack
from tests.ports import answers, free_port

CONTENT = random.Random(1).randbytes(3_000_001)


class Nginx:
    """A running nginx that serves `folder`/served, on a TCP port, on one with TLS and HTTP/2, and on a Unix socket."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = [free_port(), free_port()]
        self.file = folder / "served" / "disk.img"
        self.file.parent.mkdir()
        self.file.write_bytes(CONTENT)
        (folder / "users").write_text("me:{PLAIN}secret\n")
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(folder / "ca.pem"))
        authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
        user = "user root;" if os.geteuid() == 0 else ""
        (folder / "nginx.conf").write_text(f"""
            {user} daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1;
            events {{ }}
            http {{ access_log {folder}/access.log; client_body_temp_path {folder}/body; gzip on; gzip_types *;
            server {{
                listen 127.0.0.1:{self.ports[0]}; listen 127.0.0.1:{self.ports[1]} ssl http2; listen unix:{folder}/sock;
                ssl_certificate {folder}/server.pem; ssl_certificate_key {folder}/server.pem; root {folder}/served;
                location /private/ {{ alias {folder}/served/; auth_basic x; auth_basic_user_file {folder}/users; }}
                location /moved/ {{ return 301 /disk.img; }}
                location /whole/ {{ alias {folder}/served/; max_ranges 0; }}
            }} }}""")
        self.start()

    def start(self) -> None:
        (self.folder / "sock").unlink(missing_ok=True)
        command = [shutil.which("nginx", path="/usr/sbin:/usr/bin") or "nginx", "-c", self.folder / "nginx.conf"]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 30
        while not answers(self.ports[1]):
            assert time.monotonic() < end and self.process.poll() is None, (self.folder / "error.log").read_text()
            time.sleep(0.02)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()

    def url(self, path: str) -> str:
        return f"http,proxy=none,timeout=30::http://localhost:{self.ports[0]}/{path}"

    def secure(self, path: str, options: str = "") -> str:
        place = f"https://localhost:{self.ports[1]}/{path}"
        return f"http,proxy=none,timeout=30,ca={self.folder}/ca.pem{options}::{place}"


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Nginx]:
    server = Nginx(tmp_path)
    yield server
    server.stop()


async def check(spec: str) -> None:
    async with open_stack(spec) as source:
        assert source.info.size == len(CONTENT)
        assert source.info.identity
        async with trio.open_nursery() as nursery:

            async def look(offset: int, length: int) -> None:
                assert await read(source, offset, length) == CONTENT[offset : offset + length]

            chance = random.Random(2)
            for _ in range(40):
                offset = chance.randrange(len(CONTENT))
                nursery.start_soon(look, offset, min(chance.choice([1, 4096, 300_000]), len(CONTENT) - offset))
        assert await read(source, 0, len(CONTENT)) == CONTENT


async def test_all_transports(nginx: Nginx) -> None:
    await check(nginx.url("disk.img"))
    await check(nginx.secure("disk.img"))
    await check(nginx.secure("disk.img", ",http2"))
    await check(f"http+unix://{str(nginx.folder / 'sock').replace('/', '%2F')}/disk.img")
    log = (nginx.folder / "access.log").read_text()
    assert "HTTP/1.1" in log and "HTTP/2.0" in log


async def test_redirect_and_login(nginx: Nginx) -> None:
    await check(nginx.url("moved/"))
    (nginx.folder / "key").write_text("secret\n")
    await check(nginx.secure("private/disk.img", f",user=me,password=+{nginx.folder}/key"))
    with pytest.raises(UserError, match="401: a login is needed"):
        await check(nginx.secure("private/disk.img"))


async def test_without_ranges(nginx: Nginx) -> None:
    with pytest.raises(UserError, match="cannot send parts"):
        await check(nginx.url("whole/disk.img"))
    async with open_stack(nginx.url("whole/disk.img").replace("::", ",fallback=download::")) as source:
        assert await read(source, 0, len(CONTENT)) == CONTENT


async def test_a_changed_file_is_never_mixed(nginx: Nginx) -> None:
    async with open_stack(nginx.url("disk.img")) as source:
        assert await read(source, 0, 1000) == CONTENT[:1000]
        nginx.file.write_bytes(bytes(len(CONTENT)))
        os.utime(nginx.file, (1, 1))
        with pytest.raises(OSError, match="has changed on the server"):
            await read(source, 0, 1000)


@pytest.mark.parametrize("options", ["", ",http2"])
async def test_a_restart_of_the_server_is_survived(nginx: Nginx, options: str) -> None:
    async with open_stack(nginx.secure("disk.img", options)) as source:
        assert await read(source, 0, 1000) == CONTENT[:1000]
        await trio.to_thread.run_sync(nginx.stop)
        async with trio.open_nursery() as nursery:

            async def meanwhile() -> None:
                assert await read(source, 1_000_000, 5000) == CONTENT[1_000_000:1_005_000]

            nursery.start_soon(meanwhile)
            await trio.sleep(0.2)
            await trio.to_thread.run_sync(nginx.start)


async def test_small_reads_through_a_cache_are_few_requests(nginx: Nginx) -> None:
    async with open_stack(f"cache,block=1M::{nginx.url('disk.img')}") as source:
        for offset in range(0, len(CONTENT) - 512, 51_200):
            assert await read(source, offset, 512) == CONTENT[offset : offset + 512]
    log = (nginx.folder / "access.log").read_text().splitlines()
    assert len(log) == 1 + 3  # the probe, and three blocks
