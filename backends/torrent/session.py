"""A libtorrent session on trio.

libtorrent works in threads of its own and queues alerts.  It writes a byte to a pipe when the queue stops being empty;
trio wakes up on that, so nothing polls.  Alerts are handled in trio's thread, one after the other; an alert must not
be kept, its memory is libtorrent's.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import libtorrent
import trio

import nbdfs
from nbdfs.backends.torrent import Options, sharing, sockets
from nbdfs.errors import UserError
from nbdfs.secret import Secret

log = logging.getLogger(__name__)

_ALERTS = 50_000  # most that wait to be handled; a seeding fleet makes hundreds a second
_TRACKER_GOODBYE = 1  # seconds a tracker gets to hear that we leave
_CLOSE = 3.0  # seconds until the session is left to its own threads

# Piece data is written and hashed in order by libtorrent's own thread: a piece that is announced as finished is in its
# file, where a read of ours finds it.  The other ways of libtorrent write later, and a read would see zeroes.
_DISK = "posix_disk_io_constructor"

_FIXED: Mapping[str, Any] = {
    "alert_queue_size": _ALERTS,
    "allow_multiple_connections_per_ip": True,  # a fleet behind one address
    "close_redundant_connections": False,  # a peer that we need nothing from now is needed at the next read
    "support_share_mode": False,  # see `membership`: the mode is ours, not to be told to peers
    "share_mode_target": 100_000,
    "enable_outgoing_utp": False,  # an eighth of TCP's speed in a local network
    "smooth_connects": False,
    "connect_seed_every_n_download": 1,  # a circle, which wants nothing for now, meets its readers all the same
    "stop_tracker_timeout": _TRACKER_GOODBYE,
    "min_reconnect_time": 2,
    "max_failcount": 20,
    "request_timeout": 20,
    "peer_connect_timeout": 7,
    "optimistic_disk_retry": 5,
    "max_out_request_queue": 2000,
    "request_queue_time": 10,  # seconds of requests under way at the present rate: all that `request_queue` tells of
    "whole_pieces_threshold": 0,  # pieces are shared among peers by the block
}
FINGERPRINT = b"-nB"  # the start of our peer ids, by which readers know each other
_POLICY = libtorrent.enc_policy
_ENCRYPTION = {"allow": _POLICY.pe_enabled, "require": _POLICY.pe_forced, "off": _POLICY.pe_disabled}
_NEW_SOCKETS = (libtorrent.peer_connect_alert, libtorrent.listen_succeeded_alert)
_PROXY = libtorrent.proxy_type_t
_PROXIES = {  # without and with a user name
    "socks4": (_PROXY.socks4, _PROXY.socks4),
    "socks5": (_PROXY.socks5, _PROXY.socks5_pw),
    "http": (_PROXY.http, _PROXY.http_pw),
}


def settings(options: Options) -> dict[str, Any]:
    """libtorrent's settings for the options of the source.  Raises UserError for a proxy that is none."""
    alerts = libtorrent.alert_category
    chosen = {
        **_FIXED,
        "alert_mask": alerts.error | alerts.status | alerts.storage | alerts.connect | alerts.piece_progress
        | alerts.tracker,
        "user_agent": options.user_agent or f"nbdfs/{nbdfs.__version__}",
        "listen_interfaces": options.listen,
        "connections_limit": options.connections,
        "unchoke_slots_limit": options.connections,
        "download_rate_limit": options.download_limit,
        "upload_rate_limit": options.upload_limit,
        "enable_dht": options.dht,
        "enable_lsd": options.lsd,
        "enable_upnp": options.upnp,
        "enable_natpmp": options.upnp,
        "in_enc_policy": _ENCRYPTION[options.encryption],
        "out_enc_policy": _ENCRYPTION[options.encryption],
    }  # fmt: skip
    if options.outgoing:
        chosen["outgoing_interfaces"] = options.outgoing
    if options.seed_ratio or options.seed_time:
        chosen["unchoke_interval"] = 1  # seconds from the end of uploads to the last byte; 15 otherwise
    if options.proxy:
        chosen |= _proxy(options.proxy, options.proxy_password)
    return chosen


def _proxy(url: str, password: Secret | None) -> dict[str, Any]:
    parts = urllib.parse.urlsplit(url)
    try:
        port = parts.port or 1080
    except ValueError:
        port = 0
    if parts.scheme not in _PROXIES or not parts.hostname or not port:
        raise UserError(
            f"'{url}' is no proxy: write socks5://HOST:PORT, socks4://... or http://..., with USER@ if asked"
        )
    plain, with_password = _PROXIES[parts.scheme]
    return {
        "proxy_type": with_password if parts.username else plain,
        "proxy_hostname": parts.hostname,
        "proxy_port": port,
        "proxy_username": urllib.parse.unquote(parts.username or ""),
        "proxy_password": password.read("Password of the proxy").decode(errors="replace").rstrip("\n")
        if password else "",
    }  # fmt: skip


def peer_id() -> bytes:
    """An id of one session, in the usual form: the program, its version, what nobody else has."""
    version = "".join(nbdfs.__version__.split(".")[:3]).ljust(4, "0")[:4]
    return sharing.peer_id(FINGERPRINT + version.encode() + b"-")


class _Waiter:
    """Somebody who waits for an alert of some type that fits."""

    def __init__(self, alert: type, fits: Callable[[Any], bool]) -> None:
        self.alert = alert
        self.fits = fits
        self.came = trio.Event()


class Session:
    """A libtorrent session whose alerts arrive in trio."""

    def __init__(self, chosen: Mapping[str, Any]) -> None:
        self._readable, self._writable = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        params = libtorrent.session_params()
        self.peer_id = peer_id()
        self.chosen = {**chosen, "peer_fingerprint": self.peer_id.decode()}
        params.settings = self.chosen  # type: ignore[assignment]  # its stubs know only what it reads back
        params.disk_io_constructor = _DISK
        self.session = libtorrent.session(params)
        self.session.set_peer_class_filter(_everybody())
        self.session.set_alert_fd(self._writable)
        self._handlers: dict[type, Callable[[Any], None]] = {libtorrent.listen_failed_alert: _warn}
        self._waiters: list[_Waiter] = []

    def on(self, alert: type, handler: Callable[[Any], None]) -> None:
        """Call `handler` with every alert of that type."""
        self._handlers[alert] = handler

    async def run(self) -> None:
        """Handle alerts until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self._readable)
            try:
                os.read(self._readable, 4096)
            except BlockingIOError:
                continue
            alerts = self.session.pop_alerts()
            if any(isinstance(alert, _NEW_SOCKETS) for alert in alerts):
                sockets.hasten()
            for alert in alerts:
                if handler := self._handlers.get(type(alert)):
                    handler(alert)
                for waiter in self._waiters:
                    if isinstance(alert, waiter.alert) and waiter.fits(alert):
                        waiter.came.set()

    async def wait_for(
        self, alert: type, start: Callable[[], object], seconds: float, fits: Callable[[Any], bool] = lambda found: True
    ) -> bool:
        """Call `start` and wait for an alert of that type that fits; False if it does not come in time.

        `run` must be under way.  A handler for the alert is called too, before this returns.
        """
        waiter = _Waiter(alert, fits)
        self._waiters.append(waiter)
        try:
            start()
            with trio.move_on_after(seconds):
                await waiter.came.wait()
        finally:
            self._waiters.remove(waiter)
        return waiter.came.is_set()

    async def aclose(self) -> None:
        """Leave the swarm.  A tracker that does not answer is not waited for."""
        holder = [self.session]
        del self.session
        with trio.move_on_after(_CLOSE) as scope:
            await _in_thread(holder.clear)  # the destructor waits for libtorrent's threads
        if scope.cancelled_caught:
            log.info("the torrent session is slow to end: left behind")
            return  # its threads still write to the pipe
        os.close(self._readable)
        os.close(self._writable)


def _everybody() -> Any:
    """A filter that has peers in the local network as all others: no limit holds for them by libtorrent's own."""
    peers = libtorrent.ip_filter()
    for network in (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0")):
        peers.add_rule(str(network[0]), str(network[-1]), 1 << libtorrent.session.global_peer_class_id)
    return peers


def _in_thread(work: Callable[[], None]) -> Awaitable[None]:
    return trio.to_thread.run_sync(work, abandon_on_cancel=True)


def _warn(alert: Any) -> None:
    log.warning("torrent: %s", alert.message())
