"""The path of a mount as the mount table has it."""

from __future__ import annotations

import os

from nbdfs.errors import UsageError


def mountpoint(path: str) -> str:
    """An absolute path without symbolic links or dots, but for a link in its last part.

    What is there is not asked: a mount might not answer.  Raises UsageError.
    """
    if not path:
        raise UsageError("the name of a file or directory is empty")
    folder, name = os.path.split(path.rstrip("/"))
    if name in ("", ".", ".."):
        return os.path.realpath(path)
    return os.path.join(os.path.realpath(folder or "."), name)
