"""Commands that a configuration has under a name: `nbdfs mount NAME`, `nbdfs serve NAME`."""

from __future__ import annotations

import argparse
import re

from nbdfs.cli import main

_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")


def is_name(words: list[str]) -> bool:
    """Whether a command line has one word only, and that can be a name of the configuration."""
    return len(words) == 1 and bool(_WORD.fullmatch(words[0]))


def from_configuration(kind: str, name: str, arguments: argparse.Namespace) -> argparse.Namespace:
    """What [KIND.NAME] says, as the command line it stands for; `arguments` that are given come before it.

    Raises UsageError if the configuration is wrong or has none of that name.
    """
    from nbdfs.config.files import current
    from nbdfs.errors import UsageError

    command = current().command(name)
    if command.kind != kind:
        raise UsageError(f"[{command.kind}.{name}] is for nbdfs {command.kind} {name}")
    parser = main.parser_of(kind)
    found = parser.parse_args(command.words[1:])
    for key, value in vars(arguments).items():
        if value != parser.get_default(key) and key not in ("words", "specs"):
            own = getattr(found, key)
            setattr(found, key, own + value if isinstance(value, list) else value)
    found.configured = name
    return found
