"""Swarms on loopback: torrents made here, a tracker of a few lines, and seeders that are libtorrent's."""

from __future__ import annotations

import http.server
import socket
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import libtorrent

PIECE = 16 << 10
ALONE = "listen=127.0.0.1,dht=no,lsd=no"  # options that keep the source on loopback

VERSIONS = {
    "v1": libtorrent.create_torrent.v1_only,
    "v2": libtorrent.create_torrent.v2_only,
    "hybrid": 0,
}


def noise(size: int, seed: int = 1) -> bytes:
    """Bytes that differ from piece to piece."""
    import random

    return random.Random(seed).randbytes(size)


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files below a folder."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def make_torrent(
    folder: Path, name: str, *, version: str = "v1", tracker: str = "", piece: int = PIECE, private: bool = False,
    web_seed: str = "",
) -> Path:  # fmt: skip
    """A torrent of the file or folder `name` in `folder`; gives the path of the .torrent file."""
    entries = libtorrent.list_files(str(folder / name))
    made = libtorrent.create_torrent(entries, piece, VERSIONS[version])
    if tracker:
        made.add_tracker(tracker, 0)
    if web_seed:
        made.add_url_seed(web_seed)
    made.set_priv(private)
    libtorrent.set_piece_hashes(made, str(folder))
    path = folder / f"{Path(name).name}-{version}.torrent"
    path.write_bytes(libtorrent.bencode(made.generate()))
    return path


class Seeder:
    """A libtorrent session that shares one torrent; it has the files in `folder`, unless it is to fetch them."""

    def __init__(
        self, torrent: Path, folder: Path, upload_limit: int = 0, *, complete: bool = True, **more: object
    ) -> None:
        params = libtorrent.load_torrent_file(str(torrent))
        settings = {
            "listen_interfaces": "127.0.0.1:0", "enable_dht": False, "enable_lsd": False, "enable_upnp": False,
            "enable_natpmp": False, "allow_multiple_connections_per_ip": True,
            # Two sessions that connect to each other at the same moment may each end the other's connection: a seeder
            # that asks the tracker twice, once for each hash, can hear of a reader that is just connecting.
            "seeding_outgoing_connections": not params.info_hashes.has_v2(),
            "stop_tracker_timeout": 0, "alert_mask": 0, **more,
        }  # fmt: skip
        self.session: Any = libtorrent.session(settings)
        params.save_path = str(folder)
        if complete:
            params.flags |= libtorrent.torrent_flags.seed_mode
        params.flags &= ~(libtorrent.torrent_flags.auto_managed | libtorrent.torrent_flags.paused)
        self.handle: Any = self.session.add_torrent(params)
        if upload_limit:
            self.handle.set_upload_limit(upload_limit)  # the session's own limit spares peers on the local network

    @property
    def port(self) -> int:
        return int(self.session.listen_port())

    @property
    def sent(self) -> int:
        """Bytes of pieces that went out."""
        return int(self.handle.status().total_payload_upload)

    def link(self, tracker: str = "") -> str:
        """A magnet link by the hash of the oldest version that the torrent has."""
        hashes = self.handle.info_hashes()
        topic = f"btih:{hashes.v1}" if hashes.has_v1() else f"btmh:1220{hashes.v2}"
        return f"magnet:?xt=urn:{topic}&tr={tracker}&x.pe=127.0.0.1:{self.port}"

    def close(self) -> None:
        del self.handle
        del self.session


@contextmanager
def seeding(torrent: Path, folder: Path, upload_limit: int = 0, **settings: object) -> Iterator[Seeder]:
    """A seeder for the block."""
    seeder = Seeder(torrent, folder, upload_limit, **settings)
    try:
        yield seeder
    finally:
        seeder.close()


class Tracker:
    """An HTTP tracker that tells everybody of everybody."""

    def __init__(self) -> None:
        self.peers: dict[int, None] = {}  # ports on loopback, in the order they came
        self.announces = 0
        self.interval = 2  # seconds until peers are to ask again
        self.left = 0  # peers that said that they stop
        self.agents: set[str] = set()  # what they call themselves
        tracker = self

        class Announce(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                tracker.agents.add(self.headers["User-Agent"])
                body = tracker.answer(urllib.parse.urlsplit(self.path).query)
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # peers that hang up at their end

        self._server = Server(("127.0.0.1", 0), Announce)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/announce"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def answer(self, query: str) -> bytes:
        words = urllib.parse.parse_qs(query)
        port = int(words["port"][0])
        self.announces += 1
        if words.get("event") == ["stopped"]:
            self.left += 1
            self.peers.pop(port, None)
        else:
            self.peers[port] = None
        others = [known for known in self.peers if known != port]
        compact = b"".join(socket.inet_aton("127.0.0.1") + known.to_bytes(2, "big") for known in others)
        return b"d8:intervali%de12:min intervali1e5:peers%d:%se" % (self.interval, len(compact), compact)

    def wait_for_peers(self, number: int) -> None:
        """Wait until so many have announced themselves."""
        while len(self.peers) < number:
            time.sleep(0.01)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextmanager
def tracking() -> Iterator[Tracker]:
    """A tracker for the block."""
    tracker = Tracker()
    try:
        yield tracker
    finally:
        tracker.close()
