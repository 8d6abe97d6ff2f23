"""An export: an open stack under a name, as both front ends offer it.

Where a second front end keeps a cache of its own over the same source (the kernel's page cache of a mounted file), it
sets the two hooks, and the NBD server keeps to this order for each request:

* `before_access` is awaited before the source is read, written, trimmed or zeroed: it writes back what the cache holds
  dirty in the range, so that a read sees it and a later write-back cannot undo a completed NBD write;
* `after_write` is awaited after the source was changed and before the client is told so: it makes the cache forget (or
  take over) the range, so that the next read of the file sees the change.

A hook may raise OSError; the request then fails with it.  Without hooks the source alone decides.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from nbdfs.checked import Checked

Hook = Callable[[int, int], Awaitable[None]]  # (offset, length) in bytes


@dataclass(eq=False)
class Export:
    """What is offered under `name` (the empty name is the default export)."""

    name: str
    source: Checked
    description: str = ""
    before_access: Hook | None = None
    after_write: Hook | None = None
