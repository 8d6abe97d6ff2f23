"""Specs whose relative paths were made absolute."""

from __future__ import annotations

import pytest

from nbdfs.relocate import absolute


@pytest.mark.parametrize(
    "text, expected",
    [
        ("disk.img", "/here/disk.img"),
        ("./a/../disk.img", "/here/disk.img"),
        ("/srv/disk.img", "/srv/disk.img"),
        ("file:disk.img", "file:/here/disk.img"),
        ("file,direct::disk.img", "file,direct::/here/disk.img"),
        ("cow,overlay=o::luks,passphrase=+k::x.img", "cow,overlay=/here/o::luks,passphrase=+/here/k::/here/x.img"),
        ("luks,passphrase=-,header=head.img::disk.img", "luks,passphrase=-,header=/here/head.img::/here/disk.img"),
        ("torrent,file=dvd.iso:Fedora.torrent", "torrent,file=dvd.iso:/here/Fedora.torrent"),
        ("torrent,cache=kept::Fedora.torrent", "torrent,cache=/here/kept::/here/Fedora.torrent"),
        ("memory:1G", "memory:1G"),
        ("memory,mlock::1G", "memory,mlock::1G"),
        ("nbd://localhost/export", "nbd://localhost/export"),
        ("cow::nbd://localhost/export", "cow::nbd://localhost/export"),
        ("magnet:?xt=urn:btih:1234", "magnet:?xt=urn:btih:1234"),
        ("file:///srv/disk.img", "file:///srv/disk.img"),
        ("nonsense,a=b::x:y", "nonsense,a=b::x:y"),
        ("[\0qemu-nbd\0./x\0]", "[\0qemu-nbd\0./x\0]"),
    ],
)  # fmt: skip
def test_paths(text: str, expected: str) -> None:
    assert absolute(text, "/here") == expected
