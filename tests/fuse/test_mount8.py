"""mount(8), umount(8) and fstab: in a mount namespace of the test, where /usr/sbin holds our helpers only."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounts import NOBODY, SECONDS, is_mounted, nbdfs, wait_until

pytestmark = pytest.mark.root

MIB = 1 << 20
FAILED = 32  # mount(8), "Exit status"

# argv[0] is what tells nbdfs who it is to be.
_HELPER = f"#!{sys.executable}\nimport sys\nfrom nbdfs.cli.main import main\nsys.exit(main())\n"
_HELPERS = ("mount.nbdfs", "mount.fuse.nbdfs", "umount.fuse.nbdfs")


class Machine:
    """A mount namespace with its own fstab and helpers; what runs in it ends with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "disk.img"
        self.fstab = folder / "fstab"
        self.fstab.touch()
        programs = folder / "sbin"
        programs.mkdir()
        for name in _HELPERS:
            (programs / name).write_text(_HELPER)
            (programs / name).chmod(0o755)
        script = (
            # Mounts of others that are here too would outlive their end there.
            """awk '$3 == "fuse.nbdfs" {print $2}' /proc/mounts | xargs -r umount -l;"""
            f"mount --bind {programs} /usr/sbin && mount --bind {self.fstab} /etc/fstab"
            " && mkdir -p /run/mount && mount -t tmpfs none /run/mount && echo up && exec cat"
        )
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._holder.stdout
        assert self._holder.stdout.readline() == "up\n"

    def run(self, *words: str | Path, status: int = 0, env: dict[str, str] | None = None) -> str:
        """What a command says on stderr, which with a status other than 0 must be the reason."""
        done = subprocess.run(
            ["nsenter", "-t", str(self._holder.pid), "-m", "--", *words],
            text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=SECONDS, env=env,
        )  # fmt: skip
        assert done.returncode == status, done.stderr
        assert bool(done.stderr) == bool(status), done.stderr
        return done.stderr

    def out(self, *words: str | Path) -> str:
        return subprocess.run(
            ["nsenter", "-t", str(self._holder.pid), "-m", "--", *words],
            text=True, capture_output=True, timeout=SECONDS, check=True,
        ).stdout  # fmt: skip

    def table(self) -> list[str]:
        """The lines of /proc/mounts."""
        return Path(f"/proc/{self._holder.pid}/mounts").read_text().splitlines()

    def mounts(self) -> list[list[str]]:
        """Source, target, type and options of the mounts of nbdfs."""
        found = [line.split()[:4] for line in self.table()]
        return [fields for fields in found if fields[2] == "fuse.nbdfs" and fields[1].startswith(str(self.folder))]

    def processes(self) -> list[int]:
        """What else runs in the namespace."""
        ours = os.readlink(f"/proc/{self._holder.pid}/ns/mnt")
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdecimal() and os.readlink(entry / "ns/mnt") == ours:
                    found.append(int(entry.name))
        return [pid for pid in found if pid != self._holder.pid]

    def end(self) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 15)
        wait_until(lambda: not self.processes(), "the end of all mounts")
        self._holder.communicate("", SECONDS)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    try:
        yield made
    finally:
        made.end()


def test_mount_and_umount(machine: Machine) -> None:
    machine.run("mount", "-t", "nbdfs", "memory:1M", machine.file)
    (fields,) = machine.mounts()
    assert fields[:3] == ["memory:1M", str(machine.file), "fuse.nbdfs"]
    assert {"rw", "nosuid", "nodev"} <= set(fields[3].split(","))
    assert machine.out("stat", "-c", "%s", machine.file) == f"{MIB}\n"
    machine.run("umount", machine.file)
    assert machine.mounts() == []
    assert machine.processes() == []  # umount waited for it
    assert not machine.file.exists()


def test_options(machine: Machine) -> None:
    socket = machine.folder / "socket"
    options = (
        f"ro,_netdev,nofail,noauto,users,x-systemd.automount,comment=a note,allow_other,mode=0444,noatime,"
        f"listen=nbd+unix:///?socket={socket},max-clients=3,log-file={machine.folder}/log"
    )
    machine.run("mount", "-t", "nbdfs", "-v", "-o", options, "memory:1M", machine.file)
    (fields,) = machine.mounts()
    assert {"ro", "noexec", "noatime", "allow_other"} <= set(fields[3].split(","))  # noexec comes with users
    assert machine.out("stat", "-c", "%a", machine.file) == "444\n"
    assert socket.exists()
    assert "mounted memory:1M" in (machine.folder / "log").read_text()


FAILURES = [
    ("/no/such/image", "rw", "No such file"),
    ("memroy:1M", "rw", "did you mean 'memory'?"),
    ("memory:1M", "alow_other", "did you mean 'allow_other'?"),
    ("memory:1M", "tls=perhaps", "invalid choice"),
    ("memory:1M", "config=/no/such/file", "/no/such/file"),
    ("conf:none", "config=/dev/null", "/dev/null is no file"),
]


def test_what_fails_has_a_reason_and_the_status_of_mount8(machine: Machine) -> None:
    for spec, options, reason in FAILURES:
        said = machine.run("mount", "-t", "nbdfs", "-o", options, spec, machine.file, status=FAILED)
        assert reason in said
        assert len(said.splitlines()) == 1
    assert machine.mounts() == []
    assert machine.processes() == []
    assert not machine.file.exists()


def test_helper_by_itself(machine: Machine) -> None:
    helper = "/usr/sbin/mount.nbdfs"
    assert "FILE" in machine.run(helper, "memory:1M", status=1)
    machine.run(helper, "memory:1M", machine.file, "-f", "-o", "rw")
    assert machine.mounts() == []
    assert "there is no mount option 'frob'" in machine.run(
        helper, "memory:1M", machine.file, "-o", "frob", status=FAILED
    )
    machine.run(helper, "-n", "-s", "-o", "frob,ro,rw", "-t", "fuse.nbdfs", "memory:1M", machine.file)
    assert "rw" in machine.mounts()[0][3].split(",")


def test_closed_streams_and_no_environment(machine: Machine) -> None:
    helper = f"/usr/sbin/mount.nbdfs memory:1M {machine.file} <&- >&- 2>&-"
    machine.run("env", "-i", "sh", "-c", helper)
    machine.run("dd", f"of={machine.file}", "if=/dev/zero", "bs=64k", "count=4", "conv=notrunc", "status=none")
    machine.run("umount", machine.file)
    assert machine.processes() == []


def test_fstab(machine: Machine) -> None:
    image = machine.folder / "an image"
    image.write_bytes(bytes(2 * MIB))
    target = machine.folder / "a disk"
    escaped = [str(path).replace(" ", "\\040") for path in (image, target)]
    machine.fstab.write_text(
        f"memory:1M {machine.file} nbdfs nofail,_netdev,mode=0640 0 0\n"
        f"file,lock=no:{escaped[0]} {escaped[1]} nbdfs defaults 0 0\n"
        f"memory:3M {machine.folder}/late.img nbdfs noauto,ro 0 0\n"
        f"/no/such/image {machine.folder}/none.img nbdfs nofail 0 0\n"
    )
    assert "/no/such/image" in machine.run("mount", "-a", "-t", "nbdfs", status=64)  # some, but not all
    assert {fields[1].replace("\\040", " ") for fields in machine.mounts()} == {str(machine.file), str(target)}
    assert machine.out("stat", "-c", "%s %a", machine.file, target) == f"{MIB} 640\n{2 * MIB} 600\n"

    said = machine.run("mount", "-a", "-t", "nbdfs", status=FAILED)
    assert len(said.splitlines()) == 1  # what is mounted already is left alone
    assert len(machine.mounts()) == 2
    machine.run("mount", machine.folder / "late.img")
    assert len(machine.mounts()) == 3
    machine.run("umount", "-a", "-t", "fuse.nbdfs")
    assert machine.mounts() == []
    assert machine.processes() == []


def test_directory_and_configuration(machine: Machine) -> None:
    config = machine.folder / "nbdfs.toml"
    config.write_text(
        '[stack.one]\nspec = "memory:1M"\n[mount.many]\ntarget = "/elsewhere"\nreadonly = true\n'
        '[mount.many.files]\n"a.img" = "conf:one"\n"b/c" = "memory:2M"\n'
    )
    folders = [machine.folder / name for name in ("words", "many")]
    for folder in folders:
        folder.mkdir()
    machine.fstab.write_text(
        f"a=memory:1M\\040b=memory:2M {folders[0]} nbdfs rw 0 0\n"
        f"conf:many {folders[1]} nbdfs config={config} 0 0\n"
        f"conf:one {machine.file} nbdfs config={config} 0 0\n"
    )
    machine.run("mount", "-a")
    assert machine.out("sh", "-c", f"cd {folders[0]} && stat -c '%n %s' *") == f"a {MIB}\nb {2 * MIB}\n"
    assert machine.out("sh", "-c", f"cd {folders[1]} && stat -c '%n %a' a.img b/c") == "a.img 400\nb/c 400\n"
    assert machine.out("stat", "-c", "%s", machine.file) == f"{MIB}\n"
    machine.run("umount", *folders, machine.file)
    assert machine.processes() == []


def test_remount(machine: Machine) -> None:
    machine.fstab.write_text(f"memory:1M {machine.file} nbdfs timeout=20s 0 0\n")
    machine.run("mount", machine.file)
    write = ["dd", "if=/dev/zero", f"of={machine.file}", "bs=4k", "count=1", "conv=notrunc", "status=none"]
    machine.run(*write)
    machine.run("mount", "-o", "remount,ro", machine.file)
    assert "Read-only file system" in machine.run(*write, status=1)
    machine.run("mount", "-o", "remount,rw", machine.file)
    machine.run(*write)
    busy = f"exec 3<>{machine.file} && mount -o remount,ro {machine.file}"
    assert "open for writing" in machine.run("sh", "-c", busy, status=FAILED)
    assert len(machine.mounts()) == 1
    assert len(machine.processes()) == 1


def test_what_cannot_be_remounted(machine: Machine) -> None:
    machine.run("mount", "-t", "nbdfs", "-o", "ro", "memory:1M", machine.file)
    said = machine.run("mount", "-t", "nbdfs", "-o", "remount,rw", "memory:1M", machine.file, status=FAILED)
    assert "was mounted read-only" in said
    machine.run("umount", machine.file)
    assert "is not a mount" in machine.run("/usr/sbin/umount.fuse.nbdfs", machine.file, status=FAILED)
    helper = ["/usr/sbin/mount.nbdfs", "memory:1M", machine.file, "-o", "remount,ro"]
    assert "is no mount of nbdfs" in machine.run(*helper, status=FAILED)


def test_a_user_whom_fstab_lets_mount(machine: Machine, nobody_path: Path, unprivileged: list[str]) -> None:
    file = nobody_path / "disk.img"
    machine.fstab.write_text(f"memory:1M {file} nbdfs noauto,user 0 0\n")
    if len(unprivileged) > 4:  # mount(8) is setuid and takes away what the user was lent
        pytest.skip("other users cannot run this Python")
    machine.run(*unprivileged, "mount", file)
    mount = next(line for line in machine.table() if str(file) in line)
    assert "user_id=65534" in mount
    assert machine.out(*unprivileged, "stat", "-c", "%s %u", file) == f"{MIB} {NOBODY}\n"
    machine.run(*unprivileged, "umount", file)
    assert machine.processes() == []
    assert not file.exists()


def test_helper_of_a_user(nobody_path: Path, unprivileged: list[str]) -> None:
    """As mount(8) calls it for a user whom fstab lets mount."""
    file = nobody_path / "disk.img"
    words = ["memory:1M", str(file), "-o", "rw,noexec,nosuid,nodev,user=nobody"]
    run = f"import sys; sys.argv[0] = 'mount.nbdfs'\n{_HELPER}"
    subprocess.run([*unprivileged, sys.executable, "-c", run, *words], check=True, timeout=SECONDS, cwd=nobody_path)
    assert is_mounted(file)
    subprocess.run([*unprivileged, *nbdfs("umount", str(file))], check=True, timeout=SECONDS)
    assert not file.exists()
