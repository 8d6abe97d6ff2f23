"""Sizes and durations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbdfs.errors import UsageError
from nbdfs.source import MAX_SIZE
from nbdfs.units import format_size, parse_duration, parse_number, parse_size


@pytest.mark.parametrize(
    "text, size",
    [("0", 0), ("512", 512), ("4k", 4096), ("4K", 4096), ("1G", 1 << 30), ("1T", 1 << 40), ("7E", 7 << 60),
     ("8s", 4096), ("10b", 10), ("0x200", 512), ("0010", 10), ("9223372036854775807", MAX_SIZE)],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "1Q", "-1", "+1", "1.5G", "G", "1 G", " 1", "1GB", "0x", "٣", "1G\n", "1e3"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize("text", ["8E", "9223372036854775808", "99999999999999999999999E", "9" * 5000])
def test_sizes_past_what_a_file_can_be(text: str) -> None:
    with pytest.raises(UsageError, match="larger than a file can be"):
        parse_size(text)


@given(st.integers(0, MAX_SIZE))
def test_a_size_is_read_back(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.integers(1, 1023), st.sampled_from("kMGTP"))
def test_whole_units_are_written_short(number: int, unit: str) -> None:
    assert format_size(parse_size(f"{number}{unit}")) == f"{number}{unit}"


@pytest.mark.parametrize(
    "text, seconds", [("5", 5), ("0.5", 0.5), ("200ms", 0.2), ("10s", 10), ("2m", 120), ("1h", 3600)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["9" * 400, "99999999999", "300000h"])
def test_durations_past_every_use(text: str) -> None:
    with pytest.raises(UsageError, match="too long"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["0", "7", "255"])
def test_numbers(text: str) -> None:
    assert parse_number(text, "byte", 255) == int(text)


@pytest.mark.parametrize(
    "text", ["", "-1", "256", "x", "1.0", "\N{SUPERSCRIPT TWO}", "\N{ARABIC-INDIC DIGIT ONE}", "9" * 5000]
)
def test_no_numbers(text: str) -> None:
    with pytest.raises(UsageError, match="is no byte: a number up to 255"):
        parse_number(text, "byte", 255)


@pytest.mark.parametrize("text", ["", "-1", "1d", "1.", ".5", "s", "1 s", "inf", "nan"])
def test_no_durations(text: str) -> None:
    with pytest.raises(UsageError, match="is not a duration"):
        parse_duration(text)
