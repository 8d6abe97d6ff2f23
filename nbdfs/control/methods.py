"""What the control socket of a mount or a server can do with its exports."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import trio

from nbdfs.control.server import Method
from nbdfs.export import Export
from nbdfs.live import Exports, Facts
from nbdfs.names import check_name
from nbdfs.nbd.uri import Uri
from nbdfs.secret import far_away
from nbdfs.source import Health
from nbdfs.stack import plan

_SHORTEST_WAIT = 0.5  # seconds that the kernel gets to let go of a file that nobody has open
_LONGEST_WAIT = 100.0  # seconds: less than a request may take


@dataclass
class Controls:
    """A process with exports, as others see it: the covered path (`target`) and the URIs it is served at.

    `name` is what a configuration calls it.
    """

    exports: Exports
    kind: str
    target: str = ""
    uris: Sequence[Uri] = ()
    name: str = ""
    since: float = field(default_factory=time.time)

    def methods(self) -> Mapping[str, Method]:
        return {
            "about": Method(self.about),
            "list": Method(self.all),
            "add": Method(self.add, {"name": str, "spec": str}, {"replace": bool}),
            "resize": Method(self.resize, {"name": str, "size": int}, {"shrink": bool}),
            "remove": Method(self.remove, {"name": str}, {"wait": float}),
        }

    async def about(self) -> Facts:
        return {
            "pid": os.getpid(),
            "kind": self.kind,
            "target": self.target,
            "name": self.name,
            "uris": list(dict.fromkeys(str(uri.with_export("")) for uri in self.uris)),
            "since": self.since,
        }

    async def all(self) -> Facts:
        """All exports; `now` is a clock, in seconds, for rates from two lists."""
        exports = [_describe(export, facts) for export, facts in self.exports.facts().items()]
        return {**await self.about(), "now": time.monotonic(), "exports": exports}

    async def add(self, name: str, spec: str, replace: bool = False) -> Facts:
        check_name(name)
        planned = plan(spec)
        with far_away():
            change = self.exports.replace if replace else self.exports.add
            export = await change(name, planned)
        return _describe(export, {})

    async def resize(self, name: str, size: int, shrink: bool = False) -> Facts:
        return _describe(await self.exports.resize(name, size, shrink=shrink), {})

    async def remove(self, name: str, wait: float = 0.0) -> Facts:
        """Remove an export; `closed` tells whether its source is closed, for which there are `wait` seconds.

        After that it is in the list, by its `id`, until it is closed.
        """
        export = await self.exports.remove(name)
        with trio.move_on_after(max(min(wait, _LONGEST_WAIT), _SHORTEST_WAIT)):
            await export.closed.wait()
        return {"id": export.number, "closed": export.closed.is_set()}


def _describe(export: Export, facts: Facts) -> dict[str, Any]:
    counters = export.source.counters
    return {
        "id": export.number,
        "name": export.name,
        "spec": export.description,
        "size": export.source.info.size,
        "writable": export.source.writable,
        "state": _state(export, facts),
        "clients": export.clients,
        **facts,
        "errors": sum(counter.errors for counter in counters.values()),
        **{name: {"requests": counters[name].requests, "bytes": counters[name].bytes} for name in ("read", "write")},
    }


def _state(export: Export, facts: Facts) -> str:
    """One word for how an export is."""
    health = export.source.health()
    if health is not Health.OK:
        return str(health)
    if export.removed:
        return "removed"
    if facts.get("passthrough"):
        return "passthrough"
    return "in use" if facts.get("handles") or export.clients else "idle"
