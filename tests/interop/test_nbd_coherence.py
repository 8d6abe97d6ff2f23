"""A mounted file and its NBD server are one disk: each sees the other's completed writes, cached and mapped."""

from __future__ import annotations

import mmap
import os
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nbdfs.nbd.proto import constants as nbd
from tests.interop.servers import enter, receive, request, run
from tests.mounts import Mounter

SIZE = 16 << 20
ROUNDS = 200

pytestmark = pytest.mark.root


@pytest.fixture
def both(mount: Mounter, tmp_path: Path) -> tuple[Path, Path]:
    """A mounted RAM disk, and the socket it is served on."""
    path = tmp_path / "nbd.sock"
    file = mount(f"memory:{SIZE}", "--listen", f"nbd+unix:///?socket={path}").file
    return file, path


class Client:
    """One connection, one request at a time."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30)
        self._socket.connect(str(path))
        enter(self._socket)

    def read(self, offset: int, length: int) -> bytes:
        self._socket.sendall(request(nbd.CMD_READ, offset, length))
        self._reply()
        return receive(self._socket, length)

    def write(self, offset: int, data: bytes) -> None:
        self._socket.sendall(request(nbd.CMD_WRITE, offset, len(data)) + data)
        self._reply()

    def zero(self, offset: int, length: int) -> None:
        self._socket.sendall(request(nbd.CMD_WRITE_ZEROES, offset, length))
        self._reply()

    def _reply(self) -> None:
        assert struct.unpack(">IIQ", receive(self._socket, 16)) == (nbd.SIMPLE_REPLY_MAGIC, 0, 7)

    def close(self) -> None:
        self._socket.close()


@pytest.mark.parametrize("mount", ["passthrough", "data plane"], indirect=True)
def test_each_sees_the_others_writes(both: tuple[Path, Path]) -> None:
    file, path = both
    client = Client(path)
    fd = os.open(file, os.O_RDWR)
    with mmap.mmap(fd, SIZE) as mapped:
        for at in range(ROUNDS):
            offset, mark = at * 12288 % (SIZE - 8192), bytes([at % 255 + 1])
            mapped[offset : offset + 64] = mark * 64  # a store, not synchronised
            assert client.read(offset, 64) == mark * 64
            client.write(offset + 100, b"nbd" + mark)  # to the page that is mapped, cached and dirty
            assert mapped[offset + 100 : offset + 104] == b"nbd" + mark
            assert os.pread(fd, 4, offset + 100) == b"nbd" + mark
            assert mapped[offset : offset + 64] == mark * 64
            os.pwrite(fd, b"file" + mark, offset + 4096)
            assert client.read(offset + 4096, 5) == b"file" + mark
            client.zero(offset + 4096, 4096)
            assert mapped[offset + 4096 : offset + 4101] == bytes(5)
    os.close(fd)
    client.close()


@pytest.mark.parametrize("mount", ["passthrough", "data plane"], indirect=True)
def test_no_write_is_lost_under_load_from_both(both: tuple[Path, Path]) -> None:
    """Two writers share every page, each with its own half; at the end both halves hold what was written last."""
    file, path = both
    pages = 64

    def by_nbd() -> None:
        client = Client(path)
        for at in range(ROUNDS * 4):
            client.write(at % pages * 4096, struct.pack("<Q", at) * 256)
        client.close()

    fd = os.open(file, os.O_RDWR)
    with ThreadPoolExecutor() as pool:
        other = pool.submit(by_nbd)
        for at in range(ROUNDS * 4):
            os.pwrite(fd, struct.pack("<Q", at) * 256, at % pages * 4096 + 2048)
        other.result(60)
    client = Client(path)
    for page in range(pages):
        last = max(at for at in range(ROUNDS * 4) if at % pages == page)
        expected = struct.pack("<Q", last) * 512
        assert client.read(page * 4096, 4096) == expected
        assert os.pread(fd, 4096, page * 4096) == expected
    client.close()
    os.close(fd)


@pytest.mark.parametrize("mount", ["passthrough", "data plane"], indirect=True)
def test_copy_out_of_a_mount_over_the_network(both: tuple[Path, Path], tmp_path: Path) -> None:
    file, path = both
    content = os.urandom(3 << 20)
    with file.open("r+b") as out:
        out.write(content)
    run("nbdcopy", f"nbd+unix:///?socket={path}", str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == content + bytes(SIZE - len(content))
