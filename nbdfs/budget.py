"""How much more memory may be taken, so that a full machine means ENOSPC and not the end of a process.

The kernel gives a memfd pages without limit until it kills somebody.  So whoever is about to take pages asks
first; to be cheap the answer is given in advance for a part of what is available.
"""

from __future__ import annotations

import contextlib
import errno
import re
import time
from pathlib import Path

from nbdfs.fileio import data_runs

_MOMENT = 0.1  # seconds; a thousand stores are not a reason to look a thousand times
_STRIDE = 64 << 20  # bytes granted at most without looking again
_MOST_RESERVE = 256 << 20  # bytes that are left to others, or a sixteenth of the memory if that is less

# Files of a control group, by controller name in /proc/self/cgroup ("" is version 2): folder, limit, use, and
# what names in memory.stat begin with.
_CGROUPS = {
    "": ("/sys/fs/cgroup", "memory.max", "memory.current", ""),
    "memory": ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
}

_seen = (-_MOMENT, 0)  # when it was looked last, and what was available then
_available = 0  # bytes, at the last look


class Budget:
    """Grants of memory to one store."""

    def __init__(self) -> None:
        self._credit = 0

    def spend(self, length: int) -> bool:
        """Whether `length` more bytes may be taken."""
        if length > self._credit:
            room = available()
            if length > room:
                return False
            self._credit = max(min(room // 4, _STRIDE), length)
        self._credit -= length
        return True

    def take(self, fd: int, offset: int, length: int) -> bool:
        """Whether a range of a memfd may be written to; what is there of it already takes nothing."""
        return self.spend(length) or self.spend(missing(fd, offset, length))


def missing(fd: int, offset: int, length: int) -> int:
    """Bytes of a range of a memfd that are not there yet."""
    end = offset + length
    return sum(min(last, end) - first for first, last, is_data in data_runs(fd, offset, end) if not is_data)


def fits(size: int) -> bool:
    """Whether a disk of this size could be filled now, as far as was seen a moment ago."""
    global _seen
    now = time.monotonic()
    if now - _seen[0] > _MOMENT:
        _seen = now, available()
    return size <= _seen[1]


def available() -> int:
    """Bytes that can be taken before the machine, or a control group that we are in, runs out."""
    global _available
    with contextlib.suppress(OSError):  # out of descriptors, which is no lack of memory: the last look has to do
        _available = _look()
    return _available


def _look() -> int:
    facts = _table(Path("/proc/meminfo"))
    total, free, swap = (facts.get(name, 0) << 10 for name in ("MemTotal", "MemAvailable", "SwapFree"))
    room = free + swap
    for limit, used in _group_limits():
        total = min(total, limit)
        room = min(room, limit - used)
    return room - min(total // 16, _MOST_RESERVE)


def _group_limits() -> list[tuple[int, int]]:
    """(limit, use) of each control group above us that limits memory; files that are merely cached are no use."""
    found = []
    for line in _text(Path("/proc/self/cgroup")).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in _CGROUPS:
            continue
        top, limit_name, use_name, prefix = _CGROUPS[controllers]
        group = Path(top + path)
        for folder in (group, *group.parents):
            limit, use = _number(folder / limit_name), _number(folder / use_name)
            if limit is not None and use is not None:
                stat = _table(folder / "memory.stat")
                found.append((limit, use - sum(stat.get(f"{prefix}{kind}_file", 0) for kind in ("active", "inactive"))))
            if folder == Path(top):
                break
    return found


def _number(path: Path) -> int | None:
    with contextlib.suppress(ValueError):  # "max"
        return int(_text(path))
    return None


def _table(path: Path) -> dict[str, int]:
    """The numbers of a file with a name and a number on each line."""
    return {name: int(number) for name, number in re.findall(r"^(\w+):? +(\d+)", _text(path), re.MULTILINE)}


def _text(path: Path) -> str:
    """What a file says, nothing if it is not there.  Raises OSError for want of descriptors."""
    try:
        return path.read_text()
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        return ""
