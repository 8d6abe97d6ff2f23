"""The options of the `http` source."""

from __future__ import annotations

from nbdfs.records import Record
from nbdfs.registry import BOOLEAN, COMMAND, DURATION, INTEGER, PATH, SECRET, TEXT, choice, option
from nbdfs.secret import Secret


class HttpOptions(Record):
    user: str = option("", TEXT, "user name for basic or digest authentication")
    password: Secret | None = option(None, SECRET, "its password")
    headers: Secret | None = option(None, SECRET, "more request headers, 'Name: value', one a line")
    header_script: str = option("", COMMAND, "shell command that prints such headers; run again when they are refused")
    url_script: str = option("", COMMAND, "shell command that prints the URL; run again when the old one is refused")
    cookie_file: str = option("", PATH, "cookies in Netscape format")
    ca: str = option("", PATH, "certificates to trust instead of the system's, PEM")
    insecure: bool = option(False, BOOLEAN, "accept any certificate")
    http2: bool = option(False, BOOLEAN, "offer HTTP/2 to an https server: one connection for all requests")
    proxy: str = option(
        "", TEXT, "URL of an HTTP proxy, or none; else the environment's https_proxy and no_proxy decide"
    )
    proxy_user: str = option("", TEXT, "user name at the proxy")
    proxy_password: Secret | None = option(None, SECRET, "password at the proxy")
    timeout: float = option(30.0, DURATION, "most time for one request of up to 1 MiB, retries included")
    connections: int = option(16, INTEGER, "most connections at once")
    writable: bool = option(False, BOOLEAN, "write by PUT with Content-Range, which few servers can do")
    fallback: str = option(
        "none", choice("none", "download"), "where the server cannot send ranges: fetch it all first"
    )
