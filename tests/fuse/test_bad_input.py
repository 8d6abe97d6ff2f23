"""What cannot be mounted: one line that says what is wrong and what to do, the right status, nothing left behind."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nbdfs.cli.main import main
from tests.mounts import SECONDS, Mounter, is_mounted, nbdfs

FAILURE, USAGE = 1, 2


def refused(command: list[str], file: Path, status: int, *texts: str, env: dict[str, str] | None = None) -> None:
    """Run a mount that must fail, and look at all it leaves behind."""
    there = file.exists()
    before = set(file.parent.iterdir()) if file.parent.is_dir() and os.access(file.parent, os.R_OK) else set()
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=env)
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("nbdfs: ")
    for text in texts:
        assert text in lines[0]
    assert not is_mounted(file)
    assert file.exists() == there
    if before:
        assert set(file.parent.iterdir()) == before


@pytest.mark.parametrize(
    "words, status, text",
    [
        (["memory:0"], FAILURE, "0 bytes"),
        (["memory:-1"], USAGE, "'-1' is not a size"),
        (["memory:1Q"], USAGE, "'1Q' is not a size"),
        (["memory:"], USAGE, "is not a size"),
        (["memory:8E"], USAGE, "larger than a file can be"),
        (["memory:99999999999999999999"], USAGE, "larger than a file can be"),
        (["memroy:1G"], USAGE, "did you mean 'memory'?"),
        (["memory,mlok:1G"], USAGE, "did you mean 'mlock'?"),
        (["memory,mlock,mlock:1G"], USAGE, "given twice"),
        (["memory"], USAGE, "memory:"),
        (["cow::"], USAGE, "names no source"),
        (["gopher://host/x"], USAGE, "gopher://"),
        (["/"], FAILURE, "is a directory"),
        (["/no/such/file"], FAILURE, "No such file"),
        (["/dev/null"], FAILURE, "character device"),
        (["-o", "nosuchoption", "memory:1M"], USAGE, "nosuchoption"),
        (["-o", "timeout=soon", "memory:1M"], USAGE, "soon"),
        (["-o", "uid=x", "memory:1M"], USAGE, "uid"),
        (["-o", "mode=9", "memory:1M"], USAGE, "mode"),
    ],
)
def test_specs_and_options(
    tmp_path: Path, words: list[str], status: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "disk.img"
    assert main(["mount", *words, str(file)]) == status
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert text in said.err
    assert list(tmp_path.iterdir()) == []
    assert not is_mounted(file)


def test_a_target_is_missing(tmp_path: Path) -> None:
    refused(nbdfs("mount", "memory:1M"), tmp_path / "disk.img", USAGE, "nbdfs mount SPEC FILE")
    refused(nbdfs("mount"), tmp_path / "disk.img", USAGE, "nbdfs mount")


def test_no_directory_for_the_placeholder(tmp_path: Path) -> None:
    file = tmp_path / "absent" / "disk.img"
    refused([*nbdfs("mount", "memory:1M"), str(file)], file, FAILURE, f"{file.parent}: create it first")
    (tmp_path / "file").touch()
    file = tmp_path / "file" / "disk.img"
    refused([*nbdfs("mount", "memory:1M"), str(file)], file, FAILURE, str(file))


def test_a_directory_as_the_target_of_one_source(tmp_path: Path) -> None:
    refused([*nbdfs("mount", "memory:1M"), str(tmp_path)], tmp_path, USAGE, "directory")


def test_no_permission_to_make_the_placeholder(tmp_path: Path, nobody_path: Path, unprivileged: list[str]) -> None:
    file = tmp_path / "disk.img"  # in a directory of root's
    refused([*unprivileged, *nbdfs("mount", "memory:1M", str(file))], file, FAILURE, "Permission denied", str(file))


def test_no_permission_to_cover_the_file(nobody_path: Path, unprivileged: list[str]) -> None:
    file = nobody_path / "disk.img"
    file.write_text("of another user")
    file.chmod(0o644)
    refused([*unprivileged, *nbdfs("mount", "memory:1M", str(file))], file, FAILURE, str(file))
    assert file.read_text() == "of another user"


def test_a_target_that_is_a_mount_already(mount_data_plane: Mounter) -> None:
    mounted = mount_data_plane("memory:1M")
    done = subprocess.run(nbdfs("mount", "memory:2M", str(mounted.file)), capture_output=True, text=True)
    assert done.returncode == FAILURE
    assert len(done.stderr.splitlines()) == 1
    assert "nbdfs umount" in done.stderr
    assert mounted.file.stat().st_size == 1 << 20


def test_a_source_that_is_in_use(mount_data_plane: Mounter) -> None:
    image = mount_data_plane.folder / "image"
    image.write_bytes(bytes(1 << 20))
    mount_data_plane(str(image))
    second = mount_data_plane.folder / "second.img"
    refused(nbdfs("mount", str(image), str(second)), second, FAILURE, "used by another program")


@pytest.fixture
def hidden() -> Iterator[Callable[[str], list[str]]]:
    """The words before a command that run it where one path is not there."""
    yield lambda path: ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {path} && exec "$@"', "sh"]


@pytest.mark.root
def test_no_fuse_device(tmp_path: Path, hidden: Callable[[str], list[str]]) -> None:
    file = tmp_path / "disk.img"
    refused([*hidden("/dev"), *nbdfs("mount", "memory:1M", str(file))], file, FAILURE, "/dev/fuse", "modprobe fuse")


@pytest.mark.root
def test_a_fuse_device_that_may_not_be_opened(nobody_path: Path, unprivileged: list[str]) -> None:
    file = nobody_path / "disk.img"
    closed = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        'touch "$0" && chmod 0 "$0" && mount --bind "$0" /dev/fuse && exec "$@"',
    ]
    device = nobody_path.parent / "device"
    refused([*closed, str(device), *unprivileged, *nbdfs("mount", "memory:1M", str(file))], file, FAILURE, "/dev/fuse")


@pytest.mark.root
def test_no_fusermount3(nobody_path: Path, unprivileged: list[str]) -> None:
    file = nobody_path / "disk.img"
    setpriv = subprocess.run(["sh", "-c", "command -v setpriv"], capture_output=True, text=True, check=True).stdout
    command = [setpriv.strip(), *unprivileged[1:], *nbdfs("mount", "memory:1M", str(file))]
    refused(command, file, FAILURE, "fusermount3", env={"PATH": str(nobody_path)})


def test_a_file_that_may_not_be_written(nobody_path: Path, unprivileged: list[str]) -> None:
    image, file = nobody_path / "image", nobody_path / "disk.img"
    image.write_bytes(bytes(1 << 20))
    image.chmod(0o444)
    refused([*unprivileged, *nbdfs("mount", str(image), str(file))], file, FAILURE, "use -r")


def test_umount_of_what_is_no_mount(tmp_path: Path) -> None:
    file = tmp_path / "disk.img"
    refused(nbdfs("umount", str(file)), file, FAILURE, "is not a mount")
    file.write_text("kept")
    refused(nbdfs("umount", str(file)), file, FAILURE, "is not a mount")
    assert file.read_text() == "kept"


def test_in_the_background_the_status_tells_too(tmp_path: Path) -> None:
    file = tmp_path / "disk.img"
    refused(nbdfs("mount", "-b", "/no/such/file", str(file)), file, FAILURE, "No such file")


def test_the_pid_file_is_the_last_thing_since_it_tells_that_all_is_up(mount_data_plane: Mounter) -> None:
    """Of a place to serve on that cannot be had and a PID file that cannot be written, the former is found first."""
    folder = mount_data_plane.folder
    (folder / "no-socket").touch()
    words = ["--listen", f"nbd+unix:///?socket={folder}/no-socket", "-P", f"{folder}/nowhere/pid"]
    refused(nbdfs("mount", *words, "memory:1M", f"{folder}/disk"), folder / "disk", FAILURE, "no socket")
