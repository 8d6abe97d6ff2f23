"""The connection of a lane: what is waited for can be interrupted, and ends by itself."""

from __future__ import annotations

import fcntl
import os
import resource
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbdfs.copying.direct import connection
from nbdfs.copying.direct.connection import Connection, LostError, Request, connect
from nbdfs.nbd.proto import constants as nbd
from nbdfs.nbd.uri import Uri, parse_uri


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[Uri]:
    """A server that says nothing."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        yield parse_uri(f"nbd+unix:///?socket={tmp_path / 'socket'}")


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Let the test have more descriptors than select(2) knows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard <= 2000:
        pytest.skip("the limit of descriptors is too low")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_handshake_is_interrupted(silent: Uri) -> None:
    opened: list[Connection] = []

    def interrupt_soon(connection: Connection) -> None:
        opened.append(connection)
        threading.Thread(target=connection.interrupt).start()

    with pytest.raises(ConnectionResetError, match="closed the connection"):
        connect(silent, 1000, interrupt_soon)
    opened[0].close()


def test_a_handshake_has_an_end(silent: Uri, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_HANDSHAKE_TIMEOUT", 0.05)
    opened: list[Connection] = []
    with pytest.raises(TimeoutError, match="does not answer"):
        connect(silent, 1000, opened.append)
    assert opened[0].lost
    opened[0].close()


def entered(*, structured: bool = False, lowest: int = 0) -> tuple[Connection, socket.socket]:
    """A connection in the transmission phase, its descriptor `lowest` or more, and the server's end of it."""
    near, far = socket.socketpair()
    if lowest:
        with near:
            near = socket.socket(fileno=fcntl.fcntl(near, fcntl.F_DUPFD_CLOEXEC, lowest))
    found = Connection(near, "nbd://there")
    far.sendall(greeting(structured))
    found.shake_hands("")
    return found, far


def greeting(structured: bool) -> bytes:
    """All that a server says before the transmission phase: fixed newstyle, and at most structured replies."""

    def reply(option: int, kind: int, data: bytes = b"") -> bytes:
        return b"".join([nbd.REPLY_MAGIC.to_bytes(8), *(n.to_bytes(4) for n in (option, kind, len(data))), data])

    info = bytes(2) + (1 << 20).to_bytes(8) + nbd.FLAG_HAS_FLAGS.to_bytes(2)
    return b"".join(
        [
            nbd.INIT_MAGIC.to_bytes(8),
            nbd.OPTION_MAGIC.to_bytes(8),
            (nbd.FLAG_FIXED_NEWSTYLE | nbd.FLAG_NO_ZEROES).to_bytes(2),
            reply(nbd.OPT_STRUCTURED_REPLY, nbd.REP_ACK if structured else nbd.REP_ERR_UNSUP),
            reply(nbd.OPT_SET_META_CONTEXT, nbd.REP_ERR_UNSUP) if structured else b"",
            reply(nbd.OPT_GO, nbd.REP_INFO, info),
            reply(nbd.OPT_GO, nbd.REP_ACK),
        ]
    )


def test_a_server_that_hangs_up_or_talks_nonsense_is_lost() -> None:
    for said, reason in ((b"", "closed the connection"), (b"nonsense" * 2, "broke the protocol")):
        found, far = entered()
        found.begin(Request(nbd.CMD_READ, 0, 512))
        far.sendall(said)
        far.shutdown(socket.SHUT_WR)
        with pytest.raises(LostError, match=reason):
            found.reply(wait=True)
        assert found.lost
        found.close()
        far.close()


def test_a_reply_is_taken_without_what_follows() -> None:
    found, far = entered()
    found.begin(write := Request(nbd.CMD_WRITE, 0, 5), memoryview(b"bytes"))
    found.begin(read := Request(nbd.CMD_READ, 0, 4))
    assert found.reply(wait=False) is None
    for request in (write, read):
        far.sendall(nbd.SIMPLE_REPLY_MAGIC.to_bytes(4) + bytes(4) + request.cookie.to_bytes(8))
    far.sendall(b"data")
    read.buffer = memoryview(bytearray(4))
    assert found.reply(wait=True) is write
    assert found.reply(wait=True) is None
    assert found.replies.reading is read
    assert found.socket.recv(100) == b"data"
    found.close()
    far.close()


def test_a_process_may_have_many_descriptors(many_descriptors: None) -> None:
    found, far = entered(lowest=1500)
    found.begin(Request(nbd.CMD_READ, 0, 4))
    assert found.reply(wait=False) is None
    found.close()
    far.close()


def test_what_describes_a_hole_is_no_data() -> None:
    found, far = entered(structured=True)
    read = Request(nbd.CMD_READ, 0, 8)
    read.buffer = memoryview(bytearray(8))
    found.begin(read)

    def chunk(kind: int, body: bytes, flags: int = 0) -> bytes:
        head = nbd.STRUCTURED_REPLY_MAGIC.to_bytes(4) + flags.to_bytes(2) + kind.to_bytes(2)
        return head + read.cookie.to_bytes(8) + len(body).to_bytes(4) + body

    far.sendall(chunk(nbd.REPLY_TYPE_OFFSET_HOLE, (4).to_bytes(8) + (4).to_bytes(4)))
    far.sendall(chunk(nbd.REPLY_TYPE_OFFSET_DATA, (0).to_bytes(8) + b"data", nbd.REPLY_FLAG_DONE))
    assert found.reply(wait=True) is None
    assert (found.replies.reading, found.replies.reading_at, found.replies.payload_left) == (read, 0, 4)
    found.replies.payload_received(found.receive(found.replies.place()))
    assert found.reply(wait=True) is read
    assert bytes(read.buffer) == b"data" + bytes(4)
    found.close()
    far.close()


def test_many_replies_to_what_is_written_are_received_at_once() -> None:
    found, far = entered()
    found.only_write()
    writes = [Request(nbd.CMD_WRITE, at, 5) for at in range(3)]
    for write in writes:
        found.begin(write, memoryview(b"bytes"))
    assert found.reply(wait=False) is None
    said = b"".join(nbd.SIMPLE_REPLY_MAGIC.to_bytes(4) + bytes(4) + write.cookie.to_bytes(8) for write in writes)
    far.sendall(said[:40])
    assert found.reply(wait=True) is writes[0]
    with pytest.raises(BlockingIOError):
        found.socket.recv(1, socket.MSG_DONTWAIT)
    assert found.reply(wait=False) is writes[1]
    threading.Timer(0.05, far.sendall, [said[40:]]).start()
    assert found.reply(wait=False) is writes[2]  # whose reply has begun to come
    assert found.reply(wait=False) is None
    found.close()
    far.close()


def test_the_payload_of_a_read_comes_into_a_pipe_whole() -> None:
    found, far = entered(structured=True)
    found.only_read(4096)
    found.begin(read := Request(nbd.CMD_READ, 0, 4096))
    read.buffer = memoryview(bytearray(4096))
    header = nbd.STRUCTURED_REPLY_MAGIC.to_bytes(4) + nbd.REPLY_FLAG_DONE.to_bytes(2)
    header += nbd.REPLY_TYPE_OFFSET_DATA.to_bytes(2) + read.cookie.to_bytes(8) + (8 + 4096).to_bytes(4)
    far.sendall(header + bytes(8) + b"a" * 1000)
    assert found.reply(wait=True) is None
    threading.Timer(0.05, far.sendall, [b"b" * 3096]).start()
    reading, writing = os.pipe()
    assert os.splice(found.socket.fileno(), writing, 4096) == 4096
    found.replies.payload_received(4096)
    assert found.reply(wait=True) is read
    os.close(reading)
    os.close(writing)
    found.close()
    far.close()
