"""Torrent files, magnet links and the names in them, as strangers write them."""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libtorrent
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nbdfs.backends.torrent import DRIVER, Options, bencode, magnet, metainfo
from nbdfs.backends.torrent.bencode import BencodeError, Decoder
from nbdfs.backends.torrent.loading import load
from nbdfs.backends.torrent.metainfo import File, Metainfo, MetainfoError
from nbdfs.backends.torrent.names import choose, component, tree
from nbdfs.backends.torrent.opening import _parameters
from nbdfs.errors import UserError

PAD, LINK = 1, 8  # libtorrent's file flags
ARCHIVES = ("libtorrent-test_torrents", "webtorrent-fixtures", "generated")


@pytest.fixture(scope="session")
def torrents(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Every torrent file of the corpus."""
    folder = tmp_path_factory.mktemp("torrents")
    for name in ARCHIVES:
        (folder / name).mkdir()
        archive = corpus / "torrent" / f"{name}.tar.xz"
        subprocess.run(["tar", "-xf", archive, "-C", folder / name], check=True)
    return sorted([*folder.rglob("*.torrent"), *(corpus / "torrent").glob("*.torrent")])


def bencoded(value: object) -> bytes:
    return bytes(libtorrent.bencode(in_bytes(value)))


def in_bytes(value: Any) -> Any:
    """Texts as libtorrent wants them."""
    match value:
        case str():
            return value.encode()
        case list():
            return [in_bytes(item) for item in value]
        case dict():
            return {in_bytes(key): in_bytes(item) for key, item in value.items()}
    return value


def single(**changes: object) -> bytes:
    info: dict[str, object] = {"name": "disk", "length": 40_000, "piece length": 16_384, "pieces": bytes(60)}
    return bencoded({"info": {key: value for key, value in (info | changes).items() if value is not None}})


def many(*paths: list[bytes], attributes: bytes = b"") -> Metainfo:
    files = [{"length": 10, "path": path} for path in paths]
    if attributes:
        files[0] = {**files[0], "attr": attributes}
    return metainfo.parse(bencoded({"info": {"name": "top", "files": files, "piece length": 16384,
                                             "pieces": bytes(20)}}))  # fmt: skip


def test_every_torrent_of_the_corpus_is_taken_or_refused_as_libtorrent_does(torrents: list[Path]) -> None:
    assert len(torrents) > 90
    for path in torrents:
        try:
            theirs = libtorrent.load_torrent_file(str(path))
        except RuntimeError:
            with pytest.raises(UserError):
                _parameters(str(path))
            continue
        ours, _ = _parameters(str(path))
        assert ours is not None
        layout, hashes = theirs.ti.layout(), theirs.ti.info_hashes()
        shown = [n for n in range(layout.num_files()) if not layout.file_flags(n) & (PAD | LINK)]
        sizes = [(layout.file_size(n), layout.file_offset(n)) for n in shown if layout.file_size(n)]
        distinct = {file.index: (file.length, file.offset) for file in ours.files if file.length}
        assert list(distinct.values()) == sizes, path.name
        assert (ours.pieces, ours.piece_length) == (theirs.ti.num_pieces(), theirs.ti.piece_length()), path.name
        assert ours.v1 == (str(hashes.v1) if hashes.has_v1() else ""), path.name
        assert ours.v2 == (str(hashes.v2) if hashes.has_v2() else ""), path.name
        assert ours.private == theirs.ti.priv(), path.name


def test_the_verdicts_of_the_manifest(torrents: list[Path]) -> None:
    paths = {path.name: path for path in torrents}
    for name in ("too-few-pieces.torrent", "corrupt.torrent", "x-nest-100k.torrent", "x-truncated.torrent"):
        with pytest.raises(UserError, match=re.escape(name)):
            load(str(paths[name]))
    assert load(str(paths["bunny.torrent"]))[0].private
    assert len(load(str(paths["bunny.torrent"]))[0].web_seeds) == 1
    assert len(tree(load(str(paths["dup-files.torrent"]))[0])) == len(load(str(paths["dup-files.torrent"]))[0].files)
    assert len(tree(load(str(paths["bittorrent-v2-test.torrent"]))[0])) == 11
    assert any("\ufffd" in name for name in tree(load(str(paths["bad-utf8-path.torrent"]))[0]))
    names = set(tree(load(str(paths["g-hybrid-multi.torrent"]))[0]))
    assert {"new\nline.txt", "quote\"and'back\\slash.txt", "-leading-dash.txt", "trailing dot."} <= names
    assert not any(".pad" in name for name in names)


def test_every_magnet_link_of_the_corpus(corpus: Path) -> None:
    for line in (corpus / "torrent" / "magnets.tsv").read_text().splitlines():
        expected, link, _ = line.split("\t")
        if expected == "REFUSE":
            with pytest.raises(UserError):
                magnet.parse(link)
        else:
            assert magnet.parse(link).identity == expected
            assert str(libtorrent.parse_magnet_uri(link).info_hashes.get_best()) == expected[:40]


def test_a_name_with_a_slash_is_one_component() -> None:
    torrent = metainfo.parse(single(name="Haiku R1/beta6 (x86_64)"))
    assert list(tree(torrent)) == ["Haiku R1_beta6 (x86_64)"]


@pytest.mark.parametrize("files", [[["pad"], ["real"]], [["_____padding_file_0_"], ["real"]]])
def test_padding_is_hidden_and_moves_nothing(files: list[list[str]]) -> None:
    attributes = b"p" if files[0] == ["pad"] else b""
    torrent = many(*[[part.encode() for part in path] for path in files], attributes=attributes)
    assert tree(torrent) == {"real": File((b"real",), 10, 10, 0)}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "ends too soon"),
        (b"d4:info", "ends too soon"),
        (b"i1e", "no dictionary"),
        (b"hello", "not bencode"),
        (b"d4:infod4:name99:x", "cut short"),
        (b"l" * 5000, "nested too deeply"),
        (bencoded({"x": 1}), "no info"),
        (single(name=None), "no name"),
        (single(**{"piece length": 0}), "piece length of 0"),
        (single(**{"piece length": -1}), "piece length of -1"),
        (single(**{"piece length": 1 << 40}), "piece length"),
        (single(pieces=bytes(59)), "part of one"),
        (single(pieces=bytes(40)), "2 piece hashes for 3 pieces"),
        (single(length=-5), "without a length"),
        (single(length=None), "without a length"),
        (single(length=12345).replace(b"i12345e", b"i9223372036854775808e"), "impossible"),
        (single(length=0, pieces=b""), "no data"),
        (single(files="x"), "no list of files"),
        (single(files=[{"length": 5}]), "without a path"),
        (single(files=[{"length": 5, "path": ["x"] * 300}]), "below 299 folders"),
        (single(files=[{"length": 0, "path": ["x"]}] * 100_001), "more than the 100000 allowed"),
        (single(**{"meta version": 2, "piece length": 16385}), "power of two"),
        (single(**{"meta version": 2, "file tree": {"a": {"": {"length": 1}, "b": {"": {"length": 1}}}}}), "both"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_in_one_line(data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        metainfo.parse(data)
    assert "\n" not in str(caught.value)


def test_more_values_than_memory_should_hold_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bencode, "MOST_VALUES", 100)
    assert len(Decoder(b"l" + 99 * b"le" + b"e").decode()) == 99
    with pytest.raises(BencodeError, match="too many values"):
        Decoder(b"l" + 100 * b"le" + b"e").decode()


def test_a_torrent_file_that_is_too_large_is_not_read_whole(tmp_path: Path) -> None:
    with open(tmp_path / "huge.torrent", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="larger than the 64 MiB"):
        load(str(tmp_path / "huge.torrent"))


VALUES = st.recursive(
    st.integers(-(2**63), 2**63 - 1) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.binary(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@given(VALUES)
def test_bencode_reads_what_another_writes(value: object) -> None:
    assert Decoder(bencoded(value)).decode() == value


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(BencodeError):
        Decoder(data).decode()


@given(VALUES, st.dictionaries(st.sampled_from(
    [b"name", b"piece length", b"pieces", b"length", b"files", b"file tree", b"meta version", b"private", b"path"]
), VALUES))  # fmt: skip
def test_any_dictionary_is_a_torrent_or_refused(announce: object, info: dict[bytes, object]) -> None:
    with contextlib.suppress(MetainfoError, BencodeError):
        metainfo.parse(bencoded({b"announce-list": announce, b"url-list": announce, b"info": info}))


def components(path: str) -> Iterator[str]:
    yield from path.split("/")


@given(st.lists(st.lists(st.binary(max_size=300) | st.sampled_from([b"a", b"b", b"..", b"", b"a/b", b"\0"]), min_size=1,
                         max_size=4), min_size=1, max_size=12))  # fmt: skip
@example([[b"_____padding_file_"]])
def test_names_are_safe_and_none_hides_another(paths: list[list[bytes]]) -> None:
    torrent = many([b"a file"], *paths)  # the others may all be padding, which is hidden
    safe = tree(torrent)
    assert sorted(file.index for file in safe.values()) == [file.index for file in torrent.files]
    folders = {"/".join(path.split("/")[:depth]) for path in safe for depth in range(1, path.count("/") + 1)}
    assert not folders & set(safe)
    for path in safe:
        for part in components(path):
            assert part not in ("", ".", "..")
            assert "\0" not in part
            assert len(part.encode()) <= 255


def test_a_long_name_keeps_its_extension() -> None:
    assert component(b"n" * 300 + b".iso") == "n" * 251 + ".iso"


def test_the_file_is_chosen_by_path_or_glob_and_a_doubtful_choice_lists_what_there_is() -> None:
    files = tree(many([b"a", b"x.iso"], [b"a", b"y.iso"], [b"readme"]))
    assert choose(files, "a/x.iso", "top")[0] == "a/x.iso"
    assert choose(files, "top/a/x.iso", "top")[0] == "a/x.iso"
    assert choose(files, "*/y*", "top")[0] == "a/y.iso"
    sizes = {name: File((name.encode(),), size, 0, 0) for name, size in (("small", 1), ("large", 9), ("middle", 5))}
    assert choose(sizes, "", "top")[0] == "large"
    with pytest.raises(UserError, match=r"2 files, choose one: a/x.iso, a/y.iso"):
        choose(files, "*.iso", "top")
    with pytest.raises(UserError, match=r"no file 'z'; it has: a/x.iso, a/y.iso, readme"):
        choose(files, "z", "top")


def test_the_description_asks_nobody(tmp_path: Path) -> None:
    path = tmp_path / "disk.torrent"
    path.write_bytes(b"d8:announce12:http://t/ann7:comment2:hi" + single()[1:])
    assert DRIVER.describe
    found = DRIVER.describe(str(path), Options())
    assert found["name"] == "disk"
    assert found["files"] == [{"path": "disk", "size": 40_000}]
    assert found["trackers"] == ["http://t/ann"]
    assert found["comment"] == "hi"
    assert len(found["info hash v1"]) == 40
    link = DRIVER.describe("magnet:?xt=urn:btih:4qf3dxhtmsfhzbnvnzopiepbgzt5bcon&dn=x%2Fy", Options())
    assert link == {"name": "x_y", "info hash v1": "e40bb1dcf3648a7c85b56e5cf411e13667d089cd"}
