"""Linux 6.15 and newer can end a FUSE connection that leaves a request unanswered for too long.

Kernel documentation, admin-guide/sysctl/fs.rst: `default_request_timeout` and `max_request_timeout`, in seconds, 0 for
no limit; a limit is never shorter than the 15 seconds after which the kernel looks again.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

_SYSCTLS = Path("/proc/sys/fs/fuse")
_SHORTEST = 15  # seconds
_SHARE = 0.8  # of the limit, so that a request that is late has failed before


def within_kernel_limit(timeout: float, sysctls: Path = _SYSCTLS) -> float:
    """The deadline of requests, in seconds: `timeout`, or as much of it as the kernel leaves."""
    limits = []
    for name in ("default_request_timeout", "max_request_timeout"):
        with contextlib.suppress(OSError, ValueError):  # an older kernel has no limit
            limits.append(int((sysctls / name).read_text()))
    given = [limit for limit in limits if limit > 0]
    return min(timeout, max(min(given), _SHORTEST) * _SHARE) if given else timeout
