"""The facts of an export, as JSON and as text; names and order are nbdinfo's for what it knows."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import trio

from nbdfs.checked import Checked
from nbdfs.errors import printable
from nbdfs.source import Caps, read
from nbdfs.units import format_size

_PROBE = 64 << 10  # bytes of the content that file(1) is shown
_PROBE_TIMEOUT = 10.0  # seconds

# Flags in the order they are shown.  What only an NBD connection can tell is False elsewhere.
_FLAGS: Mapping[str, Caps | None] = {
    "is_rotational": Caps.ROTATIONAL,
    "is_read_only": None,
    "can_block_status_payload": None,
    "can_cache": Caps.CACHE,
    "can_df": None,
    "can_fast_zero": Caps.FAST_ZERO,
    "can_flush": Caps.FLUSH,
    "can_fua": Caps.FUA,
    "can_multi_conn": Caps.MULTI_CONN,
    "can_trim": Caps.TRIM,
    "can_zero": Caps.ZERO,
}


@dataclass
class Facts:
    """One export.  `name` and `uri` are those of NBD, `source` is the spec of anything else.

    `details` is what the driver itself has to tell, under labels for people.
    """

    size: int
    flags: Mapping[str, bool]
    source: str = ""
    name: str = ""
    uri: str = ""
    description: str = ""
    content: str = ""
    contexts: tuple[str, ...] = ()
    block: tuple[int, int, int] | None = None  # minimum, preferred, maximum
    details: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """A value for JSON; what is not known is left out."""
        result: dict[str, Any] = {"source": self.source} if self.source else {"export-name": self.name}
        result |= {key: value for key in ("description", "content", "uri") if (value := getattr(self, key))}
        result["contexts"] = list(self.contexts)
        result |= self.flags
        if self.block:
            keys = ("block_size_minimum", "block_size_preferred", "block_size_maximum")
            result |= dict(zip(keys, self.block, strict=True))
        result |= {"export-size": self.size, "export-size-str": format_size(self.size)}
        return result | ({"details": dict(self.details)} if self.details else {})

    def as_text(self) -> Iterator[str]:
        """Lines for people."""
        facts = self.as_json()
        kind, name = ("source", facts.pop("source")) if self.source else ("export", facts.pop("export-name"))
        yield f"{kind}={printable(json.dumps(name, ensure_ascii=False))}:"
        pretty = facts.pop("export-size-str")
        size = facts.pop("export-size")
        if description := facts.pop("description", ""):
            yield f"\tdescription: {printable(description)}"
        yield f"\texport-size: {size}" + (f" ({pretty})" if pretty != str(size) else "")
        details = facts.pop("details", {})
        for key, value in facts.items():
            if key == "contexts":
                if value:
                    yield "\tcontexts:"
                    yield from (f"\t\t{printable(context)}" for context in value)
            else:
                yield f"\t{key}: {str(value).lower() if isinstance(value, bool) else printable(str(value))}"
        for key, value in details.items():
            yield from _detail(key, value)


def _detail(label: str, value: Any) -> Iterator[str]:
    """Lines for one detail: a list has a line for each item."""
    if not isinstance(value, list):
        yield f"\t{printable(label)}: {printable(str(value).lower() if isinstance(value, bool) else str(value))}"
        return
    yield f"\t{printable(label)}:"
    for item in value:
        shown = "  ".join(map(str, item.values())) if isinstance(item, dict) else str(item)
        yield f"\t\t{printable(shown)}"


def of_source(source: Checked, spec: str, details: Mapping[str, Any]) -> Facts:
    """What an open source of any kind tells."""
    own = source.below.info  # what it can do by itself; the door adds to that
    flags = {name: cap is not None and cap in own.caps for name, cap in _FLAGS.items()}
    flags["is_read_only"] = Caps.WRITE not in own.caps
    return Facts(
        size=own.size,
        flags=flags,
        source=spec,
        description=own.description,
        contexts=own.contexts if Caps.EXTENTS in own.caps else (),
        block=(own.block.minimum, own.block.preferred, own.block.maximum),
        details={name: said for name in ("identity", "missing") if (said := getattr(own, name))} | dict(details),
    )


def of_description(spec: str, details: Mapping[str, Any]) -> Facts:
    """What is known of a source that is not opened: `size` is in the details, if it is known at all."""
    return Facts(size=int(details.get("size", 0)), flags={}, source=spec, details=details)


async def content(source: Checked) -> str:
    """What file(1) says about the first bytes; empty if it is not installed or says nothing."""
    data = await read(source, 0, min(_PROBE, source.info.size))
    try:
        with trio.fail_after(_PROBE_TIMEOUT):
            done = await trio.run_process(
                ["file", "--brief", "-"], stdin=bytes(data), capture_stdout=True, stderr=subprocess.DEVNULL, check=False
            )
    except (OSError, trio.TooSlowError):
        return ""
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else ""
