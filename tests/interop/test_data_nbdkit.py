"""nbdkit judges data strings: what both understand must be the same bytes.

Only what nbdkit 1.32 knows is made here: no size suffixes, no base64, no octal escapes, no numbers from variables.
What is defined always makes sense: nbdkit does not look at a definition that is not used, nbdfs does.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nbdfs.backends.data.evaluate import Evaluator
from nbdfs.backends.data.nodes import DataError, Text

MOST = 1 << 20  # bytes of a string's content, for nbdkit writes all of it out


def ours(string: str, variables: Mapping[str, str], limit: int | None = None) -> bytes | None:
    """The bytes of a string, None if it is refused."""

    async def evaluate() -> bytes | None:
        with ExitStack() as files:
            try:
                content = await Evaluator(variables, files, 20).text(Text("data", string))
            except DataError:
                return None
            if limit is not None and content.size > limit:
                return b"too long"
            data = bytearray(content.size)
            if data:
                content.read(memoryview(data), 0)
            return bytes(data)

    return trio.run(evaluate)


def nbdkits(string: str, variables: Mapping[str, str]) -> bytes | None:
    parameters = [f"{name}={value}" for name, value in variables.items()]
    run = ["nbdkit", "-U", "-", "data", f"data={string}", *parameters, "--run", 'nbdcopy "$uri" -']
    result = subprocess.run(run, capture_output=True, timeout=60)
    return result.stdout if result.returncode == 0 else None


numbers = st.one_of(
    st.integers(0, 255).map(str),
    st.integers(0, 255).map(hex),
    st.integers(0, 255).map(lambda number: f"0{number:o}"),
)
# nbdkit takes a word's number to the next blank.
words = st.sampled_from([16, 32, 64]).flatmap(
    lambda bits: st.builds("{}{}:{} ".format, st.sampled_from(["le", "be"]), st.just(bits), st.integers(0, 2**bits - 1))
)
letters = st.one_of(
    st.characters(codec="utf-8", exclude_characters='"\\\0', exclude_categories=("Cs",)),
    st.sampled_from([r"\n", r"\t", r"\"", r"\\", r"\x00", r"\xFf", r"\q"]),
)
strings = st.lists(letters, max_size=8).map(lambda parts: f'"{"".join(parts)}"')
names = st.sampled_from([r"\a", r"\b-c", r"\1"])
few = st.integers(0, 5)
seeks = st.one_of(
    st.integers(0, 40).map("@{}".format),
    st.integers(0, 20).map("@+{}".format),
    st.integers(0, 4).map("@-{}".format),
    st.integers(0, 5).map(lambda power: f"@^{1 << power}"),
)
leaves = st.one_of(numbers, words, strings, names, st.sampled_from(["$x", "$y", "<(printf abc)", "<FILE"]))
bundles = st.builds("( {} )*{}".format, st.lists(leaves, max_size=3).map(" ".join), few)
definitions = st.builds("{} -> {}".format, st.one_of(leaves, bundles), names)


def slices(expression: str) -> st.SearchStrategy[str]:
    ends = st.tuples(st.integers(0, 6), st.integers(0, 6)).map(sorted)
    return st.one_of(
        ends.map(lambda pair: f"{expression}[{pair[0]}:{pair[1]}]"),
        few.map(lambda first: f"{expression}[{first}:]"),
        few.map(lambda last: f"{expression}[:{last}]"),
        st.just(f"{expression}[:]"),
    )


def grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    group = programs(inner).map(lambda text: f"( {text} )")
    return st.one_of(
        group,
        st.builds("{}*{}".format, st.one_of(inner, group), few),
        st.one_of(inner, group).flatmap(slices),
    )


def programs(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    item = st.one_of(inner, inner, inner, seeks, definitions, st.just("# comment\n"))
    return st.lists(item, max_size=6).map(" ".join)


# Names are defined at the start, so that most of the strings make sense.
NAMES = r'1 -> \a ( 2 3 ) -> \b-c "x" -> \1 '
Y = r"( \a 7 )*3"
expressions = st.recursive(leaves, grown, max_leaves=12)
whole = programs(expressions).map(lambda text: NAMES + text)
# A definition that is not used may have $x, so that makes sense by itself.
sensible = programs(st.one_of(numbers, strings)).filter(lambda text: ours(NAMES + f"( {text}\n)", {"y": Y}) is not None)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "file"
    path.write_bytes(bytes(range(1, 100)))
    return path


def check(file: Path, string: str, x: str, y: str) -> None:
    string = string.replace("<FILE", f"<{file}")
    variables = {"x": x, "y": y}
    expected = ours(string, variables, limit=MOST)
    if expected != b"too long":
        assert nbdkits(string, variables) == expected


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(string=whole, x=sensible)
def test_both_agree(file: Path, string: str, x: str) -> None:
    check(file, string, x, Y)


@pytest.mark.long
@settings(max_examples=5000, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(string=whole, x=sensible)
def test_both_agree_at_length(file: Path, string: str, x: str) -> None:
    check(file, string, x, Y)


@pytest.mark.parametrize(
    "string",
    ["<FILE[90:200] 7", "<FILE[100:] 7", "<FILE[100:101] 7", "(<FILE*1)[0:100]*2", "<(printf abc)[:9]",
     "(<(printf abc))*1[0:4]", "( <(printf abc)[0:4] )[1:3]", "</dev/zero[2:5]",
     "(</dev/zero*1)[:5]", "</dev/null[3:9] 7"],
)  # fmt: skip
def test_both_take_what_there_is_of_a_file_or_a_script(file: Path, string: str) -> None:
    assert ours(string.replace("<FILE", f"<{file}"), {}) is not None
    check(file, string, "0", "0")


@pytest.mark.parametrize(
    "string",
    ["<(printf abc)[1:4]", "<(printf abc)[4:]", "</dev/null[5:4]", "<(printf abc)[0:3][0:4]", "(<(printf abc) 1)[0:6]"],
)
def test_both_refuse_a_slice_outside_of_what_they_have(string: str) -> None:
    assert ours(string, {}) is None
    assert nbdkits(string, {}) is None


@pytest.mark.parametrize(
    "string",
    ["-1", "256", "0400", "le16", "le16:",
     "be16:0x10000", "x", "\\", "@", "@-2", "@1 @^3", "<", "<(", "$", "*", "[", "(", ")",
     "( ( )", ") ( )", '"', '"\\"', '"\\x"', "*1", "0*-1", "0*", "0*x", "0**", "0[2:]", "0[:2]", "[0:1]", '"123"[1:0]',
     "</nosuch", r"\a", r"( 0 -> \a ) \a", r"0 -> \a \b", r"(0 -> \a) -> \b \b \a", "$unknownvar", "<(exit 1)", "@4*2",
     r"@4 -> \a"],
)  # fmt: skip
def test_both_refuse(string: str) -> None:
    os.environ.pop("unknownvar", None)
    assert ours(string, {}) is None
    assert nbdkits(string, {}) is None
