"""Files of a mounted directory that come, go and change while they are used."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import shlex
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nbdfs.control.client import Client
from tests.mounts import SECONDS, Mounted, Mounter, nbdfs, wait_until

BLOCK = 4096


def socket_of(pid: int) -> Path:
    """The control socket of a process, whoever's it is."""
    folders = [Path("/run/nbdfs"), *Path("/tmp").glob("nbdfs-*"), *Path("/run/user").glob("*/nbdfs")]
    if os.environ.get("XDG_RUNTIME_DIR"):
        folders.append(Path(os.environ["XDG_RUNTIME_DIR"], "nbdfs"))
    return next(path for folder in folders if (path := folder / f"{pid}.sock").exists())


class Directory:
    """A mounted directory, and the commands that change it, as the user who mounts."""

    def __init__(self, mount: Mounter, *words: str, first: str = "first=memory:1M") -> None:
        self.mount = mount
        self.path = mount.folder / "disks"
        mount.do(self.path.mkdir)
        self.mounted: Mounted = mount(first, *words, name="disks")

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def command(self, name: str, *words: str) -> str:
        """What a command prints; it must succeed."""
        done = self.mount.run(*nbdfs(name, str(self.path), *words), check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def complaint(self, name: str, *words: str) -> str:
        """The one line with which a command fails."""
        done = self.mount.run(*nbdfs(name, str(self.path), *words), check=False)
        assert done.returncode in (1, 2)
        assert len(done.stderr.splitlines()) == 1, done.stderr
        return done.stderr

    def listed(self) -> dict[str, Any]:
        """What the mount tells of each file, by name; that of one that was removed ends in `!`."""
        with Client(socket_of(self.mounted.process.pid)) as client:
            exports = client.call("list")["exports"]
        return {export["name"] + ("!" if export["state"] == "removed" else ""): export for export in exports}

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[int]:
        """A descriptor of a file, opened by the user who mounts."""
        descriptor = self.mount.do(lambda: os.open(self / name, os.O_RDWR))
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def names(self) -> list[str]:
        return self.mount.do(lambda: sorted(str(file.relative_to(self.path)) for file in self.path.rglob("*")))


@pytest.fixture
def disks(mount: Mounter) -> Directory:
    return Directory(mount)


@pytest.fixture
def data_plane(mount_data_plane: Mounter) -> Directory:
    return Directory(mount_data_plane)


def test_files_come_and_go(disks: Directory) -> None:
    disks.command("add", "second=memory:2M", "vm1/root=memory:3M", "vm1/swap=memory:4M")
    assert disks.names() == ["first", "second", "vm1", "vm1/root", "vm1/swap"]

    def write() -> None:
        (disks / "second").write_bytes(b"2" * BLOCK)
        with (disks / "vm1/root").open("r+b") as disk:
            disk.write(b"root")

    disks.mount.do(write)
    assert disks.listed()["vm1/root"]["size"] == 3 << 20
    disks.command("remove", "vm1/root", "second", "--wait", "30")
    assert disks.names() == ["first", "vm1", "vm1/swap"]
    disks.command("remove", "vm1/swap")
    assert disks.names() == ["first"], "the directory went with its last file"
    disks.command("add", "vm1=memory:1M")  # what was a directory is a file now
    assert disks.mount.do(lambda: (disks / "vm1").read_bytes()) == bytes(1 << 20)
    assert disks.mounted.stop() == 0


def test_what_a_new_file_has_allocated_is_known_at_once(disks: Directory) -> None:
    disks.command("add", "sparse=cow::memory:64M")
    assert disks.listed()["sparse"]["allocated"] == 0
    assert disks.mount.do(lambda: (disks / "sparse").stat().st_blocks) == 0
    disks.command("add", "--replace", "sparse=cow::memory:32M")
    assert disks.listed()["sparse"]["allocated"] == 0


def test_removed_while_it_is_open(disks: Directory) -> None:
    image = disks.mount.folder / "image"
    disks.mount.do(lambda: image.write_bytes(b"0" * (1 << 20)))
    disks.command("add", "memory=memory:1M", f"image={image}")

    for name in ("memory", "image"):
        with disks.open(name) as disk, mmap.mmap(disk, 1 << 20) as pages:
            os.pwrite(disk, b"before", 0)
            assert "in use" in disks.command("remove", name)
            assert name not in disks.names()
            assert disks.listed()[name + "!"]["handles"] == 1
            os.pwrite(disk, b"after", BLOCK)
            pages[2 * BLOCK : 2 * BLOCK + 6] = b"mapped"
            assert os.pread(disk, 6, 0) == b"before"
            assert disks.mount.do(lambda: os.fstat(disk).st_nlink) == 0
            assert pages[BLOCK : BLOCK + 5] == b"after"
        wait_until(lambda: set(disks.listed()) == {"first", *({"image"} if name == "memory" else ())}, "its end")  # noqa: B023
    content = image.read_bytes()
    assert (content[:6], content[BLOCK : BLOCK + 5], content[2 * BLOCK : 2 * BLOCK + 6]) == (
        b"before",
        b"after",
        b"mapped",
    )


def test_replaced_while_it_is_open(disks: Directory) -> None:
    disks.command("add", "disk=data:(0x01)*4096")
    with disks.open("disk") as old:
        disks.command("add", "--replace", "disk=data:(0x02)*8192")
        assert os.pread(old, BLOCK, 0) == b"\1" * BLOCK
        os.pwrite(old, b"old", 0)
        assert disks.mount.do((disks / "disk").read_bytes) == b"\2" * 8192
        assert os.pread(old, 3, 0) == b"old"
        assert disks.mount.do(lambda: os.fstat(old).st_size) == 4096
        assert set(disks.listed()) == {"first", "disk", "disk!"}
    wait_until(lambda: set(disks.listed()) == {"first", "disk"}, "the old source's end")


@pytest.mark.parametrize(
    "name, message",
    [
        ("", "a name is empty"),
        (".", "has a part that is '.'"),
        ("..", "has a part that is '..'"),
        ("a/../b", "has a part that is '..'"),
        ("a//b", "has a part that is ''"),
        ("/etc/x", "is absolute"),
        ("first", "is taken already"),
        ("first/x", "passes through 'first', which is a file"),
        ("some", "is that of a directory"),
        ("a\nb", "cannot be shown"),
        ("x" * 256, "more than 255 bytes"),
    ],
)
def test_names_that_cannot_be(names_mount: Directory, name: str, message: str) -> None:
    assert message in names_mount.complaint("add", f"{name}=memory:1M")
    assert names_mount.names() == ["first", "some", "some/file"]


@pytest.fixture(scope="module")
def names_mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Directory]:
    mounter = Mounter(tmp_path_factory.mktemp("names"), [], ())
    try:
        directory = Directory(mounter)
        directory.command("add", "some/file=memory:1M")
        yield directory
    finally:
        mounter.end_all()


@pytest.mark.parametrize(
    "words, message",
    [
        (["a=memory:1M", "a=memory:2M"], "'a' is taken already"),
        (["a=memory:1M", "a/b=memory:2M"], "passes through 'a'"),
        (["a/b=memory:1M", "a=memory:2M"], "is that of a directory"),
        (["a=memory:1M", "memory:2M"], "'memory:2M' has no name"),
        (["a=memory:1M", "../b=memory:2M"], "has a part that is '..'"),
        (["=memory:1M", "b=memory:2M"], "a name is empty"),
    ],
)
def test_names_that_cannot_be_mounted(tmp_path: Path, words: list[str], message: str) -> None:
    done = subprocess.run(nbdfs("mount", *words, str(tmp_path)), capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_what_cannot_be_changed_is_said_in_one_line(data_plane: Directory) -> None:
    assert "there is no 'nothing' here" in data_plane.complaint("remove", "nothing")
    assert "there is no 'nothing' here" in data_plane.complaint("add", "--replace", "nothing=memory:1M")
    assert "there is no source or layer 'nothing'" in data_plane.complaint("add", "x=nothing:1M")
    assert "no such file" in data_plane.complaint("add", "x=./no/such/file").lower()
    assert "use +FILE" in data_plane.complaint("add", "x=http,password=-::http://127.0.0.1:9/x")
    assert "cannot change the size of 'x'" in _added(data_plane, "x=data:1", "resize", "x", "4k")
    assert data_plane.names() == ["first", "x"]
    nowhere = data_plane.mount.run(*nbdfs("list", "/no/such/mount"), check=False)
    assert "no mount or server of yours" in nowhere.stderr


def _added(directory: Directory, spec: str, *words: str) -> str:
    directory.command("add", spec)
    return directory.complaint(*words)


def test_an_empty_mount_ends_as_any_other(data_plane: Directory) -> None:
    data_plane.command("remove", "first")
    assert data_plane.names() == []
    data_plane.mounted.umount()
    assert data_plane.mounted.process.poll() == 0, "umount waits for the process, though no file tells which one it is"


@pytest.mark.root
def test_who_lists_a_directory_misses_no_file(data_plane: Directory) -> None:
    """Files are removed while it is read, in which others must not get their place."""
    names = [f"{number:03}-{'x' * 200}" for number in range(300)]  # more than is read at once
    data_plane.command("add", *(f"{name}=null:1M" for name in names))
    with os.scandir(data_plane.path) as entries:
        seen = {next(entries).name}
        data_plane.command("remove", *names[:20])
        seen |= {entry.name for entry in entries}
    assert seen >= set(names[20:])


def test_a_file_with_a_mount_on_it_is_not_removed(data_plane: Directory) -> None:
    file = str(data_plane / "first")
    subprocess.run(["mount", "--bind", "/proc/version", file], check=True)
    try:
        assert "is a mount point: unmount what is on it first" in data_plane.complaint("remove", "first")
        assert "is a mount point" in data_plane.complaint("add", "--replace", "first=memory:2M")
    finally:
        subprocess.run(["umount", file], check=True)
    data_plane.command("remove", "first", "--wait", "30")


def test_a_mounted_file_stays_one_file(mount_data_plane: Mounter) -> None:
    file = mount_data_plane("memory:1M").file
    for words in (["add", str(file), "x=memory:1M"], ["remove", str(file), ""]):
        done = mount_data_plane.run(*nbdfs(*words), check=False)
        assert "covers a file with one source" in done.stderr
    mount_data_plane.run(*nbdfs("resize", str(file), "3M"))
    assert file.read_bytes() == bytes(3 << 20)


def test_sizes_change(disks: Directory) -> None:
    image = disks.mount.folder / "image"
    disks.mount.do(lambda: image.write_bytes(b"i" * BLOCK))
    disks.command("add", f"image={image}")

    with disks.open("image") as disk:
        assert len(os.pread(disk, 2 * BLOCK, 0)) == BLOCK
        disks.command("resize", "image", "1M")
        assert disks.mount.do(lambda: os.fstat(disk).st_size) == 1 << 20
        assert os.pread(disk, BLOCK, BLOCK - 2) == b"ii" + bytes(BLOCK - 2)
        os.pwrite(disk, b"end", (1 << 20) - 3)
        assert "is in use" in disks.complaint("resize", "image", "8k", "--shrink")
    with disks.open("first") as disk:
        os.pwrite(disk, b"kept", 0)
        assert "is in use" in disks.complaint("resize", "first", "2M")
    assert image.read_bytes().endswith(b"end")
    assert "would be lost" in disks.complaint("resize", "image", "8k")
    disks.command("resize", "image", "8k", "--shrink")
    disks.command("resize", "first", "5M")

    def look() -> None:
        assert (disks / "image").read_bytes() == b"i" * BLOCK + bytes(BLOCK)
        assert (disks / "first").read_bytes() == b"kept" + bytes((5 << 20) - 4)
        with (disks / "first").open("r+b", buffering=0) as disk:
            os.pwrite(disk.fileno(), b"new", 4 << 20)

    disks.mount.do(look)
    assert image.stat().st_size == 8192
    assert disks.listed()["first"]["size"] == 5 << 20


def test_hot_add_and_remove_under_fio(disks: Directory) -> None:
    """Two files are written and verified without an error while others come, go and are replaced."""
    image = disks.mount.folder / "image"
    disks.mount.do(lambda: image.write_bytes(bytes(4 << 20)))
    disks.command("add", f"image={image}", "memory=memory:4M")
    jobs = [word for name in ("image", "memory") for word in (f"--name={name}", f"--filename={disks / name}")]
    fio = ["fio", "--rw=randrw", "--bs=4k", "--size=4M", "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=64",
           "--time_based", "--runtime=100", "--rate_iops=1000,1000", *jobs]  # fmt: skip
    load = subprocess.Popen(
        [*disks.mount.prefix, *fio], cwd=disks.mount.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    with load:
        try:
            wait_until(lambda: all(disks.listed()[name]["handles"] for name in ("image", "memory")), "fio's start")
            for number in range(2):
                disks.command("add", f"other{number}=memory:1M", f"sub/{number}=memory:1M")
                disks.command("add", "--replace", "first=memory:2M")
                disks.command("remove", f"other{number}", f"sub/{number}")
            disks.command("remove", "memory", "image")
            load.send_signal(signal.SIGINT)
            said, _ = load.communicate(timeout=SECONDS)
        finally:
            load.kill()
    assert said.count("err= 0") == 2, said
    wait_until(lambda: set(disks.listed()) == {"first"}, "the end of what was removed")


def test_a_stalled_source_holds_up_nobody(mount_data_plane: Mounter, tmp_path: Path) -> None:
    """Neither while it is opened nor while it is read, removed and closed."""
    data_plane = Directory(mount_data_plane, "-o", "timeout=5")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
        dead.listen()
        words = nbdfs("add", str(data_plane.path), f"dead=nbd+unix:///?socket={tmp_path / 'dead'}")
        with subprocess.Popen(words, stderr=subprocess.PIPE) as opening:
            connection, _ = dead.accept()
            data_plane.command("add", "slow=delay,read=1h::memory:1M")
            with subprocess.Popen(["cat", str(data_plane / "slow")]) as reader:
                wait_until(lambda: data_plane.listed()["slow"]["read"]["requests"] > 0, "the read that stalls")
                data_plane.command("remove", "slow")
                data_plane.command("add", "slow=memory:1M")
                assert (data_plane / "slow").read_bytes() == bytes(1 << 20)
                assert opening.poll() is None
                assert "is taken already" in data_plane.complaint("add", "dead=memory:1M")
                reader.kill()
            # The kernel keeps a file open until what it reads ahead of it is answered, at the latest by the timeout.
            wait_until(lambda: "slow!" not in data_plane.listed(), "the end of the slow source")
            data_plane.command("remove", "slow")
            assert data_plane.mounted.stop() == 0, "the source that is being opened is given up"
            connection.close()
            assert opening.wait(SECONDS) == 1


def test_many_requests_that_wait_in_one_source_leave_room_for_others(mount_data_plane: Mounter, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(4 << 20))
    disks = Directory(mount_data_plane, first="dead=delay,read=1h::memory:1G")
    disks.command("add", f"good=delay,read=1ms::{image}")
    fio = ["fio", "--name=load", f"--filename={disks / 'dead'}", "--rw=randread", "--direct=1", "--ioengine=libaio",
           "--iodepth=128", "--size=1G"]  # fmt: skip
    with subprocess.Popen(fio, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as load:
        try:
            wait_until(lambda: disks.listed()["dead"]["read"]["requests"] == 128, "all requests at once")
            subprocess.run(["cat", str(disks / "good")], check=True, stdout=subprocess.DEVNULL, timeout=SECONDS)
            assert disks.mounted.stop() == 0
        finally:
            load.kill()


def test_the_end_comes_though_clients_of_the_control_socket_stay(data_plane: Directory) -> None:
    path = socket_of(data_plane.mounted.process.pid)
    with connected(path), connected(path) as half:
        half.sendall(b'{"method": "li')
        assert data_plane.mounted.stop(signal.SIGTERM) == 0
        assert not path.exists()


def connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(SECONDS)
    connection.connect(str(path))
    return connection


def test_garbage_on_the_control_socket(data_plane: Directory) -> None:
    junk = {
        b"garbage\n": "no JSON",
        b"\xff\xfe\n": "no JSON",
        b"[" * 60_000 + b"\n": "no JSON",
        b"[]\n": "no request",
        b'{"id": 1, "method": "stop"}\n': "no method 'stop'",
        b'{"id": 1, "method": "add", "params": [1]}\n': "by name",
        b'{"id": 1, "method": "add", "params": {"name": "x"}}\n': "spec is missing",
        b'{"id": 1, "method": "add", "params": {"name": "x", "spec": 1}}\n': "not of type str",
        b'{"id": 1, "method": "add", "params": {"name": "a\\u0000b", "spec": "memory:1M"}}\n': "cannot be shown",
        b'{"id": 1, "method": "add", "params": {"name": "\\ud800", "spec": "memory:1M"}}\n': "no character",
        b"x" * 70_000: "at most 65536 bytes",
    }
    path = socket_of(data_plane.mounted.process.pid)
    for line, message in junk.items():
        with connected(path) as connection:
            connection.sendall(line)
            assert message in json.loads(connection.makefile().readline())["error"]["message"]
    with connected(path) as connection:
        connection.sendall(b'{"method": "list", "id": 1}\n' * 100)  # and never reads
        assert set(data_plane.listed()) == {"first"}


def test_list_and_top(data_plane: Directory, terminal: Callable[[list[str]], Callable[[str], str]]) -> None:
    data_plane.command("add", "busy=memory:64M")
    keys = terminal(nbdfs("top", "--interval", "0.3"))
    reads = f"while dd if={data_plane / 'busy'} of=/dev/null bs=64k iflag=direct status=none; do :; done"
    load = subprocess.Popen(["sh", "-c", reads])
    try:

        def shown() -> bool:
            lines = keys("").splitlines()
            busy = [at for at, line in enumerate(lines) if line.endswith("/busy")]
            idle = [at for at, line in enumerate(lines) if line.endswith("/first")]
            return bool(busy and idle) and busy < idle and "in use" in lines[busy[0]]

        wait_until(shown, "the busy file above the idle one")
        screen = keys("")
        assert "READ/S" in screen.splitlines()[1]
        assert max(map(len, screen.splitlines())) <= 80
        wait_until(lambda: bool(read_rate(data_plane, "busy")), "a rate in the list")
    finally:
        load.kill()
        load.wait()
    keys("q")
    wait_until(lambda: "READ/S" not in keys(""), "the end of top")
    once = data_plane.mount.run(*nbdfs("top", "--once", "--interval", "0.1")).stdout
    assert f"{data_plane / 'busy'}"[-20:] in once


def read_rate(directory: Directory, name: str) -> float | None:
    (process,) = json.loads(directory.command("list", "--json"))
    return next(export["read"]["rate"] for export in process["exports"] if export["name"] == name)


@pytest.mark.parametrize("kind, shown", [("vt100", "READ/S"), ("dumb", "cannot draw on this terminal (its cursor")])
def test_top_on_simple_terminals(
    kind: str, shown: str, terminal: Callable[[list[str]], Callable[[str], str]], data_plane: Directory
) -> None:
    """They have no colours, and a cursor that cannot be hidden, or not even moved."""
    data_plane.command("add", "名前" * 40 + "=memory:1M")
    keys = terminal([f"TERM={kind}", *nbdfs("top"), "; echo ended $?"])
    wait_until(lambda: shown in keys(""), "top")
    keys("q")
    wait_until(lambda: f"ended {int(kind == 'dumb')}" in keys(""), "the end of top")


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[[list[str]], Callable[[str], str]]]:
    """Starts a command in a terminal of 80 columns; what that gives types keys and tells what is on the screen."""
    tmux = ["tmux", "-S", str(tmp_path / "tmux"), "-f", "/dev/null"]

    def start(command: list[str]) -> Callable[[str], str]:
        subprocess.run([*tmux, "new-session", "-d", "-x", "80", "-y", "24", "sh"], check=True, timeout=SECONDS)
        subprocess.run([*tmux, "send-keys", " ".join(command), "Enter"], check=True, timeout=SECONDS)

        def keys(typed: str) -> str:
            if typed:
                subprocess.run([*tmux, "send-keys", typed], check=True, timeout=SECONDS)
            done = subprocess.run(
                [*tmux, "capture-pane", "-p"], check=True, timeout=SECONDS, capture_output=True, text=True
            )
            return done.stdout

        return keys

    try:
        yield start
    finally:
        subprocess.run([*tmux, "kill-server"], check=False, timeout=SECONDS, capture_output=True)


@pytest.mark.parametrize(
    "words",
    [["run", "memory:1M", "--"], ["compat", "nbdkit", "memory", "1M", "--run"], ["serve", "memory:1M", "--run"]],
)
def test_all_that_mounts_or_serves_is_listed(words: list[str]) -> None:
    show = shlex.join(nbdfs("list", "--json"))
    command = ["sh", "-c", show] if words[-1] == "--" else [show]
    with subprocess.Popen([*nbdfs(*words), *command], stdout=subprocess.PIPE, text=True) as process:
        listed, _ = process.communicate(timeout=SECONDS)
        found = [one for one in json.loads(listed[listed.index("[") :]) if one["pid"] == process.pid]
    assert [export["spec"] for one in found for export in one["exports"]] == ["memory:1M"]


@pytest.mark.root
def test_passthrough_is_told_as_what_it_is(tmp_path: Path) -> None:
    mounter = Mounter(tmp_path, [], ())
    try:
        disks = Directory(mounter)
        with (disks / "first").open("r+b") as disk:
            disk.write(b"x" * BLOCK)
            disk.flush()
            export = disks.listed()["first"]
            if not export["passthrough"]:
                pytest.skip("this kernel has no passthrough")
            assert export["state"] == "passthrough"
            assert read_rate(disks, "first") is None
            assert export["allocated"] == BLOCK
        wait_until(lambda: disks.listed()["first"]["state"] == "idle", "the end of passthrough")
    finally:
        mounter.end_all()
