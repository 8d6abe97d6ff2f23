"""Show how far long work has come: a bar for people on a terminal, lines for programs on a descriptor."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Generic, Protocol, TextIO, TypeVar

from nbdfs import lossy
from nbdfs.errors import UsageError

log = logging.getLogger(__name__)

_INTERVAL = 0.2  # seconds between two looks at the work
_MEMORY = 5.0  # seconds over which the rate is taken
_NARROWEST_BAR = 10  # columns
_UNITS = ("", "k", "M", "G", "T", "P", "E")

Shown = TypeVar("Shown")
Seen = TypeVar("Seen", contravariant=True)


def progress_descriptor(text: str) -> int:
    """The open descriptor that --progress names.  Raises UsageError."""
    try:
        os.fstat(int(text))
    except (ValueError, OverflowError, OSError):
        raise UsageError(f"--progress={text}: the number of an open descriptor is wanted") from None
    return int(text)


class Progress:
    """How much of `total` bytes is done; a total of None is not known."""

    def __init__(self, total: int | None = None) -> None:
        self.total = total
        self.done = 0

    def advance(self, length: int) -> None:
        """Count `length` more bytes as done."""
        self.done += length

    @property
    def fraction(self) -> float:
        """From 0 to 1; 0 if the total is not known."""
        if self.total is None:
            return 0.0
        return min(self.done / self.total, 1.0) if self.total else 1.0


class Shows(Protocol[Seen]):
    """What shows how something gets on."""

    def show(self, progress: Seen, /) -> None:
        """Show the present state; called some times a second."""

    def finish(self, progress: Seen, complete: bool, /) -> None:
        """Show the last state."""


Display = Shows[Progress]


class Bar:
    """One line on a terminal, drawn over and over: share, bar, bytes, rate, time left."""

    def __init__(self, stream: TextIO = sys.stderr, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()  # (time, bytes done), the last few seconds

    def show(self, progress: Progress) -> None:
        now = self._clock()
        if not self._seen:
            self._seen.append((now, 0))
        self._seen.append((now, progress.done))
        while self._seen[0][0] < now - _MEMORY:
            self._seen.popleft()
        first, done = self._seen[0]
        rate = (progress.done - done) / (now - first) if now > first else 0.0
        self._draw(progress, rate)

    def finish(self, progress: Progress, complete: bool) -> None:
        self.show(progress)
        lossy.write_text(self._stream, "\n")

    def _draw(self, progress: Progress, rate: float) -> None:
        text = human_size(progress.done)
        if progress.total is not None:
            text += f" of {human_size(progress.total)}"
        text += f", {human_size(rate)}/s"
        if progress.total is not None and rate and progress.done < progress.total:
            text += f", {human_time((progress.total - progress.done) / rate)} left"
        draw(self._stream, text, progress.fraction if progress.total is not None else None)


def draw(stream: TextIO, text: str, fraction: float | None) -> bool:
    """Put a line in the place of the last one, with a bar before the text where a fraction from 0 to 1 is known.

    False if the terminal does not take it now.
    """
    columns = _columns(stream) - 1  # a full line would wrap
    if fraction is not None:
        share = f"{int(fraction * 100):3d}%"
        width = columns - len(share) - len(text) - 5
        if width >= _NARROWEST_BAR:
            filled = int(fraction * width)
            text = f"{share} [{'#' * filled}{'.' * (width - filled)}] {text}"
        else:
            text = f"{share} {text}"
    return lossy.write_text(stream, f"\r{text[:columns]}\033[K")


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except OSError:
        return 80


class Lines:
    """`N/100` and a newline on a descriptor, each time N changed; 100/100 comes only when all is done.

    A reader that does not keep up misses lines and holds up nobody.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._last = -1

    def show(self, progress: Progress) -> None:
        self._write(min(int(progress.fraction * 100), 99))

    def finish(self, progress: Progress, complete: bool) -> None:
        if complete:
            self._write(100)

    def _write(self, percent: int) -> None:
        if percent != self._last and lossy.write(self._fd, b"%d/100\n" % percent):
            self._last = percent


@asynccontextmanager
async def showing(progress: Shown, display: Shows[Shown] | None) -> AsyncIterator[None]:
    """Show a progress while the block runs, and its end."""
    if display is None:
        yield
        return
    import trio

    complete = False
    display = Patient(display)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_keep_showing, progress, display)
            yield
            nursery.cancel_scope.cancel()
        complete = True
    finally:
        display.finish(progress, complete)


class Patient(Generic[Shown]):
    """A display that may lose who looks at it: a closed pipe or terminal must not end the work that is shown."""

    def __init__(self, display: Shows[Shown]) -> None:
        self._display = display
        self._watched = True

    def show(self, progress: Shown) -> None:
        self._try(lambda: self._display.show(progress))

    def finish(self, progress: Shown, complete: bool) -> None:
        self._try(lambda: self._display.finish(progress, complete))

    def _try(self, step: Callable[[], None]) -> None:
        if self._watched:
            try:
                step()
            except OSError as error:
                self._watched = False
                log.info("nobody sees the progress any more: %s", error.strerror)


async def _keep_showing(progress: Shown, display: Shows[Shown]) -> None:
    import trio

    while True:
        display.show(progress)
        await trio.sleep(_INTERVAL)


def human_size(size: float) -> str:
    """Three significant digits in powers of 1024, as `1.25G`."""
    power = 0
    while size >= 1000 and power < len(_UNITS) - 1:
        size /= 1024
        power += 1
    digits = 0 if not power or size >= 100 else 1 if size >= 10 else 2
    return f"{size:.{digits}f}{_UNITS[power]}"


def human_time(seconds: float) -> str:
    """Hours, minutes and seconds, as `1:02:03` or `2:03`."""
    minutes, second = divmod(int(seconds + 0.5), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"
