"""A terminal that was stopped, or a pipe that is full, holds up nobody who shows how work gets on."""

from __future__ import annotations

import os
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nbdfs import fetching, lossy
from nbdfs.fetching import FetchBar, FetchLines
from nbdfs.progress import Bar, Lines, Progress
from nbdfs.source import Fetching


def terminal(columns: int) -> tuple[int, int]:
    reading, writing = os.openpty()
    termios.tcsetwinsize(writing, (24, columns))
    return reading, writing


@pytest.fixture(params=["pipe", "terminal", "narrow terminal", "stopped terminal"])
def unread(request: pytest.FixtureRequest) -> Iterator[int]:
    """The writing end of what nobody reads."""
    reading, writing = os.pipe() if request.param == "pipe" else terminal(61 if "narrow" in request.param else 120)
    if "stopped" in request.param:
        termios.tcflow(writing, termios.TCOOFF)
    yield writing
    assert os.get_blocking(writing)
    os.close(reading)
    os.close(writing)


def bar(descriptor: int) -> Callable[[int], None]:
    progress, shown = Progress(1 << 40), Bar(open(descriptor, "w", closefd=False))  # noqa: SIM115

    def show(step: int) -> None:
        progress.advance(step)
        shown.finish(progress, complete=False)

    return show


def lines(descriptor: int) -> Callable[[int], None]:
    progress, shown = Progress(100), Lines(descriptor)

    def show(step: int) -> None:
        progress.done = step % 100
        shown.show(progress)

    return show


def fetch(shown: FetchBar | FetchLines, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def show(step: int) -> None:
        found = Fetching(name="name", pieces=1 << 20, here=step, peers=1, download_rate=1, upload_rate=1, waiting=())
        monkeypatch.setattr(fetching, "fetches", lambda _: [found])
        shown.show([])
        shown.finish([], complete=False)

    return show


@pytest.mark.parametrize("what", ["bar", "lines", "fetch bar", "fetch lines"])
def test_nobody_waits_for_who_does_not_read(what: str, unread: int, monkeypatch: pytest.MonkeyPatch) -> None:
    show = {
        "bar": lambda: bar(unread),
        "lines": lambda: lines(unread),
        "fetch bar": lambda: fetch(FetchBar(open(unread, "w", closefd=False)), monkeypatch),  # noqa: SIM115
        "fetch lines": lambda: fetch(FetchLines(unread), monkeypatch),
    }[what]()

    def show_much() -> None:
        for step in range(10_000):
            show(step)

    thread = threading.Thread(target=show_much, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


def test_what_a_file_gets_goes_behind_what_is_there(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        file.write("before ")
        file.flush()
        assert lossy.write(file.fileno(), b"after")
    assert (tmp_path / "file").read_text() == "before after"
