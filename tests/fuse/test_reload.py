"""Mounts and servers of a configuration: they come up by name, and follow changes of the file without a restart."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounts import SECONDS, Mounter, is_mounted, nbdfs, wait_until
from tests.tools import complaint

MIB = 1 << 20


class Configured:
    """A configuration file in a folder of the user who mounts, and processes that use it."""

    def __init__(self, mount: Mounter) -> None:
        self.mount = mount
        self.folder = mount.folder
        self.path = mount.folder / "nbdfs.toml"
        self.started: list[subprocess.Popen[str]] = []

    def write(self, text: str) -> None:
        """Replace the file at once, as editors do; {} stands for the folder."""
        fresh = self.path.with_suffix(".new")

        def run() -> None:
            fresh.write_text(text.replace("{}", str(self.folder)))
            fresh.replace(self.path)

        self.mount.do(run)

    def words(self, *words: str) -> list[str]:
        return [*self.mount.prefix, *nbdfs("--config", str(self.path), *words)]

    def start(self, *words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            self.words(*words), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=self.folder
        )
        self.started.append(process)
        return process

    def start_up(self, *words: str) -> subprocess.Popen[str]:
        """Start a command that says by its PID file that it is up."""
        pids = self.folder / f"pid.{len(self.started)}"
        process = self.start(*words, "-P", str(pids))
        wait_until(lambda: pids.exists() or process.poll() is not None, f"nbdfs {words}")
        assert process.poll() is None, process.communicate()[1]
        return process

    def run(self, *words: str, status: int = 0) -> str:
        """What a command says."""
        done = subprocess.run(self.words(*words), text=True, capture_output=True, timeout=SECONDS, cwd=self.folder)
        assert done.returncode == status, done.stderr
        return done.stdout if status == 0 else done.stderr

    def size(self, name: str) -> int:
        """The size of a file, -1 if there is none now."""
        try:
            return self.mount.do(lambda: (self.folder / name).stat().st_size)
        except OSError:  # between two mounts there may be nothing, or a mount that is going
            return -1

    def names(self) -> set[str]:
        return self.mount.do(lambda: set(os.listdir(self.folder / "disks")))

    def end(self) -> None:
        for pids in self.folder.glob("pid*"):  # of what went into the background, or is among the others
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pids.read_text()), signal.SIGTERM)
        for process in self.started:
            if process.poll() is None:
                process.terminate()
            process.communicate(timeout=SECONDS)


@pytest.fixture
def configured(mount_data_plane: Mounter) -> Iterator[Configured]:
    yield from _configured(mount_data_plane)


@pytest.fixture
def configured_each_way(mount: Mounter) -> Iterator[Configured]:
    yield from _configured(mount)


def _configured(mount: Mounter) -> Iterator[Configured]:
    made = Configured(mount)
    mount.do(lambda: (mount.folder / "disks").mkdir())
    try:
        yield made
    finally:
        made.end()


DISKS = """
[stack.base]
spec = "memory:1M"
[mount.disks]
target = "{}/disks"
[mount.disks.files]
kept = "memory:1M"
gone = "memory:1M"
changed = "zero:1M"
stack = "conf:base"
"vm/root" = "memory:1M"
"""
AFTER = """
[stack.base]
spec = "memory:3M"
[mount.disks]
target = "{}/disks"
[mount.disks.files]
kept = "memory:1M"
changed = "ones:2M"
stack = "conf:base"
vm = "memory:4M"
"""


def test_changes_are_applied_and_nothing_else_is_touched(configured_each_way: Configured) -> None:
    configured = configured_each_way
    configured.write(DISKS)
    configured.start_up("mount", "disks")
    disks, mount = configured.folder / "disks", configured.mount
    assert configured.names() == {"kept", "gone", "changed", "stack", "vm"}
    mount.do(lambda: (disks / "kept").write_bytes(b"kept as it is"))
    inode = mount.do(lambda: (disks / "kept").stat().st_ino)
    configured.run("add", str(disks), "by-hand=memory:5M")

    with mount.do(lambda: (disks / "gone").open("r+b", buffering=0)) as still_open:
        mount.do(lambda: still_open.write(b"in use"))
        configured.write(AFTER)
        said = configured.run("reload", "disks")
        assert said == "disks: added vm; removed gone, vm/root; replaced changed, stack\n"
        assert mount.do(lambda: os.pread(still_open.fileno(), 6, 0)) == b"in use"

    sizes = mount.do(lambda: {name: (disks / name).stat().st_size // MIB for name in os.listdir(disks)})
    assert sizes == {"kept": 1, "changed": 2, "stack": 3, "vm": 4, "by-hand": 5}
    assert mount.do(lambda: (disks / "kept").read_bytes()[:13]) == b"kept as it is"
    assert mount.do(lambda: (disks / "kept").stat().st_ino) == inode
    assert mount.do(lambda: (disks / "changed").read_bytes()[:1]) == b"\xff"
    assert configured.run("reload").endswith(": nothing to change\n")


def test_a_signal_reloads(configured: Configured) -> None:
    configured.write(DISKS)
    process = configured.start_up("mount", "disks")
    configured.write(AFTER)
    process.send_signal(signal.SIGHUP)
    wait_until(lambda: "gone" not in configured.names(), "the reload")
    assert process.poll() is None


WRONG = [
    (DISKS + "more = \n", "nbdfs.toml:12: not TOML: invalid value"),
    (AFTER.replace("ones", "once"), "there is no source or layer 'once'; did you mean 'ones'?"),
    ("[mount.disk]\ntarget = '/x'\nsource = 'zero:1'", "there is no mount or server 'disks'; did you mean 'disk'?"),
]


def test_a_wrong_file_changes_nothing(configured: Configured) -> None:
    configured.write(DISKS)
    process = configured.start_up("mount", "disks")
    for text, message in WRONG:
        configured.write(text)
        assert message in configured.run("reload", "disks", status=2)
        process.send_signal(signal.SIGHUP)
    assert configured.names() == {"kept", "gone", "changed", "stack", "vm"}
    configured.write(DISKS)
    assert configured.run("reload", "disks") == "disks: nothing to change\n"
    process.terminate()
    said = process.communicate(timeout=SECONDS)[1]
    assert process.returncode == 0
    assert "reload: nothing is changed: " in said


def test_a_source_that_cannot_be_opened_holds_up_no_other(configured: Configured) -> None:
    configured.write(DISKS)
    configured.start_up("mount", "disks")
    configured.write(AFTER.replace('kept = "memory:1M"', 'kept = "memory:1M"\nbad = "{}/no-such-image"'))
    said = configured.run("reload", "disks", status=1)
    assert "added vm;" in said
    assert "; bad: cannot open " in said
    configured.mount.do(lambda: (configured.folder / "no-such-image").write_bytes(bytes(MIB)))
    assert configured.run("reload", "disks") == "disks: added bad\n"


def test_what_is_not_about_files_has_to_wait(configured: Configured) -> None:
    configured.write(DISKS)
    configured.start_up("mount", "disks")
    configured.write(DISKS.replace("[mount.disks.files]", "readonly = true\n[mount.disks.files]"))
    assert "nothing to change; what is not about files takes effect at the next start" in configured.run(
        "reload", "disks", status=1
    )


def test_options_of_the_command_line_come_before_those_of_the_file(configured: Configured) -> None:
    configured.write('[mount.one]\ntarget = "{}/one.img"\nsource = "memory:1M"\noptions = "mode=0640"\n')
    configured.start_up("mount", "-r", "one")
    mode = configured.mount.do(lambda: (configured.folder / "one.img").stat().st_mode & 0o777)
    assert mode == 0o440


def test_a_server_of_the_file(configured: Configured) -> None:
    text = '[serve.all]\nunix = ["{}/socket"]\n[serve.all.files]\na = "memory:1M"\n'
    configured.write(text)
    configured.start_up("serve", "all")
    uri = f"nbd+unix:///{{}}?socket={configured.folder}/socket"
    assert configured.run("info", "--size", uri.format("a")) == f"{MIB}\n"
    configured.write(text.replace("a =", "b ="))
    assert configured.run("reload", "all") == "all: added b; removed a\n"
    assert configured.run("info", "--size", uri.format("b")) == f"{MIB}\n"
    configured.run("info", "--size", uri.format("a"), status=1)


def test_names_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "nbdfs.toml"
    path.write_text('[serve.all]\nsource = "memory:1M"\n[mount.x]\ntarget = "/x"\nsource = "zero:1"\n')
    assert "there is no mount or server 'y'" in complaint("--config", path, "mount", "y", status=2)
    assert "[serve.all] is for nbdfs serve all" in complaint("--config", path, "mount", "all", status=2)
    assert "[mount.x] is for nbdfs mount x" in complaint("--config", path, "serve", "x", status=2)


FLEET = """
[mount.one]
target = "{}/one.img"
source = "memory:1M"
[mount.disks]
target = "{}/disks"
files = {a = "memory:1M"}
[mount.bad]
target = "{}/bad.img"
source = "no-such-image"
"""


def test_up_brings_up_all_and_follows_changes(configured: Configured) -> None:
    folder = configured.folder
    configured.write(FLEET)
    process = configured.start_up("up")
    assert [configured.size(name) for name in ("one.img", "disks/a")] == [MIB, MIB]
    assert not (folder / "bad.img").exists()

    changed = FLEET.replace("{a =", "{b =").replace("memory:1M", "memory:2M", 1)
    configured.write(changed.replace("[mount.bad]", "[mount.new]").replace("no-such-image", "memory:3M"))
    process.send_signal(signal.SIGHUP)
    wait_until(lambda: is_mounted(folder / "bad.img"), "the new mount")
    wait_until(lambda: configured.names() == {"b"}, "the new file")
    wait_until(lambda: configured.size("one.img") == 2 * MIB, "another source")

    configured.write("[mount.one]\nsource = \n")  # is not applied
    process.send_signal(signal.SIGHUP)
    configured.write(FLEET.partition("[mount.disks]")[0].replace("memory:1M", "memory:2M"))
    process.send_signal(signal.SIGHUP)
    wait_until(lambda: not is_mounted(folder / "disks") and not is_mounted(folder / "bad.img"), "the end of two mounts")
    assert is_mounted(folder / "one.img")
    process.terminate()
    said = process.communicate(timeout=SECONDS)[1]
    assert process.returncode == 1  # one had failed
    assert "nbdfs: [mount.bad] cannot open " in said
    assert "[mount.bad] has failed: exit status 1" in said
    assert not is_mounted(folder / "one.img")


def test_up_reloads_no_process_before_it_is_up(configured: Configured) -> None:
    """SIGHUP would end one that still opens its source."""
    path = configured.folder / "socket"
    first = '[mount.one]\ntarget = "{}/one.img"\nsource = "memory:1M"\n'
    second = f'{first}[mount.slow]\ntarget = "{{}}/slow.img"\nsource = "nbd+unix:///?socket={path}"\n'
    configured.write(first)
    process = configured.start_up("up")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        path.chmod(0o777)
        server.listen()
        server.settimeout(SECONDS)
        configured.write(second)
        process.send_signal(signal.SIGHUP)
        with server.accept()[0]:
            configured.write(second + '[mount.new]\ntarget = "{}/new.img"\nsource = "memory:1M"\n')
            process.send_signal(signal.SIGHUP)
            wait_until(lambda: is_mounted(configured.folder / "new.img"), "the new mount")
    process.terminate()
    assert "SIGHUP" not in process.communicate(timeout=SECONDS)[1]


def test_a_process_that_is_ended_before_it_is_up_has_not_failed(configured: Configured) -> None:
    path = configured.folder / "socket"
    first = '[mount.one]\ntarget = "{}/one.img"\nsource = "memory:1M"\n'
    configured.write(first)
    process = configured.start_up("up")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        path.chmod(0o777)
        server.listen()
        server.settimeout(SECONDS)
        configured.write(f'{first}[mount.slow]\ntarget = "{{}}/slow.img"\nsource = "nbd+unix:///?socket={path}"\n')
        process.send_signal(signal.SIGHUP)
        with server.accept()[0]:
            process.terminate()
            said = process.communicate(timeout=SECONDS)[1]
    assert (process.returncode, said) == (0, "")


def test_up_in_the_background(configured: Configured) -> None:
    configured.write(FLEET)
    said = configured.run("up", "-b", "one", "bad", "-P", str(configured.folder / "pid"))
    assert said == ""
    assert is_mounted(configured.folder / "one.img")
    assert not is_mounted(configured.folder / "disks")
    os.kill(int((configured.folder / "pid").read_text()), signal.SIGTERM)
    wait_until(lambda: not is_mounted(configured.folder / "one.img"), "the end of the mount")
    wait_until(lambda: not (configured.folder / "one.img").exists(), "the end of its process")


# nbdfs with another place for syslog(3), so that there is one to look at.
_LOGGING = """
from nbdfs import logs
from nbdfs.cli.main import main
logs._JOURNAL, logs._SYSLOG = "/no journal", {}
main()
"""


def test_what_a_mount_says_in_the_background_is_logged(configured: Configured) -> None:
    pids, path = configured.folder / "pid", configured.folder / "syslog"
    configured.write('[mount.one]\ntarget = "{}/one.img"\nsource = "memory:1M"\n')
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(str(path))
        path.chmod(0o777)
        syslog.settimeout(SECONDS)
        words = [sys.executable, "-c", _LOGGING.format(repr(str(path)))]
        up = [*words, "up", "--config", str(configured.path), "-b", "-P", str(pids)]
        configured.mount.run(*up)
        configured.write("[mount.one]\n")
        served = configured.mount.do(lambda: os.getxattr(configured.folder / "one.img", "user.nbdfs.pid"))
        os.kill(int(served), signal.SIGHUP)
        said = syslog.recv(1 << 16).decode()
    assert said.startswith("<27>nbdfs[")
    assert "]: [mount.one] reload: nothing is changed: " in said


def test_a_reader_that_stopped_holds_up_neither_up_nor_its_mounts(configured: Configured) -> None:
    """As a terminal does after Ctrl-S: what the mount says is more than the pipes between take."""
    configured.write('[mount.one]\ntarget = "{}/one.img"\nsource = "log::pattern:64M"\n')
    process = configured.start_up("up", "-v")

    def read() -> None:
        with (configured.folder / "one.img").open("rb", buffering=0) as disk:
            os.posix_fadvise(disk.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            for number in range(4096):
                assert os.pread(disk.fileno(), 4096, number << 14)

    reader = threading.Thread(target=configured.mount.do, args=(read,), daemon=True)
    reader.start()
    reader.join(SECONDS)
    assert not reader.is_alive()
    process.terminate()
    assert process.wait(SECONDS) == 0
    assert not is_mounted(configured.folder / "one.img")


def test_mounts_end_with_up_however_it_ends(configured: Configured) -> None:
    configured.write(FLEET)
    process = configured.start_up("up", "one", "disks")
    process.kill()
    wait_until(lambda: not is_mounted(configured.folder / "one.img"), "the end of a mount")
    wait_until(lambda: not is_mounted(configured.folder / "disks"), "the end of a mount")


def test_up_with_nothing_to_bring_up(configured: Configured) -> None:
    configured.write(FLEET)
    assert "has failed" in configured.run("up", "bad", status=1)
    assert "has failed" in configured.run("up", "-b", "bad", status=1)
    assert "there is no mount or server 'none'" in configured.run("up", "none", status=2)
    configured.write("")
    assert "has no mount and no server" in configured.run("up", status=1)
