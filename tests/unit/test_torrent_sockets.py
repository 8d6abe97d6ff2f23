"""What libtorrent's sockets are set to."""

from __future__ import annotations

import os
import socket
from contextlib import closing

from nbdfs.backends.torrent.sockets import hasten


def is_hastened(connection: socket.socket) -> bool:
    return bool(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))


def test_tcp_connections_send_at_once_and_nothing_else_is_touched() -> None:
    reading, writing = os.pipe()
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as listener,
        closing(socket.create_connection(listener.getsockname())) as outgoing,
        closing(socket.socket(socket.AF_UNIX)),
        closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)),
    ):
        assert not is_hastened(outgoing)
        hasten()
        assert is_hastened(outgoing)
        with closing(socket.create_connection(listener.getsockname())), closing(listener.accept()[0]):
            incoming = listener.accept()[0]
            with closing(incoming):
                assert is_hastened(incoming)
    os.write(writing, b"x")
    assert os.read(reading, 1) == b"x"
    os.close(reading)
    os.close(writing)
