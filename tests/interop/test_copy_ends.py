"""Copies whose ends are block devices of the kernel, servers under TLS, and servers on TCP."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.certificates import certificates
from tests.interop.servers import Server, nbdkit, serve
from tests.tools import complaint, nbdfs

__all__ = ["certificates", "serve"]

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A file of 4 MiB: data, a hole, data."""
    path = tmp_path / "image"
    path.write_bytes(os.urandom(MIB))
    os.truncate(path, 3 * MIB)
    with path.open("ab") as file:
        file.write(os.urandom(MIB))
    return path


@contextmanager
def loop(path: Path, *words: str) -> Iterator[Path]:
    """A block device over a file."""
    device = subprocess.check_output(["losetup", "--find", "--show", *words, path], text=True).strip()
    try:
        yield Path(device)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    """A block device of 4 MiB that holds something else."""
    path = tmp_path / "device"
    path.write_bytes(b"old" * (4 * MIB // 3) + b"!")
    with loop(path) as found:
        yield found


@pytest.mark.root
def test_a_file_and_a_block_device(image: Path, device: Path, tmp_path: Path) -> None:
    nbdfs("copy", "--verify", image, device)
    assert device.read_bytes() == image.read_bytes()
    nbdfs("copy", device, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == image.read_bytes()


@pytest.mark.root
def test_two_files_share_their_blocks_where_the_file_system_can(tmp_path: Path) -> None:
    disk, folder = tmp_path / "disk", tmp_path / "mounted"
    folder.mkdir()
    with disk.open("wb") as file:
        file.truncate(320 * MIB)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", disk], check=True)
    subprocess.run(["mount", "-o", "loop", disk, folder], check=True)
    try:
        (folder / "image").write_bytes(content := os.urandom(40 * MIB + 5))
        nbdfs("copy", folder / "image", folder / "clone")
        nbdfs("copy", "--allocated", folder / "image", folder / "own")
        for name, shared in (("clone", True), ("own", False)):
            assert (folder / name).read_bytes() == content
            extents = subprocess.check_output(["filefrag", "-v", folder / name], text=True)
            assert ("shared" in extents) is shared
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.root
def test_two_block_devices(image: Path, device: Path) -> None:
    with loop(image, "--read-only") as source:
        nbdfs("copy", source, device)
        assert device.read_bytes() == image.read_bytes()
        assert "cannot be written" in complaint("copy", device, source)


@pytest.mark.root
def test_a_block_device_and_a_server(image: Path, device: Path, tmp_path: Path) -> None:
    with nbdkit(tmp_path, "memory", "4M") as uri:
        nbdfs("copy", image, uri)
        nbdfs("copy", uri, device)
        assert device.read_bytes() == image.read_bytes()
        nbdfs("copy", "pattern:4M", uri)
        nbdfs("copy", "--verify", device, uri)


@pytest.mark.root
def test_a_block_device_that_is_too_small_stays_untouched(device: Path) -> None:
    before = device.read_bytes()
    assert "is too small" in complaint("copy", "null:5M", device)
    assert device.read_bytes() == before


@pytest.mark.root
def test_a_block_device_is_not_copied_onto_itself(device: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(device)
    assert "both source and destination" in complaint("copy", device, tmp_path / "link")


def test_both_ends_under_tls(serve: Server, certificates: Path, image: Path, tmp_path: Path) -> None:
    words = ["--tls", "require", "--tls-certificates", str(certificates)]
    trust = f"&tls-certificates={certificates}&tls-hostname=localhost"
    one, two = (
        "nbds" + serve(spec, *words).uri.partition("&")[0].removeprefix("nbds").removeprefix("nbd") + trust
        for spec in ("memory:4M", "memory:4M")
    )
    nbdfs("copy", image, one)
    nbdfs("copy", "--verify", one, two)
    nbdfs("copy", two, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == image.read_bytes()
    assert "requires TLS" in complaint("copy", two.partition("&")[0].replace("nbds", "nbd", 1), "null:")


@pytest.mark.parametrize("connections", [1, 3])
def test_both_ends_on_tcp(serve: Server, image: Path, tmp_path: Path, connections: int) -> None:
    with ExitStack() as stack:
        (tmp_path / "kit").mkdir()
        one = stack.enter_context(nbdkit(tmp_path / "kit", "file", str(image)))
        two = serve("memory:4M", where=("--listen", "nbd://localhost:0")).uri
        three = serve("memory:4M", where=("--listen", "nbd://localhost:0")).uri
        nbdfs("copy", f"--connections={connections}", one, two)
        nbdfs("copy", f"--connections={connections}", "--request-size=100k", two, three)
        nbdfs("copy", three, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == image.read_bytes()
