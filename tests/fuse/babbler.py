"""A socket that leads to a server, and that can be made to talk nonsense."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def babbling(path: Path, server: Path) -> Iterator[Callable[[], None]]:
    """Lead the socket `path` to the socket `server`; what is given sends nonsense to all who are connected."""
    clients: list[socket.socket] = []
    servers: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def run(action: Callable[..., None], *arguments: socket.socket) -> None:
        threads.append(threading.Thread(target=action, args=arguments))
        threads[-1].start()

    def carry(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        _shut(source, target)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, behind = listener.accept()[0], socket.socket(socket.AF_UNIX)
                clients.append(client)
                servers.append(behind)
                behind.connect(str(server))
                run(carry, client, behind)
                run(carry, behind, client)

    def babble() -> None:
        for client in clients:
            with contextlib.suppress(OSError):
                client.sendall(b"what is this?" * 10)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        run(accept)
        try:
            yield babble
        finally:
            _shut(listener)
            threads[0].join(30)
            _shut(*clients, *servers)
            for thread in threads:
                thread.join(30)
            for end in (*clients, *servers):
                end.close()


def _shut(*ends: socket.socket) -> None:
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
