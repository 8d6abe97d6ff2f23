"""The colours of what is told in text: whose lines say what can be done, and which extents hold something."""

from __future__ import annotations

from nbdfs.info.maps import is_set
from nbdfs.source import RESIDENT

_BOLD, _GREEN, _RED, _GREY, _RESET = "\033[1m", "\033[32m", "\033[31m", "\033[90m", "\033[0m"


def of_fact(line: str) -> str:
    """A line of `Report.as_text` in the colour of what it says."""
    if line.startswith("\tcan_"):
        return _painted(line, _GREEN if line.endswith("true") else _RED)
    if line.startswith("protocol:"):
        return _painted(line, _GREY)
    return line if line.startswith("\t") else _painted(line, _BOLD)  # what heads an export or source


def of_extent(context: str, flags: int, text: str) -> str:
    """What tells of an extent, in the colour of its flags."""
    if context.startswith("qemu:dirty-bitmap:"):
        return _painted(text, _RED if flags else _GREEN)
    if context == RESIDENT:
        return _painted(text, _GREY if flags else _GREEN)
    return _painted(text, _BOLD) if is_set(context, flags) else text


def _painted(text: str, colour: str) -> str:
    return f"{colour}{text}{_RESET}"
