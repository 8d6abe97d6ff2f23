"""What systemd and a service tell each other: sd_listen_fds(3) and sd_notify(3)."""

from __future__ import annotations

import os
import socket

_FIRST = 3  # SD_LISTEN_FDS_START


def sockets() -> list[socket.socket]:
    """The sockets this process was started with.  Forgets them: a second call gives none, children hear nothing."""
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    found = []
    for fd in range(_FIRST, _FIRST + int(count)):
        os.set_inheritable(fd, False)
        found.append(socket.socket(fileno=fd))
    return found


def notify(state: str) -> None:
    """Tell the service manager, as `READY=1` or `STOPPING=1`.  Nothing happens where there is none."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect("\0" + path[1:] if path.startswith("@") else path)
        sock.send(state.encode())
