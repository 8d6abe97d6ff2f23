"""copy_file_range(2) between files of one mount, whose sources wait in different ways, or do not answer."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.mounts import Mounter, fails_with, nbdfs, opened

SIZE = 1 << 20


def mount_two(mount: Mounter, source: str, target: str, *words: str) -> tuple[Path, Path]:
    folder = mount.folder / "folder"
    mount.do(folder.mkdir)
    mount(f"source={source}", *words, name="folder")
    mount.run(*nbdfs("add", str(folder), f"target={target}"))
    return folder / "source", folder / "target"


def copy(source: Path, target: Path) -> int:
    with opened(source) as taken, opened(target) as given:
        return os.copy_file_range(taken, given, SIZE, 0, 0)


@pytest.mark.parametrize("source", ["memory:1M", "./image", "delay,read=1ms::memory:1M"])
def test_copy_into_a_source_that_waits(mount: Mounter, source: str) -> None:
    image = mount.folder / "image"
    mount.do(lambda: image.write_bytes(bytes(SIZE)))
    taken, given = mount_two(mount, source.replace("./", f"{mount.folder}/"), "delay,write=1ms::memory:1M")
    data = os.urandom(SIZE)

    def run() -> None:
        with taken.open("r+b") as file:
            file.write(data)
        assert copy(taken, given) == SIZE
        assert given.read_bytes() == data

    mount.do(run)


def test_copy_into_a_source_that_does_not_answer(mount: Mounter) -> None:
    """It fails after the deadline, as every request does, and holds up no other file."""
    taken, given = mount_two(mount, "memory:1M", "delay,write=1h::memory:1M", "-o", "timeout=1s")

    def run() -> None:
        with fails_with(errno.EIO):
            copy(taken, given)
        assert taken.read_bytes() == bytes(SIZE)

    mount.do(run)
