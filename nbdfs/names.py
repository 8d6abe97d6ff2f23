"""Names of exports: relative paths with `/`, as they stand in a mounted directory and in an NBD server's list."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Sequence

from nbdfs.errors import UsageError
from nbdfs.stack import Plan, plan

_LONGEST = 255  # bytes of one part: NAME_MAX
_LONGEST_WHOLE = 4000  # bytes: under PATH_MAX, and under the 4096 of an NBD export name
# Neither options, nor a scheme or driver, nor the words of a captive server come before the `=`.
_NAMED = re.compile(r"([^=,:\0]*)=(.*)", re.DOTALL)


def check_name(name: str) -> None:
    """Raise UsageError for a name that no directory can hold."""
    if not name:
        raise UsageError("a name is empty: write NAME=SPEC")
    if not name.isprintable():
        raise UsageError(f"the name {name!r} has a character that cannot be shown")
    if name.startswith("/"):
        raise UsageError(f"the name {name!r} is absolute: names are relative to what is mounted")
    if len(os.fsencode(name)) > _LONGEST_WHOLE:
        raise UsageError(f"the name {name[:20]!r}... has more than {_LONGEST_WHOLE} bytes")
    for part in name.split("/"):
        if part in ("", ".", ".."):
            raise UsageError(f"the name {name!r} has a part that is {part!r}")
        if len(os.fsencode(part)) > _LONGEST:
            raise UsageError(f"the name {name[:20]!r}... has a part of more than {_LONGEST} bytes")


def check_free(name: str, taken: Collection[str]) -> None:
    """Raise UsageError if `name` cannot stand beside the names that are taken."""
    if name in taken:
        raise UsageError(f"the name '{name}' is taken already")
    for at, letter in enumerate(name):
        if letter == "/" and name[:at] in taken:
            raise UsageError(f"the name '{name}' passes through '{name[:at]}', which is a file")
    if any(other.startswith(f"{name}/") for other in taken):
        raise UsageError(f"the name '{name}' is that of a directory: other names begin with '{name}/'")


def named_plans(texts: Sequence[str]) -> dict[str, Plan]:
    """Plans by name from NAME=SPEC..., or the only one, SPEC, under the empty name.  Raises UsageError."""
    if len(texts) == 1 and (not (match := _NAMED.fullmatch(texts[0])) or match[1].startswith((".", "/"))):
        return {"": plan(texts[0])}
    return {name: plan(spec) for name, spec in specs_by_name(texts).items()}


def specs_by_name(texts: Iterable[str]) -> dict[str, str]:
    """Specs by name from NAME=SPEC...  Raises UsageError."""
    specs: dict[str, str] = {}
    for text in texts:
        match = _NAMED.fullmatch(text)
        if not match:
            raise UsageError(f"'{plan(text)}' has no name: several sources are written NAME=SPEC NAME=SPEC...")
        check_name(match[1])
        check_free(match[1], specs)
        specs[match[1]] = match[2]
    return specs
