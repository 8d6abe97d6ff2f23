"""Exports of a server that come and go under its clients."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounts import SECONDS, Mounter, nbdfs, wait_until
from tests.tools import complaint
from tests.tools import nbdfs as run


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The process id and the socket of a server of one export, `first`."""
    path, pid = tmp_path / "socket", tmp_path / "pid"
    words = nbdfs("serve", "-U", str(path), "-P", str(pid), "first=memory:1M")
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: pid.exists() or process.poll() is not None, "the server")
            yield str(process.pid), str(path)
        finally:
            process.terminate()
            assert process.wait(SECONDS) == 0


def exports(path: str) -> set[str]:
    done = run("info", "--list", "--json", f"nbd+unix:///?socket={path}")
    return {export["export-name"] for export in json.loads(done.stdout)["exports"]}


def test_exports_come_and_go(server: tuple[str, str]) -> None:
    pid, path = server
    run("add", pid, "second=memory:2M", "dir/third=memory:3M")
    assert exports(path) == {"first", "second", "dir/third"}
    run("add", "--replace", f"nbd+unix:///?socket={path}", "second=memory:5M")
    run("remove", pid, "first", "dir/third", "--wait", "30")
    assert exports(path) == {"second"}
    assert run("info", "--size", f"nbd+unix:///second?socket={path}").stdout.strip() == str(5 << 20).encode()
    run("resize", pid, "second", "6M")
    assert run("info", "--size", f"nbd+unix:///second?socket={path}").stdout.strip() == str(6 << 20).encode()
    assert "there is no 'first' here" in complaint("remove", pid, "first")


def test_a_client_keeps_what_was_removed_or_replaced(server: tuple[str, str], mount_data_plane: Mounter) -> None:
    pid, path = server
    client = mount_data_plane(f"nbd+unix:///first?socket={path}")
    with client.file.open("r+b", buffering=0) as disk:
        os.pwrite(disk.fileno(), b"old", 0)
        run("add", "--replace", pid, "first=memory:1M")
        assert os.pread(disk.fileno(), 3, 0) == b"old"
        run("remove", pid, "first", "--wait", "30")  # the new one: nobody uses that
        run("add", pid, "first=memory:1M")
        os.pwrite(disk.fileno(), b"new", 3)
        os.fsync(disk.fileno())
        assert os.pread(disk.fileno(), 6, 0) == b"oldnew"
        (process,) = json.loads(run("list", pid, "--json").stdout)
        assert [(export["state"], export["clients"] > 0) for export in process["exports"]] == [
            ("idle", False),
            ("removed", True),
        ]
        fresh = run("dump", "--length", "16", f"nbd+unix:///first?socket={path}").stdout
        assert b"oldnew" not in fresh
    assert client.stop() == 0
    wait_until(lambda: len(json.loads(run("list", pid, "--json").stdout)[0]["exports"]) == 1, "the end of the old one")


def test_files_of_a_mount_are_exports_too(mount_data_plane: Mounter, tmp_path: Path) -> None:
    """What the mount and NBD clients write to a removed file stays one disk for both."""
    path, folder = tmp_path / "socket", tmp_path / "disks"
    folder.mkdir()
    uri = f"nbd+unix:///image?socket={path}"
    mounted = mount_data_plane("first=memory:1M", "--listen", f"nbd+unix:///?socket={path}", name="disks")
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    run("add", folder, f"image={image}")
    client = Mounter(tmp_path, [], ("-o", "nopassthrough"))
    try:
        remote = client(uri, name="remote").file
        with (folder / "image").open("r+b", buffering=0) as disk, remote.open("r+b", buffering=0) as other:
            run("remove", folder, "image")
            run("add", folder, "image=memory:1M")  # the name stands for another file now
            os.pwrite(disk.fileno(), b"from the mount", 0)
            assert os.read(other.fileno(), 14) == b"from the mount"
            os.pwrite(other.fileno(), b"from the client", 4096)
            os.fsync(other.fileno())
            assert os.pread(disk.fileno(), 15, 4096) == b"from the client"
            with mmap.mmap(disk.fileno(), 1 << 20) as pages:
                pages[1 << 19 : (1 << 19) + 6] = b"mapped"  # dirty in the kernel, and the file has no path any more
                assert os.pread(other.fileno(), 6, 1 << 19) == b"mapped"
        assert (folder / "image").read_bytes() == bytes(1 << 20)
    finally:
        client.end_all()
    assert mounted.stop() == 0
    assert image.read_bytes()[:14] == b"from the mount"
