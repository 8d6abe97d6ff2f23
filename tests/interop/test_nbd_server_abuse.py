"""Clients that break the rules or stall: the right error, or that client alone is dropped; others go on."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import struct
import time
from pathlib import Path

import pytest

from nbdfs.nbd.proto import constants as nbd
from tests.interop.servers import Server, Serving, enter, greet, hung_up, raw, receive, request, run, serve, wait_for

__all__ = ["serve"]


def still_serves(serving: Serving) -> bool:
    return run("nbdinfo", "--size", serving.uri).strip() == str(1 << 20)


@pytest.fixture
def disk(serve: Server) -> Serving:
    return serve("memory:1M", "--max-clients", "20")


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        struct.pack(">I", 0xFFFFFFFF),
        struct.pack(">I", 3) + bytes(16),
        struct.pack(">IQII", 3, nbd.OPTION_MAGIC, nbd.OPT_LIST, 0xFFFFFFFF),
        struct.pack(">I", 3) + struct.pack(">QII", nbd.OPTION_MAGIC, nbd.OPT_LIST, 0) * 1100,
        struct.pack(">IQII", 3, nbd.OPTION_MAGIC, nbd.OPT_EXPORT_NAME, 5000) + b"x" * 5000,
    ],
)
def test_broken_handshake_drops_that_client(disk: Serving, garbage: bytes) -> None:
    with raw(disk) as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(garbage)
        assert hung_up(sock)
    wait_for(lambda: disk.logged().count("dropped:") == 1, "no line in the log")
    assert still_serves(disk)


def test_half_open_client_is_dropped_in_time(serve: Server) -> None:
    disk = serve("memory:1M", "--handshake-timeout", "2")
    with raw(disk) as sock:
        assert hung_up(sock)
    wait_for(lambda: "no handshake within 2 s" in disk.logged(), "no line in the log")
    assert still_serves(disk)


@pytest.mark.parametrize(
    "garbage",
    [
        bytes(28),
        struct.pack(">IHHQQI", nbd.SIMPLE_REPLY_MAGIC, 0, 0, 1, 0, 512),
        request(nbd.CMD_WRITE, 0, 0xFFFFFFFF),
    ],
)
def test_broken_request_drops_that_client(disk: Serving, garbage: bytes) -> None:
    with raw(disk) as sock:
        enter(sock)
        sock.sendall(garbage)
        assert hung_up(sock)
    wait_for(lambda: disk.logged().count("dropped:") == 1, "no line in the log")
    assert still_serves(disk)


def test_forbidden_requests_are_answered_in_step(disk: Serving) -> None:
    wrong = [
        (request(nbd.CMD_READ, 1 << 63, 512), nbd.EINVAL),
        (request(nbd.CMD_READ, 0, 0), nbd.EINVAL),
        (request(77, 0, 512), nbd.EINVAL),
        (request(nbd.CMD_WRITE, 1 << 20, 3) + b"abc", nbd.ENOSPC),
        (request(nbd.CMD_WRITE, 0, (33 << 20)) + bytes(33 << 20), nbd.EINVAL),
        (request(nbd.CMD_BLOCK_STATUS, 0, 512), nbd.EINVAL),
        (request(nbd.CMD_FLUSH), 0),
    ]
    with raw(disk) as sock:
        enter(sock)
        for message, error in wrong:
            sock.sendall(message)
            assert struct.unpack(">IIQ", receive(sock, 16)) == (nbd.SIMPLE_REPLY_MAGIC, error, 7)


@pytest.mark.parametrize("cut", [1, 20, 27, 28, 29, 28 + 40_000])
def test_hanging_up_anywhere_in_a_write(disk: Serving, cut: int) -> None:
    with raw(disk) as sock:
        enter(sock)
        sock.sendall((request(nbd.CMD_WRITE, 0, 100_000) + b"x" * 100_000)[:cut])
    wait_for(lambda: "dropped: hung up in the middle" in disk.logged(), "no line in the log")
    assert still_serves(disk)


def test_client_that_never_reads_costs_bounded_memory(disk: Serving) -> None:
    with raw(disk) as sock:
        enter(sock)
        before = disk.resident()
        sock.settimeout(1)
        message = request(nbd.CMD_READ, 0, 1 << 20) * 1000
        with contextlib.suppress(TimeoutError):
            for _ in range(1000):
                sock.sendall(message)
        assert still_serves(disk)
        assert disk.resident() - before < 100 << 20


def test_hanging_up_with_replies_on_their_way(serve: Server) -> None:
    serving = serve("delay,read=1ms::memory:64M")
    with raw(serving) as sock:
        enter(sock)
        sock.sendall(request(nbd.CMD_READ, 0, 16 << 20) * 20)
        receive(sock, 16)
    wait_for(lambda: ": lost: Broken pipe" in serving.logged(), "no line in the log")
    assert run("nbdinfo", "--size", serving.uri).strip() == str(64 << 20)


def test_clients_of_a_dead_export_leave_memory_to_others(serve: Server) -> None:
    server = serve("dead=delay,read=1h::memory:1G", "live=delay,read=1ms::memory:64M", expect=2)
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            sock = stack.enter_context(raw(server))
            enter(sock, export="dead")
            sock.sendall(request(nbd.CMD_READ, 0, nbd.MAX_PAYLOAD))
        # Before the requests that got memory are given up, which is after 60 s.
        run("timeout", "30", "nbdcopy", f"--request-size={nbd.MAX_PAYLOAD}", server.uris[1], "null:")


def test_clients_above_the_limit_are_turned_away(disk: Serving) -> None:
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(raw(disk)) for _ in range(20)]
        for sock in socks:
            enter(sock)
        with raw(disk) as one_more:
            assert hung_up(one_more)
        wait_for(lambda: "turned away" in disk.logged(), "no line in the log")
    wait_for(lambda: disk.logged().count("hung up") >= 20, "clients did not leave")
    assert still_serves(disk)


def test_without_descriptors_clients_wait_and_that_is_told_once(disk: Serving) -> None:
    assert still_serves(disk)  # so its start is over
    few = len(os.listdir(f"/proc/{disk.process.pid}/fd")) + 2
    resource.prlimit(disk.process.pid, resource.RLIMIT_NOFILE, (few, few))
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(raw(disk))
        wait_for(lambda: "cannot accept clients: Too many open files" in disk.logged(), "nothing was told")
        with raw(disk) as patient:
            stack.close()
            greet(patient)
    assert still_serves(disk)
    wait_for(lambda: _times(disk, "cannot accept") == _times(disk, "accepted again"), "not told once each")


def _times(serving: Serving, words: str) -> int:
    return serving.logged().count(words)


def test_idle_client_is_dropped_where_that_is_asked_for(serve: Server) -> None:
    serving = serve("memory:1M", "--idle-timeout", "1")
    with raw(serving) as sock:
        enter(sock)
        assert hung_up(sock)
    wait_for(lambda: "idle for too long" in serving.logged(), "no line in the log")


def test_orderly_stop_answers_what_is_in_flight(serve: Server, tmp_path: Path) -> None:
    log = tmp_path / "requests"
    serving = serve(f"log,file={log}::delay,read=1.5::memory:1M")
    with raw(serving) as sock:
        enter(sock)
        sock.sendall(request(nbd.CMD_READ, 0, 512))
        wait_for(lambda: " Read " in log.read_text(), "the request is not there")
        serving.process.terminate()
        assert struct.unpack(">IIQ", receive(sock, 16)) == (nbd.SIMPLE_REPLY_MAGIC, 0, 7)
        receive(sock, 512)
        assert hung_up(sock)
    assert serving.process.wait(20) == 0


@pytest.mark.parametrize("spec", ["memory:1M", "delay,read=1ms::memory:1M"])
def test_two_hundred_idle_clients_cost_little(serve: Server, spec: str) -> None:
    """Also those that have been at work."""
    serving = serve(spec)
    with raw(serving) as sock, contextlib.ExitStack() as stack:
        enter(sock)
        before = _memory(serving)
        for _ in range(200):
            _work(stack.enter_context(raw(serving)))
        wait_for(lambda: _memory(serving) - before < 20 << 20, "idle clients hold memory")
        cpu = _cpu(serving)
        time.sleep(1)
        assert _cpu(serving) - cpu < 20  # whoever polls takes all 100


def test_clients_that_left_hold_no_memory(serve: Server) -> None:
    serving = serve("memory:1M")
    with raw(serving) as sock:
        enter(sock)
        before = _memory(serving)
        with contextlib.ExitStack() as stack:
            for _ in range(50):
                _work(stack.enter_context(raw(serving)))
        wait_for(lambda: _memory(serving) - before < 10 << 20, "memory is not given back")


def _work(sock: socket.socket) -> None:
    """Enter, read and write as much as fills the buffers of a connection."""
    enter(sock)
    reads = request(nbd.CMD_READ, 0, 4096) * 64
    writes = (request(nbd.CMD_WRITE, 0, 60_000) + bytes(60_000)) * 4
    for work, answer in ((reads, 64 * (16 + 4096)), (writes, 4 * 16)):
        sock.sendall(work)
        receive(sock, answer)


def _memory(serving: Serving) -> int:
    """Bytes of memory, those of anonymous shared mappings too."""
    fields = Path(f"/proc/{serving.process.pid}/smaps_rollup").read_text().split()
    return int(fields[fields.index("Pss:") + 1]) << 10


def _cpu(serving: Serving) -> int:
    """Processor time in ticks."""
    with open(f"/proc/{serving.process.pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_abstract_socket_is_for_its_user_only(serve: Server) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to be another user")
    name = f"nbdfs-user-{os.getpid()}"
    serve("memory:1M", where=("--listen", f"nbd+unix:///?socket=%00{name}"))
    code = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect('\\0{name}'); print(len(s.recv(8)))"
    assert run("/usr/bin/python3", "-c", code).strip() == "8"
    assert (
        run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-c", code).strip()
        == "0"
    )
