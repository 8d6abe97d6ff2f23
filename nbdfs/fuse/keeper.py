"""auto_unmount: a helper that takes the mount away when this process is gone, however it went.

The helper is a shell that waits on a pipe whose other end only we hold.  (fusermount3 has such a mode too, but
in some versions it gives up on mounts that only their owner may enter.)
"""

from __future__ import annotations

import shlex
import subprocess

_UNMOUNT = {True: "umount -l", False: "fusermount3 -u -z -q"}


class Keeper:
    """Guards one mount until `dismiss`."""

    def __init__(self, target: str, *, privileged: bool) -> None:
        script = f"read -r _; exec {_UNMOUNT[privileged]} -- {shlex.quote(target)}"
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,  # a Ctrl-C on our terminal is not for the helper
        )

    def dismiss(self) -> None:
        """End the helper without an unmount."""
        self._process.kill()
        self._process.communicate()
