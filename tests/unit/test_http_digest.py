"""Digest authentication: the examples of RFC 7616, what servers say in odd ways, and what cannot be answered."""

from __future__ import annotations

import hashlib
import re

import pytest

from nbdfs.backends.http.digest import ChallengeError, Digest, is_digest, parse

# RFC 7616, 3.9.1
REALM, NONCE = "http-auth@example.org", "7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v"
OPAQUE, CLIENT_NONCE = "FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS", "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ"
CHALLENGE = f'Digest realm="{REALM}", qop="auth, auth-int", algorithm={{}}, nonce="{NONCE}", opaque="{OPAQUE}"'


def said(value: str) -> dict[str, str]:
    """The fields of an answer."""
    return dict(re.findall(r'(\w+)="?([^",]+)"?', value))


def md5(text: str) -> str:
    return hashlib.md5(text.encode()).hexdigest()


@pytest.mark.parametrize(
    ("algorithm", "response"),
    [
        ("SHA-256", "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"),
        ("MD5", "8ca523f5e9506fed4657c9700eebdbec"),
    ],
)
def test_the_examples_of_the_specification(algorithm: str, response: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secrets.token_hex", lambda size: CLIENT_NONCE)
    digest = Digest("Mufasa", "Circle of Life", parse(CHALLENGE.format(algorithm)))
    assert said(digest.authorization("GET", "/dir/index.html")) == {
        "username": "Mufasa", "realm": REALM, "uri": "/dir/index.html", "algorithm": algorithm, "nonce": NONCE,
        "nc": "00000001", "cnonce": CLIENT_NONCE, "qop": "auth", "response": response, "opaque": OPAQUE,
    }  # fmt: skip
    assert said(digest.authorization("GET", "/dir/index.html"))["nc"] == "00000002"


def test_a_key_for_one_challenge() -> None:
    fields = parse(CHALLENGE.format("MD5-sess"))
    answer = said(Digest("Mufasa", "Circle of Life", fields).authorization("GET", "/x"))
    key = md5(f"{md5(f'Mufasa:{REALM}:Circle of Life')}:{NONCE}:{answer['cnonce']}")
    assert answer["response"] == md5(f"{key}:{NONCE}:00000001:{answer['cnonce']}:auth:{md5('GET:/x')}")


def test_a_server_that_knows_only_the_oldest_form() -> None:
    answer = said(Digest("user", "secret", parse("digest realm=r,nonce=n")).authorization("GET", "/x"))
    assert answer == {
        "username": "user", "realm": "r", "nonce": "n", "uri": "/x",
        "response": md5(f"{md5('user:r:secret')}:n:{md5('GET:/x')}"),
    }  # fmt: skip


def test_a_challenge_is_read_as_it_may_be_written() -> None:
    assert is_digest("DIGEST realm=x") and not is_digest('Basic realm="Digest"')
    fields = parse(r'Digest realm="a \"b\", c" ,, nonce=n, STALE=TRUE, Basic realm="other"')
    assert fields == {"realm": 'a "b", c', "nonce": "n", "stale": "TRUE"}
    assert r'realm="a \"b\", c"' in Digest("user", "secret", fields).authorization("GET", "/x")


@pytest.mark.parametrize("text", ["", "realm", 'realm="r"', 'realm="r, nonce="n"', 'realm="r", nonce="n", x="'])
def test_a_challenge_that_makes_no_sense(text: str) -> None:
    with pytest.raises(ChallengeError, match="makes no sense"):
        parse(f"Digest {text}")


@pytest.mark.parametrize(
    ("user", "more", "says"),
    [
        ("user", 'qop="auth-int"', "protect the body"),
        ("user", "algorithm=ROT13", "'ROT13'"),
        ("user", "algorithm=-sess", "'-sess'"),
        ("us\ner", 'qop="auth"', "name of the user"),
    ],
)
def test_what_cannot_be_answered(user: str, more: str, says: str) -> None:
    with pytest.raises(ChallengeError, match=says):
        Digest(user, "secret", parse(f'Digest realm="r", nonce="n", {more}'))


def test_a_system_without_the_oldest_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one by FIPS 140."""
    monkeypatch.setattr("hashlib.algorithms_available", {"sha256"})
    with pytest.raises(ChallengeError, match="'MD5' is not known here"):
        Digest("user", "secret", parse('Digest realm="r", nonce="n"'))
