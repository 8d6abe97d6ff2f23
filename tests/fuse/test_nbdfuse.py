"""Remote exports as files, by nbdfuse's command line and by `nbdfs mount`: where nbdfuse fails, this must not."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tests.certificates import certificates
from tests.fuse.babbler import babbling
from tests.fuse.remote import MIB, captive, file, nbdfuse, overwrite
from tests.interop.peers import fio, listens, serving
from tests.mounts import is_mounted, wait_until
from tests.tools import command

__all__ = ["certificates", "file"]

pytestmark = pytest.mark.root


@pytest.mark.parametrize("argv", [captive("memory", "4M"), ["--command", "nbdkit", "-s", "memory", "4M"]])
@pytest.mark.parametrize("form", ["file", "directory", "name"])
def test_the_forms_of_a_mount_point(argv: list[str], form: str, tmp_path: Path) -> None:
    directory = tmp_path / "dir"
    directory.mkdir()
    target, shown = {
        "file": (tmp_path / "plain", tmp_path / "plain"),
        "directory": (directory, directory / "nbd"),
        "name": (directory / "other", directory / "other"),
    }[form]
    if form == "file":
        target.write_bytes(b"old content")
    with nbdfuse(tmp_path / "x", str(target), *argv):
        assert shown.stat().st_size == 4 * MIB
        overwrite(shown, b"hello")
        assert shown.read_bytes()[:5] == b"hello"
        if form != "file":
            assert stat.S_IMODE(directory.stat().st_mode) & 0o555 == 0o555
            assert os.listdir(directory) == [shown.name]
    if form == "file":
        assert target.read_bytes() == b"old content"


def test_tcp_unix_uri_and_inherited_socket(file: Path, tmp_path: Path) -> None:
    socket_path = tmp_path / "socket"
    server = subprocess.Popen(["nbdkit", "-f", "-U", str(socket_path), "pattern", "1M"])
    try:
        wait_until(lambda: listens(socket_path), "nbdkit")
        expected = hashlib.sha256(b"".join(at.to_bytes(8) for at in range(0, MIB, 8))).hexdigest()
        for words in (
            ["--unix", str(socket_path)],
            [f"nbd+unix:///?socket={socket_path}"],
            ["-r", "--uri", f"nbd+unix:///?socket={socket_path}"],
        ):
            with nbdfuse(file, str(file), *words):
                assert hashlib.sha256(file.read_bytes()).hexdigest() == expected
    finally:
        server.terminate()
        server.wait(10)


def test_options_as_commas_readonly_and_modes(file: Path) -> None:
    with nbdfuse(file, "-o", "noatime,nosuid,kernel_cache", "-r", str(file), *captive("memory", "1M")):
        assert stat.S_IMODE(file.stat().st_mode) == 0o444
        with pytest.raises(OSError) as caught:
            os.open(file, os.O_WRONLY)
        assert caught.value.errno in (errno.EROFS, errno.EACCES)


def test_zeroing_zeroes_all_of_it_and_a_hole_reads_as_zero(file: Path) -> None:
    """L2 and L3, complaints 1 and 2: where the server cannot zero, and where its trim does nothing."""
    for filters in (["--filter=nozero"], ["--filter=nozero", "zeromode=emulate"], ["--filter=nofilter"]):
        with nbdfuse(file, str(file), *captive("memory", "4M", *filters)):
            overwrite(file, b"\xff" * (4 * MIB))
            subprocess.run(["fallocate", "-z", "-o", "4096", "-l", "1M", str(file)], check=True)
            subprocess.run(["fallocate", "-p", "-o", "2M", "-l", "1M", str(file)], check=True)
            expected = bytearray(b"\xff" * (4 * MIB))
            expected[4096 : 4096 + MIB] = expected[2 * MIB : 3 * MIB] = bytes(MIB)
            assert file.read_bytes() == expected


def test_every_connection_is_used(file: Path, tmp_path: Path) -> None:
    """L1 and complaint 3, and L8: a captive server too has several."""
    log = tmp_path / "log"
    argv = captive("memory", "64M", "--filter=log", f"logfile={log}", "--filter=delay", "rdelay=2ms")
    with nbdfuse(file, "-C", "4", str(file), *argv):
        readers = [
            subprocess.Popen(
                [
                    "dd",
                    f"if={file}",
                    "of=/dev/null",
                    "bs=64k",
                    "iflag=direct",
                    "count=40",
                    f"skip={n * 100}",
                    "status=none",
                ]
            )
            for n in range(8)
        ]
        assert [reader.wait(30) for reader in readers] == [0] * 8
    numbers = {line.split("connection=")[1].split()[0] for line in log.read_text().splitlines() if " Read " in line}
    assert numbers == {"1", "2", "3", "4"}


def test_a_restarted_server_heals_the_mount_under_load(file: Path, tmp_path: Path) -> None:
    """L4 and complaint 4: fio writes and verifies while the server is killed and started again."""
    with serving("nbdkit", tmp_path, 8 * MIB) as server, nbdfuse(file, str(file), "--unix", str(server.socket)):
        server.restart_under_load(lambda: fio(file, 8 * MIB, "--rate_iops=,250"), 4)


def test_a_killed_nbdfuse_leaves_a_mount_that_the_next_one_replaces(file: Path) -> None:
    """L5 and complaint 6, and no server outlives it."""
    with nbdfuse(file, str(file), *captive("memory", "1M")) as process:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    with nbdfuse(file, str(file), *captive("memory", "1M")):
        assert file.stat().st_size == MIB
    assert not is_mounted(file)


def test_a_server_that_talks_nonsense_is_left_and_the_mount_stays(file: Path, tmp_path: Path) -> None:
    """L9: only who waits on that connection is told; the next request goes over a new one."""
    with serving("nbdkit", tmp_path, MIB) as server, babbling(tmp_path / "between", server.socket) as babble:
        with nbdfuse(file, str(file), "--unix", str(tmp_path / "between")) as process:
            for _ in range(3):
                babble()
                drop_cache(file)
                wait_until(lambda: reads(file), "the next connection")
            assert process.poll() is None


def drop_cache(path: Path) -> None:
    with path.open("rb") as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def reads(path: Path) -> bool:
    try:
        return path.read_bytes() == bytes(MIB)
    except OSError as error:
        assert error.errno == errno.EIO
        return False


def test_keys_of_tls_in_the_uri(file: Path, tmp_path: Path, certificates: Path) -> None:
    """L10."""
    path = tmp_path / "socket"
    argv = ["nbdkit", "-f", "-U", str(path), "--tls=require", "--tls-verify-peer", f"--tls-certificates={certificates}"]
    with subprocess.Popen([*argv, "memory", "1M"]) as server:
        try:
            wait_until(lambda: listens(path), "nbdkit")
            uri = f"nbds+unix:///?socket={path}&tls-certificates={certificates}&tls-hostname=server.example"
            with nbdfuse(file, str(file), uri):
                overwrite(file, b"secret")
                assert file.read_bytes()[:7] == b"secret\0"
        finally:
            server.terminate()


def test_the_end_of_the_device(file: Path) -> None:
    """L6 and complaint 7: ENOSPC at the end, a short count across it."""
    with nbdfuse(file, str(file), *captive("memory", "1M")):
        descriptor = os.open(file, os.O_RDWR)
        try:
            assert os.pwrite(descriptor, b"x" * 100, MIB - 10) == 10
            with pytest.raises(OSError) as caught:
                os.pwrite(descriptor, b"x", MIB)
            assert caught.value.errno == errno.ENOSPC
            assert os.pread(descriptor, 100, MIB - 10) == b"x" * 10
        finally:
            os.close(descriptor)


def test_holes_are_seen_and_copied_as_holes(file: Path, tmp_path: Path) -> None:
    """Complaint 10."""
    with nbdfuse(file, str(file), *captive("data", "1 @33554432 2", "size=64M")):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            assert os.lseek(descriptor, 0, os.SEEK_HOLE) == 32768
            assert os.lseek(descriptor, 32768, os.SEEK_DATA) == 32 * MIB
        finally:
            os.close(descriptor)
        wait_until(lambda: file.stat().st_blocks * 512 < MIB, "the count of what is allocated")
        subprocess.run(["cp", "--sparse=auto", str(file), str(tmp_path / "copy")], check=True)
        assert (tmp_path / "copy").read_bytes() == file.read_bytes()
    assert (tmp_path / "copy").stat().st_blocks * 512 < MIB


@pytest.mark.parametrize(
    "server", [captive("memory", "64M"), ["[", *command("serve", "memory:64M"), "]"]], ids=["nbdkit", "ours"]
)
def test_a_file_system_in_a_loop_mount(file: Path, tmp_path: Path, server: list[str]) -> None:
    """L7 and complaint 20."""
    inside = tmp_path / "inside"
    inside.mkdir()
    with nbdfuse(file, str(file), *server):
        subprocess.run(["mkfs.ext4", "-q", "-F", str(file)], check=True)
        subprocess.run(["mount", "-o", "loop", str(file), str(inside)], check=True, timeout=30)
        try:
            content = random.Random(4).randbytes(8 * MIB)
            (inside / "data").write_bytes(content)
            os.sync()
            assert (inside / "data").read_bytes() == content
        finally:
            subprocess.run(["umount", str(inside)], check=True, timeout=30)
        assert subprocess.run(["fsck.ext4", "-n", "-f", str(file)], capture_output=True).returncode == 0


def test_cached_data_is_dropped_when_the_user_says_so(file: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with nbdfuse(file, str(file), *captive("memory", "8M", "--filter=log", f"logfile={log}")):
        file.read_bytes()
        wait_until(lambda: log.read_text().count(" Read ") == log.read_text().count("...Read "), "the last answers")
        before = log.read_text().count(" Read ")
        drop_cache(file)
        file.read_bytes()
        assert log.read_text().count(" Read ") > before


def test_a_failing_read_gives_the_error_and_no_zeroes(file: Path, tmp_path: Path) -> None:
    """Reports D4 and D5."""
    trigger = tmp_path / "trigger"
    argv = captive(
        "memory", "1M", "--filter=error", "error-pread=EIO", "error-pread-rate=100%", f"error-file={trigger}"
    )
    with nbdfuse(file, str(file), *argv):
        assert file.read_bytes() == bytes(MIB)
        trigger.touch()
        descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
        try:
            with pytest.raises(OSError) as caught:
                os.pread(descriptor, 4096, 8192)
            assert caught.value.errno == errno.EIO
            trigger.unlink()
            assert len(os.pread(descriptor, 1 << 20, MIB - 512)) == 512
        finally:
            os.close(descriptor)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "MOUNTPOINT"),
        (["{}"], "name one server"),
        (["{}", "nbd://h", "--unix", "s"], "name one server"),
        (["{}", "http://h"], "http"),
        (["{}/no/such", "nbd://h"], "is no directory"),
        (["{}", "--unix", "/nonexistent"], "cannot connect to /nonexistent"),
        (["{}", "[", "nbdkit", "bogus", "]"], "nbdkit ended with exit status 1"),
        (["-C", "0", "{}", "nbd://127.0.0.1:1"], "connections"),
        (["-o", "bogus", "{}", "nbd://127.0.0.1:1"], "no mount option 'bogus'"),
    ],
)
def test_wrong_command_lines(words: list[str], complaint: str, file: Path) -> None:
    argv = [word.replace("{}", str(file)) for word in words]
    done = subprocess.run(
        [sys.executable, "-m", "nbdfs", "compat", "nbdfuse", *argv], capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert complaint in done.stderr
    assert not is_mounted(file)
