"""The NBD server as the clients of others see it: libnbd's tools, qemu's, fio."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from nbdfs.nbd.proto import constants as nbd
from tests.interop.servers import (
    SYSTEM_PYTHON,
    Server,
    enter,
    nbdsh,
    receive,
    reply_of,
    request,
    run,
    serve,
    wait_for,
)
from tests.tools import command, complaint, nbdfs

__all__ = ["serve"]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_nbdinfo(serve: Server) -> None:
    uri = serve("memory:1G").uri
    found = json.loads(run("nbdinfo", "--json", uri))
    assert found["protocol"] == "newstyle-fixed"
    assert found["structured"] is True
    (export,) = found["exports"]
    assert export["export-size"] == 1 << 30
    assert export["contexts"] == ["base:allocation"]
    for ability in ("can_df", "can_fast_zero", "can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"):
        assert export[ability], ability
    assert not export["is_read_only"]
    assert run("nbdinfo", "--size", uri).strip() == str(1 << 30)
    assert run("nbdinfo", "--map", "--totals", uri).split()[:3] == [str(1 << 30), "100.0%", "3"]
    assert "newstyle-fixed" in run("nbdinfo", uri)


def test_list_of_exports(serve: Server) -> None:
    serving = serve("a=memory:1M", "b/c=null:2M", expect=2)
    found = json.loads(run("nbdinfo", "--list", "--json", serving.uri))
    assert {export["export-name"]: export["export-size"] for export in found["exports"]} == {
        "a": 1 << 20,
        "b/c": 2 << 20,
    }
    assert [run("nbdinfo", "--size", uri).strip() for uri in serving.uris] == [str(1 << 20), str(2 << 20)]
    wrong = serving.uri.replace("/a?", "/nonsense?")
    assert run("nbdinfo", "--size", wrong, check=False) == ""


def test_nbdcopy_both_ways(serve: Server, tmp_path: Path) -> None:
    image, back = tmp_path / "image", tmp_path / "back"
    content = os.urandom(3 << 20) + bytes(5 << 20) + os.urandom((1 << 20) + 512)
    image.write_bytes(content)
    uri = serve(f"memory:{len(content)}").uri
    run("nbdcopy", str(image), uri)
    run("nbdcopy", uri, str(back))
    assert digest(back) == digest(image)
    run("nbdcopy", "--synchronous", "--no-extents", uri, str(back))
    assert digest(back) == digest(image)


def test_every_command_and_flag(serve: Server) -> None:
    uri = serve("memory:16M").uri
    nbdsh(uri, """
h.pwrite(b"abc" * 100, 7)
assert h.pread(300, 7) == b"abc" * 100
h.pwrite(b"x" * 70000, 12345, nbd.CMD_FLAG_FUA)
assert h.pread(70000, 12345) == b"x" * 70000
h.zero(1000, 12345, nbd.CMD_FLAG_FUA)
h.zero(1000, 13345, nbd.CMD_FLAG_NO_HOLE)
h.zero(1000, 14345, nbd.CMD_FLAG_FAST_ZERO)
assert h.pread(3001, 12345) == bytes(3000) + b"x"
h.trim(65536, 0, nbd.CMD_FLAG_FUA)
h.flush()
found = []
h.pwrite(b"y" * 65536, 1 << 20)
h.block_status(16 << 20, 0, lambda name, at, extents, error: found.append((name, at, list(extents))))
(name, at, extents), = found
assert name == "base:allocation" and at == 0
pairs = list(zip(extents[::2], extents[1::2]))
assert sum(length for length, _ in pairs) == 16 << 20
assert (65536, 0) in pairs
found.clear()
h.block_status(15 << 20, 1 << 20, lambda *found_: found.append(list(found_[2])), nbd.CMD_FLAG_REQ_ONE)
assert found == [[65536, 0]]
parts = []
h.pread_structured(2 << 20, 0, lambda buf, at, status, error: parts.append(len(buf)), nbd.CMD_FLAG_DF)
assert parts == [2 << 20]
parts = []
h.pread_structured(2 << 20, 0, lambda buf, at, status, error: parts.append((at, len(buf), status)))
assert any(status == nbd.READ_HOLE for _, _, status in parts), parts
assert any(status == nbd.READ_DATA for _, _, status in parts), parts
""")  # fmt: skip


def test_errors_come_with_the_right_number_and_text(serve: Server) -> None:
    uri = serve("memory:1M").uri
    nbdsh(uri, """
h.set_strict_mode(0)
def fails(number, call, *arguments):
    try:
        call(*arguments)
    except nbd.Error as error:
        assert error.errnum == number, (error.errnum, number)
    else:
        raise AssertionError("it did not fail")
fails(errno.EINVAL, h.pread, 512, 1 << 20)
fails(errno.EINVAL, h.pread, 512, 1 << 62)
fails(errno.ENOSPC, h.pwrite, b"x" * 512, 1 << 20)
fails(errno.ENOSPC, h.zero, 512, 1 << 20)
fails(errno.EINVAL, h.trim, 512, 1 << 20)
fails(errno.EINVAL, h.pread, 512, 0, 1 << 9)
fails(errno.EINVAL, h.cache, 0, 0)
h.pread(512, 0)
""")  # fmt: skip


def test_readonly(serve: Server) -> None:
    uri = serve("-r", "memory:1M").uri
    nbdsh(uri, """
assert h.is_read_only() and h.can_multi_conn()
h.set_strict_mode(0)
for call in (lambda: h.pwrite(b"x" * 512, 0), lambda: h.trim(512, 0), lambda: h.zero(512, 0)):
    try:
        call()
    except nbd.Error as error:
        assert error.errnum == errno.EPERM
    else:
        raise AssertionError("it did not fail")
""")  # fmt: skip


def test_requests_overtake_a_slow_one(serve: Server) -> None:
    uri = serve("delay,read=2::memory:1M").uri
    nbdsh(uri, """
import time
began = time.monotonic()
buffers = [nbd.Buffer(512) for _ in range(20)]
cookies = [h.aio_pread(buffer, 512 * at) for at, buffer in enumerate(buffers)]
h.pwrite(b"x" * 512, 0)
assert not h.aio_command_completed(cookies[0])
while not all(h.aio_command_completed(cookie) for cookie in cookies):
    h.poll(-1)
    cookies = [cookie for cookie in cookies if cookie in set(cookies)]
    if time.monotonic() - began > 1.9:
        break
for _ in range(100):
    if h.aio_in_flight() == 0:
        break
    h.poll(1000)
assert h.aio_in_flight() == 0
assert time.monotonic() - began < 20
""")  # fmt: skip


def test_flush_covers_all_connections(serve: Server, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    uri = serve(str(disk)).uri
    nbdsh(uri, f"""
others = [nbd.NBD() for _ in range(4)]
for at, other in enumerate(others):
    other.connect_uri({uri!r})
    other.pwrite(bytes([at + 1]) * 4096, at * 4096)
h.flush()
assert [h.pread(1, at * 4096)[0] for at in range(4)] == [1, 2, 3, 4]
""")  # fmt: skip
    assert disk.read_bytes()[:16384:4096] == bytes([1, 2, 3, 4])


def test_export_name_instead_of_go(serve: Server) -> None:
    """Report D9, an old client: NBD_OPT_EXPORT_NAME, with and without the 124 zeroes."""
    uri = serve("memory:1M").uri
    for flags in ("nbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE", "nbd.HANDSHAKE_FLAG_MASK", "0"):
        run(SYSTEM_PYTHON, "-c", f"""
import nbd
h = nbd.NBD()
h.set_handshake_flags({flags})
h.set_opt_mode(False)
h.set_request_structured_replies(False)
h.connect_uri({uri!r})
assert h.get_size() == 1 << 20
h.pwrite(b"old", 5)
assert h.pread(3, 5) == b"old"
h.shutdown()
""")  # fmt: skip


def test_qemu(serve: Server, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(os.urandom(2 << 20) + bytes(6 << 20))
    uri = serve("memory:8M").uri
    run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", str(image), uri)
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", str(image), uri)
    mapped = json.loads(run("qemu-img", "map", "-f", "raw", "--output=json", uri))
    assert mapped[0]["data"] and mapped[0]["length"] == 2 << 20
    assert mapped[1]["zero"] and not mapped[1]["data"]
    run("qemu-io", "-f", "raw", uri, "-c", "write -P 7 1M 64k", "-c", "read -P 7 1M 64k", "-c", "write -z 1M 64k",
        "-c", "read -P 0 1M 64k", "-c", "discard 0 64k", "-c", "flush")  # fmt: skip
    run("qemu-img", "bench", "-f", "raw", "-c", "200", "-d", "16", "-w", uri)


def test_fio_verifies(serve: Server) -> None:
    uri = serve("memory:32M").uri
    run("fio", "--name=x", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite", "--bsrange=512-128k", "--size=32M",
        "--iodepth=32", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--random_generator=lfsr",
        "--norandommap=0")  # fmt: skip


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_tcp(serve: Server, host: str) -> None:
    uri = serve("memory:1M", where=("-i", host, "-p", "0")).uri
    assert uri.startswith("nbd://[::1]:" if host == "::1" else "nbd://localhost:")
    assert run("nbdinfo", "--size", uri).strip() == str(1 << 20)
    port = int(uri.rpartition(":")[2].strip("/"))
    with socket.create_connection((host, port), 5) as sock:
        assert sock.recv(8) == b"NBDMAGIC"


def test_abstract_socket(serve: Server) -> None:
    name = f"nbdfs-test-{os.getpid()}"
    serving = serve("memory:1M", where=("--listen", f"nbd+unix:///?socket=%00{name}"))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(f"\0{name}")
        assert sock.recv(8) == b"NBDMAGIC"
    wait_for(lambda: f"process {os.getpid()}" in serving.logged(), "no line in the log")


def test_second_start_on_the_same_path(serve: Server, tmp_path: Path) -> None:
    """Report D10."""
    path = tmp_path / "again.sock"
    for _ in range(2):
        serving = serve("memory:1M", where=("-U", str(path)))
        assert run("nbdinfo", "--size", serving.uri).strip() == str(1 << 20)
        assert serving.stop() == 0
        assert not path.exists()


def test_stale_socket_is_replaced_and_a_live_one_is_not(serve: Server, tmp_path: Path) -> None:
    path = tmp_path / "stale.sock"
    serving = serve("memory:1M", where=("-U", str(path)))
    assert "another program listens there" in complaint("serve", "memory:1M", "-U", str(path))
    serving.stop(signal.SIGKILL)
    assert path.exists()
    assert run("nbdinfo", "--size", serve("memory:2M", where=("-U", str(path))).uri).strip() == str(2 << 20)


def test_place_that_cannot_be_had(serve: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    assert "no socket" in complaint("serve", "memory:1M", "-U", str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "precious"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        line = complaint("serve", "memory:1M", "-i", "127.0.0.1", "-p", str(taken.getsockname()[1]))
    assert "another program listens there" in line


def test_run(tmp_path: Path) -> None:
    script = f'nbdinfo --size "$uri" > {tmp_path}/size; test -S "$unixsocket" && test -z "$port$exportname" && exit 7'
    done = subprocess.run(command("serve", "memory:1M", "--run", script), timeout=60)
    assert done.returncode == 7
    assert (tmp_path / "size").read_text().strip() == str(1 << 20)
    nbdfs("serve", "memory:1M", "--listen", "nbd://localhost:0/disk", "--run",
          'test "$exportname" = disk && test "$port" -gt 0 && nbdinfo --size "$uri"')  # fmt: skip
    nbdfs("serve", "memory:1M", "--run", "")


def test_run_finds_each_kind_of_address(tmp_path: Path) -> None:
    name = f"nbdfs-test-{os.getpid()}"
    nbdfs("serve", "memory:1M", "--listen", f"nbd+unix:///?socket=%00{name}", "-p", "0", "--run",
          f'test "$unixsocket" = @{name} && test "$port" -gt 0 && nbdinfo --size "$uri"')  # fmt: skip


def test_a_signal_after_the_command_is_an_orderly_end_too(tmp_path: Path) -> None:
    path, log = tmp_path / "s", tmp_path / "requests"
    spec = f"log,file={log}::delay,read=2::memory:1M"
    words = command("serve", spec, "-U", path, "--run", "echo $$; read line; exit 5")
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        shell = int(process.stdout.readline())
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(30)
            sock.connect(str(path))
            enter(sock)
            sock.sendall(request(nbd.CMD_READ, 0, 512))
            wait_for(lambda: " Read " in log.read_text(), "the request is not there")
            process.stdin.close()
            wait_for(lambda: not Path(f"/proc/{shell}").exists(), "the command does not end")
            process.terminate()
            assert reply_of(sock) == 0
            receive(sock, 512)
    assert process.returncode == 5
    assert not path.exists()


def test_a_uri_names_an_export_that_is_there() -> None:
    here = ("--listen", "nbd://localhost:0/here")
    nbdfs("serve", "other=memory:1M", "here=memory:1M", *here, "--run", 'test "$exportname" = here')
    there = ("--listen", "nbd://localhost:0/there")
    assert "there is no export 'there', but 'here'" in complaint("serve", "memory:1M", *here, *there, status=2)
    line = complaint("serve", "a=memory:1M", "b=memory:1M", *there, status=2)
    assert "there is no export 'there', but 'a', 'b'" in line


def test_stdio() -> None:
    script = f"""
import nbd
h = nbd.NBD()
h.connect_command({command("serve", "memory:1M", "--stdio")!r})
h.pwrite(b"z" * 300000, 99)
assert h.pread(300000, 99) == b"z" * 300000
h.shutdown()
"""
    run(SYSTEM_PYTHON, "-c", script)


def test_stop_answers_what_is_in_flight_on_standard_input(tmp_path: Path) -> None:
    log = tmp_path / "requests"
    words = command("serve", f"log,file={log}::delay,read=1::memory:1M", "--stdio")
    ours, theirs = socket.socketpair()
    with ours, theirs, subprocess.Popen(words, stdin=theirs, stdout=theirs) as process:
        ours.settimeout(30)
        enter(ours)
        ours.sendall(request(nbd.CMD_READ, 0, 512))
        wait_for(lambda: " Read " in log.read_text(), "the request is not there")
        process.terminate()
        assert reply_of(ours) == 0
        receive(ours, 512)
    assert process.returncode == 0


def test_standard_streams_that_are_closed() -> None:
    script = 'exec "$@" <&- >&-'
    done = subprocess.run(["/bin/sh", "-c", script, "sh", *command("serve", "--stdio", "memory:1M")],
                          capture_output=True, text=True, timeout=60)  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "nbdfs: cannot serve on standard input and output: Bad file descriptor\n"


@pytest.mark.parametrize(
    ("words", "misuse"), [(["serve", "-s", "memory:1M"], 2), (["compat", "nbdkit", "-s", "memory", "1M"], 1)]
)
def test_a_connection_that_systemd_accepted(words: list[str], misuse: int) -> None:
    """It comes twice: as standard input and output, and as an activated socket."""
    activated = ["/bin/sh", "-c", 'LISTEN_FDS=1 LISTEN_PID=$$ exec "$@" 3<&0', "sh", *command(*words)]
    ours, theirs = socket.socketpair()
    with ours, theirs, subprocess.Popen(activated, stdin=theirs, stdout=theirs) as process:
        ours.settimeout(30)
        enter(ours)
        ours.sendall(request(nbd.CMD_DISC))
    assert process.returncode == 0
    with socket.create_server(("127.0.0.1", 0)) as listener:
        done = subprocess.run(activated, stdin=listener, capture_output=True, text=True, timeout=60)
    assert done.returncode == misuse
    assert done.stdout == ""
    assert "let systemd accept, by Accept=yes" in done.stderr


def test_socket_activation() -> None:
    script = f"""
import nbd
h = nbd.NBD()
h.connect_systemd_socket_activation({command("serve", "memory:1M")!r})
assert h.get_size() == 1 << 20
"""
    run(SYSTEM_PYTHON, "-c", script)


@pytest.mark.parametrize("words", [["serve", "memory:1M"], ["compat", "nbdkit", "memory", "1M"]])
def test_socket_activation_of_nbdkit_and_with_what_is_no_socket(words: list[str]) -> None:
    script = f"import nbd\nh = nbd.NBD()\nh.connect_systemd_socket_activation({command(*words)!r})\nh.pread(512, 0)"
    run(SYSTEM_PYTHON, "-c", script)
    activated = ["/bin/sh", "-c", 'LISTEN_FDS=1 LISTEN_PID=$$ exec "$@" 3</dev/null', "sh", *command(*words)]
    done = subprocess.run(activated, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == "nbdfs: descriptor 3 is no listening socket: Socket operation on non-socket\n"


def test_ready_is_notified(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")}
        words = command("serve", "memory:1M", "-U", str(tmp_path / "s"))
        with subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL) as process:
            try:
                assert b"READY=1" in manager.recv(1000).splitlines()
            finally:
                process.terminate()
            while b"STOPPING=1" not in manager.recv(1000).splitlines():
                pass  # status lines
        assert process.returncode == 0


def test_background_and_pid_file(tmp_path: Path) -> None:
    pid, path = tmp_path / "pid", tmp_path / "s"
    nbdfs("serve", "memory:1M", "-U", path, "-b", "-P", pid, "--log-file", tmp_path / "log")
    assert run("nbdinfo", "--size", f"nbd+unix:///?socket={path}").strip() == str(1 << 20)
    os.kill(int(pid.read_text()), signal.SIGTERM)
    wait_for(lambda: not pid.exists(), "the server does not end")


def test_a_listening_socket_as_standard_input_serves_in_the_background_too(tmp_path: Path) -> None:
    pid, path = tmp_path / "pid", tmp_path / "s"
    words = command("serve", "memory:1M", "--fd", "0", "-b", "-P", pid, "--log-file", tmp_path / "log")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        subprocess.run(words, stdin=listener, check=True, timeout=60)
    assert run("nbdinfo", "--size", f"nbd+unix:///?socket={path}").strip() == str(1 << 20)
    os.kill(int(pid.read_text()), signal.SIGTERM)
    wait_for(lambda: not pid.exists(), "the server does not end")


def test_map_of_a_large_sparse_disk(serve: Server) -> None:
    uri = serve("sparse-random,seed=7,percent=10:1T").uri
    lines = run("nbdinfo", "--map", "--totals", uri).splitlines()
    assert sum(int(line.split()[0]) for line in lines) == 1 << 40


@pytest.mark.parametrize("words", [["--tls", "on"], ["--listen", "nbds://localhost:0"]])
def test_tls_without_certificates_is_one_line(words: list[str]) -> None:
    assert "--tls-certificates" in complaint("serve", "memory:1M", *words)
