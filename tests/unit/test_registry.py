"""Drivers and their options."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nbdfs import registry
from nbdfs.errors import UsageError
from nbdfs.records import Record
from nbdfs.registry import (
    BOOLEAN,
    DURATION,
    INTEGER,
    NUMBER,
    SECRET,
    SIZE,
    TEXT,
    Driver,
    LayerDriver,
    SourceDriver,
    choice,
    option,
)


class Options(Record):
    size: int = option(4096, SIZE, "a size")
    wait: float = option(1.5, DURATION, "a duration")
    count: int = option(3, INTEGER, "a number")
    part: float = option(0.5, NUMBER, "another")
    on: bool = option(False, BOOLEAN, "a switch")
    mode: str = option("a", choice("a", "b"), "one of two")
    key: object = option(None, SECRET, "a secret")
    text: str = option("", TEXT, "some text")


DRIVER = Driver("thing", "a thing", Options)


def test_options_are_read_by_their_kind() -> None:
    texts = {"size": "1M", "wait": "200ms", "count": "0x10", "part": "0.25", "on": "", "mode": "b", "text": "a,b"}
    options = DRIVER.parse_options(texts.items())
    assert options == Options(1 << 20, 0.2, 16, 0.25, True, "b", None, "a,b")
    assert DRIVER.parse_options([]) == Options()


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("siez", "1", "thing has no option 'siez'; did you mean 'size'?"),
        ("zzzz", "1", "thing has no option 'zzzz'; there are: count, key"),
        ("size", "1Q", "thing: size: '1Q' is not a size"),
        ("wait", "soon", "thing: wait: 'soon' is not a duration"),
        ("count", "1.5", "thing: count: '1.5' is not a whole number"),
        ("part", "half", "thing: part: 'half' is not a number"),
        ("on", "maybe", "thing: on: 'maybe' is neither true nor false"),
        ("mode", "c", "thing: mode: 'c' is none of a, b"),
    ],
)
def test_wrong_options_say_what_is_right(name: str, text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        DRIVER.parse_options([(name, text)])
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_an_option_twice_is_an_error() -> None:
    with pytest.raises(UsageError, match="the option 'size' is given twice"):
        DRIVER.parse_options([("size", "1"), ("size", "1")])


def test_defaults_are_written_as_one_would_write_them() -> None:
    shown = {one.name: one.default_text for one in DRIVER.option_table}
    assert shown == {"size": "4k", "wait": "1.5", "count": "3", "part": "0.5", "on": "no", "mode": "a", "key": "",
                     "text": ""}  # fmt: skip


@pytest.mark.parametrize("name", registry.names())
def test_each_record_is_complete(name: str) -> None:
    driver = registry.find(name)
    assert driver.name == name
    assert isinstance(driver, SourceDriver | LayerDriver)
    assert driver.summary
    assert len(driver.summary) <= 90
    assert not driver.summary.endswith(".")
    assert driver.options() is not None, "every option has a default"
    assert all(one.help and not one.help.endswith(".") for one in driver.option_table)
    assert driver.synopsis.startswith((f"{name}:", "magnet")) or isinstance(driver, SourceDriver)


@pytest.mark.parametrize("name, hint", [("memroy", "did you mean 'memory'"), ("qqqqq", "there are: ")])
def test_an_unknown_driver_is_a_usage_error(name: str, hint: str) -> None:
    with pytest.raises(UsageError, match=f"there is no source or layer '{name}'; {hint}"):
        registry.find(name)


@pytest.mark.parametrize("scheme, name", [("http", "http"), ("https", "http"), ("nbd", "nbd"), ("nbds+unix", "nbd"),
                                          ("magnet", "torrent"), ("file", "file")])  # fmt: skip
def test_schemes_select_their_source(scheme: str, name: str) -> None:
    driver = registry.find_scheme(scheme)
    assert driver is not None
    assert driver.name == name


def test_no_source_has_this_scheme() -> None:
    assert registry.find_scheme("gopher") is None


def test_no_two_sources_claim_one_scheme() -> None:
    sources = [driver for name in registry.names() if isinstance(driver := registry.find(name), SourceDriver)]
    schemes = [scheme for driver in sources for scheme in driver.schemes]
    assert len(schemes) == len(set(schemes))


def test_records_import_nothing_heavy() -> None:
    """What only an open source needs is not loaded by reading all records."""
    code = (
        "import sys; from nbdfs import registry; [registry.find(name) for name in registry.names()];"
        "heavy = ('numpy', 'libtorrent', 'httpcore2', 'cryptography', 'pyfuse3');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
