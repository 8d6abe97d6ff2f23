"""Digest authentication (RFC 7616): answers to a server's challenge.

Texts are as headers have them: each letter stands for a byte.
That of httpx2 is not used, as it makes a new key for each request of a session (`-sess`), escapes no quotation mark,
takes a second challenge in a header for fields of the first, and wants requests and URLs of its own.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping

_HASHES = {"md5": "md5", "sha-256": "sha256", "sha-512-256": "sha512_256"}
_SESSION = "-sess"  # what the names of algorithms end with whose key is good for one challenge
_FIELD = re.compile(r'[\s,]*([A-Za-z0-9_*-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",]+))(?=[\s,]|$)')
_ANOTHER = re.compile(r"[\s,]*([A-Za-z0-9_-]+\s+[A-Za-z0-9_-]+\s*=|$)")  # a challenge of another scheme follows
_CONTROL = re.compile(r"[\0-\x1f\x7f]")


class ChallengeError(Exception):
    """A challenge that makes no sense, or that nobody here can answer."""


def is_digest(challenge: str) -> bool:
    """Whether the value of a WWW-Authenticate header asks for this kind of login."""
    return challenge.split(" ", 1)[0].lower() == "digest"


def parse(challenge: str) -> dict[str, str]:
    """The fields of such a value, their names in lower case.  Raises ChallengeError."""
    text = challenge.partition(" ")[2]
    fields: dict[str, str] = {}
    at = 0
    while match := _FIELD.match(text, at):
        name, quoted, plain = match.groups()
        fields.setdefault(name.lower(), plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted))
        at = match.end()
    if not _ANOTHER.match(text, at) or "realm" not in fields or "nonce" not in fields:
        raise ChallengeError("the challenge of the server makes no sense")
    return fields


class Digest:
    """What answers one challenge, given by its fields, for any number of requests.  Raises ChallengeError."""

    def __init__(self, user: str, password: str, fields: Mapping[str, str]) -> None:
        if _CONTROL.search(user):
            raise ChallengeError("the name of the user has a character that HTTP cannot carry")
        self._fields = fields
        self._user = user
        self._client_nonce = secrets.token_hex(8)
        self._requests = 0
        wanted = fields.get("algorithm", "MD5")
        algorithm = wanted.lower()
        name = _HASHES.get(algorithm.removesuffix(_SESSION), "")
        if name not in hashlib.algorithms_available:
            raise ChallengeError(f"the algorithm '{wanted[:32]}' is not known here")
        self._hash = name
        self._protects = "qop" in fields
        if self._protects and "auth" not in re.split(r"[\s,]+", fields["qop"].lower()):
            raise ChallengeError(f"it is to protect the body too (qop={fields['qop'][:32]})")
        self._key = self._digest(f"{user}:{fields['realm']}:{password}")
        if algorithm.endswith(_SESSION):
            self._key = self._digest(f"{self._key}:{fields['nonce']}:{self._client_nonce}")

    def authorization(self, method: str, target: str) -> str:
        """The value of the Authorization header for a request; `target` as the request line has it."""
        nonce, subject = self._fields["nonce"], self._digest(f"{method}:{target}")
        quoted = {"username": self._user, "realm": self._fields["realm"], "nonce": nonce, "uri": target}
        plain = {name: self._fields[name] for name in ("algorithm",) if name in self._fields}
        if self._protects:
            self._requests += 1
            count = f"{self._requests:08x}"
            plain |= {"qop": "auth", "nc": count}
            quoted["cnonce"] = self._client_nonce
            quoted["response"] = self._digest(f"{self._key}:{nonce}:{count}:{self._client_nonce}:auth:{subject}")
        else:
            quoted["response"] = self._digest(f"{self._key}:{nonce}:{subject}")
        if "opaque" in self._fields:
            quoted["opaque"] = self._fields["opaque"]
        fields = [f'{name}="{_escaped(value)}"' for name, value in quoted.items()]
        return "Digest " + ", ".join([*fields, *(f"{name}={value}" for name, value in plain.items())])

    def _digest(self, text: str) -> str:
        return hashlib.new(self._hash, text.encode("latin-1"), usedforsecurity=False).hexdigest()


def _escaped(value: str) -> str:
    return re.sub(r'(["\\])', r"\\\1", value)
