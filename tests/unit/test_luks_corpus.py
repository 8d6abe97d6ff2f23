"""Every LUKS image of the corpus: read rightly, or refused in words."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from nbdfs.errors import UserError
from nbdfs.stack import open_stack
from tests.luks_images import HOSTILE, VOLUMES, Image, digest, spec, unpack

MOST_MEMORY = 512 << 20  # bytes


@pytest.fixture(scope="module")
def folder(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    images = tmp_path_factory.mktemp("luks")
    unpack(corpus, images)
    return images


@pytest.mark.parametrize("image", VOLUMES, ids=str)
async def test_volume(image: Image, folder: Path) -> None:
    if image.refusal:
        with pytest.raises(UserError, match=image.refusal) as raised:
            await digest(spec(image, folder))
        assert "\n" not in str(raised.value)
    else:
        assert await digest(spec(image, folder)) == image.sha256


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_image_is_refused_by_name_and_not_written(name: str, folder: Path) -> None:
    image = folder / f"{name}.img"
    before = image.read_bytes()
    with pytest.raises(UserError, match=HOSTILE[name]) as raised:
        async with open_stack(f"luks,passphrase={_passphrase(name)}::{image}"):
            pytest.fail("it was opened")
    assert "\n" not in str(raised.value)
    assert image.read_bytes() == before


def test_hostile_images_take_little_memory(folder: Path) -> None:
    specs = [f"luks,passphrase={_passphrase(name)}::{folder}/{name}.img" for name in HOSTILE]
    script = "import sys; from tests.unit.test_luks_corpus import try_all; try_all(sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", script, *specs], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    refused, peak = map(int, done.stdout.split())
    assert refused == len(HOSTILE)
    assert peak < MOST_MEMORY


def try_all(specs: list[str]) -> None:
    """Open each; print how many are refused, and the most memory that took."""
    import trio

    async def refuse(stack: str) -> int:
        try:
            async with open_stack(stack):
                return 0
        except UserError:
            return 1

    refused = sum(trio.run(refuse, stack) for stack in specs)
    peak = re.search(r"VmHWM:\s+([0-9]+) kB", Path("/proc/self/status").read_text())
    assert peak
    print(refused, int(peak[1]) << 10)


@pytest.mark.parametrize(("name", "size"), [("l1-cut-at-payload", 0), ("l1-cut-payload-odd", 512)])
async def test_cut_payload_has_the_whole_sectors_that_are_left(name: str, size: int, folder: Path) -> None:
    async with open_stack(f"luks,passphrase=plain32::{folder}/{name}.img", readonly=True) as source:
        assert source.info.size == size


def test_upstream_verdicts(folder: Path) -> None:
    """cryptsetup's own generated headers: `info` shows what must load and refuses what must not."""
    verdicts = [line.split() for line in (folder / "VERDICTS.tsv").read_text().splitlines()]
    assert len(verdicts) > 50
    script = "import sys; from tests.unit.test_luks_corpus import load_all; load_all(sys.argv[1:])"
    names = [str(folder / name) for name, _ in verdicts]
    done = subprocess.run([sys.executable, "-c", script, *names], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["F" if verdict == "F" else "R" for _, verdict in verdicts]


def load_all(paths: list[str]) -> None:
    """Print R for each header that can be loaded, F for one that cannot."""
    import trio

    from nbdfs.backends.luks.device import load_header

    async def load(path: str) -> str:
        async with open_stack(path, readonly=True) as device:
            try:
                await load_header(device)
            except UserError:
                return "F"
            return "R"

    print(*(trio.run(load, path) for path in paths))


def _passphrase(name: str) -> str:
    return "plain32" if name.startswith("l1-") else "essiv512"
