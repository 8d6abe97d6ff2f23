"""Figures and extended attributes of real mounts, as other programs read them."""

from __future__ import annotations

import contextlib
import http.client
import mmap
import os
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.mounts import Mounter, nbdfs, wait_until

MIB = 1 << 20


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(self._path)


def scrape(path: Path) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    connection = _UnixConnection(str(path))
    connection.request("GET", "/metrics")
    answer = connection.getresponse()
    assert answer.status == 200
    text = answer.read().decode()
    connection.close()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(figures: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str, **labels: str) -> float:
    return sum(value for (title, pairs), value in figures.items() if title == name and labels.items() <= pairs)


def attribute(file: Path, name: str) -> str:
    return os.getxattr(file, f"user.nbdfs.{name}").decode()


def direct_read(file: Path, length: int) -> int:
    """Read past the kernel's cache, so that each request reaches the source."""
    buffer = mmap.mmap(-1, length)
    descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
    try:
        return os.readv(descriptor, [buffer])
    finally:
        os.close(descriptor)


def test_a_mount_tells_what_was_read(mount_data_plane: Mounter, tmp_path: Path) -> None:
    sock = tmp_path / "metrics"
    mounted = mount_data_plane("offset,offset=4k::pattern:8M", "--metrics", f"unix:{sock}")
    wait_until(sock.exists, "the socket of the metrics")
    assert direct_read(mounted.file, MIB) == MIB
    figures = scrape(sock)
    for layer in "offset", "pattern":
        assert total(figures, "nbdfs_request_bytes_total", layer=layer, operation="read") == MIB
    assert total(figures, "nbdfs_export_state", state="ok") == 1
    assert attribute(mounted.file, "read-bytes") == str(MIB)
    assert attribute(mounted.file, "state") == "ok"
    mounted.stop()
    assert not sock.exists()


def test_attributes_show_resident_bytes_and_errors_and_hide_secrets(mount_data_plane: Mounter, tmp_path: Path) -> None:
    mounted = mount_data_plane("memory:64M")
    mounted.file.write_bytes(b"")  # a mount truncates to zeroes
    assert attribute(mounted.file, "resident-bytes") == "0"
    with mounted.file.open("r+b") as file:
        file.write(b"x" * MIB)
        os.fsync(file.fileno())
    assert int(attribute(mounted.file, "resident-bytes")) == MIB
    broken = mount_data_plane("error,errno=EIO,rate=100%::memory:1M", name="broken.img")
    with pytest.raises(OSError):
        direct_read(broken.file, 4096)
    assert int(attribute(broken.file, "errors")) >= 1


def test_the_state_of_a_mount_whose_server_goes_and_comes_back(mount_data_plane: Mounter, tmp_path: Path) -> None:
    sock, metrics = tmp_path / "nbd", tmp_path / "metrics"
    with served(sock) as first:
        spec = f"nbd,timeout=120::nbd+unix:///?socket={sock}"
        mounted = mount_data_plane(spec, "-o", "timeout=120", "--metrics", f"unix:{metrics}")
        assert attribute(mounted.file, "state") == "ok"
        first.kill()
        first.wait()
    with ThreadPoolExecutor(1) as threads:
        reading = threads.submit(direct_read, mounted.file, 4096)  # waits for the server
        wait_until(lambda: attribute(mounted.file, "state") == "reconnecting", "the loss of the server to be told")
        assert total(scrape(metrics), "nbdfs_export_state", state="reconnecting") == 1
        with served(sock):
            assert reading.result(60) == 4096
            assert attribute(mounted.file, "state") == "ok"
            assert total(scrape(metrics), "nbdfs_source_reconnects_total") >= 1
            mounted.stop()


@contextlib.contextmanager
def served(sock: Path) -> Iterator[subprocess.Popen[str]]:
    """A server of an NBD export that listens there."""
    command = nbdfs("serve", "-U", str(sock), "memory:1M")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            assert server.stdout.readline()
            yield server
        finally:
            server.kill()


def test_a_bad_address_is_one_line_before_anything_is_mounted(mount_data_plane: Mounter, tmp_path: Path) -> None:
    done = mount_data_plane.run(*nbdfs("mount", "--metrics", "nowhere", "memory:1M", "disk.img"), check=False)
    assert done.returncode == 2
    assert "--metrics: 'nowhere' is no address" in done.stderr
    assert not (mount_data_plane.folder / "disk.img").exists()
    done = mount_data_plane.run(
        *nbdfs("mount", "--metrics", f"unix:{tmp_path}/no/such", "memory:1M", "disk.img"), check=False
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert not (mount_data_plane.folder / "disk.img").exists()
