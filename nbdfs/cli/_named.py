"""Sources of a command line, each under a name: what mounting and serving share."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from nbdfs.errors import UsageError, UserError
from nbdfs.export import Export
from nbdfs.stack import Plan, plan

_NAMED = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_+.~/-]*)=(.*)", re.DOTALL)


def named_plans(specs: Sequence[str]) -> dict[str, Plan]:
    """Plans by name from NAME=SPEC..., or the only one, SPEC, under the empty name.  Raises UsageError."""
    named = [match for text in specs if (match := _NAMED.fullmatch(text))]
    if not named and len(specs) == 1:
        return {"": plan(specs[0])}
    if len(named) != len(specs):
        raise UsageError("several sources need names: NAME=SPEC NAME=SPEC... DIRECTORY")
    plans: dict[str, Plan] = {}
    for match in named:
        if match[1] in plans:
            raise UsageError(f"the name '{match[1]}' is given twice")
        plans[match[1]] = plan(match[2])
    return plans


async def flush(exports: Mapping[str, Export]) -> None:
    """Make all that was written durable.  Raises UserError if a source cannot."""
    failures = []
    for export in exports.values():
        if export.source.writable:
            try:
                await export.source.flush()
            except OSError as error:
                failures.append(f"{export.description}: {error}")
    if failures:
        raise UserError(f"the last flush failed, data may be lost: {'; '.join(failures)}")
