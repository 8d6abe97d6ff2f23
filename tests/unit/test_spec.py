"""The grammar of specs (docs/spec.md)."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdfs.errors import UsageError
from nbdfs.spec import Segment, Spec, fold_captives, parse

LUKS = Segment("luks", (("passphrase", "+/etc/key"),))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("/srv/disk.img", Spec(argument="/srv/disk.img")),
        ("disk.img", Spec(argument="disk.img")),
        ("./a::b", Spec(argument="./a::b")),
        ("/a::b/c,d=e:f", Spec(argument="/a::b/c,d=e:f")),
        ("a b:c", Spec(argument="a b:c")),
        ("memory:1G", Spec(source=Segment("memory"), argument="1G")),
        ("memory:", Spec(source=Segment("memory"))),
        ("data:'( 0x55 0xAA )*256'", Spec(source=Segment("data"), argument="'( 0x55 0xAA )*256'")),
        ("nbd://localhost/export", Spec(scheme="nbd", argument="nbd://localhost/export")),
        ("nbd://[::1]:10809/x", Spec(scheme="nbd", argument="nbd://[::1]:10809/x")),
        ("nbd+unix:///?socket=/a::b", Spec(scheme="nbd+unix", argument="nbd+unix:///?socket=/a::b")),
        ("https://h/x?sig=a::b", Spec(scheme="https", argument="https://h/x?sig=a::b")),
        ("magnet:?xt=urn:btih:00", Spec(source=Segment("magnet"), argument="?xt=urn:btih:00")),
        ("cow::nbd://[fe80::1%25eth0]/", Spec((Segment("cow"),), scheme="nbd", argument="nbd://[fe80::1%25eth0]/")),
        ("luks,passphrase=+/etc/key::/a::b", Spec((LUKS,), argument="/a::b")),
        ("cow::luks,passphrase=+/etc/key::x:y", Spec((Segment("cow"), LUKS), Segment("x"), argument="y")),
        ("l,proxy=http://p:3128::/x", Spec((Segment("l", (("proxy", "http://p:3128"),)),), argument="/x")),
        ("l,a=%2C%25%3A::x", Spec((Segment("l", (("a", ",%:"),)),), argument="x")),
        ("l,a,b=,c==::x", Spec((Segment("l", (("a", ""), ("b", ""), ("c", "="))),), argument="x")),
        ("file,direct:/x%2C", Spec(source=Segment("file", (("direct", ""),)), argument="/x%2C")),
        ("sparse-random,seed=7,percent=10:1T",
         Spec(source=Segment("sparse-random", (("seed", "7"), ("percent", "10"))), argument="1T")),
    ],
)  # fmt: skip
def test_specs(text: str, expected: Spec) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize("text", ["", "cow::", "luks,passphrase=-::cow::"])
def test_a_spec_needs_a_source(text: str) -> None:
    with pytest.raises(UsageError, match="names no source"):
        parse(text)


@pytest.mark.parametrize("text", ["a\0b", "memory:\0", "nbd://h/\0", "l,a=%00::x", "file,a=%00:x"])
def test_a_nul_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="NUL"):
        parse(text)


names = st.from_regex(r"[a-z][a-z0-9-]{0,5}", fullmatch=True)
keys = st.text(string.ascii_letters + string.digits + "-_ %+", min_size=1, max_size=4)
values = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
segments = st.builds(Segment, names, st.lists(st.tuples(keys, values), max_size=3).map(tuple))
layers = st.lists(segments, max_size=3).map(tuple)
rest = st.text(st.characters(exclude_characters="\0"), max_size=12)


@given(st.builds(Spec, layers, segments, argument=rest.filter(lambda text: not text.startswith(("//", ":")))))
def test_a_spec_with_a_named_source_is_read_back(spec: Spec) -> None:
    assert parse(str(spec)) == spec


@given(layers, st.sampled_from(["nbd", "nbd+unix", "https", "x-y.z"]), rest)
def test_a_spec_with_a_uri_is_read_back(layers: tuple[Segment, ...], scheme: str, rest: str) -> None:
    spec = Spec(layers, scheme=scheme, argument=f"{scheme}://{rest}")
    assert parse(str(spec)) == spec


@given(layers, rest)
def test_a_spec_with_a_path_is_read_back(layers: tuple[Segment, ...], rest: str) -> None:
    spec = Spec(layers, argument=f"/{rest}")
    assert parse(str(spec)) == spec


@given(st.text(st.sampled_from("ab1-,=:%/. [?") | st.characters(), max_size=30))
def test_whatever_is_parsed_is_stable(text: str) -> None:
    try:
        spec = parse(text)
    except UsageError:
        return
    assert parse(str(spec)) == spec


def folded(*words: str) -> tuple[Spec, list[str]]:
    """The spec at the head of a command line, and what follows it."""
    first, *left = fold_captives(words)
    return parse(first), left


def test_a_captive_server_ends_at_its_bracket() -> None:
    words = ["[", "qemu-nbd", "-f", "qcow2", "disk.qcow2", "]", "target"]
    assert folded(*words) == (Spec(argv=("qemu-nbd", "-f", "qcow2", "disk.qcow2")), ["target"])
    assert folded("[", "nbdkit", "[", "x", "]", "y", "]") == (Spec(argv=("nbdkit", "[", "x", "]", "y")), [])


def test_layers_may_stand_before_a_captive_server() -> None:
    spec, left = folded("cow::luks,passphrase=+/etc/key::", "[", "nbdkit", "]", "x")
    assert spec == Spec((Segment("cow"), LUKS), argv=("nbdkit",))
    assert left == ["x"]
    assert str(spec) == "cow::luks,passphrase=+/etc/key::[ nbdkit ]"


def test_a_plain_spec_leaves_the_rest() -> None:
    assert folded("memory:1G", "file") == (parse("memory:1G"), ["file"])


def test_nothing_is_folded_after_two_dashes() -> None:
    words = ["memory:1G", "--", "test", "[", "x"]
    assert fold_captives(words) == words


@pytest.mark.parametrize(
    "words, message",
    [(["[", "nbdkit"], "has no ]"), (["[", "nbdkit", "[", "]"], "has no ]"), (["[", "]"], "no command between")],
)
def test_wrong_brackets(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fold_captives(words)
