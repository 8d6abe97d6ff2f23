"""Where the content is and how one gets in: URL, redirects' memory, login, cookies, the user's scripts.

Secrets go to the origin the user named and to no other: a redirect elsewhere gets only what the request needs.
"""

from __future__ import annotations

import base64
import hashlib
import http.cookiejar
import logging
import os
import re
import subprocess
import urllib.parse
import urllib.request
import warnings
from collections.abc import Mapping, Sequence

import trio

import nbdfs
from nbdfs.backends.http import digest
from nbdfs.backends.http.digest import Digest
from nbdfs.backends.http.options import HttpOptions
from nbdfs.backends.http.wire import carried, target_of
from nbdfs.errors import UserError
from nbdfs.secret import Secret

log = logging.getLogger(__name__)

_SCRIPT_TIMEOUT = 30.0  # seconds
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")  # of a header: RFC 9110, 5.5
_PLAIN = (("User-Agent", f"nbdfs/{nbdfs.__version__}"), ("Accept-Encoding", "identity"), ("Accept", "*/*"))


class Access:
    """Gives the URL and headers of a request; `renew` makes both fresh after the server refused them.

    `url` is what the user or their script named last, `final` where redirects from there last led; `identity` tells the
    resource from others that are shown as it is.
    """

    def __init__(self, url: str, options: HttpOptions) -> None:
        self.url, user, password = _split_login(url)
        self.final = self.url
        self.identity = _identity(self.url, options.url_script)
        self._options = options
        self._user = options.user or user
        self._password = read_text(options.password, "Password") if options.password else password
        self._digest: Digest | None = None
        self._fixed = _parse_headers(read_text(options.headers, "Headers")) if options.headers else []
        self._scripted: list[tuple[str, str]] = []
        self._cookies = _load_cookies(options.cookie_file) if options.cookie_file else None
        self._renewing = trio.Lock()
        self._renewals = 0
        self._prepared: dict[str, list[tuple[str, str]]] = {}  # headers that stay the same, by URL

    @property
    def shown(self) -> str:
        """The URL as it may be logged: no login, no query (which may be a signature)."""
        return self.url.partition("?")[0]

    @property
    def renewals(self) -> int:
        """How often `renew` has made anything fresh."""
        return self._renewals

    async def prepare(self) -> None:
        """Run the scripts for the first time."""
        if self._options.header_script:
            self._scripted = _parse_headers(await self._run("header-script", self._options.header_script))
        if self._options.url_script and not self.url:
            await self._new_url()

    async def renew(self, seen: int) -> bool:
        """After a refusal of what was sent when `renewals` was `seen`: whether there is now something new to send."""
        async with self._renewing:
            if self._renewals != seen:
                return True  # another request has done it meanwhile
            moved = self.final != self.url
            self.final = self.url
            if self._options.url_script:
                await self._new_url()
            if self._options.header_script:
                self._scripted = _parse_headers(await self._run("header-script", self._options.header_script))
            if not (moved or self._options.url_script or self._options.header_script):
                return False
            self._renewals += 1
            self._prepared.clear()
            return True

    def challenge(self, url: str, headers: Mapping[str, str]) -> bool:
        """Take in a 401 response: whether the same request, sent again, will answer it.

        Raises ChallengeError for a challenge that makes no sense or that nobody here can answer.
        """
        asked = headers.get("www-authenticate", "")
        if not self._user or not digest.is_digest(asked) or not _same_origin(url, self.url):
            return False
        fields = digest.parse(asked)
        if self._digest and fields.get("stale", "").lower() != "true":
            return False  # the login itself was refused
        self._digest = Digest(carried(self._user), carried(self._password), fields)
        self._prepared.clear()
        return True

    def headers(self, method: str, url: str, extra: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """All headers of a request."""
        if url not in self._prepared:
            self._prepared = {url: self._lasting_headers(url)}  # the last URL is nearly always the next
        result = [*self._prepared[url], *extra]
        if self._digest and _same_origin(url, self.url):
            result.append(("Authorization", self._digest.authorization(method, target_of(url))))
        return result

    def _lasting_headers(self, url: str) -> list[tuple[str, str]]:
        result = [("Host", urllib.parse.urlsplit(url).netloc.rpartition("@")[2]), *_PLAIN]
        if _same_origin(url, self.url):
            result += self._fixed + self._scripted
            if self._user and not self._digest:
                login = base64.b64encode(f"{self._user}:{self._password}".encode("utf-8", "surrogateescape")).decode()
                result.append(("Authorization", f"Basic {login}"))
            if self._cookies:
                result += self._cookie(url)
        return result

    def _cookie(self, url: str) -> list[tuple[str, str]]:
        assert self._cookies is not None
        request = urllib.request.Request(url)  # noqa: S310 - never opened, only asked for its cookies
        self._cookies.add_cookie_header(request)
        cookie = request.get_header("Cookie")
        return [("Cookie", cookie)] if cookie else []

    async def _new_url(self) -> None:
        url = (await self._run("url-script", self._options.url_script)).strip()
        if not is_url(url):
            raise UserError("url-script must print one http or https URL and nothing else")
        self.url, user, password = _split_login(url)
        self.final = self.url
        self._user, self._password = user or self._user, password or self._password

    async def _run(self, what: str, script: str) -> str:
        with trio.move_on_after(_SCRIPT_TIMEOUT):
            done = await trio.run_process(
                ["/bin/sh", "-c", script],
                capture_stdout=True,
                check=False,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "url": self.url},
            )
            if done.returncode:
                raise UserError(f"{what} ended with status {done.returncode}")
            return done.stdout.decode("utf-8", "surrogateescape")
        raise UserError(f"{what} was not done after {_SCRIPT_TIMEOUT:g} s")


def _identity(url: str, script: str) -> str:
    """What tells this resource from others at the same path, as a hash, for it can be a secret; empty if nothing does.

    What a script prints has no part in it: a signature is another each time, and the script tells which file it is.
    """
    named = url.partition("?")[2] + "\n" + script
    return hashlib.sha256(named.encode("utf-8", "surrogateescape")).hexdigest()[:16] if named.strip() else ""


def is_url(text: str, *schemes: str) -> bool:
    """Whether a request can be sent to `text` as it stands (RFC 3986); `schemes` are more than http and https."""
    try:
        parts = urllib.parse.urlsplit(text)
        good = parts.scheme in ("http", "https", *schemes) and parts.hostname and (parts.port or 80) > 0
    except ValueError:
        return False
    return bool(good) and text.isascii() and all(letter > " " for letter in text)


def _split_login(url: str) -> tuple[str, str, str]:
    """The URL without `user:password@`, and these."""
    parts = urllib.parse.urlsplit(url)
    if "@" not in parts.netloc:
        return url, "", ""
    log.warning("a login is written in the URL, where others can see it: use user= and password=+FILE")
    login, _, host = parts.netloc.rpartition("@")
    return urllib.parse.urlunsplit(parts._replace(netloc=host)), *parse_login(login)


def parse_login(login: str) -> tuple[str, str]:
    """User and password of what stands before the `@` of a URL."""
    user, _, password = (urllib.parse.unquote(part, errors="surrogateescape") for part in login.partition(":"))
    return user, password


def _same_origin(one: str, other: str) -> bool:
    return urllib.parse.urlsplit(one)[:2] == urllib.parse.urlsplit(other)[:2]


def read_text(secret: Secret, prompt: str) -> str:
    """The secret as text, without the newline that ends a file."""
    return secret.read(prompt).decode("utf-8", "surrogateescape").rstrip("\r\n")


def _parse_headers(text: str) -> list[tuple[str, str]]:
    headers = []
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if not line.strip():
            continue
        if not colon or not name or not name.isascii() or set(name) & set(' \t()<>@,;\\"/[]?={}'):
            raise UserError("a header must be written 'Name: value', one a line")
        if not _VALUE.fullmatch(value):
            raise UserError(f"the header {name} has a character that HTTP cannot carry")
        headers.append((name, value.strip()))
    return headers


def _load_cookies(path: str) -> http.cookiejar.CookieJar:
    jar = http.cookiejar.MozillaCookieJar(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a traceback of whatever makes no sense to it
            jar.load(ignore_discard=True, ignore_expires=True)
    except http.cookiejar.LoadError as error:
        raise UserError(f"cookie-file: {path} is no cookie file in Netscape format") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(f"cookie-file: cannot read {path}: {reason}") from error
    for cookie in jar:
        if not _VALUE.fullmatch(f"{cookie.name}={cookie.value}"):
            raise UserError(f"cookie-file: the cookie {cookie.name} has a character that HTTP cannot carry")
        cookie.expires = cookie.expires or None  # curl writes 0 for a cookie of the session
    return jar
