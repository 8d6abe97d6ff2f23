"""A LUKS volume mounted as a file, with a file system of the kernel's in it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from nbdfs.stack import open_stack
from tests.mounts import Mounter
from tests.tools import nbdfs

ROOTS = pytest.mark.parametrize("mount", ["data plane"], indirect=True)  # the image and its key are root's


@pytest.mark.root
@ROOTS
@pytest.mark.parametrize("words", [["--type", "luks1"], ["--type", "luks2", "--sector-size", "4k"]], ids=["1", "2-4k"])
def test_mkfs_and_loop_mount_on_top(words: list[str], tmp_path: Path, mount: Mounter) -> None:
    key, image, folder = tmp_path / "key", tmp_path / "image", tmp_path / "mnt"
    key.write_bytes(b"mounted")
    image.write_bytes(bytes(48 << 20))
    folder.mkdir()
    nbdfs("luks", "format", *words, "--pbkdf", "pbkdf2", "--iter-time", "10ms", "--passphrase", f"+{key}", image)
    spec = f"luks,passphrase=+{key}::{image}"
    for content in (b"first", b"second"):
        mounted = mount(spec)
        if content == b"first":
            subprocess.run(["mkfs.ext4", "-q", "-F", mounted.file], check=True)
        subprocess.run(["mount", "-o", "loop", mounted.file, folder], check=True)
        try:
            if content == b"second":
                assert (folder / "file").read_bytes() == b"first" * 100_000
            (folder / "file").write_bytes(content * 100_000)
        finally:
            subprocess.run(["umount", folder], check=True)
        mounted.umount()
    assert b"secondsecond" not in image.read_bytes()
    mounted = mount(spec)
    assert subprocess.run(["e2fsck", "-fn", mounted.file], capture_output=True).returncode == 0
    mounted.umount()


@pytest.mark.root
@ROOTS
async def test_the_mounted_bytes_are_the_stack_s(tmp_path: Path, mount: Mounter) -> None:
    key, image = tmp_path / "key", tmp_path / "image"
    key.write_bytes(b"mounted")
    image.write_bytes(bytes(18 << 20))
    nbdfs("luks", "format", "--pbkdf", "pbkdf2", "--iter-time", "10ms", "--passphrase", f"+{key}", image)
    spec = f"luks,passphrase=+{key}::{image}"
    mounted = mount(spec)
    with mounted.file.open("r+b") as file:
        file.seek(777)
        file.write(b"odd place")
    mounted.umount()
    async with open_stack(spec, readonly=True) as source:
        data = bytearray(9)
        await source.pread_into(memoryview(data), 777)
        assert data == b"odd place"
