"""NBD URIs: parsed strictly, written in one canonical form.

Source: the NBD project's uri.md, and of libnbd's additions the vsock schemes, the tls-* queries and `nbd-port`.
Whatever a parser could only guess at is refused in words: an export name that ends in the wrong place is another disk.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Callable
from typing import Any

from nbdfs.errors import UsageError, printable
from nbdfs.records import Record, field, replace
from nbdfs.registry import nearest
from nbdfs.units import parse_number

PORT = 10809  # assigned by IANA
HOST_CID = 2  # VMADDR_CID_HOST: the machine that runs this guest
_MOST_NAME = 4096  # bytes; NBD protocol, "Values": no string is longer
_MOST_SOCKET = 107  # bytes of sun_path, without the NUL at its end
_LARGEST = 0xFFFFFFFF  # CIDs and vsock ports are 32 bits
_LARGEST_PORT = 0xFFFF


class Tcp(Record):
    """A host name or address, and a port (0 lets a listener choose)."""

    host: str = "localhost"
    port: int = PORT

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORT else f"{host}:{self.port}"


class Unix(Record):
    """The path of a Unix domain socket; one that begins with NUL lies in the abstract namespace."""

    path: str

    def __str__(self) -> str:
        return "@" + self.path[1:] if self.path.startswith("\0") else self.path


class Vsock(Record):
    """A virtual machine's address.  `cid` is None where the URI names none: the host, or any for a listener."""

    cid: int | None = None
    port: int = PORT

    def __str__(self) -> str:
        return f"vsock {HOST_CID if self.cid is None else self.cid}:{self.port}"


Address = Tcp | Unix | Vsock


class TlsOptions(Record):
    """How the two ends know each other; empty values mean the default.

    `certificates` is a folder (see `nbdfs.nbd.tls`), `psk_file` a file of pre-shared keys, `hostname` the name that the
    server's certificate must have, `username` the name of the key to use.
    """

    certificates: str = ""
    psk_file: str = ""
    hostname: str = ""
    username: str = ""
    verify_peer: bool = True


class Uri(Record):
    """Where an export is and how to get there."""

    address: Address
    export: str = ""
    tls: bool = False
    tls_options: TlsOptions = field(default=TlsOptions())

    def __str__(self) -> str:
        """The URI, so that `parse_uri` gives an equal one."""
        scheme = "nbds" if self.tls else "nbd"
        queries: list[tuple[str, str]] = []
        authority = ""
        if isinstance(self.address, Tcp):
            authority = str(self.address).replace("%", "%25")  # the zone of a link-local address, RFC 6874
        elif isinstance(self.address, Unix):
            scheme += "+unix"
            queries.append(("socket", self.address.path))
        else:
            scheme += "+vsock"
            authority = _vsock_authority(self.address, queries)
        options, usual = self.tls_options, TlsOptions()
        for key, (name, _) in _TLS_QUERIES.items():
            if (value := getattr(options, name)) != getattr(usual, name):
                queries.append((key, "0" if value is False else str(value)))
        path = _quote(self.export, "/")
        query = "&".join(f"{key}={_quote(value, '/')}" for key, value in queries)
        return f"{scheme}://{authority}/{path}" + (f"?{query}" if query else "")

    def with_export(self, name: str) -> Uri:
        """The same server's export of that name."""
        return replace(self, export=name)


def _boolean(text: str) -> bool:
    if text not in ("0", "1"):
        raise UsageError(f"'{text}' is neither 0 nor 1")
    return text == "1"


_TLS_QUERIES: dict[str, tuple[str, Callable[[str], object]]] = {
    "tls-certificates": ("certificates", str),
    "tls-psk-file": ("psk_file", str),
    "tls-hostname": ("hostname", str),
    "tls-username": ("username", str),
    "tls-verify-peer": ("verify_peer", _boolean),
}
_SCHEMES = {
    f"nbd{secure}{suffix}": (bool(secure), suffix) for secure in ("", "s") for suffix in ("", "+unix", "+vsock")
}
SCHEMES = tuple(_SCHEMES)
_PLACE_QUERIES = {"": (), "+unix": ("socket",), "+vsock": ("nbd-port",)}
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)(/[^?#]*)?(?:\?([^#]*))?(#.*)?", re.DOTALL)
_AUTHORITY = re.compile(r"(?:([^@]*)@)?(\[[0-9A-Fa-f:.]+(?:%25[A-Za-z0-9._~-]+)?\]|[^:\[\]@]*)(?::([0-9]*))?")
_ALLOWED = re.compile(r"(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2}|[^\x00-\x7f])*")


def parse_uri(text: str) -> Uri:
    """Parse an NBD URI.  Raises UsageError that says what is wrong with it."""
    try:
        return _parse(text)
    except UsageError as error:
        from nbdfs.plans import without_secrets

        raise UsageError(f"{without_secrets(text)}: {error}") from error


def _parse(text: str) -> Uri:
    match = _URI.fullmatch(text)
    if not match:
        raise UsageError("this is no NBD URI: it begins like nbd://HOST/EXPORT or nbd+unix:///EXPORT?socket=PATH")
    if not _ALLOWED.fullmatch(text):
        raise UsageError("a character must be written as %XX, or a % has no two hexadecimal digits after it")
    scheme, authority, path, query, fragment = match.groups()
    if fragment is not None:
        raise UsageError("an NBD URI has no fragment: write a # in a name as %23")
    if scheme.lower() not in _SCHEMES:
        raise UsageError(f"unknown scheme '{scheme}'{nearest(scheme.lower(), SCHEMES)}")
    tls, place = _SCHEMES[scheme.lower()]
    values = _queries(query or "", place, tls)
    username, address = _address(place, authority, values)
    if username and not tls:
        shown = username.partition(":")[0]  # not a password
        raise UsageError(f"a user name ('{shown}@') goes with TLS only: write nbds instead of nbd at its beginning")
    if username:
        values.setdefault("tls-username", username)
    options: dict[str, Any] = {name: parse(values[key]) for key, (name, parse) in _TLS_QUERIES.items() if key in values}
    return Uri(address, export_name(_unquote((path or "/")[1:])), tls, TlsOptions(**options))


def export_name(name: str) -> str:
    """`name`, if the protocol can carry it as the name of an export."""
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise UsageError("the name of an export must be UTF-8") from None
    if length > _MOST_NAME:
        raise UsageError(f"the name of an export has at most {_MOST_NAME} bytes, this one {length}")
    if "\0" in name:
        raise UsageError("the name of an export cannot hold a NUL")
    return name


def _queries(query: str, place: str, tls: bool) -> dict[str, str]:
    values: dict[str, str] = {}
    known = (*_PLACE_QUERIES[place], *_TLS_QUERIES)
    for item in filter(None, query.split("&")):
        key, _, value = item.partition("=")
        key = _unquote(key)
        if key == "socket" and key not in known:
            raise UsageError("a socket goes with nbd+unix:///EXPORT?socket=PATH or nbds+unix")
        if key not in known:
            raise UsageError(f"unknown query '{key}'{nearest(key, known)}")
        if key in values:
            raise UsageError(f"the query '{key}' is given twice")
        if key in _TLS_QUERIES and not tls:
            raise UsageError(f"{key} goes with TLS only: write nbds instead of nbd at its beginning")
        values[key] = _unquote(value)
    return values


def _address(place: str, authority: str, values: dict[str, str]) -> tuple[str, Address]:
    match = _AUTHORITY.fullmatch(authority)
    if not match:
        raise UsageError(f"'{authority}' is no host and port: write HOST, HOST:PORT or [IPv6]:PORT")
    username, host, port_text = _unquote(match[1] or ""), match[2], match[3]
    if place == "+unix":
        if host or port_text:
            raise UsageError(f"a Unix socket has no host: write three slashes and ?socket=PATH, not '{authority}'")
        return username, Unix(socket_path(values.get("socket", "")))
    if place == "+vsock":
        port = parse_vsock_number(values.get("nbd-port") or port_text or str(PORT), "port")
        return username, Vsock(parse_vsock_number(host, "CID") if host else None, port)
    port = parse_port(port_text or str(PORT))
    host = _unquote(host[1:-1] if host.startswith("[") else host)
    return username, Tcp(host_name(host) or "localhost", port)


def host_name(text: str) -> str:
    """`text`, if it can be looked up as the name or the address of a host."""
    if text.startswith("-"):
        raise UsageError(f"'{text}' is no host: it begins with a dash")
    try:
        text.encode("idna")  # as getaddrinfo does
    except UnicodeError:
        raise UsageError(f"'{printable(text)}' is no host: its parts have 1 to 63 letters, with dots between") from None
    if not text.isprintable():
        raise UsageError(f"'{printable(text)}' is no host: it has a character that cannot be shown")
    return text


def parse_port(text: str) -> int:
    """A TCP port."""
    return parse_number(text, "port", _LARGEST_PORT)


def parse_vsock_number(text: str, what: str) -> int:
    """A vsock port, or the CID of a virtual machine: `what`."""
    return parse_number(text, what, _LARGEST)


def socket_path(path: str) -> str:
    """`path`, if a Unix socket can have it."""
    if not path:
        raise UsageError("the path of the Unix socket is missing: write ?socket=PATH")
    if len(path.encode(errors="surrogateescape")) > _MOST_SOCKET:
        raise UsageError(f"the path of a Unix socket has at most {_MOST_SOCKET} bytes: {path}")
    if "\0" in path[1:]:
        raise UsageError("the path of a Unix socket cannot hold a NUL")
    return path


def _vsock_authority(address: Vsock, queries: list[tuple[str, str]]) -> str:
    cid = "" if address.cid is None else str(address.cid)
    if address.port > 0x7FFFFFFF:  # parsers keep the port of a URI in an int
        queries.append(("nbd-port", str(address.port)))
        return cid
    return cid if address.port == PORT else f"{cid}:{address.port}"


def _unquote(text: str) -> str:
    return urllib.parse.unquote(text, errors="surrogateescape")


def _quote(text: str, safe: str) -> str:
    return urllib.parse.quote(text, safe=safe, errors="surrogateescape")
