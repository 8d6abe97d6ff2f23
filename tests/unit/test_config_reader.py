"""The reader of configurations: what tomllib says, with lines, and every mistake at once."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nbdfs.config.reader import MOST_FAULTS, read

KEYS = st.text("ab-_09", min_size=1, max_size=3) | st.text(max_size=4)
SCALARS = st.booleans() | st.integers(-9, 9) | st.text(max_size=6)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6
)
TABLES = st.dictionaries(KEYS, st.dictionaries(KEYS, VALUES, max_size=3), max_size=4)
# What TOML is made of, so that chance finds what is nearly right.
PIECES = st.lists(
    st.sampled_from([*"[]{}=.,\n\"'#\\ab1 ", "[[", "]]", "\r\n", '"""', "'''"]),
    max_size=60,
).map(lambda pieces: "".join(pieces).encode())


def quoted(text: str) -> str:
    return (
        '"'
        + "".join(letter if letter.isalnum() and letter.isascii() else f"\\U{ord(letter):08X}" for letter in text)
        + '"'
    )


def toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quoted(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[\n  # ] a comment\n  " + ",\n  ".join(map(toml, value)) + "\n]"
    return quoted(value) if isinstance(value, str) else str(value)


@settings(deadline=None)
@given(st.binary(max_size=200) | PIECES)
@example(b"a = [\n1\n[b]\nc = 1")
@example(b'a = """\\\n')
@example(b"[" * 500)
@example(b"a" + b".a" * 100 + b" = 1")
@example(b"a = " + b"9" * 5000)
@example(b"a = 1\n[a]\nb = 1")
@example(b"\xff")
def test_any_bytes_are_a_configuration_or_have_faults_on_their_lines(content: bytes) -> None:
    document = read(content, "file")
    try:
        text = content.decode()
        whole = tomllib.loads(text)
    except (ValueError, RecursionError):
        assert document.faults
    else:
        if not document.faults:  # what is TOML but makes no sense here is a fault
            assert document.tables == whole
    lines = content.count(b"\n") + 1
    assert all(1 <= fault.line <= lines and fault.message for fault in document.faults)
    assert all(1 <= line <= lines for line in document.lines.values())
    assert len(document.faults) <= MOST_FAULTS + 1


@settings(deadline=None)
@given(TABLES)
def test_what_it_says_and_on_which_lines(tables: dict[str, dict[str, object]]) -> None:
    text, wanted = "", {}
    for name, table in tables.items():
        wanted[(name,)] = text.count("\n") + 1
        text += f"[{quoted(name)}]  # a comment\n"
        for key, value in table.items():
            wanted[name, key] = text.count("\n") + 1
            text += f"{quoted(key)} = {toml(value)}\n\n"
    document = read(text.encode(), "file")
    assert document.faults == []
    assert document.tables == tables == tomllib.loads(text)
    assert wanted.items() <= document.lines.items()


def faults(text: str) -> list[str]:
    return [f"{fault.line}: {fault.message}" for fault in read(text.encode(), "file").faults]


def test_all_mistakes_are_found_and_no_more() -> None:
    found = faults(
        "[a]\nx = \ny = [1,\n  2]\nz = 'open\n[a]\ny = 3\n[[list]]\n[bad\nunder = 'it'\n[good]\nkey = 1\nkey = 2\n"
    )
    assert [int(line.partition(":")[0]) for line in found] == [2, 5, 6, 7, 8, 9, 13]
    assert found[2] == "6: 'a' is there twice, first on line 1"
    assert found[3] == "7: 'a.y' is there twice, first on line 3"
    assert found[4] == "8: [[list]] is an array of tables: write [list]"
    assert found[6] == "13: 'good.key' is there twice, first on line 12"


@pytest.mark.parametrize(
    "text, line",
    [
        ("a = 1\nb = [\n  1,\n  2\nc = 3\n", 5),  # where something else than ] stands
        ("a = 1\nb = '''\nnever closed\n", 2),
        ("[t]\na.b = 1\na = {c = 1}\n", 3),  # each is TOML by itself
        ("a = 1\r\nb = \r\n", 2),
        ("a = 1\nb = '\udcff'\n", 2),
    ],
)
def test_the_line_of_a_mistake(text: str, line: int) -> None:
    found = read(text.encode("utf-8", "surrogateescape"), "file").faults
    assert [fault.line for fault in found][:1] == [line]


def test_tables_may_come_in_any_order() -> None:
    document = read(b"[a.b]\nc = 1\n[d]\n[a]\ne.f = 2\ne.g = 3\n", "file")
    assert document.faults == []
    assert document.tables == {"a": {"b": {"c": 1}, "e": {"f": 2, "g": 3}}, "d": {}}
    assert document.line(("a",)) == 1
    assert document.line(("a", "e", "g")) == 6
    assert document.line(("a", "b", "c", "nothing", "here")) == 2


def test_a_file_full_of_mistakes_is_left_in_time() -> None:
    assert len(faults("[\n" * 100_000)) == MOST_FAULTS
