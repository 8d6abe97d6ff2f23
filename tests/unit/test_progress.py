"""The bar, the lines, and how sizes and times read."""

from __future__ import annotations

import io
import os

import pytest
import trio
import trio.testing

from nbdfs.progress import Bar, Lines, Progress, human_size, human_time, showing


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0"), (999, "999"), (1000, "0.98k"), (1 << 20, "1.00M"), (15 << 20, "15.0M"), (999 << 30, "999G"),
     (1 << 63, "8.00E"), (2000 << 60, "2000E")],
)  # fmt: skip
def test_sizes_have_three_digits(size: int, text: str) -> None:
    assert human_size(size) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3723, "1:02:03")])
def test_times(seconds: float, text: str) -> None:
    assert human_time(seconds) == text


async def test_lines_tell_each_percent_once_and_100_only_at_the_end(autojump_clock: trio.abc.Clock) -> None:
    reading, writing = os.pipe()
    progress = Progress(200)
    async with showing(progress, Lines(writing)):
        for _ in range(4):
            progress.advance(50)
            await trio.sleep(1)
    os.close(writing)
    with open(reading, "rb") as file:
        assert file.read() == b"25/100\n50/100\n75/100\n99/100\n100/100\n"


async def test_lines_of_failed_work_never_say_100() -> None:
    reading, writing = os.pipe()
    progress = Progress(1)
    progress.advance(1)
    with pytest.raises(ExceptionGroup):
        async with showing(progress, Lines(writing)):
            await trio.testing.wait_all_tasks_blocked()
            raise OSError("no")
    os.close(writing)
    with open(reading, "rb") as file:
        assert file.read() == b"99/100\n"


async def test_a_bar_tells_share_bytes_rate_and_time_left(autojump_clock: trio.abc.Clock) -> None:
    stream = io.StringIO()
    progress = Progress(8 << 20)
    async with showing(progress, Bar(stream, trio.current_time)):
        await trio.sleep(1)
        progress.advance(2 << 20)
        await trio.sleep(0.9)
    frames = stream.getvalue().split("\r")
    assert " 25% [" in frames[-1]
    assert "2.00M of 8.00M, 1.05M/s, 0:06 left" in frames[-1]
    assert all(len(frame.removesuffix("\n").removesuffix("\033[K")) < 80 for frame in frames)


async def test_work_of_unknown_length_has_no_share(autojump_clock: trio.abc.Clock) -> None:
    stream = io.StringIO()
    progress = Progress()
    async with showing(progress, Bar(stream, trio.current_time)):
        progress.advance(1024)
        await trio.sleep(1)
    assert "%" not in stream.getvalue()
    assert "1.00k, 1.00k/s" in stream.getvalue()


async def test_work_goes_on_when_nobody_looks_any_more(autojump_clock: trio.abc.Clock) -> None:
    reading, writing = os.pipe()
    progress = Progress(100)
    async with showing(progress, Lines(writing)):
        await trio.sleep(1)
        os.close(reading)
        progress.advance(50)
        await trio.sleep(1)
        progress.advance(50)
    os.close(writing)
    assert progress.done == 100
