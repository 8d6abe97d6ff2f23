"""cow and cache killed with SIGKILL at random: what was flushed is there, and the rest is old or new, nothing else."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nbdfs.cli.main import main
from nbdfs.source import read
from nbdfs.stack import open_stack
from tests.conftest import ROOT

SIZE = 1_000_001


def run_and_kill(spec: str, seed: int) -> list[str]:
    """The steps a worker told of before it was killed in the middle of one."""
    chance = random.Random(seed)
    command = [sys.executable, "-m", "tests.kill_worker", spec, str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout
        steps = [process.stdout.readline() for _ in range(chance.randrange(2, 150))]
        process.send_signal(signal.SIGKILL)
        steps += process.stdout.readlines()
    assert process.returncode == -signal.SIGKILL, steps[-1:]
    return [step for step in steps if step.endswith("\n")]


class Model:
    """What a device must hold: `flushed` for certain, or where written since then one of the later values."""

    def __init__(self, content: bytes) -> None:
        self.flushed = bytearray(content)

    def check(self, steps: list[str], found: bytes) -> None:
        """Hold `found` against the steps; it is the truth from then on."""
        last = max((index for index, step in enumerate(steps) if step == "f\n"), default=-1)
        unsure: list[tuple[int, int, int]] = []
        for index, step in enumerate(steps):
            if step != "f\n":
                offset, length, byte = map(int, step.split()[1:])
                if index < last:
                    self.flushed[offset : offset + length] = bytes([byte]) * length
                else:
                    unsure.append((offset, length, byte))
        expected = bytearray(self.flushed)
        for offset, length, _ in unsure:  # whatever is there, if it is one of the values it may have
            for at in range(offset, offset + length):
                if found[at] != expected[at]:
                    may = {byte for start, size, byte in unsure if start <= at < start + size}
                    assert found[at] in may, f"byte {at} is {found[at]:#x}, none of {may} or {expected[at]:#x}"
                    expected[at] = found[at]
        assert found == expected
        self.flushed[:] = found


async def content(spec: str) -> bytes:
    async with open_stack(spec) as source:
        return bytes(await read(source, 0, source.info.size))


SPECS = {
    "cow": "cow,overlay={0}.overlay::{0}",
    "cow-small-blocks": "cow,overlay={0}.overlay,block=512::{0}",
    "read": "cache,cache={0}.cache,block=4k,size=128k::{0}",
    "writethrough": "cache,cache={0}.cache,block=4k,size=128k,mode=writethrough::{0}",
    "writeback": "cache,cache={0}.cache,block=4k,size=128k,mode=writeback::{0}",
    "writeback-in-memory": "cache,mode=writeback::{0}",
}


async def campaign(name: str, folder: Path, rounds: int) -> None:
    path = folder / "image"
    start = random.Random(name).randbytes(SIZE)
    path.write_bytes(start)
    spec = SPECS[name].format(path)
    model = Model(start)
    for seed in range(rounds):
        steps = run_and_kill(spec, seed)
        model.check(steps, await content(spec))
        if name.startswith("cow"):
            assert path.read_bytes() == start
        else:
            assert path.read_bytes() == model.flushed


@pytest.mark.parametrize("name", SPECS)
async def test_killed_at_random(name: str, tmp_path: Path) -> None:
    await campaign(name, tmp_path, 3)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", SPECS)
async def test_killed_at_random_often(name: str, tmp_path: Path) -> None:
    await campaign(name, tmp_path, 60)


def test_a_commit_killed_at_random_is_finished_by_the_next(tmp_path: Path) -> None:
    import trio

    path = tmp_path / "image"
    path.write_bytes(random.Random(5).randbytes(SIZE))
    spec = f"cow,overlay={tmp_path}/overlay::{path}"
    chance = random.Random(6)
    for seed in range(4):
        run_and_kill(spec, seed)
        shown = trio.run(content, spec)
        for _ in range(3):
            command = [sys.executable, "-m", "nbdfs", "commit", spec]
            with subprocess.Popen(command, cwd=ROOT) as process:
                try:
                    process.wait(chance.uniform(0.15, 0.6))
                except subprocess.TimeoutExpired:
                    process.kill()
        assert main(["commit", spec]) == 0
        assert path.read_bytes() == shown
        assert trio.run(content, spec) == shown


def test_commit_says_what_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for spec, says in (
        ("memory:1M", "has no cow layer in front"),
        ("cow::memory:1M", "without overlay=FILE"),
        (f"cow,overlay={tmp_path}/none::memory:1M", "No such file"),
        (f"cow,overlay={tmp_path}/none::readonly::memory:1M", "read-only"),
    ):
        assert main(["commit", spec]) in (1, 2)
        assert says in capsys.readouterr().err
