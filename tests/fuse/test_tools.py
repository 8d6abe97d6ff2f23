"""The programs people use on disks and files, on mounted files."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mounts import Mounter

SIZE = 64 << 20
SPEC = f"memory:{SIZE}"


def run(*words: object) -> str:
    done = subprocess.run([str(word) for word in words], text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


@contextmanager
def loop_mounted(image: Path, folder: Path) -> Iterator[Path]:
    folder.mkdir()
    run("mount", "-o", "loop", image, folder)
    try:
        yield folder
    finally:
        run("umount", folder)


@pytest.mark.root
@pytest.mark.parametrize("mount", ["passthrough", "data plane"], indirect=True)
@pytest.mark.parametrize(
    "kind, make, check",
    [("ext4", ["mkfs.ext4", "-q"], ["e2fsck", "-fn"]), ("xfs", ["mkfs.xfs", "-q"], ["xfs_repair", "-n"])],
)
def test_file_system_in_a_loop_mount(mount: Mounter, kind: str, make: list[str], check: list[str]) -> None:
    file = mount("memory:320M").file
    run(*make, file)
    contents = {f"dir{number % 3}/file{number}": noise(50_000 * number, number) for number in range(20)}
    for attempt in (1, 2):  # the second time everything comes from the disk
        with loop_mounted(file, mount.folder / f"loop{attempt}") as folder:
            for name, content in contents.items():
                if attempt == 1:
                    (folder / name).parent.mkdir(exist_ok=True)
                    (folder / name).write_bytes(content)
                assert (folder / name).read_bytes() == content
    run(*check, file)


def test_sparse_copies(mount: Mounter) -> None:
    file = mount(SPEC).file
    copy = mount.folder / "copy"
    pieces = {1 << 20: noise(300_000, 1), 40 << 20: noise(9_999, 2)}

    def write() -> None:
        with file.open("r+b") as disk:
            for offset, data in pieces.items():
                disk.seek(offset)
                disk.write(data)

    mount.do(write)
    mount.run("cp", "--sparse=auto", str(file), str(copy))
    mount.run("cmp", str(file), str(copy))
    assert copy.stat().st_blocks * 512 < 1 << 20
    mount.run("cp", "--sparse=never", str(copy), str(file))
    mount.run("cmp", str(file), str(copy))


def test_small_tools(mount: Mounter) -> None:
    file = mount(SPEC).file
    mount.run("dd", "if=/dev/urandom", f"of={file}", "bs=1M", "count=8", "conv=notrunc,fsync")
    before = mount.do(file.read_bytes)
    mount.run("fallocate", "-p", "-o", "1M", "-l", "2M", str(file))
    mount.run("truncate", "-s", str(SIZE), str(file))
    mount.run("touch", str(file))
    mount.run("chmod", "0640", str(file))
    after = mount.do(file.read_bytes)
    assert after == before[: 1 << 20] + bytes(2 << 20) + before[3 << 20 :]
    mount.run("dd", "if=/dev/zero", f"of={file}", "bs=1M", "count=1")  # O_TRUNC: all of it is gone
    assert not any(mount.do(file.read_bytes))


def test_qemu_img_both_ways(mount: Mounter) -> None:
    file = mount(SPEC).file
    original, back = mount.folder / "original.qcow2", mount.folder / "back.raw"
    mount.run("qemu-img", "create", "-q", "-f", "qcow2", str(original), "64M")
    mount.run("qemu-io", "-c", "write -P 0x5a 1M 3M", "-c", "write -P 0xa5 60M 4M", str(original))
    mount.run("qemu-img", "convert", "-n", "-O", "raw", str(original), str(file))
    mount.run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", str(original), str(file))
    mount.run("qemu-img", "convert", "-O", "raw", str(original), str(file))  # opens it anew and truncates
    mount.run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", str(original), str(file))
    mount.run("qemu-img", "convert", "-f", "raw", "-O", "raw", str(file), str(back))
    mount.run("qemu-img", "compare", str(file), str(back))
    assert back.stat().st_blocks * 512 < 9 << 20


def test_hole_walk(mount: Mounter) -> None:
    file = mount(SPEC).file
    blocks = sorted(random.Random(3).sample(range(SIZE // 4096), 100))

    def walk() -> list[tuple[int, int]]:
        runs = []
        with file.open("r+b", buffering=0) as disk:
            for block in blocks:
                os.pwrite(disk.fileno(), b"x" * 4096, block * 4096)
            at = 0
            while True:
                try:
                    data = os.lseek(disk.fileno(), at, os.SEEK_DATA)
                except OSError:
                    return runs
                at = os.lseek(disk.fileno(), data, os.SEEK_HOLE)
                runs.append((data, at))

    found = [block for start, end in mount.do(walk) for block in range(start // 4096, end // 4096)]
    assert found == blocks


def test_parallel_readers(mount: Mounter) -> None:
    size = 8 << 20
    file = mount(f"memory:{size}").file
    content = noise(size, 4)

    def fill() -> None:
        with file.open("r+b") as disk:
            disk.write(content)

    mount.do(fill)
    script = f"sha256sum < {file}"
    with ThreadPoolExecutor(32) as pool:
        sums = list(pool.map(lambda _: mount.run("sh", "-c", script).stdout.split()[0], range(32)))
    assert set(sums) == {hashlib.sha256(content).hexdigest()}
