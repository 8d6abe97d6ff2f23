"""A web server that does wrong on request: each path has its own fault.

`/plain` is the honest one.  The content, version and counters of a server can be changed while it runs.
"""

from __future__ import annotations

import gzip
import hashlib
import http.server
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

ROOT = Path(__file__).parent.parent


@dataclass
class State:
    """What the handlers of one server share."""

    content: bytearray
    etag: str = '"one"'
    token: str = "fresh"
    fail: int = 0  # how many of the next requests the faulty paths spoil
    requests: Counter[str] = field(default_factory=Counter)
    headers: list[dict[str, str]] = field(default_factory=list)
    connections: int = 0


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection; `fault` methods are named after their path."""

    protocol_version = "HTTP/1.1"
    state: State
    login: ClassVar[tuple[str, str]] = ("user", "secret")

    def setup(self) -> None:
        self.state.connections += 1
        super().setup()

    def do_GET(self) -> None:
        self.state.requests[self.command] += 1
        self.state.headers.append({name.lower(): value for name, value in self.headers.items()})
        if self.path.startswith("http://"):  # asked as a proxy: whatever the host, the content is ours
            self.state.requests["proxied"] += 1
            if self.headers.get("Proxy-Authorization") != "Basic dXNlcjpzZWNyZXQ=":
                self.reply(407, Proxy_Authenticate="Basic")
                return
            self.path = "/" + self.path.split("/", 3)[3]
        name = self.path.partition("?")[0].strip("/").replace("-", "_")
        getattr(self, f"fault_{name}", self.absent)()

    do_HEAD = do_PUT = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        return

    # ---- building blocks

    @property
    def range(self) -> tuple[int, int] | None:
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        return (int(match[1]), min(int(match[2]), len(self.state.content) - 1)) if match else None

    def spoil(self) -> bool:
        """Whether this request is one of those to be spoilt; the probe never is."""
        if self.range == (0, 0) or self.state.fail <= 0:
            return False
        self.state.fail -= 1
        return True

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        headers.setdefault("Content_Length", str(len(body)))
        for name, value in headers.items():
            if value:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def part(self, *, body: bytes | None = None, **headers: str) -> None:
        """An honest answer to a range request; another `body`, or headers, make it something else."""
        content = self.state.content
        if self.range is None:
            self.reply(200, bytes(content), ETag=self.state.etag)
            return
        first, last = self.range
        if first >= len(content):
            self.reply(416, Content_Range=f"bytes */{len(content)}")
            return
        fields = {"ETag": self.state.etag, "Content_Range": f"bytes {first}-{last}/{len(content)}", **headers}
        self.reply(206, bytes(content[first : last + 1]) if body is None else body, **fields)

    def cut_off(self) -> None:
        self.close_connection = True

    # ---- the honest paths

    def fault_plain(self) -> None:
        self.part()

    def fault_dated(self) -> None:
        self.part(ETag="", Last_Modified="Thu, 01 Jan 2026 00:00:00 GMT")

    def fault_no_total(self) -> None:
        if self.range is None:
            self.part()
        else:
            self.part(Content_Range=f"bytes {self.range[0]}-{self.range[1]}/*")

    def fault_in_parts(self) -> None:
        """Never more than 99,999 bytes at once, which a server may do."""
        if self.range is None:
            self.part()
            return
        first, last = self.range
        last = min(last, first + 99_998)
        content = self.state.content
        self.part(Content_Range=f"bytes {first}-{last}/{len(content)}", body=bytes(content[first : last + 1]))

    def fault_no_head(self) -> None:
        if self.command == "HEAD":
            self.reply(405)
        else:
            self.part()

    def fault_writable(self) -> None:
        if self.command != "PUT":
            self.part()
            return
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", self.headers["Content-Range"])
        assert match and int(match[3]) == len(self.state.content)
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if len(data) != int(self.headers["Content-Length"]):
            self.cut_off()
            return
        self.state.content[int(match[1]) : int(match[2]) + 1] = data
        self.state.etag = f'"{hashlib.sha256(self.state.content).hexdigest()}"'
        self.reply(204)

    def fault_chunked(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        content = bytes(self.state.content)
        end = len(content) // 2 if self.spoil_download() else len(content)
        for at in range(0, end, 10_000):
            chunk = content[at : min(at + 10_000, end)]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
        if end == len(content):
            self.wfile.write(b"0\r\n\r\n")
        self.close_connection = True

    def spoil_download(self) -> bool:
        return self.range is None and self.spoil()

    # ---- redirects and logins

    def fault_redirect(self) -> None:
        self.reply(302, Location="/plain")

    def fault_loop(self) -> None:
        self.reply(302, Location="/loop")

    def fault_nowhere(self) -> None:
        self.reply(302)

    def fault_to_ftp(self) -> None:
        self.reply(302, Location="ftp://localhost/plain")

    def fault_to_no_url(self) -> None:
        self.reply(302, Location="http://[")

    def fault_unquoted(self) -> None:
        """What servers write that have heard of no %XX."""
        self.reply(302, Location="/plain?a b\xc3\xa4")

    def fault_elsewhere(self) -> None:
        self.reply(302, Location=f"http://somebody:else@localhost:{self.server.server_port}/plain")  # type: ignore[attr-defined]

    def fault_downgrade(self) -> None:
        self.reply(302, Location="http://localhost:1/plain")

    def fault_signed(self) -> None:
        if self.path.partition("?")[2] == self.state.token:
            self.part()
        else:
            self.reply(403)

    def fault_to_signed(self) -> None:
        self.reply(302, Location=f"/signed?{self.state.token}")

    def fault_token(self) -> None:
        if self.headers.get("X-Token") == self.state.token:
            self.part()
        else:
            self.reply(401)

    def fault_basic(self) -> None:
        if self.headers.get("Authorization") == "Basic dXNlcjpzZWNyZXQ=":
            self.part()
        else:
            self.reply(401, WWW_Authenticate='Basic realm="x"')

    def fault_digest(self) -> None:
        if self.digest_is_right():
            self.part()
        else:
            self.reply(401, WWW_Authenticate='Digest realm="r", nonce="n", algorithm=SHA-256, qop="auth"')

    def fault_digest_of_the_body(self) -> None:
        self.reply(401, WWW_Authenticate='Digest realm="r", nonce="n", qop="auth-int"')

    def fault_digest_unknown(self) -> None:
        self.reply(401, WWW_Authenticate='Digest realm="r", nonce="n", algorithm=ROT13')

    def fault_digest_malformed(self) -> None:
        self.reply(401, WWW_Authenticate="Digest realm")

    def digest_is_right(self) -> bool:
        said = dict(re.findall(r'(\w+)="?([^",]+)"?', self.headers.get("Authorization", "")))
        if "response" not in said:
            return False

        def digest(text: str) -> str:
            return hashlib.sha256(text.encode()).hexdigest()

        user, password = self.login
        one, two = digest(f"{user}:r:{password}"), digest(f"{self.command}:{self.path}")
        return said["response"] == digest(f"{one}:n:{said['nc']}:{said['cnonce']}:auth:{two}")

    def fault_cookie(self) -> None:
        if "sesame=open" in self.headers.get("Cookie", ""):
            self.part()
        else:
            self.reply(403)

    # ---- servers that are ill

    def fault_busy(self) -> None:
        if self.spoil():
            self.reply(503)
        else:
            self.part()

    def fault_throttled(self) -> None:
        if self.spoil():
            self.reply(429, Retry_After="0")
        else:
            self.part()

    def fault_throttled_long(self) -> None:
        if self.spoil():
            self.reply(429, Retry_After="86400")
        else:
            self.part()

    def fault_hang_up(self) -> None:
        if self.spoil():
            self.cut_off()
        else:
            self.part()

    def fault_slow(self) -> None:
        time.sleep(0.25)
        self.part()

    def fault_silent(self) -> None:
        if self.spoil():
            time.sleep(3)
            self.cut_off()
        else:
            self.part()

    def fault_short(self) -> None:
        if not self.spoil():
            self.part()
            return
        assert self.range
        first, last = self.range
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(self.state.content)}")
        self.send_header("ETag", self.state.etag)
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        self.wfile.write(self.state.content[first : (first + last) // 2])
        self.cut_off()

    # ---- servers that lie

    def fault_no_range(self) -> None:
        self.reply(200, bytes(self.state.content), Accept_Ranges="bytes")

    def fault_endless(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.state.content)
        self.cut_off()

    def fault_whole(self) -> None:
        if self.spoil():
            self.reply(200, bytes(self.state.content), ETag=self.state.etag)
        else:
            self.part()

    def fault_wrong_range(self) -> None:
        if not self.spoil():
            self.part()
            return
        assert self.range
        first, last = self.range
        self.part(Content_Range=f"bytes {first + 1}-{last + 1}/{len(self.state.content)}")

    def fault_absurd_size(self) -> None:
        self.reply(206, b"x", Content_Range=f"bytes 0-0/{'9' * 5000}")

    def fault_too_large(self) -> None:
        self.reply(206, b"x", Content_Range=f"bytes 0-0/{1 << 63}")

    def fault_absurd_length(self) -> None:
        self.reply(416, Content_Range="bytes */" + "9" * 5000)

    def fault_no_content_range(self) -> None:
        if self.spoil():
            self.part(Content_Range="")
        else:
            self.part()

    def fault_multipart(self) -> None:
        if self.spoil():
            self.part(Content_Range="", Content_Type="multipart/byteranges; boundary=x")
        else:
            self.part()

    def fault_wrong_length(self) -> None:
        if self.spoil():
            assert self.range
            self.part(Content_Length=str(self.range[1] + 1 - self.range[0] + 7))
        else:
            self.part()

    def fault_too_much(self) -> None:
        if not self.spoil():
            self.part()
            return
        assert self.range
        first, last = self.range
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(self.state.content)}")
        self.send_header("ETag", self.state.etag)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        body = bytes(last - first + 10)
        self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))

    def fault_gzip(self) -> None:
        if not self.spoil():
            self.part()
            return
        assert self.range
        body = gzip.compress(self.state.content[self.range[0] : self.range[1] + 1])
        self.part(Content_Encoding="gzip", Content_Length=str(len(body)))

    def fault_gzip_always(self) -> None:
        self.reply(200, gzip.compress(self.state.content), Content_Encoding="gzip")

    def fault_garbage(self) -> None:
        if self.spoil():
            self.wfile.write(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
            self.cut_off()
        else:
            self.part()

    def fault_takes_parts_for_all(self) -> None:
        if self.command == "PUT":
            self.state.content[:] = self.rfile.read(int(self.headers["Content-Length"]))
            self.reply(204)
        else:
            self.part()

    def absent(self) -> None:
        self.reply(404)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        return  # clients that hang up are part of the tests


class _UnixServer(_Server):
    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "localhost", 80

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        return self.socket.accept()[0], ("unix", 0)


@dataclass
class Served:
    """A running server: its state and the URL of a path."""

    state: State
    base: str

    def url(self, path: str) -> str:
        return f"{self.base}/{path}"


@contextmanager
def hostile(content: bytes, *, unix: str = "", tls: Callable[[ssl.SSLContext], None] | None = None) -> Iterator[Served]:
    """Run a server for the block: on loopback, on the Unix socket `unix`, or with the TLS that `tls` sets up."""
    state = State(bytearray(content))
    handler = type("Bound", (Handler,), {"state": state})
    server = _UnixServer(unix, handler) if unix else _Server(("127.0.0.1", 0), handler)  # type: ignore[arg-type]
    scheme, place = "http", f"127.0.0.1:{server.server_port}"
    if unix:
        scheme, place = "http+unix", unix.replace("/", "%2F")
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls(context)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        scheme, place = "https", f"localhost:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield Served(state, f"{scheme}://{place}")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@asynccontextmanager
async def hostile_process(content: Path) -> AsyncIterator[str]:
    """The server in a process of its own, whose descriptors are not ours: the URL before the path."""
    command = [sys.executable, "-m", "tests.hostile_http", str(content)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdin and process.stdout
        yield process.stdout.readline().strip()
        process.stdin.close()


if __name__ == "__main__":
    with hostile(Path(sys.argv[1]).read_bytes()) as served:
        print(served.base, flush=True)
        sys.stdin.read()
