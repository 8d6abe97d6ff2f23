"""The layers for testers: error, delay, log, stats, checkwrite."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from nbdfs.backends.error import parse_rate
from nbdfs.checked import Checked
from nbdfs.errors import UsageError, UserError
from nbdfs.source import Caps, read
from nbdfs.stack import open_stack

OPERATIONS: dict[str, Callable[[Checked], Awaitable[object]]] = {
    "read": lambda door: read(door, 0, 512),
    "write": lambda door: door.pwrite(memoryview(bytes(512)), 0),
    "trim": lambda door: door.trim(0, 512),
    "zero": lambda door: door.zero(0, 512),
    "extents": lambda door: door.extents(0, 512),
}


async def failing(door: Checked) -> dict[str, int]:
    """The operations that fail, with their errno."""
    found = {}
    for name, operation in OPERATIONS.items():
        try:
            await operation(door)
        except OSError as error:
            found[name] = error.errno or 0
    return found


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", {}),
        ("rate=0%", {}),
        ("rate=100%", dict.fromkeys(OPERATIONS, errno.EIO)),
        ("rate=1,errno=ENOSPC,read-rate=0", dict.fromkeys(["write", "trim", "zero", "extents"], errno.ENOSPC)),
        ("write-rate=1,zero-rate=1,zero-errno=EPERM", {"write": errno.EIO, "zero": errno.EPERM}),
        ("extents-rate=100%,extents-errno=ENOMEM", {"extents": errno.ENOMEM}),
        ("rate=1,file=/no/such/file", {}),
        ("rate=1,file=/no/such/file,trim-file=/", {"trim": errno.EIO}),
    ],
)
async def test_errors(options: str, expected: dict[str, int]) -> None:
    async with open_stack(f"error,{options}::null:1M" if options else "error::null:1M") as door:
        assert await failing(door) == expected


async def test_errors_come_and_go_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "inject"
    async with open_stack(f"error,read-rate=1,file={file}::null:1M") as door:
        assert await failing(door) == {}
        file.touch()
        assert await failing(door) == {"read": errno.EIO}
        file.unlink()
        assert await failing(door) == {}


async def test_a_failed_write_did_not_happen() -> None:
    async with open_stack("error,write-rate=1::memory:1M") as door:
        with pytest.raises(OSError, match=r"error: .* \(injected into write\)"):
            await door.pwrite(memoryview(b"x"), 0)
        assert await read(door, 0, 1) == b"\0"


async def test_the_rate_is_kept_and_the_seed_repeats() -> None:
    outcomes = []
    for _ in range(2):
        async with open_stack("error,rate=10%,seed=5::null:1M") as door:
            failed = []
            for number in range(2000):
                try:
                    await read(door, 0, 1)
                except OSError:
                    failed.append(number)
        outcomes.append(failed)
    assert outcomes[0] == outcomes[1]
    assert 140 < len(outcomes[0]) < 260


def test_rates() -> None:
    assert [parse_rate(text) for text in ("0", "1", "0.25", "25%", "100%", "0%")] == [0, 1, 0.25, 0.25, 1, 0]
    for wrong in "", "%", "101%", "1.5", "-1", "x", "nan":
        with pytest.raises(UsageError, match="is no rate"):
            parse_rate(wrong)


async def test_delays(autojump_clock: MockClock) -> None:
    async with open_stack("delay,read=3,write=500ms,zero=7,trim=0,extents=2m::null:1M") as door:
        assert Caps.IMMEDIATE not in door.info.caps
        for name, seconds in {"read": 3, "write": 0.5, "trim": 0, "zero": 7, "extents": 120}.items():
            before = trio.current_time()
            await OPERATIONS[name](door)
            assert trio.current_time() - before == pytest.approx(seconds), name
        before = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(OPERATIONS["read"], door)
        assert trio.current_time() - before == pytest.approx(3), "they wait at the same time"


async def test_delayed_opening_and_closing(autojump_clock: MockClock) -> None:
    start = trio.current_time()
    async with open_stack("delay,open=5,close=100::null:1M") as door:
        assert trio.current_time() - start == pytest.approx(5)
        assert Caps.IMMEDIATE in door.info.caps
    assert trio.current_time() - start == pytest.approx(5 + 30), "closing has a deadline"


async def test_no_fast_zero() -> None:
    async with open_stack("delay,fast-zero=false,zero=1h::null:1M") as door:
        assert Caps.FAST_ZERO in door.info.caps, "else a client that asks for one is told that it breaks the protocol"
        with pytest.raises(OSError) as refusal:
            await door.zero(0, 512, fast=True)
        assert refusal.value.errno == errno.ENOTSUP


async def test_log(tmp_path: Path) -> None:
    file = tmp_path / "log"
    async with open_stack(f"log,file={file}::error,zero-rate=1::memory:1M") as door:
        await read(door, 512, 1024)
        await door.pwrite(memoryview(b"x"), 0, fua=True)
        with pytest.raises(OSError):
            await door.zero(0, 4096)
        await door.flush()
    lines = file.read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6} ", line) for line in lines)
    said = [line[27:] for line in lines]
    assert said[:2] == ["Read id=1 offset=0x200 count=0x400 ...", "...Read id=1 return=0"]
    assert said[2].startswith("Write id=2 offset=0x0 count=0x1")
    assert any(line.startswith("Zero ") and " may_trim=1" in line for line in said)
    assert any(re.fullmatch(r"\.\.\.Zero id=\d return=-1 error=EIO", line) for line in said)
    async with open_stack(f"log,file={file},append::null:1M") as door:
        await read(door, 0, 1)
    assert file.read_text().splitlines()[:-2] == lines
    async with open_stack(f"log,file={file}::null:1M"):
        pass
    assert file.read_text() == ""


async def test_a_log_that_cannot_be_written_fails_no_request(caplog: pytest.LogCaptureFixture) -> None:
    async with open_stack("log,file=/dev/full::memory:1M") as door:
        await door.pwrite(memoryview(b"data"), 0)
        assert await read(door, 0, 4) == b"data"
    assert caplog.messages == ["the log /dev/full ends here: No space left on device"]
    with pytest.raises(UserError, match=r"log: .*No such file"):
        async with open_stack("log,file=/no/such/log::memory:1M"):
            pass


async def test_stats(tmp_path: Path) -> None:
    file = tmp_path / "stats"
    async with open_stack(f"stats,file={file}::error,trim-rate=1::null:1M") as door:
        for size in 4096, 4096, 65536:
            await read(door, 0, size)
        await door.pwrite(memoryview(bytes(512)), 0)
        with pytest.raises(OSError):
            await door.trim(0, 4096)
        await door.extents(0, 1 << 20)
    text = file.read_text()
    assert re.search(r"^total: 6 ops, [\d.]+ s, 72.50 KiB, ", text, re.MULTILINE)
    assert re.search(r"^read: 3 ops, [\d.]+ s, mean \d+ us, longest \d+ us, 72.00 KiB, ", text, re.MULTILINE)
    assert re.search(r"^  4.00 KiB and more:\s+66.7% \(2 ops\)$", text, re.MULTILINE)
    assert re.search(r"^extents: 1 ops, .* 1.00 MiB, ", text, re.MULTILINE)
    assert re.search(r"^trim: 1 ops, 1 failed, ", text, re.MULTILINE)
    with pytest.raises(UserError, match="stats: cannot write /no/such/stats"):
        async with open_stack("stats,file=/no/such/stats::null:1M"):
            pass


async def test_stats_that_cannot_be_written_are_told(caplog: pytest.LogCaptureFixture) -> None:
    async with open_stack("stats,file=/dev/full::null:1M"):
        pass
    assert caplog.messages == ["the figures of stats are lost: No space left on device"]


async def test_stats_that_nobody_takes_hold_up_no_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As on a terminal that was stopped."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    writing = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(512))
    with trio.fail_after(20):
        async with open_stack(f"stats,file={pipe}::null:1M"):
            pass
    assert caplog.messages == ["the figures of stats are lost: nobody took them within 1 s"]
    os.close(reading)
    os.close(writing)


async def test_stats_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    async with open_stack("stats::null:1M") as door:
        await read(door, 0, 1)
    assert "read: 1 ops" in capfd.readouterr().err


async def test_checkwrite_never_writes() -> None:
    async with open_stack('checkwrite::data:@100 "data" @1M') as door:
        await door.pwrite(memoryview(b"\0data\0"), 99)
        await door.zero(0, 100)
        await door.trim(104, (1 << 20) - 104)
        for wrong in (
            lambda: door.pwrite(memoryview(b"date"), 100),
            lambda: door.zero(99, 2),
            lambda: door.trim(0, 101),
        ):
            with pytest.raises(OSError, match="are not those expected") as refusal:
                await wrong()
            assert refusal.value.errno == errno.EIO
        assert await read(door, 100, 4) == b"data"
