"""Copies of random devices to themselves: the destination checks every byte, under errors and delays too."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.tools import complaint, nbdfs

PAIR = "sparse-random,seed=3,percent=30,runlength=1M:256M"


@pytest.mark.parametrize(
    "device",
    [PAIR, f"error,seed=1,rate=2%::{PAIR}", f"delay,read=3ms,write=1ms,zero=2ms::{PAIR}", "random,seed=1:64M",
     "sparse-random,seed=1,random-content,percent=90:64M", "checkwrite::data:( 0x55 0xAA @64k )*100 @10M",
     pytest.param("sparse-random,seed=1:1T", marks=pytest.mark.long)],
)  # fmt: skip
def test_a_device_is_copied_to_itself(device: str) -> None:
    nbdfs("copy", "--retry", "20", device, device)


@pytest.mark.parametrize(
    ("source", "destination", "message"),
    [
        (PAIR, PAIR.replace("seed=3", "seed=4"), "seed 4"),
        (f"error,seed=1,read-rate=5%::{PAIR}", PAIR, "injected into read"),
        (PAIR, f"error,seed=1,write-rate=5%::{PAIR}", "injected into write"),
        (PAIR, "full:256M", "No space left on device"),
        ("data:@1M 1", "zero:2M", "not those expected"),
    ],
)
def test_a_copy_that_fails_says_so(source: str, destination: str, message: str) -> None:
    said = complaint("copy", source, destination)
    assert message in said
    assert "incomplete" in said


def test_a_flush_that_fails_fails_the_copy(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    said = complaint("copy", "random,seed=1:1M", f"error,flush-rate=1::{tmp_path}/disk.img")
    assert "injected into flush" in said


def test_the_file_is_the_device(tmp_path: Path) -> None:
    """By way of a file and back: the device finds nothing wrong, and the map is that of the file."""
    path = tmp_path / "disk.img"
    nbdfs("copy", PAIR, path)
    nbdfs("copy", path, PAIR)
    maps = [json.loads(nbdfs("info", "--map", "--json", spec).stdout) for spec in (PAIR, path)]
    assert maps[0] == maps[1]
    with path.open("r+b") as file:
        file.seek(100_000_000)
        byte = file.read(1)
        file.seek(100_000_000)
        file.write(bytes([byte[0] ^ 1]))
    assert "seed 3" in complaint("copy", path, PAIR)


def test_qemu_compares_equal(tmp_path: Path) -> None:
    for name in "a", "b":
        nbdfs("copy", PAIR, tmp_path / name)
    subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "raw", tmp_path / "a", tmp_path / "b"], check=True)
