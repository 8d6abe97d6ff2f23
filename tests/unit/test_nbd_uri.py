"""NBD URIs against the table of the NBD project's uri.md, and what must be refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdfs.errors import UsageError
from nbdfs.nbd.uri import Tcp, TlsOptions, Unix, Uri, Vsock, parse_uri


@pytest.mark.parametrize(
    ("text", "export"),
    [
        ("nbd://example.com/disk", "disk"),
        ("nbd+unix:///disk?socket=sock", "disk"),
        ("nbd://example.com/", ""),
        ("nbd://example.com", ""),
        ("nbd://example.com//disk", "/disk"),
        ("nbd://example.com/hello%20world", "hello world"),
        ("nbd://example.com/a%2Fb%3Fc%23", "a/b?c#"),
        ("nbd://example.com/%C3%BC", "ü"),
        ("nbd://example.com/ü", "ü"),
        ("nbd://example.com/a::b,c=d", "a::b,c=d"),
    ],
)
def test_export_name_is_the_path_without_its_first_slash(text: str, export: str) -> None:
    assert parse_uri(text).export == export


@pytest.mark.parametrize(
    ("text", "uri"),
    [
        ("nbd://h", Uri(Tcp("h", 10809))),
        ("nbd://", Uri(Tcp("localhost", 10809))),
        ("NBD://h:1", Uri(Tcp("h", 1))),
        ("nbd://h:", Uri(Tcp("h"))),
        ("nbd://[::1]:10810/x", Uri(Tcp("::1", 10810), "x")),
        ("nbd://[fe80::1%25eth0]/", Uri(Tcp("fe80::1%eth0"))),
        ("nbds://h", Uri(Tcp("h"), tls=True)),
        ("nbds://alice@h/x", Uri(Tcp("h"), "x", True, TlsOptions(username="alice"))),
        ("nbd+unix:///?socket=/run/a%20b", Uri(Unix("/run/a b"))),
        ("nbd+unix://?socket=s", Uri(Unix("s"))),
        ("nbd+unix:///x?socket=%00/abstract", Uri(Unix("\0/abstract"), "x")),
        ("nbds+unix:///?socket=s&tls-hostname=h", Uri(Unix("s"), "", True, TlsOptions(hostname="h"))),
        ("nbd+vsock:///x", Uri(Vsock(None, 10809), "x")),
        ("nbd+vsock://3:99/x", Uri(Vsock(3, 99), "x")),
        ("nbds+vsock://1?nbd-port=4294967295", Uri(Vsock(1, 4294967295), "", True)),
        (
            "nbds://h/?tls-certificates=/pki&tls-verify-peer=0&tls-psk-file=/p&tls-username=u",
            Uri(Tcp("h"), "", True, TlsOptions("/pki", "/p", "", "u", False)),
        ),
    ],
)
def test_parts(text: str, uri: Uri) -> None:
    assert parse_uri(text) == uri


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no NBD URI"),
        ("nbd:host", "no NBD URI"),
        ("/run/sock", "no NBD URI"),
        ("http://host/", "unknown scheme 'http'"),
        ("nbd+ssh://host/", "unknown scheme"),
        ("nbd+unix:///x", "socket"),
        ("nbd+unix:///x?socket=", "socket"),
        ("nbd+unix://host/x?socket=s", "has no host"),
        ("nbd://host/?socket=s", r"nbd\+unix"),
        ("nbd://host/?tls-hostname=x", "nbds"),
        ("nbds://host/?tls-verify-peer=yes", "neither 0 nor 1"),
        ("nbds://host/?tls-hostnam=x", "did you mean 'tls-hostname'"),
        ("nbds://host/?tls-hostname=x&tls-hostname=y", "twice"),
        ("nbd://host:65536/", "no port"),
        ("nbd://host:x/", "no host and port"),
        ("nbd://::1/", "no host and port"),
        ("nbd://-oProxy/", "begins with a dash"),
        ("nbd://a..b/", "is no host"),
        (f"nbd://{'x' * 64}/", "is no host"),
        ("nbd://%ff/", "is no host"),
        ("nbd://host%00/", "is no host"),
        ("nbd://host/a#b", "fragment"),
        ("nbd://host/a b", "%XX"),
        ("nbd://host/%4", "%XX"),
        ("nbd://host/%00", "NUL"),
        ("nbd://host/%ff", "UTF-8"),
        ("nbd://host/" + "x" * 4097, "at most 4096"),
        ("nbd+unix:///?socket=" + "x" * 108, "at most 107"),
        ("nbd+vsock://two/", "no CID"),
        ("nbd+vsock://4294967296/", "no CID"),
    ],
)
def test_refused_in_words(text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        parse_uri(text)


_WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
_ADDRESSES = st.one_of(
    st.builds(
        Tcp, st.sampled_from(["localhost", "::1", "fe80::1%eth0", "a-b.example", "192.0.2.1"]), st.integers(0, 65535)
    ),
    st.builds(Unix, st.builds(lambda head, tail: head + tail, st.sampled_from(["/", "\0", "a"]), _WORDS)).filter(
        lambda unix: len(unix.path.encode()) <= 107
    ),
    st.builds(Vsock, st.none() | st.integers(0, 0xFFFFFFFF), st.integers(0, 0xFFFFFFFF)),
)
_TLS = st.builds(TlsOptions, _WORDS, _WORDS, _WORDS, _WORDS, st.booleans())


@given(_ADDRESSES, _WORDS, st.booleans(), _TLS)
def test_what_is_written_is_read_back(address: Tcp | Unix | Vsock, export: str, tls: bool, options: TlsOptions) -> None:
    uri = Uri(address, export, tls, options if tls else TlsOptions())
    assert parse_uri(str(uri)) == uri
    assert str(uri).isascii()


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    for prefix in ("", "nbd://", "nbds+unix:///?socket=", "nbd+vsock://"):
        try:
            uri = parse_uri(prefix + text)
        except UsageError:
            continue
        assert parse_uri(str(uri)) == uri
