"""Where the server listens: sockets made from NBD URIs, and those that systemd or a parent has made."""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import logging
import os
import socket
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

import trio

from nbdfs import systemd
from nbdfs.errors import UsageError, UserError
from nbdfs.nbd.stream import SocketStream, credentials, inherited_socket
from nbdfs.nbd.uri import Address, Tcp, Unix, Uri, Vsock
from nbdfs.records import replace
from nbdfs.undo import unless_done

log = logging.getLogger(__name__)

_BACKLOG = 256
_ANY_CID = 0xFFFFFFFF  # VMADDR_CID_ANY
_ATTEMPTS = 20  # to find a port that is free at each address
_LOCK_TIMEOUT = 0.5  # seconds; who listens holds the lock for as long as a few system calls take


class Listener:
    """A listening socket, and what a client may call it."""

    def __init__(self, sock: socket.socket, address: Address) -> None:
        sock.setblocking(False)
        self.address = address
        self._socket = sock
        self._count = 0

    def __str__(self) -> str:
        return str(self.address)

    async def accept(self) -> SocketStream | None:
        """The next client, None for one that may not come in.  Raises OSError."""
        while True:
            await trio.lowlevel.wait_readable(self._socket)  # accept fails without descriptors, also when nobody waits
            try:
                sock, peer = self._socket.accept()
                break
            except BlockingIOError:
                continue
        self._count += 1
        who = credentials(sock)
        abstract = isinstance(self.address, Unix) and self.address.path.startswith("\0")
        if abstract and who and who[1] not in (0, os.geteuid()):  # no file whose mode would keep others out
            log.warning("%s: user %d may not connect", self, who[1])
            sock.close()
            return None
        return SocketStream(sock, self._name(peer, who))

    def _name(self, peer: object, who: tuple[int, int] | None) -> str:
        if who:
            return f"client {self._count} of {self} (process {who[0]}, user {who[1]})"
        if isinstance(peer, tuple):
            return f"client {peer[0]}:{peer[1]}"
        return f"client {self._count} of {self}"

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            self._socket.close()


@contextmanager
def listening(uris: Sequence[Uri]) -> Iterator[list[tuple[Listener, Uri]]]:
    """Listen on what the URIs name, with for each listener the URI at which it is reached.

    Sockets made here go away with the block.  Raises UserError, one line, for a place that cannot be had.
    """
    with ExitStack() as stack:
        found = []
        for uri in uris:
            for listener in _open(uri.address, stack):
                found.append((listener, replace(uri, address=reachable(listener.address, uri.address))))
        yield found


@contextmanager
def private_socket() -> Iterator[Unix]:
    """The address of a Unix socket in a folder that only this user may enter, and that goes with the block."""
    with tempfile.TemporaryDirectory(prefix="nbdfs-") as folder:
        yield Unix(os.path.join(folder, "socket"))


def activated() -> list[Listener]:
    """The listening sockets that systemd (or a program that does as it does) has handed over."""
    return [inherited(fd) for fd in systemd.descriptors()]


def close_connections() -> None:
    """Close the sockets that systemd has handed over to a program that serves on standard input.

    With Accept=yes it hands the connection over twice.  Raises UsageError for a socket that listens.
    """
    for fd in systemd.descriptors():
        with inherited_socket(fd) as sock:
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                raise UsageError("--stdio goes with no listening socket: let systemd accept, by Accept=yes")


def inherited(fd: int) -> Listener:
    """A listening socket that the parent has made."""
    try:
        sock = inherited_socket(fd)
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError(errno.EINVAL, "it does not listen")
        return Listener(sock, _address_of(sock))
    except OSError as error:
        raise UserError(f"descriptor {fd} is no listening socket: {error.strerror}") from error


def is_public(address: Address) -> bool:
    """Whether machines that we do not know may come in."""
    if not isinstance(address, Tcp):
        return False
    try:
        return not ipaddress.ip_address(address.host.partition("%")[0]).is_loopback
    except ValueError:
        return address.host != "localhost"


def _open(address: Address, stack: ExitStack) -> list[Listener]:
    try:
        if isinstance(address, Tcp):
            sockets = _tcp(address)
        elif isinstance(address, Unix):
            return [_unix_listener(address, stack)]
        else:
            sockets = [_vsock(address)]
    except OSError as error:
        raise UserError(f"cannot listen on {address}: {_reason(error)}") from error
    listeners = [Listener(sock, _address_of(sock)) for sock in sockets]
    for listener in listeners:
        stack.callback(listener.close)
    return listeners


def _unix_listener(address: Unix, stack: ExitStack) -> Listener:
    """A listener on a path, which goes before it ends: until then nobody takes the path for left behind."""
    path = address.path
    if path.startswith("\0"):
        sock = _unix(path)
    else:
        with _alone_in(os.path.dirname(path) or "."):
            sock = _unix(path)
            inode = os.stat(path).st_ino
    listener = Listener(sock, _address_of(sock))
    stack.callback(listener.close)
    if not path.startswith("\0"):
        stack.callback(_unlink, path, inode)
    return listener


def _reason(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "another program listens there"
    return error.strerror or str(error)


def _tcp(address: Tcp) -> list[socket.socket]:
    """A socket for each address that the host has, all on one port: a free one if that is 0."""
    for _ in range(_ATTEMPTS if not address.port else 0):
        try:
            return _tcp_sockets(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise  # what is free at the first address need not be at the next
    return _tcp_sockets(address)


def _tcp_sockets(address: Tcp) -> list[socket.socket]:
    found = socket.getaddrinfo(
        address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )  # fmt: skip
    sockets: list[socket.socket] = []
    port = address.port

    def close() -> None:
        for sock in sockets:
            sock.close()

    with unless_done(close):
        for family, kind, protocol, _, place in dict.fromkeys(found):
            try:
                sock = socket.socket(family, kind, protocol)
            except OSError as error:
                if error.errno == errno.EAFNOSUPPORT and len(found) > 1:
                    continue
                raise
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                sock.bind((place[0], port, *place[2:]))
            except OSError as error:
                if error.errno == errno.EADDRNOTAVAIL and len(found) > 1:
                    sockets.pop().close()  # a machine without IPv6 still has ::1 in /etc/hosts
                    continue
                raise
            sock.listen(_BACKLOG)
            port = sock.getsockname()[1]
    if not sockets:
        raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    return sockets


def _unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with unless_done(lambda: sock.close()):
        try:
            sock.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _stale(path):
                raise
            os.unlink(path)
            sock.bind(path)
        sock.listen(_BACKLOG)
    return sock


def _stale(path: str) -> bool:
    """Whether a socket was left behind by a program that is gone."""
    if path.startswith("\0"):
        return False
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        raise OSError(errno.EEXIST, "there is a file that is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        return probe.connect_ex(path) == errno.ECONNREFUSED


def _unlink(path: str, inode: int) -> None:
    """Remove our socket, unless somebody else has put another in its place."""
    with _alone_in(os.path.dirname(path) or "."), suppress(FileNotFoundError):
        if os.stat(path).st_ino == inode:
            os.unlink(path)


@contextmanager
def _alone_in(folder: str) -> Iterator[None]:
    """Keep others that begin to listen in a folder from taking our socket for one that was left behind.

    It looks like one until it listens, and where one is replaced.  The lock is only between ourselves: who cannot have
    it, because others use such locks for something else or the file system has none, goes on without.
    """
    with ExitStack() as stack:
        with suppress(OSError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, lock)
            _wait_for_lock(lock, time.monotonic() + _LOCK_TIMEOUT)
        yield


def _wait_for_lock(lock: int, deadline: float) -> None:
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.001)


def _vsock(address: Vsock) -> socket.socket:
    sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    with unless_done(lambda: sock.close()):
        sock.bind((_ANY_CID if address.cid is None else address.cid, address.port))
        sock.listen(_BACKLOG)
    return sock


def _address_of(sock: socket.socket) -> Address:
    name = sock.getsockname()
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        return Tcp(name[0], name[1])
    if sock.family == socket.AF_UNIX:
        return Unix(os.fsdecode(name))
    return Vsock(None if name[0] == _ANY_CID else name[0], name[1])


def reachable(address: Address, asked: Address | None = None) -> Address:
    """How a client on this machine names the address of a listener, which may come from the name `asked` for.

    `localhost` need not have an address of IPv6.
    """
    if not isinstance(address, Tcp):
        return address
    named = isinstance(asked, Tcp) and asked.host == "localhost"
    if named or address.host in ("0.0.0.0", "127.0.0.1"):  # noqa: S104
        return Tcp("localhost", address.port)
    return Tcp("::1", address.port) if address.host == "::" else address
