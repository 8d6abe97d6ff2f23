"""Hostile headers: whatever the bytes, a Header or a HeaderError, in bounded time."""

from __future__ import annotations

import copy
import hashlib
import json
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nbdfs.backends.luks import header1, header2
from nbdfs.backends.luks.device import load_header
from nbdfs.backends.luks.report import lines
from nbdfs.backends.luks.volume import Header, HeaderError
from nbdfs.records import replace
from tests.unit.test_luks_keys import SIZE, Recorder, formatted, volume_key

SETTINGS = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])

# A valid LUKS2 header with what most headers have; salts and digests are of no account here.
METADATA: dict[str, Any] = {
    "keyslots": {
        "0": {
            "type": "luks2",
            "key_size": 64,
            "af": {"type": "luks1", "stripes": 4000, "hash": "sha256"},
            "area": {
                "type": "raw",
                "offset": "32768",
                "size": "258048",
                "encryption": "aes-xts-plain64",
                "key_size": 64,
            },
            "kdf": {"type": "argon2id", "time": 4, "memory": 32768, "cpus": 1, "salt": "AAAA"},
        }
    },
    "tokens": {"0": {"type": "luks2-keyring", "keyslots": ["0"], "key_description": "x"}},
    "segments": {
        "0": {
            "type": "crypt",
            "offset": "16777216",
            "size": "dynamic",
            "iv_tweak": "0",
            "encryption": "aes-xts-plain64",
            "sector_size": 512,
        }
    },
    "digests": {
        "0": {
            "type": "pbkdf2",
            "keyslots": ["0"],
            "segments": ["0"],
            "hash": "sha256",
            "iterations": 1000,
            "salt": "AAAA",
            "digest": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        }
    },
    "config": {"json_size": "12288", "keyslots_size": "16744448", "requirements": {"mandatory": []}, "flags": []},
}


def luks2(metadata: dict[str, Any]) -> header2.Luks2:
    return header2.Luks2(16384, 1, "", "uuid", "", 0, metadata)


def parse2(metadata: dict[str, Any]) -> Header | None:
    """What the header says, None if it is refused."""
    try:
        return header2.parse(header2.unpack(luks2(metadata).pack(), 0), SIZE, detached=False)
    except HeaderError as error:
        assert "\n" not in str(error)
        return None


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where every value in the JSON is."""
    if isinstance(value, dict):
        return [path, *(inner for key, item in value.items() for inner in paths(item, (*path, key)))]
    return [path]


PATHS = paths(METADATA)[1:]
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 65), 1 << 65),
    st.text(max_size=20),
    st.sampled_from(["-1", "0", "18446744073709551616", "9223372036854775807", "dynamic", "1e3", " 1", "²", "\0"]),
    st.lists(st.text(max_size=3), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=3),
)


def test_the_template_is_valid() -> None:
    header = parse2(METADATA)
    assert header is not None
    assert header.data_segment().offset == 16 << 20


@SETTINGS
@given(st.lists(st.tuples(st.sampled_from(PATHS), ODD), min_size=1, max_size=3))
def test_any_value_anywhere_in_the_json(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    metadata = copy.deepcopy(METADATA)
    for path, value in changes:
        inner: Any = metadata
        for key in path[:-1]:
            inner = inner.get(key) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            inner[path[-1]] = value
    header = parse2(metadata)
    if header is not None:
        taken = 2 * 16384
        for slot in sorted(header.keyslots, key=lambda slot: slot.offset):
            assert taken <= slot.offset  # never the header, never another's area
            taken = slot.offset + slot.length
            assert taken <= min(header.length, SIZE)
        for segment in header.segments:
            assert segment.offset >= header.length


@SETTINGS
@given(st.sampled_from(PATHS))
def test_any_value_missing(path: tuple[Any, ...]) -> None:
    metadata = copy.deepcopy(METADATA)
    inner: Any = metadata
    for key in path[:-1]:
        inner = inner[key]
    del inner[path[-1]]
    parse2(metadata)


@SETTINGS
@given(st.binary(max_size=300))
def test_any_bytes_as_json(text: bytes) -> None:
    data = bytearray(luks2(METADATA).pack())
    data[4096:] = text.ljust(12288, b"\0")[:12288]
    try:
        header2.parse(header2.unpack(_sealed(data), 0), SIZE, detached=False)
    except HeaderError:
        return
    pytest.fail("noise was taken for a header")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a":' * 2000 + "1" + "}" * 2000, "deeply"),
        ('{"a":' * 33 + "1" + "}" * 33, "deeply"),
        ('{"tokens":{"0":' + "[" * 300 + "]" * 300 + "}}", "deeply"),
        ('{"a":1,"a":2}', "twice"),
        ('{"a":NaN}', "NaN"),
        ('{"a":1.5}', "1.5"),
        ('{"a":' + "9" * 5000 + "}", "cannot be read"),
        ("{}", "missing"),
        ("[]", "begin with"),
        ('{"a":\udc80}', "cannot be read"),
    ],
)
def test_json_that_no_program_should_trust(text: str, reason: str) -> None:
    data = bytearray(luks2(METADATA).pack())
    data[4096:] = text.encode("utf-8", "surrogateescape").ljust(12288, b"\0")
    with pytest.raises(HeaderError, match=reason):
        header2.parse(header2.unpack(_sealed(data), 0), SIZE, detached=False)


def test_a_sequence_that_cannot_go_on_is_refused() -> None:
    with pytest.raises(HeaderError, match="sequence number"):
        header2.unpack(replace(luks2(METADATA), sequence=(1 << 64) - 1).pack(), 0)


def test_the_largest_json_is_parsed_in_bounded_time() -> None:
    metadata = METADATA | {"tokens": {str(number): {"type": "x" * 200, "keyslots": []} for number in range(50)}}
    header = parse2(metadata)
    assert header is not None
    assert len(header.tokens) == 50
    assert parse2(METADATA | {"tokens": {str(number): {"type": "x"} for number in range(200)}}) is None


def test_a_header_apart_from_its_data_says_so() -> None:
    metadata = copy.deepcopy(METADATA)
    metadata["segments"]["0"]["offset"] = "0"
    with pytest.raises(HeaderError, match="its data elsewhere: give this as header="):
        header2.parse(luks2(metadata), SIZE, detached=False)


@pytest.mark.parametrize(
    "requirements", [{"mandatory": ["future"]}, ["future"]], ids=["as on the disk", "as in the specification"]
)
def test_requirements_refuse(requirements: object) -> None:
    metadata = copy.deepcopy(METADATA)
    metadata["config"]["requirements"] = requirements
    header = parse2(metadata)
    assert header is not None
    with pytest.raises(HeaderError, match="future"):
        header.data_segment()


@SETTINGS
@given(st.lists(st.tuples(st.integers(0, header1.LENGTH - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_any_bytes_changed_in_luks1(changes: list[tuple[int, int]]) -> None:
    data = bytearray(_LUKS1.pack())
    for offset, value in changes:
        data[offset] = value
    try:
        header = header1.parse(bytes(data), SIZE, detached=False)
    except HeaderError as error:
        assert "\n" not in str(error)
        return
    for slot in header.keyslots:
        assert slot.offset >= header1.LENGTH
        assert slot.offset + slot.length <= min(SIZE, header.segments[0].offset)


@pytest.mark.parametrize("length", [0, 5, 6, 8, 100, 591])
def test_luks1_cut_off(length: int) -> None:
    with pytest.raises(HeaderError):
        header1.parse(_LUKS1.pack()[:length], length, detached=False)


@pytest.mark.parametrize(("key_size", "stripes"), [(0, 4000), (64, 0), (1 << 31, 4000), (64, 1 << 31)])
def test_luks1_without_key_or_stripes(key_size: int, stripes: int) -> None:
    slots = tuple(header1.RawSlot(True, 1000, bytes(32), 8 + 504 * number, stripes) for number in range(8))
    raw = header1.Luks1("aes", "xts-plain64", "sha256", 4096, key_size, bytes(20), bytes(32), 1000, "uuid", slots)
    with pytest.raises(HeaderError):
        header1.parse(raw.pack(), SIZE, detached=False)


@pytest.mark.parametrize("seed", range(8))
async def test_a_damaged_copy_is_passed_over(seed: int) -> None:
    """Bytes changed in one copy, wherever: the other opens."""
    device = await formatted(2)
    key = await volume_key(device, b"first")
    chance = random.Random(seed)
    start = 16384 * (seed % 2)
    for _ in range(4):
        device.content[start + chance.randrange(16384)] ^= 1 << chance.randrange(8)
    assert await volume_key(device, b"first") == key


async def test_a_primary_that_lies_about_its_size_is_passed_over() -> None:
    device = await formatted(2)
    key = await volume_key(device, b"first")
    device.content[8:16] = header2.SIZES[1].to_bytes(8, "big")
    assert await volume_key(device, b"first") == key


async def test_two_damaged_copies_are_refused() -> None:
    device = await formatted(2)
    for place in (0, 16384):
        device.content[place + 5000] ^= 1
    with pytest.raises(HeaderError, match="damaged"):
        await load_header(device)


@pytest.mark.parametrize(
    ("content", "looks"),
    [
        (b"", "empty"),
        (bytes(8192), "zeroes"),
        (b"QFI\xfb".ljust(8192, b"\1"), "qcow2"),
        (b"PK\x03\x04".ljust(8192, b"\1"), "zip"),
        (b"\1" * 0x438 + b"\x53\xef" + bytes(8192), "ext4"),
        (b"noise" * 2000, "nothing known"),
    ],
)
async def test_what_it_looks_like_instead(content: bytes, looks: str) -> None:
    with pytest.raises(HeaderError, match=f"no LUKS header.*{looks}"):
        await load_header(Recorder(bytearray(content)))


def _sealed(data: bytearray) -> bytes:
    """The copy with its checksum made right."""
    data[448:512] = bytes(64)
    data[448:512] = hashlib.sha256(data).digest().ljust(64, b"\0")
    return bytes(data)


_LUKS1 = header1.Luks1(
    "aes", "xts-plain64", "sha256", 4096, 64, bytes(20), bytes(32), 1000, "uuid",
    tuple(header1.RawSlot(number < 2, 1000 if number < 2 else 0, bytes(32), 8 + 504 * number, 4000)
          for number in range(8)),
)  # fmt: skip


def test_packing_is_the_reverse_of_unpacking() -> None:
    assert header1.unpack(_LUKS1.pack()) == _LUKS1
    copied = header2.unpack(luks2(METADATA).pack(), 0)
    assert copied == luks2(METADATA)
    assert json.loads(json.dumps(copied.metadata)) == METADATA


def test_a_label_does_not_command_the_terminal() -> None:
    assert lines({"label": "\x1b[2J", "tokens": ["a\n", "b"]}) == ["label: \\x1b[2J", "tokens: a\\n, b"]
