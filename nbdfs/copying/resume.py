"""The state file of a copy that can go on after it was killed.

Order of events, which makes it safe at any moment: note what has arrived, flush the destination, then replace the state
file by one that claims what was noted.  So the file never claims what a power cut could take away.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nbdfs.errors import UserError
from nbdfs.ranges import RangeSet

_VERSION = 1


def places(path: str) -> tuple[str, str]:
    """The state file, and the one that takes its place each time; whatever lies there is lost."""
    return path, f"{path}.new"


@dataclass
class StateFile:
    """A state file at `path` of the copy described by `facts` (whatever must not change between two runs)."""

    path: str
    facts: Mapping[str, Any]

    def load(self) -> RangeSet | None:
        """The ranges that a run before this one has finished; None if there was none.

        Raises UserError if the file cannot be read or belongs to another copy.
        """
        try:
            if not stat.S_ISREG(os.lstat(self.path).st_mode):  # it is replaced, and removed in the end
                raise UserError(f"{self.path} is no regular file: name one, or one that does not exist, for the state")
            with open(self.path, encoding="utf-8", opener=_not_through_links) as file:
                state = json.load(file)
            if state["version"] != _VERSION:
                raise UserError(
                    f"{self.path}: a state file of version {state['version']}, this program knows {_VERSION}"
                )
            done = RangeSet((int(start), int(end)) for start, end in state["done"])
            facts = dict(state["copy"])
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"cannot read the state file {self.path}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise UserError(f"{self.path} is not the state file of a copy: name another one") from error
        for name, value in self.facts.items():
            if facts.get(name) != value:
                raise UserError(
                    f"{self.path} belongs to another copy: its {name} was {facts.get(name)}, now it is {value};"
                    " remove it to begin anew"
                )
        return done

    def save(self, done: RangeSet) -> None:
        """Replace the file, durably, by one that claims `done`.  Raises OSError; blocks."""
        state = {"version": _VERSION, "copy": dict(self.facts), "done": list(done)}
        _, temporary = places(self.path)
        with contextlib.suppress(FileNotFoundError):  # of a run that was killed
            os.unlink(temporary)
        with open(temporary, "x", encoding="utf-8") as file:  # which follows no symbolic link
            json.dump(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)
        folder = os.open(os.path.dirname(self.path) or ".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def remove(self) -> None:
        """The copy is complete: forget about it."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)


def _not_through_links(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW)
