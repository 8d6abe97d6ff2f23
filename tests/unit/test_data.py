"""The language of data strings: what each form means, and how each mistake is told."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from nbdfs.backends.data import evaluate, syntax
from nbdfs.backends.data.content import Content
from nbdfs.backends.data.evaluate import Evaluator, parse_variables
from nbdfs.backends.data.nodes import DataError, Text
from nbdfs.backends.data.tree import tree
from nbdfs.errors import UsageError, UserError, printable


async def content(string: str, timeout: float = 20, **variables: str) -> Content:
    with ExitStack() as files:
        return await Evaluator(variables, files, timeout).text(Text("data", string))


async def value(string: str, **variables: str) -> bytes:
    with ExitStack() as files:
        return written(await Evaluator(variables, files, 20).text(Text("data", string)))


def written(evaluated: Content, offset: int = 0, length: int = -1) -> bytes:
    data = bytearray(evaluated.size - offset if length < 0 else length)
    if data:
        evaluated.read(memoryview(data), offset)
    return bytes(data)


@pytest.mark.parametrize(
    ("string", "expected"),
    [
        ("", b""),
        ("0 1 017 0x31 255", b"\0\1\x0f1\xff"),
        ("010", b"\x08"),
        ("le16:0x102 be16:0x102", b"\2\1\1\2"),
        ("le32:1 be32:1", b"\1\0\0\0\0\0\0\1"),
        ("le64:1 be64:0xffffffffffffffff", b"\1\0\0\0\0\0\0\0" + b"\xff" * 8),
        ("le32:1M", b"\0\0\x10\0"),
        ("base64:aGVsbG8=*2", b"hellohello"),
        (r'"a\"\\\n\t\x41\0"', b'a"\\\n\tA\0'),
        ('"é"', "é".encode()),
        ('"two\nlines"', b"two\nlines"),
        ("@4 1", b"\0\0\0\0\1"),
        ("@100", bytes(100)),
        ("1 2 3 @0 9", b"\x09\2\3"),
        ("@+4 @-1 1", b"\0\0\0\1"),
        ("1 @^512", b"\1" + bytes(511)),
        ("@^512", b""),
        ("@+10 @-5 @-4 @+20", bytes(21)),
        ("9 (1 @^4) 7", b"\x09\1\0\0\0\7"),
        ("1 (@2 2) (@3 3)", b"\1\0\0\2\0\0\0\3"),
        ("1 1 1 1 @0 (@2)", b"\0\0\1\1"),
        ("1 1 1 1 @1 2 2", b"\1\2\2\1"),
        ("(1 2 @8)*2 @4 (7 @3) 5", bytes.fromhex("01020000070000050102000000000000")),
        ("1*2*3", b"\1" * 6),
        ("(1 2 3)*0 1*0", b""),
        ("( @4 ( 0x21 )*4 )*2", b"\0\0\0\0!!!!" * 2),
        ('"Hello"[3:5] "Hello"[:4] "Hello"[3:] "Hello"[:]', b"loHellloHello"),
        ('"abc"*2[1:4][1:]', b"ca"),
        ('"Hello"[99:99] ()[6:]*0', b""),
        (r"0x55 -> \a \a \a*2", b"\x55\x55\x55"),
        (r"1->\a-b (2->\a-b \a-b) \a-b", b"\2\1"),
        (r"1 -> \x (\x) -> \t 2 -> \x \t \x", b"\1\2"),
        (r"7 -> \a -> \b \a \b", b"\7\7"),
        ("# all of it\n1 # and this\n2", b"\1\2"),
        ("<(echo hello)", b"hello\n"),
        ("<( (echo a; (echo b)) )[:3]", b"a\nb"),
        ("(<(yes))[:4]", b"y\ny\n"),
        ("</dev/zero[2:5]", b"\0\0\0"),
    ],
)
async def test_value(string: str, expected: bytes) -> None:
    assert await value(string) == expected


async def test_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("pattern", "0x55 0xAA")
    assert await value("$pattern*2") == b"\x55\xaa" * 2
    assert await value("$a $pattern", a=" 5*2 ", pattern="$a") == b"\5\5\5\5"
    assert await value(r"1 -> \x $a", a=r"\x @^4") == b"\1\0\0\0"
    assert await value("<(printf %s $a)", a="hi") == b"hi"


async def test_variables_are_numbers_too() -> None:
    assert await value("1*$n @$n @+$n 2 @^$n le16:$n", n=" 4 ") == b"\1\1\1\1\0\0\0\0\2\0\0\0\4\0"
    assert await value('"abcdef"[$from:$to]', **{"from": "1", "to": "0x3"}) == b"bc"
    assert (await content("1*$n", n="1T")).size == 1 << 40


async def test_same_random_bytes_everywhere() -> None:
    data = await value(r"<(head -c 8 /dev/urandom) -> \r \r \r")
    assert data[:8] == data[8:]
    data = await value("$r*2", r="</dev/urandom[:8]")
    assert data[:8] == data[8:]


async def test_repeats_and_offsets_are_not_written_out() -> None:
    endless = await content("( 0x55 0xAA )*1T @1E 1")
    assert endless.size == (1 << 60) + 1
    assert written(endless, (1 << 41) - 3, 5) == b"\xaa\x55\xaa\0\0"
    assert written(endless, (1 << 60) - 1, 2) == b"\0\1"
    copies = await content("( 0x55 0xAA @0x200000000 @-2 0x55 0xAA ) -> \\1 \\1*4")
    assert copies.size == 0x800000000
    for start in range(0, copies.size, 0x200000000):
        assert written(copies, start, 3) == b"\x55\xaa\0"
        assert written(copies, start + 0x200000000 - 3, 3) == b"\0\x55\xaa"


async def test_names_double_without_end() -> None:
    string = r'"ab" -> \0 ' + " ".join(rf"(\{index} \{index}) -> \{index + 1}" for index in range(60)) + r" \60"
    doubled = await content(string)
    assert doubled.size == 1 << 61
    assert written(doubled, (1 << 60) - 2, 6) == b"ababab"
    assert [span[2] for span in doubled.spans(0, doubled.size)] == [0]


async def test_files(tmp_path: Path) -> None:
    small, large = tmp_path / "small file", tmp_path / "large"
    small.write_bytes(b"small")
    large.write_bytes(os.urandom(100_000))
    assert await value(f'<"{small}"*2') == b"smallsmall"
    assert await value(f"<{large}[3:99999] (<{large})") == large.read_bytes()[3:99999] + large.read_bytes()
    assert await value("</proc/self/mounts[:1]") != b""


async def test_holes_of_files_are_holes(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.seek(1 << 20)
        file.write(b"x" * 4096)
        file.truncate(1 << 30)
    with ExitStack() as files:
        sparse = await Evaluator({}, files, 20).text(Text("data", f"<{path}*2"))
        data = [(start, stop) for start, stop, flags in sparse.spans(0, sparse.size) if not flags]
    assert data == [(1 << 20, (1 << 20) + 4096), ((1 << 30) + (1 << 20), (1 << 30) + (1 << 20) + 4096)]


async def test_include(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(b"R")
    (tmp_path / "library").write_text("0x55 -> \\five  # no bytes of its own\n")
    (tmp_path / "part").write_text("include library\n1 <raw \\five @^4\n")
    string = f"9 include {tmp_path}/part*2 \\five"
    assert await value(string) == b"\x09" + b"\1RU\0" * 2 + b"U"


async def test_include_of_itself(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1 include b")
    (tmp_path / "b").write_text('include "a"')
    with pytest.raises(DataError, match=r"b, line 1, column 1: .*/a is made of itself: .*/a -> .*/b -> .*/a"):
        await value(f"include {tmp_path}/a")
    with pytest.raises(DataError, match=r"\$b, line 1, column 2: \$a is made of itself: \$a -> \$b -> \$a"):
        await value("$a", a="$b", b=" $a")


@pytest.mark.parametrize(
    ("string", "column", "message"),
    [
        ("256", 1, "256 is no byte"), ("0400", 1, "no byte"), ("1K", 1, "no byte"), ("09", 1, "octal"),
        ("-1", 1, "'-' has no meaning"), ("1,2", 2, "',' has no meaning"), ("1 x", 3, "'x' has no meaning"),
        ("0x", 1, "not a size"), ("1zz", 1, "not a size"), ("le16", 1, "no meaning"),
        ("le16:", 6, "a number must follow"),
        ("be16:0x10000", 1, "does not fit in 16 bits"), ("le64:0x10000000000000000", 1, "does not fit in 64 bits"),
        ("base64:a", 1, "not base64"), ("@", 2, "a number must follow @"), ("@+ x", 4, "no meaning"),
        ("@2 @-3", 4, "before the beginning"), ("@1 @^3", 4, "not a power of two"), ("@^0", 1, "not a power of two"),
        ("9" * 5000, 1, "a number of 5000 digits"), ("(1)*0x" + "f" * 200, 5, "a number of 202 digits"),
        ("@0x8000000000000000", 1, "beyond the largest size"), ("@8E", 2, "larger than"), ("1*8E", 3, "larger than"),
        ("1*4E*4", 5, "more than the largest size"), ("@4E (@4E)", 5, "beyond the largest size"),
        ("1 (2", 3, "this ( has no )"), ("( ( )", 1, "this ( has no )"), (")", 1, "this ) has no ("),
        ('1 "abc', 3, "does not end"), ('"\\"', 1, "does not end"), ('"a\\x1"', 3, "two hexadecimal digits"),
        ('"\\777"', 2, "is no byte"), ("*2", 1, "* must follow an expression"), ("1*", 3, "a number must follow *"),
        ("1*x", 3, "no meaning"), ("@4*2", 3, "* must follow an expression"), ("[:]", 1, "[ must follow"),
        ("1[2]", 4, "this is no slice"), ("1[0:1", 6, "this is no slice"),
        ("0[2:]", 2, "[2:1] does not lie in the 1 bytes"),
        ('"123"[1:0]', 6, "does not lie"), ("0[:2]", 2, "does not lie"), ("\\a", 1, "\\a is not defined here"),
        ("(0 -> \\a) \\a", 11, "is not defined here"), ("0->\\b \\a", 7, "there are: \\b"), ("1 -> a", 6, "no meaning"),
        ("1 -> 2", 6, "a name must follow ->"), ("@4 -> \\a", 4, "put an offset in parentheses"),
        ("</nosuch", 1, "cannot read /nosuch: No such file"), ("</", 1, "cannot read /: Is a directory"),
        ("< x", 1, "must follow <"), ("<(", 1, "the script does not end"), ("<(exit 3)", 1, "failed with status 3"),
        ("<(exit 3)[:9]", 1, "failed with status 3"), ("$", 1, "variable must follow"),
        ("$none", 1, "there is no variable $none"),
        ("1*$word", 3, "$word is to be a number"), ("include /nosuch", 1, "cannot read /nosuch"),
        ("\\", 1, "a name must follow \\"), ("(" * 101, 101, "parentheses inside each other"),
    ],
)  # fmt: skip
async def test_mistakes(string: str, column: int, message: str) -> None:
    with pytest.raises(UserError) as caught:
        await value(string, word="many")
    first, line, caret = str(caught.value).split("\n")
    assert first.startswith(f"data, line 1, column {column}: ")
    assert message in first
    assert caret.index("^") - 2 <= len(line) - 2 < 80
    assert caught.value.exit_status == 1


async def test_an_error_shows_its_line() -> None:
    with pytest.raises(DataError) as caught:
        await value("1 2 3\n\t( \\foo )\n4")
    assert str(caught.value) == "data, line 2, column 4: \\foo is not defined here\n   ( \\foo )\n     ^"
    with pytest.raises(DataError) as caught:
        await value("1 " * 1000 + "x " + "2 " * 1000)
    _, line, caret = str(caught.value).split("\n")
    assert line[caret.index("^")] == "x"
    assert len(line) < 80


@pytest.mark.parametrize(
    ("before", "columns"), [('"\u65e5\u672c" ', 7), ('"e\u0301" ', 4), ('"\x1b[1m" ', 10), ("1\t\r ", 5)]
)
async def test_the_caret_stands_where_the_line_is_shown(before: str, columns: int) -> None:
    """Wide letters take two columns, combining ones none, and what cannot be printed is written out."""
    with pytest.raises(DataError) as caught:
        await value(f"{before}x")
    _, line, caret = printable(str(caught.value), keep="\n").split("\n")
    assert line.endswith("x")
    assert caret == " " * (2 + columns) + "^"


async def test_depth_has_an_end() -> None:
    with pytest.raises(DataError, match="inside each other"):
        await value("$a", a="(" * 99 + "$b" + ")" * 99, b="(1)")
    chain = r"1 -> \0 " + " ".join(rf"(\{index}*2)[1:2]*3 -> \{index + 1}" for index in range(200))
    with pytest.raises(DataError, match="more than 100 contents inside each other"):
        await value(chain)
    assert (await content("(1 2)" + "*1" * 5000)).size == 2


async def test_a_script_that_hangs_is_ended(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    with pytest.raises(DataError, match=r"the script took longer than 2 s"):
        await content(f"<(sleep 100 & echo $! >{mark}; wait)", timeout=2)
    pid = mark.read_text().strip()
    with trio.fail_after(30):
        while Path(f"/proc/{pid}/stat").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
            await trio.sleep(0.01)


async def test_a_script_without_end_needs_a_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "_MOST_OUTPUT", 1 << 20)
    with pytest.raises(DataError, match=r"does not end within 1 MiB: take a slice of it, as in <\( \.\.\. \)\[:1M\]"):
        await content("<(yes)")
    with pytest.raises(DataError, match=r"as in </dev/zero\[:1M\]"):
        await content("</dev/zero")


def test_variables_option() -> None:
    assert parse_variables("a=1 2;b=;c=x=y") == {"a": "1 2", "b": "", "c": "x=y"}
    assert parse_variables("") == {}
    for wrong in "a", "1=2", "=2", "a b=1":
        with pytest.raises(UsageError):
            parse_variables(wrong)


@pytest.mark.parametrize(
    ("string", "expected"),
    [
        ("", "null"), ("1", "1"), ("1 1 1", "fill(1*3)"), ("0x31 0x32", '"12"'), ('"111" 0x31', "fill(49*4)"),
        ('"12" 0x33 "456"', '"123456"'), ("((((1))))", "1"), ("(((1 1) 1)) (1 1)", "fill(1*5)"),
        ("((2 2) 2) (1 1 3)", "( fill(2*3) fill(1*2) 3 )"),
        ("(2 2) (1 1 (1 3))", r'( fill(2*2) fill(1*2) "\x01\x03" )'),
        ("(2 2) (3 1 1)", r'( fill(2*2) "\x03\x01\x01" )'), ('"ab"*2*2', '"abababab"'), ('"ab"*1M', '"ab"*1048576'),
        ("(@7 1)*2", "( @+7 1 )*2"), ("1 @8", "( 1 @+7 )"), ("(1*1M)[5:1000]", "fill(1*1048576)[5:1000]"),
        ('"a\\""', r'"a\x22"'),
    ],
)  # fmt: skip
async def test_tree(string: str, expected: str) -> None:
    assert tree(await content(string)) == expected


async def test_a_tree_has_an_end() -> None:
    string = r"1 -> \0 " + " ".join(rf"(\{index}*2 @+1)*3 -> \{index + 1}" for index in range(20)) + r" \20*2"
    assert len(tree(await content(string))) < 20_000
    doubled = r"( 1 @+1 ) -> \0 " + " ".join(rf"(\{index} \{index}) -> \{index + 1}" for index in range(40)) + r" \40"
    assert tree(await content(doubled)).endswith(" ... )")


@settings(deadline=None)
@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from(list('()*[]:@+-^<>"\\$#xle16b0 \n'))), max_size=60))
def test_any_text_parses_or_is_refused(string: str) -> None:
    try:
        syntax.parse(Text("data", string))
    except DataError as error:
        assert "line " in str(error)
