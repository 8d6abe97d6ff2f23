"""Listening beside others that begin or end at the same moment."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import threading
from pathlib import Path

import pytest

from nbdfs.errors import UserError
from nbdfs.nbd import listen
from nbdfs.nbd.listen import Listener, listening
from nbdfs.nbd.uri import Tcp, Unix, Uri


def left_behind(path: Path) -> None:
    """The socket of a server that was killed."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))


def test_of_two_servers_that_find_a_socket_left_behind_one_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s"
    left_behind(path)
    uris = [Uri(Unix(str(path)))]
    stale, refused, done = listen._stale, [], threading.Event()

    def other() -> None:
        try:
            with listening(uris):
                done.wait(10)
        except UserError as error:
            refused.append(str(error))

    thread = threading.Thread(target=other)

    def stale_beside_another(place: str) -> bool:
        monkeypatch.setattr(listen, "_stale", stale)
        answer = stale(place)
        thread.start()
        thread.join(0.2)  # as far as it comes
        return answer

    monkeypatch.setattr(listen, "_stale", stale_beside_another)
    with listening(uris), socket.socket(socket.AF_UNIX) as client:
        thread.join(5)
        assert refused == [f"cannot listen on {path}: another program listens there"]
        client.connect(str(path))
    done.set()
    thread.join()
    assert not path.exists()


def test_a_server_that_ends_leaves_the_socket_of_the_next_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    uris = [Uri(Unix(str(path)))]
    with listening(uris):
        os.unlink(path)
        left_behind(path)
    assert path.exists()


def test_a_socket_goes_before_nobody_listens_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, close, there = tmp_path / "s", Listener.close, []

    def noting(listener: Listener) -> None:
        there.append(path.exists())
        close(listener)

    monkeypatch.setattr(Listener, "close", noting)
    with listening([Uri(Unix(str(path)))]):
        pass
    assert there == [False]


def test_a_folder_that_is_locked_for_another_reason_keeps_nobody_out(tmp_path: Path) -> None:
    lock = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with listening([Uri(Unix(str(tmp_path / "s")))]) as found:
        assert len(found) == 1
    os.close(lock)


def test_a_free_port_is_free_at_each_address(monkeypatch: pytest.MonkeyPatch) -> None:
    places = ("127.0.0.1", "127.0.0.2")
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (place, 0)) for place in places]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    bind = socket.socket.bind
    bound: list[tuple[str, int]] = []

    class Crowded(socket.socket):
        """Where the first port that is free at one address is taken at the other."""

        def bind(self, place: tuple[str, int]) -> None:  # type: ignore[override]
            bound.append(place)
            if len(bound) == 2:
                raise OSError(errno.EADDRINUSE, "")
            bind(self, place)

    monkeypatch.setattr(socket, "socket", Crowded)
    with listening([Uri(Tcp("localhost", 0))]) as listeners:
        ports = {listener.address.port for listener, _ in listeners if isinstance(listener.address, Tcp)}
        assert len(listeners) == 2
        assert len(ports) == 1
    assert bound[2] == ("127.0.0.1", 0)
