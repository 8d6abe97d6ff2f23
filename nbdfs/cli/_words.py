"""What the words of a command line need before argparse sees them, and what it cannot read."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

from nbdfs.errors import UsageError
from nbdfs.spec import fold_captives


def preparation(bare: Mapping[str, str]) -> Callable[[Sequence[str]], list[str]]:
    """A `Parser.prepare` for options whose value may be left out: `bare` maps such an option to its full form.

    argparse would take the next word, a spec, for the value.  Captive servers are folded after `--` too.
    """

    def prepare(words: Sequence[str]) -> list[str]:
        folded = fold_captives(words)
        end = folded.index("--") if "--" in folded else len(folded)
        options = [bare.get(word, word) for word in folded[:end]]
        return [*options, *folded[end : end + 1], *fold_captives(folded[end + 1 :])]

    return prepare


def progress_descriptor(text: str) -> int:
    """The open descriptor that --progress names.  Raises UsageError."""
    try:
        os.fstat(int(text))
    except (ValueError, OverflowError, OSError):
        raise UsageError(f"--progress={text}: the number of an open descriptor is wanted") from None
    return int(text)
