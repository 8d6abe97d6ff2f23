"""Each option of the torrent source as the other end of the connection sees it, in a network of the test's own."""

from __future__ import annotations

import re
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import libtorrent
import pytest
import trio

from nbdfs.backends.torrent import opening
from nbdfs.backends.torrent.membership import Membership
from nbdfs.backends.torrent.session import Session
from nbdfs.errors import UserError
from nbdfs.source import Source, read
from nbdfs.stack import open_stack
from tests.namespaces import INSIDE
from tests.proxies import PASSWORD, proxying
from tests.torrents import ALONE, PIECE, Seeder, Tracker, make_torrent, noise, seeding, write_files

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("leaving")]

SIZE = 20 * PIECE
CONTENT = noise(SIZE)
PLAIN = b"\x13BitTorrent protocol"
SECONDS = 60.0
REQUEST = re.compile(r"<== REQUEST \[ piece: (\d+) ")  # in the log of libtorrent's peers


@pytest.fixture
def torrent(leaving: socket.socket, tmp_path: Path, tracker: Tracker) -> Path:
    write_files(tmp_path, {"disk.img": CONTENT})
    return make_torrent(tmp_path, "disk.img", tracker=tracker.url)


@pytest.fixture
def untracked(torrent: Path, tmp_path: Path) -> Path:
    """The same torrent, naming no tracker."""
    content = libtorrent.bdecode(torrent.read_bytes())
    del content[b"announce"]
    path = tmp_path / "untracked.torrent"
    path.write_bytes(libtorrent.bencode(content))
    return path


async def until(ready: Callable[[], object]) -> None:
    with trio.fail_after(SECONDS):
        while not ready():
            await trio.sleep(0.02)


def seen(packets: socket.socket) -> list[bytes]:
    """All packets that left since the last look."""
    found = []
    while True:
        try:
            found.append(packets.recv(65536))
        except BlockingIOError:
            return found


class RawPeer:
    """A peer that speaks the protocol by hand, as far as it is asked to."""

    def __init__(self, stream: trio.SocketStream, torrent: Path) -> None:
        self.stream = stream
        self._hash = libtorrent.load_torrent_file(str(torrent)).ti.info_hashes().v1.to_bytes()

    async def greet(self) -> bytes:
        """Send a plain handshake with the extension bit; what comes first in return, up to 68 bytes."""
        reserved = bytes(5) + b"\x10\0\0"
        await self.stream.send_all(PLAIN + reserved + self._hash + b"-XX0001-abcdefghijkl")
        return await self.take(68)

    async def take(self, length: int) -> bytes:
        data = b""
        with trio.fail_after(SECONDS):
            while len(data) < length:
                try:
                    more = await self.stream.receive_some(length - len(data))
                except trio.BrokenResourceError:
                    more = b""
                if not more:
                    break
                data += more
        return data

    async def message(self, start: bytes) -> dict[bytes, Any]:
        """The dictionary of the next message that begins so."""
        while True:
            body = await self.take(int.from_bytes(await self.take(4), "big"))
            if body.startswith(start):
                return dict(libtorrent.bdecode(body[len(start) :]))

    async def extensions(self) -> dict[bytes, Any]:
        """The extended handshake (BEP 10)."""
        return await self.message(b"\x14\0")

    async def extended(self, number: int, content: dict[bytes, Any]) -> None:
        """Send an extended message."""
        body = b"\x14" + bytes([number]) + libtorrent.bencode(content)
        await self.stream.send_all(len(body).to_bytes(4, "big") + body)


@asynccontextmanager
async def raw_peer(torrent: Path, tracker: Tracker) -> AsyncIterator[RawPeer]:
    """A connection to the one peer that the tracker knows."""
    await until(lambda: tracker.peers)
    async with await trio.open_tcp_stream("127.0.0.1", next(iter(tracker.peers))) as stream:
        yield RawPeer(stream, torrent)


@dataclass
class Came:
    """What came in at a listener: the first bytes and the address of each connection."""

    port: int
    firsts: list[bytes] = field(default_factory=list)
    addresses: set[str] = field(default_factory=set)


@asynccontextmanager
async def listening() -> AsyncIterator[Came]:
    """A peer of few words on loopback."""

    async def listen(stream: trio.SocketStream) -> None:
        came.addresses.add(stream.socket.getpeername()[0])
        first = await stream.receive_some(len(PLAIN))
        if first:
            came.firsts.append(bytes(first))

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        came = Came(listener.socket.getsockname()[1])
        nursery.start_soon(trio.serve_listeners, listen, [listener])
        yield came
        nursery.cancel_scope.cancel()


async def is_all_there(source: Source) -> bool:
    return bytes(await read(source, 0, SIZE)) == CONTENT


async def test_user_agent_is_told_to_the_tracker_and_peers_and_listen_is_where_we_are(
    torrent: Path, tracker: Tracker
) -> None:
    spec = f"torrent,{ALONE},user-agent=Boot/7::{torrent}"
    async with open_stack(spec.replace("listen=127.0.0.1", "listen=127.0.0.1:40123")):
        async with raw_peer(torrent, tracker) as peer:
            assert list(tracker.peers) == [40123]
            assert tracker.agents == {"Boot/7"}
            assert (await peer.greet()).startswith(PLAIN)


@pytest.mark.parametrize("pex", ["yes", "no"])
async def test_peers_that_a_peer_names_are_connected_if_wanted(torrent: Path, tracker: Tracker, pex: str) -> None:
    async with listening() as came, open_stack(f"torrent,{ALONE},pex={pex}:{torrent}"):
        async with raw_peer(torrent, tracker) as peer:
            await peer.greet()
            theirs = (await peer.extensions())[b"m"]
            assert b"share_mode" not in theirs  # ours alone, peers would take it for theirs
            await peer.extended(0, {b"m": {b"ut_pex": 1, b"ut_metadata": 2}})
            added = socket.inet_aton("127.0.0.1") + came.port.to_bytes(2, "big")
            await peer.extended(theirs[b"ut_pex"], {b"added": added, b"added.f": b"\0", b"dropped": b""})
            await peer.extended(theirs[b"ut_metadata"], {b"msg_type": 0, b"piece": 0})
            assert (await peer.message(b"\x14\2"))[b"msg_type"] == 1  # so the one before has been dealt with
            if pex == "yes":
                await until(lambda: came.firsts)
    assert bool(came.firsts) == (pex == "yes")


@pytest.mark.parametrize(("encryption", "answered"), [("allow", True), ("off", True), ("require", False)])
async def test_encryption_of_connections_that_come_in(
    torrent: Path, tracker: Tracker, encryption: str, answered: bool
) -> None:
    async with open_stack(f"torrent,{ALONE},encryption={encryption}:{torrent}"):
        async with raw_peer(torrent, tracker) as peer:
            assert (await peer.greet()).startswith(PLAIN) == answered


@pytest.mark.parametrize(("encryption", "plain"), [("off", True), ("require", False)])
async def test_encryption_of_connections_that_go_out(
    torrent: Path, tracker: Tracker, encryption: str, plain: bool
) -> None:
    async with listening() as came:
        tracker.peers[came.port] = None
        async with open_stack(f"torrent,{ALONE},encryption={encryption}:{torrent}"):
            await until(lambda: came.firsts)
    assert (came.firsts[0] == PLAIN) == plain


async def test_outgoing_is_the_address_that_we_come_from(torrent: Path, tracker: Tracker) -> None:
    async with listening() as came:
        tracker.peers[came.port] = None
        async with open_stack(f"torrent,{ALONE},outgoing=127.0.0.5:{torrent}"):
            await until(lambda: came.addresses)
    assert came.addresses == {"127.0.0.5"}


async def test_no_more_connections_than_allowed(torrent: Path, tmp_path: Path, tracker: Tracker) -> None:
    async with AsyncExitStack() as stack:
        quiet = {"seeding_outgoing_connections": False}  # else they connect to each other too
        seeders = [stack.enter_context(seeding(torrent, tmp_path, 1 << 10, **quiet)) for _ in range(5)]
        await until(lambda: len(tracker.peers) == 5)
        source = await stack.enter_async_context(open_stack(f"torrent,{ALONE},connections=2:{torrent}"))
        most = 0
        with trio.move_on_after(2):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(is_all_there, source)
                while True:
                    await trio.sleep(0.1)
                    most = max(most, sum(seeder.handle.status().num_peers for seeder in seeders))
        assert most == 2


@pytest.mark.parametrize("lsd", ["yes", "no"])
async def test_lsd_finds_peers_in_the_local_network_if_wanted(untracked: Path, tmp_path: Path, lsd: str) -> None:
    spec = f"torrent,listen=127.0.0.1,dht=no,lsd={lsd},timeout={SECONDS if lsd == 'yes' else 1}:{untracked}"
    with seeding(untracked, tmp_path, enable_lsd=True):
        async with open_stack(spec) as source:
            if lsd == "yes":
                assert await is_all_there(source)
            else:
                with pytest.raises(OSError, match="from 0 peers"):
                    await read(source, 0, 1)


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("dht", ["yes", "no"])
async def test_dht_asks_the_nodes_that_the_torrent_names_if_wanted_and_allowed(
    leaving: socket.socket, tmp_path: Path, tracker: Tracker, dht: str, private: bool
) -> None:
    write_files(tmp_path, {"disk.img": CONTENT})
    torrent = make_torrent(tmp_path, "disk.img", tracker=tracker.url, private=private)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as node:
        node.bind(("127.0.0.1", 0))
        content = libtorrent.bdecode(torrent.read_bytes())
        content[b"nodes"] = [[b"127.0.0.1", node.getsockname()[1]]]
        torrent.write_bytes(libtorrent.bencode(content))
        with seeding(torrent, tmp_path):
            async with open_stack(f"torrent,listen=127.0.0.1,lsd=no,dht={dht}:{torrent}") as source:
                assert await is_all_there(source)
                if dht == "yes" and not private:
                    with trio.fail_after(SECONDS):
                        await trio.lowlevel.wait_readable(node)
                    assert b"1:y1:q" in node.recv(4096)
                else:
                    with pytest.raises(BlockingIOError):
                        node.recv(4096)


@pytest.mark.parametrize("private", [False, True])
async def test_a_private_torrent_is_told_to_its_trackers_alone(
    leaving: socket.socket, tmp_path: Path, tracker: Tracker, private: bool
) -> None:
    write_files(tmp_path, {"disk.img": CONTENT})
    torrent = make_torrent(tmp_path, "disk.img", tracker=tracker.url, private=private)
    packets: list[bytes] = []

    def announced() -> bool:
        packets.extend(seen(leaving))
        return any(b"BT-SEARCH" in packet for packet in packets)

    async with open_stack(f"torrent,listen={INSIDE}%2C127.0.0.1,dht=no,lsd=yes:{torrent}"):
        async with raw_peer(torrent, tracker) as peer:
            await peer.greet()
            assert (b"ut_pex" in (await peer.extensions())[b"m"]) != private
        if not private:
            await until(announced)
    assert announced() != private


async def test_the_circle_of_readers_is_told_to_nobody(
    leaving: socket.socket, torrent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined: list[Membership] = []
    join = Membership.join

    def noting(membership: Membership, *arguments: Any) -> None:
        join(membership, *arguments)
        joined.append(membership)

    monkeypatch.setattr(Membership, "join", noting)
    spec = f"torrent,listen={INSIDE}%2C127.0.0.1,dht=no,lsd=yes:{torrent}"
    packets: list[bytes] = []
    with seeding(torrent, tmp_path, upload_limit=SIZE // 40):  # who has everything need not meet anybody
        async with open_stack(spec) as one, open_stack(spec) as another, trio.open_nursery() as nursery:
            nursery.start_soon(is_all_there, one)
            nursery.start_soon(is_all_there, another)
            await until(lambda: len(set(map(id, joined))) == 4)  # two each
            await trio.sleep(1)
            packets.extend(seen(leaving))
            hashes = {str(membership.handle.info_hashes().v1) for membership in joined}
            nursery.cancel_scope.cancel()
    announced = {found.decode() for packet in packets for found in re.findall(rb"Infohash: ([0-9a-f]{40})", packet)}
    assert len(hashes) == 2
    assert len(announced & hashes) == 1


@pytest.mark.parametrize("upnp", ["yes", "no"])
async def test_upnp_looks_for_a_router_if_wanted(
    leaving: socket.socket, torrent: Path, tmp_path: Path, upnp: str
) -> None:
    packets: list[bytes] = []

    def asked() -> bool:
        packets.extend(seen(leaving))
        return any(b"M-SEARCH" in packet for packet in packets)

    with seeding(torrent, tmp_path):
        listen = f"listen={INSIDE}%2C127.0.0.1"
        async with open_stack(f"torrent,{listen},dht=no,lsd=no,upnp={upnp}:{torrent}") as source:
            assert await is_all_there(source)
            if upnp == "yes":
                await until(asked)
        assert asked() == (upnp == "yes")


@pytest.mark.parametrize("options", [ALONE, "listen=127.0.0.1,pex=no,dht=no,lsd=no"])
async def test_what_is_switched_off_sends_nothing_into_the_network(
    leaving: socket.socket, torrent: Path, tmp_path: Path, options: str
) -> None:
    seen(leaving)  # the kernel's own, when the link came up
    with seeding(torrent, tmp_path):
        async with open_stack(f"torrent,{options}:{torrent}") as source:
            assert await is_all_there(source)
    assert not [packet for packet in seen(leaving) if packet[12:14] == b"\x08\0"]


@pytest.mark.parametrize(
    ("kind", "login"), [("socks4", False), ("socks5", False), ("socks5", True), ("http", False), ("http", True)]
)
async def test_connections_go_through_the_proxy(untracked: Path, tmp_path: Path, kind: str, login: bool) -> None:
    (tmp_path / "password").write_bytes(PASSWORD)
    (tmp_path / "password").chmod(0o600)
    with seeding(untracked, tmp_path) as seeder:
        link = f"magnet:?xt=urn:btih:{seeder.handle.info_hashes().v1}&x.pe=127.0.0.1:{seeder.port}"
        async with proxying(login=login) as proxy:
            user = "user@" if login else ""
            secret = f",proxy-password=+{tmp_path}/password" if login else ""
            where = f"proxy={kind}://{user}127.0.0.1:{proxy.port}{secret}"
            async with open_stack(f"torrent,{ALONE},timeout={SECONDS},{where}::{link}") as source:
                assert await is_all_there(source)
            assert set(proxy.passed) == {("127.0.0.1", seeder.port)}


async def test_a_proxy_that_wants_a_password_is_not_gone_around(untracked: Path, tmp_path: Path) -> None:
    with seeding(untracked, tmp_path) as seeder:
        link = f"magnet:?xt=urn:btih:{seeder.handle.info_hashes().v1}&x.pe=127.0.0.1:{seeder.port}"
        async with proxying(login=True) as proxy:
            with pytest.raises(UserError, match="no peer gave the metadata"):
                async with open_stack(f"torrent,{ALONE},timeout=2,proxy=socks5://127.0.0.1:{proxy.port}::{link}"):
                    pass
            assert not proxy.passed
        assert seeder.handle.status().num_peers == 0


@pytest.mark.parametrize(("sequential", "prefetch"), [("yes", "all"), ("no", "all"), ("no", "none")])
async def test_what_is_fetched_ahead_comes_in_order_or_not(
    torrent: Path, tmp_path: Path, tracker: Tracker, sequential: str, prefetch: str
) -> None:
    asked: list[int] = []
    spec = f"torrent,{ALONE},prefetch={prefetch},sequential={sequential}:{torrent}"
    async with open_stack(spec) as source, trio.open_nursery() as nursery:
        if prefetch == "none":
            nursery.start_soon(read, source, 0, 1)  # and what lies ahead of it
        await until(lambda: tracker.peers)
        # Pieces that are had without being unchoked would come first.
        logged = {"alert_mask": libtorrent.alert_category.peer_log, "allowed_fast_set_size": 0}
        with seeding(torrent, tmp_path, **logged) as seeder:

            def is_complete() -> bool:
                told = (REQUEST.search(alert.message()) for alert in seeder.session.pop_alerts())
                asked.extend(int(request[1]) for request in told if request)
                return set(asked) == set(range(SIZE // PIECE))

            await until(is_complete)
    assert (asked == sorted(asked)) == (sequential == "yes")


SWITCHES = ("enable_dht", "enable_lsd", "enable_upnp", "enable_natpmp")


@pytest.mark.parametrize(
    ("options", "private", "on"),
    [
        (",dht=no,lsd=no", False, set()),
        ("", False, {"enable_dht", "enable_lsd"}),
        (",upnp=yes", True, {"enable_upnp", "enable_natpmp"}),
    ],
)
async def test_the_session_looks_for_peers_as_wanted_and_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, private: bool, on: set[str]
) -> None:
    sessions: list[Session] = []

    class Noting(Session):
        def __init__(self, chosen: Mapping[str, Any]) -> None:
            super().__init__(chosen)
            sessions.append(self)

    monkeypatch.setattr(opening, "Session", Noting)
    write_files(tmp_path, {"disk.img": CONTENT})
    torrent = make_torrent(tmp_path, "disk.img", private=private)
    async with open_stack(f"torrent,listen=127.0.0.1{options}:{torrent}"):
        found = sessions[0].session.get_settings()
        assert {switch for switch in SWITCHES if found[switch]} == on


@pytest.mark.parametrize("direction", ["download", "upload"])
async def test_rates_are_limited_also_in_the_local_network(torrent: Path, tmp_path: Path, direction: str) -> None:
    rate = 64 << 10  # so low that moments in which nobody sends do not count
    spec = f"torrent,{ALONE},{direction}-limit={rate}:{torrent}"
    with seeding(torrent, tmp_path) as seeder:
        async with open_stack(spec) as source:
            await until(lambda: seeder.handle.status().num_peers)
            start = trio.current_time()
            assert await is_all_there(source)
            if direction == "upload":
                seeder.session.remove_torrent(seeder.handle)
                with leeching(torrent, tmp_path / "copy") as leecher:
                    await until(lambda: leecher.status().total_payload_download)
                    start = trio.current_time()
                    await until(lambda: leecher.status().is_seeding)
    assert trio.current_time() - start > SIZE / rate / 2  # a lower bound: it holds however slow the machine is


@contextmanager
def leeching(torrent: Path, folder: Path) -> Iterator[Any]:
    """A peer that downloads into a folder; gives its handle."""
    folder.mkdir()
    leecher = Seeder(torrent, folder, complete=False)
    try:
        yield leecher.handle
    finally:
        leecher.close()


@pytest.mark.parametrize("limit", ["seed-ratio=0.1", "seed-time=1"])
async def test_uploads_end_where_seeding_is_to_end(
    torrent: Path, untracked: Path, tmp_path: Path, tracker: Tracker, limit: str
) -> None:
    async with open_stack(f"torrent,{ALONE},upload-limit=16k,{limit}:{torrent}") as source:
        await until(lambda: tracker.peers)
        with leeching(untracked, tmp_path / "copy") as leecher:
            leecher.connect_peer(("127.0.0.1", next(iter(tracker.peers))))
            with seeding(torrent, tmp_path):
                assert await is_all_there(source)

            def is_choked() -> bool:
                return any(peer.flags & libtorrent.peer_info.remote_choked for peer in leecher.get_peer_info())

            await until(lambda: leecher.status().total_payload_download and is_choked())
            assert leecher.status().total_payload_download < SIZE * 3 // 4
