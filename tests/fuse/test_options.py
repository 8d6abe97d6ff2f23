"""The -o options of a mount, as the kernel and other users see them."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from nbdfs.errors import UsageError
from nbdfs.fuse.options import MountOptions, parse_options
from tests.mounts import NOBODY, SECONDS, Mounter, is_mounted, nbdfs, wait_until

SPEC = "memory:1M"


def mount_line(file: Path) -> tuple[set[str], str, str]:
    """What /proc/self/mountinfo says of a mount: options, type, source."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        if fields.split()[4] == str(file):
            fstype, source, options = rest.split(" ", 2)
            return {*fields.split()[5].split(","), *options.split(",")}, fstype, source
    pytest.fail(f"{file} is not mounted")


def test_defaults(mount: Mounter) -> None:
    options, fstype, source = mount_line(mount(SPEC).file)
    assert {"rw", "nosuid", "nodev"} <= options
    assert "allow_other" not in options
    assert (fstype, source) == ("fuse.nbdfs", SPEC)


def test_kernel_options(mount: Mounter) -> None:
    wanted = "noexec,noatime,ro,fsname=my disk,subtype=special"
    options, fstype, source = mount_line(mount(SPEC, "-o", wanted).file)
    assert {"noexec", "noatime", "ro"} <= options
    assert (fstype, source) == ("fuse.special", "my\\040disk")


@pytest.mark.root
def test_owner_mode_and_others(nobody_path: Path, unprivileged: list[str]) -> None:
    mount = Mounter(nobody_path, [], ())
    try:
        closed = mount(SPEC, name="closed").file
        opened = mount(SPEC, "-o", f"allow_other,uid={NOBODY},gid={NOBODY},mode=640", name="open").file
        found = opened.stat()
        assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (NOBODY, NOBODY, 0o640)
        for file, allowed in ((closed, False), (opened, True)):
            done = subprocess.run([*unprivileged, "dd", f"if={file}", "of=/dev/null", "count=1"], capture_output=True)
            assert (done.returncode == 0) == allowed, done.stderr
    finally:
        mount.end_all()


@pytest.mark.root
@pytest.mark.parametrize("mount", ["passthrough"], indirect=True)
def test_special_kinds_need_words(mount: Mounter) -> None:
    options, _, _ = mount_line(mount(SPEC, "-o", "suid,dev,sync,strictatime").file)
    assert not {"nosuid", "nodev", "relatime"} & options
    assert "sync" in options


@pytest.mark.parametrize("mount", ["unprivileged"], indirect=True)
@pytest.mark.parametrize("words", ["strictatime", "suid", "dev", "suid, dev, strictatime"])
def test_what_fusermount3_does_not_give_is_told(mount: Mounter, words: str) -> None:
    mounted = mount(SPEC, "-o", words.replace(" ", ""))
    assert {"relatime", "nosuid", "nodev"} <= mount_line(mounted.file)[0]
    assert mounted.stop() == 0
    assert mounted.process.stderr
    said = mounted.process.stderr.read()
    assert said == f"nbdfs: {mounted.file} is mounted without {words}: fusermount3 gives that to no user\n"


def test_auto_unmount(mount: Mounter) -> None:
    mounted = mount(SPEC, "-o", "auto_unmount")
    mounted.stop(signal.SIGKILL)
    wait_until(lambda: not is_mounted(mounted.file), "the helper's unmount")


@pytest.mark.parametrize("mount", ["unprivileged"], indirect=True)
def test_passthrough_where_it_cannot_be_is_refused(mount: Mounter) -> None:
    mounted = mount(SPEC, "-o", "passthrough", ready=False)
    assert mounted.process.wait() == 1
    assert mounted.process.stderr
    assert "passthrough needs Linux 6.9" in mounted.process.stderr.read()
    assert not os.path.lexists(mounted.file)


@pytest.mark.root
def test_passthrough_in_a_user_namespace_is_refused(tmp_path: Path) -> None:
    words = nbdfs("mount", "-b", "-o", "passthrough", SPEC, str(tmp_path / "disk"))
    done = subprocess.run(["unshare", "-Urm", *words], capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 1
    assert "passthrough needs" in done.stderr


@pytest.mark.parametrize(
    "text, words",
    [
        ("bogus", "no mount option 'bogus'"),
        ("allow_othr", "did you mean 'allow_other'"),
        ("ro,rw", "another value"),
        ("timeout=1,timeout=2", "another value"),
        ("timeout", "needs a value"),
        ("timeout=0", "more than 0"),
        ("timeout=soon", "not a duration"),
        ("ro=1", "takes no value"),
        ("mode=999", "not an octal number"),
        ("mode=7777", "more than 0777"),
        ("uid=root", "no user or group id"),
        ("subtype=", "ends with a name"),
        ("writeback,passthrough", "exclude each other"),
    ],
)
def test_wrong_options(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_options([text])


def test_words_for_others_are_ignored() -> None:
    assert parse_options(["defaults,_netdev,nofail,x-systemd.automount,user", "noauto"]) == MountOptions()
    assert parse_options(["dirsync,lazytime,iversion,nosymfollow", "nolazytime,noiversion,nomand"]) == MountOptions()


@pytest.mark.parametrize("spec", ["pattern:1M", "memory:1M"])
def test_write_back_cache_of_what_is_read_only(mount: Mounter, spec: str) -> None:
    file = mount(spec, "-o", "writeback,ro").file
    assert mount.do(lambda: len(file.read_bytes())) == 1 << 20


@pytest.mark.parametrize("mount", ["unprivileged"], indirect=True)  # root may write it
def test_write_back_cache_of_a_file_that_its_owner_may_not_write(mount: Mounter) -> None:
    mounted = mount("memory:1M", "-o", "writeback,mode=0400", ready=False)
    assert mounted.process.wait(SECONDS) == 1
    assert mounted.process.stderr
    (said,) = mounted.process.stderr.read().splitlines()
    assert "-o writeback needs a file that you may write" in said


def test_write_back_cache_and_truncation(mount: Mounter) -> None:
    """The kernel knows the size by itself then, and is told that it stays."""
    file = mount("memory:1M", "-o", "writeback").file

    def whole() -> bool:
        return file.stat().st_size == 1 << 20

    def look() -> None:
        with file.open("wb") as disk:
            disk.write(b"short")
        wait_until(whole, "the size after O_TRUNC")
        assert file.read_bytes() == b"short" + bytes((1 << 20) - 5)
        with file.open("r+b") as disk:
            disk.write(b"x" * 9000)
            disk.flush()
            os.ftruncate(disk.fileno(), 0)
            wait_until(whole, "the size after truncation")
            assert os.pread(disk.fileno(), 1 << 20, 0) == bytes(1 << 20)
            os.pwrite(disk.fileno(), b"end", (1 << 20) - 3)
            os.fsync(disk.fileno())
        assert file.read_bytes() == bytes((1 << 20) - 3) + b"end"

    mount.do(look)
