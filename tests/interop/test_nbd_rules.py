"""Rules of the protocol that whoever tests a server will probe, each by its name."""

from __future__ import annotations

import json
import os
import socket
import struct
from pathlib import Path

import pytest

from nbdfs.nbd.proto import constants as nbd
from tests.interop.servers import (
    Server,
    Serving,
    ask,
    enter,
    greet,
    nbdsh,
    raw,
    receive,
    reply_of,
    request,
    run,
    serve,
    string,
)

__all__ = ["serve"]

MIB = 1 << 20


@pytest.fixture
def disk(serve: Server) -> Serving:
    return serve("memory:1M")


def chunk(sock: socket.socket) -> tuple[int, int, bytes]:
    """The flags, type and payload of one structured chunk."""
    magic, flags, kind, cookie, length = struct.unpack(">IHHQI", receive(sock, 20))
    assert (magic, cookie) == (nbd.STRUCTURED_REPLY_MAGIC, 7)
    return flags, kind, receive(sock, length)


def logged(serve: Server, folder: Path) -> tuple[str, Path]:
    """The URI of a file's export, and the log of the requests that reach the file."""
    (folder / "disk").write_bytes(bytes(MIB))
    return serve(f"log,file={folder}/requests::{folder}/disk").uri, folder / "requests"


def test_an_unknown_option_is_unsupported_and_the_stream_stays_in_step(disk: Serving) -> None:
    with raw(disk) as sock:
        greet(sock)
        for number, data in ((12, b""), (99, b"x" * 1000), (0x7FFFFFFF, b"y" * 70_000)):
            assert ask(sock, number, data)[-1][0] == nbd.REP_ERR_UNSUP
        assert [kind for kind, _ in ask(sock, nbd.OPT_LIST)] == [nbd.REP_SERVER, nbd.REP_ACK]


def test_the_baseline_is_there(disk: Serving) -> None:
    """INFO, GO, ABORT, LIST; READ, WRITE, DISC; and nothing is sent after a DISC."""
    query = string("") + struct.pack(">H", 0)
    with raw(disk) as sock:
        greet(sock)
        assert ask(sock, nbd.OPT_LIST)[-1][0] == nbd.REP_ACK
        assert ask(sock, nbd.OPT_INFO, query)[-1][0] == nbd.REP_ACK
        assert ask(sock, nbd.OPT_GO, query)[-1][0] == nbd.REP_ACK
        sock.sendall(request(nbd.CMD_WRITE, 5, 3) + b"abc" + request(nbd.CMD_READ, 4, 5) + request(nbd.CMD_DISC))
        assert reply_of(sock) == 0
        assert reply_of(sock) == 0
        assert receive(sock, 5) == b"\0abc\0"
        assert sock.recv(1) == b""
    with raw(disk) as sock:
        greet(sock)
        assert ask(sock, nbd.OPT_ABORT) == [(nbd.REP_ACK, b"")]
        assert sock.recv(1) == b""


def test_what_is_out_of_range_is_invalid_to_read_and_no_space_to_write(disk: Serving) -> None:
    with raw(disk) as sock:
        enter(sock)
        for offset in (MIB - 1, MIB, 1 << 62, (1 << 64) - 2):
            sock.sendall(request(nbd.CMD_READ, offset, 2))
            assert reply_of(sock) == nbd.EINVAL
            sock.sendall(request(nbd.CMD_WRITE, offset, 2) + b"??")
            assert reply_of(sock) == nbd.ENOSPC


def test_fua_is_taken_with_every_command(disk: Serving) -> None:
    with raw(disk) as sock:
        enter(sock, structured=True)
        for number, length in ((nbd.CMD_WRITE, 4), (nbd.CMD_FLUSH, 0), (nbd.CMD_TRIM, 512), (nbd.CMD_CACHE, 512),
                               (nbd.CMD_WRITE_ZEROES, 512)):  # fmt: skip
            payload = b"data" if number == nbd.CMD_WRITE else b""
            sock.sendall(request(number, 0, length, flags=nbd.CMD_FLAG_FUA) + payload)
            assert reply_of(sock) == 0, number
        sock.sendall(request(nbd.CMD_READ, 0, 4, flags=nbd.CMD_FLAG_FUA))
        assert chunk(sock)[1] in (nbd.REPLY_TYPE_OFFSET_DATA, nbd.REPLY_TYPE_OFFSET_HOLE)


def test_fua_is_on_the_disk_when_it_is_answered(serve: Server, tmp_path: Path) -> None:
    """As the source tells: a write with FUA reaches it with FUA, one without does not."""
    uri, log = logged(serve, tmp_path)
    nbdsh(uri, "h.pwrite(b'x' * 512, 0)\nh.pwrite(b'y' * 512, 512, nbd.CMD_FLAG_FUA)\nh.shutdown()")
    writes = [line for line in log.read_text().splitlines() if " Write " in line]
    assert ["fua=1" in line for line in writes] == [False, True], writes


def test_a_read_is_never_answered_simply_once_replies_are_structured(disk: Serving) -> None:
    with raw(disk) as sock:
        enter(sock, structured=True)
        sock.sendall(request(nbd.CMD_READ, 0, 16))
        flags, kind, payload = chunk(sock)
        assert flags & nbd.REPLY_FLAG_DONE
        assert kind in (nbd.REPLY_TYPE_OFFSET_DATA, nbd.REPLY_TYPE_OFFSET_HOLE) and len(payload) >= 8
        sock.sendall(request(nbd.CMD_READ, MIB, 16))
        assert chunk(sock)[1] & nbd.REPLY_TYPE_ERROR_BIT


def test_block_status_is_never_empty_and_ends_within_the_range_if_one_is_asked_for(serve: Server) -> None:
    uri = serve("data,size=4M:1 @1M 1*65536").uri
    nbdsh(uri, """
for flags in 0, nbd.CMD_FLAG_REQ_ONE:
    for offset in 0, 1, 40000, (1 << 20) + 5, (4 << 20) - 1:
        for length in 1, 512, 70000, 3 << 20:
            length = min(length, (4 << 20) - offset)
            found = []
            h.block_status(length, offset, lambda name, at, pairs, error: found.extend(pairs), flags)
            lengths = found[::2]
            assert lengths and all(lengths), (offset, length)
            assert sum(lengths[:-1]) < length, 'only the last may go past the end'
            if flags:
                assert len(lengths) == 1 and lengths[0] <= length
""")  # fmt: skip


def test_df_with_too_much_is_an_overflow(serve: Server) -> None:
    serving = serve("memory:64M")
    with raw(serving) as sock:
        enter(sock, structured=True)
        sock.sendall(request(nbd.CMD_READ, 0, (32 << 20) + 1, flags=nbd.CMD_FLAG_DF))
        _, kind, payload = chunk(sock)
        assert kind == nbd.REPLY_TYPE_ERROR
        assert struct.unpack_from(">I", payload)[0] == nbd.EOVERFLOW
        sock.sendall(request(nbd.CMD_READ, 0, 1 << 20, flags=nbd.CMD_FLAG_DF))
        flags, kind, payload = chunk(sock)
        assert (flags, kind) == (nbd.REPLY_FLAG_DONE, nbd.REPLY_TYPE_OFFSET_DATA) and len(payload) == 8 + (1 << 20)


def test_a_string_has_4096_bytes_at_most(disk: Serving) -> None:
    with raw(disk) as sock:
        greet(sock)
        longest, longer = (string("x" * size) + struct.pack(">H", 0) for size in (4096, 4097))
        assert ask(sock, nbd.OPT_INFO, longest)[-1][0] == nbd.REP_ERR_UNKNOWN
        assert ask(sock, nbd.OPT_INFO, longer)[-1][0] in (nbd.REP_ERR_INVALID, nbd.REP_ERR_TOO_BIG)
        assert all(len(text) <= 4096 for _, text in ask(sock, nbd.OPT_INFO, longest))


def test_a_payload_of_32_mib_is_taken(serve: Server) -> None:
    uri = serve("memory:40M").uri
    nbdsh(uri, """
assert h.get_block_size(nbd.SIZE_MAXIMUM) == 32 << 20
data = bytes(range(256)) * (128 << 10)
h.pwrite(data, 3)
assert h.pread(len(data), 3) == data
""")  # fmt: skip


def test_a_flush_on_one_connection_covers_all_others(serve: Server, tmp_path: Path) -> None:
    """The flags say so, and a flush on one reaches the source after the others' writes."""
    uri, log = logged(serve, tmp_path)
    nbdsh(uri, f"""
assert h.can_multi_conn()
other = nbd.NBD()
other.connect_uri({uri!r})
other.pwrite(b'x' * 512, 0)
h.flush()
assert h.pread(512, 0) == b'x' * 512
h.shutdown()
other.shutdown()
""")  # fmt: skip
    lines = log.read_text().splitlines()
    order = [word for line in lines for word in (" ...Write ", " Flush ") if word in line]
    assert order[:2] == [" ...Write ", " Flush "], lines


def test_replies_come_in_the_order_they_are_ready(serve: Server) -> None:
    """A read that takes long is overtaken by a write that was sent after it, on the same connection."""
    with raw(serve("delay,read=1::memory:1M")) as sock:
        enter(sock)
        sock.sendall(request(nbd.CMD_READ, 0, 4, cookie=1) + request(nbd.CMD_WRITE, 512, 2, cookie=2) + b"hi")
        cookies = []
        for _ in range(2):
            _, error, cookie = struct.unpack(">IIQ", receive(sock, 16))
            assert error == 0
            cookies.append(cookie)
            if cookie == 1:
                receive(sock, 4)
        assert cookies == [2, 1]


def test_a_trim_is_a_hint_and_whoever_needs_zeroes_asks_for_them(serve: Server) -> None:
    """After a TRIM the range has its old bytes or zeroes and all else is untouched; WRITE_ZEROES does zero."""
    nbdsh(serve("memory:1M").uri, """
h.pwrite(b"x" * (1 << 20), 0)
h.trim(100_000, 1000)
after = h.pread(1 << 20, 0)
assert after[:1000] == b"x" * 1000 and after[101_000:] == b"x" * ((1 << 20) - 101_000)
assert set(after[1000:101_000]) <= {0, ord("x")}
h.zero(100_000, 1000)
assert h.pread(100_000, 1000) == bytes(100_000)
""")  # fmt: skip


def test_qemu_makes_do_with_a_size_that_is_no_multiple_of_512(serve: Server, tmp_path: Path) -> None:
    image, back = tmp_path / "image", tmp_path / "back"
    content = os.urandom(MIB + 700)
    image.write_bytes(content)
    uri = serve(str(image)).uri
    told = json.loads(run("qemu-img", "info", "--output=json", "-f", "raw", uri))
    assert told["virtual-size"] in (MIB + 512, MIB + 1024)
    run("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, str(back))
    assert back.read_bytes()[: MIB + 512] == content[: MIB + 512]
    run("nbdcopy", uri, str(back))
    assert back.read_bytes() == content
