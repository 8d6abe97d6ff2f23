"""A Linux kernel's dm-crypt, in a guest, opens what we made and wrote, and sees the same bytes."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
from pathlib import Path

import pytest

from nbdfs.source import Source, read
from nbdfs.stack import open_stack
from tests.conftest import ROOT
from tests.tools import nbdfs

GUEST = ROOT / "tests" / "guest" / "run-in-guest"
CONTENT = hashlib.shake_128(b"guest").digest(1 << 20)
VOLUMES = [["--type", "luks1"], ["--type", "luks2"], ["--type", "luks2", "--sector-size", "4k"],
           ["--type", "luks1", "--cipher", "aes-cbc-essiv:sha256", "--key-size", "256"]]  # fmt: skip

# The guest mounts nothing of the host: it gets a copy of the folder, and only the output comes back.
JOB = """set -e
for image in *.img; do
    cryptsetup open --key-file key $image plain
    echo "$image $(head -c 1048576 /dev/mapper/plain | sha256sum | cut -d' ' -f1)"
    cryptsetup close plain
done"""


@pytest.mark.long
@pytest.mark.root
@pytest.mark.timeout(900)  # the first run builds the guest
async def test_dm_crypt_reads_what_we_write(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"for the \0 kernel\n")
    for number, words in enumerate(VOLUMES):
        image = tmp_path / f"{number}.img"
        image.write_bytes(bytes(18 << 20))
        nbdfs("luks", "format", *words, "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000",
              "--passphrase", f"+{key}", image)  # fmt: skip
        async with open_stack(f"luks,passphrase=+{key}::{image}") as source:
            await _write_in_odd_pieces(source)
            assert await read(source, 0, len(CONTENT)) == CONTENT
    command = [GUEST, "--share", tmp_path, "--timeout", "600", "--", "bash", "-c", JOB]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    digest = hashlib.sha256(CONTENT).hexdigest()
    seen = [line for line in done.stdout.splitlines() if ".img " in line]
    assert seen == [f"{number}.img {digest}" for number in range(len(VOLUMES))]


async def _write_in_odd_pieces(source: Source) -> None:
    ends = [0, 511, 512, 5000, 12_288, 400_001, len(CONTENT)]
    for start, end in itertools.pairwise(ends):
        await source.pwrite(memoryview(CONTENT)[start:end], start)
    await source.flush()
