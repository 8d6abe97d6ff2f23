"""How long the kernel lets a request take: Linux 6.15 and newer can end a FUSE connection that leaves one unanswered.

Kernel documentation, admin-guide/sysctl/fs.rst: `default_request_timeout` and `max_request_timeout`, in seconds, 0 for
no limit; a limit is never shorter than the 15 seconds after which the kernel looks again.
"""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

_SYSCTLS = Path("/proc/sys/fs/fuse")
_SHORTEST = 15  # seconds
_SHARE = 0.8  # of the limit, so that a request that is late has failed before


def kernel_limit(sysctls: Path = _SYSCTLS) -> float:
    """The most that a request may take, in seconds."""
    limits = []
    for name in ("default_request_timeout", "max_request_timeout"):
        with contextlib.suppress(OSError, ValueError):  # an older kernel has no limit
            limits.append(int((sysctls / name).read_text()))
    given = [limit for limit in limits if limit > 0]
    return max(min(given), _SHORTEST) * _SHARE if given else math.inf
