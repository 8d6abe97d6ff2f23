"""Making volumes and changing keys: after a crash at any moment every other key still opens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nbdfs.backends.luks import header1, header2
from nbdfs.backends.luks.cipher import CipherName, SectorCipher
from nbdfs.backends.luks.derivation import Effort
from nbdfs.backends.luks.device import load_header
from nbdfs.backends.luks.format import Volume, format_device
from nbdfs.backends.luks.kdf import Budget
from nbdfs.backends.luks.keys import add_key, remove_key
from nbdfs.backends.luks.keyslot import unlock
from nbdfs.errors import UserError
from nbdfs.records import replace
from nbdfs.source import Caps, Source, SourceInfo, read
from nbdfs.stack import open_stack

SIZE = 17 << 20
EFFORT = Effort("pbkdf2", iterations=1000)
VERSIONS = pytest.mark.parametrize("version", [1, 2])


@pytest.mark.parametrize(
    ("kind", "iterations", "memory"),
    [("pbkdf2", 999, 1 << 20), ("pbkdf2", 0, 1 << 20), ("pbkdf2", -1, 1 << 20), ("pbkdf2", 1 << 31, 1 << 20),
     ("argon2id", 3, 1 << 20), ("argon2i", 1 << 31, 1 << 20), ("argon2id", None, 1023), ("argon2i", 4, 0)],
)  # fmt: skip
def test_costs_that_make_no_sense_are_refused_before_anything_is_written(
    kind: str, iterations: int | None, memory: int
) -> None:
    with pytest.raises(UserError, match=f"{kind} takes"):
        Effort(kind, iterations=iterations, memory=memory)


class Recorder(Source):
    """A device in memory that remembers its writes in order."""

    def __init__(self, content: bytearray) -> None:
        self.content = content
        self.writes: list[tuple[int, bytes]] = []
        self.info = SourceInfo(len(content), Caps.WRITE | Caps.FLUSH)

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        buffer[:] = memoryview(self.content)[offset : offset + len(buffer)]

    async def pwrite(self, data: memoryview, offset: int, *, fua: bool = False) -> None:
        self.writes.append((offset, bytes(data)))
        self.content[offset : offset + len(data)] = data

    async def flush(self) -> None:
        return

    def crashes(self, before: bytes) -> list[Recorder]:
        """The device as a crash could leave it: after each write, and in the middle of each."""
        content, states = bytearray(before), []
        for offset, data in self.writes:
            for part in (data[:512], data[: max(len(data) // 2, 512) // 512 * 512], data):
                content[offset : offset + len(part)] = part
                states.append(Recorder(bytearray(content)))
        return states


async def opens(device: Source, passphrase: bytes) -> int | None:
    """The slot that the passphrase opens."""
    header = (await load_header(device)).header
    digest = header.digest_of(header.data_segment())
    try:
        slot, _ = await unlock(device, header, digest, passphrase, None, Budget())
    except UserError:
        return None
    return slot


async def volume_key(device: Source, passphrase: bytes) -> bytes:
    header = (await load_header(device)).header
    digest = header.digest_of(header.data_segment())
    return (await unlock(device, header, digest, passphrase, None, Budget()))[1]


async def formatted(version: int) -> Recorder:
    device = Recorder(bytearray(SIZE))
    await format_device(device, Volume(version), b"first", EFFORT, force=False)
    device.writes.clear()
    return device


@VERSIONS
async def test_a_crash_while_adding_keeps_the_old_key(version: int) -> None:
    device = await formatted(version)
    before = bytes(device.content)
    key = await volume_key(device, b"first")
    assert await add_key(device, await load_header(device), key, b"second", EFFORT, None) == 1
    assert await volume_key(device, b"second") == key
    crashes = device.crashes(before)
    assert len(crashes) >= 4
    for crashed in crashes:
        assert await volume_key(crashed, b"first") == key


@VERSIONS
async def test_a_crash_after_a_crash_keeps_every_key(version: int) -> None:
    device = await formatted(version)
    before = bytes(device.content)
    key = await volume_key(device, b"first")
    await add_key(device, await load_header(device), key, b"second", EFFORT, None)
    for crashed in device.crashes(before):
        known = [word for word in (b"first", b"second") if await opens(crashed, word) is not None]
        content = bytes(crashed.content)
        await add_key(crashed, await load_header(crashed), key, b"third", EFFORT, None)
        for again in crashed.crashes(content):
            assert [await opens(again, word) is not None for word in known] == [True] * len(known)


@pytest.mark.parametrize("damaged", [0, header2.SIZES[0]])
async def test_a_crash_keeps_the_copy_that_was_whole(damaged: int) -> None:
    device = await formatted(2)
    key = await volume_key(device, b"first")
    device.content[damaged + header2.BINARY] ^= 1
    before = bytes(device.content)
    await add_key(device, await load_header(device), key, b"second", EFFORT, None)
    for crashed in device.crashes(before):
        assert await volume_key(crashed, b"first") == key


@VERSIONS
async def test_a_crash_while_removing_keeps_the_other_key(version: int) -> None:
    device = await formatted(version)
    key = await volume_key(device, b"first")
    await add_key(device, await load_header(device), key, b"second", EFFORT, 5)
    before = bytes(device.content)
    device.writes.clear()
    await remove_key(device, await load_header(device), 0)
    assert await opens(device, b"first") is None
    for crashed in device.crashes(before):
        assert await volume_key(crashed, b"second") == key


@VERSIONS
async def test_a_removed_key_stays_removed_with_the_old_header(version: int) -> None:
    device = await formatted(version)
    await add_key(device, await load_header(device), await volume_key(device, b"first"), b"second", EFFORT, None)
    header = bytes(device.content[: header2.SIZES[0] * 2 if version == 2 else header1.LENGTH])
    await remove_key(device, await load_header(device), 0)
    device.content[: len(header)] = header  # somebody has kept a copy
    assert await opens(device, b"first") is None
    assert await opens(device, b"second") == 1


@VERSIONS
async def test_all_slots_can_be_used_and_no_more(version: int) -> None:
    device = await formatted(version)
    key = await volume_key(device, b"first")
    most = 8 if version == 1 else 32
    for number in range(1, most):
        assert await add_key(device, await load_header(device), key, b"%d" % number, EFFORT, None) == number
    with pytest.raises(UserError, match=f"all {most} key slots"):
        await add_key(device, await load_header(device), key, b"more", EFFORT, None)
    with pytest.raises(UserError, match="in use"):
        await add_key(device, await load_header(device), key, b"more", EFFORT, 3)
    await remove_key(device, await load_header(device), 3)
    assert await add_key(device, await load_header(device), key, b"more", EFFORT, None) == 3
    assert await volume_key(device, b"more") == key


async def test_a_token_forgets_a_removed_slot() -> None:
    device = await formatted(2)
    found = await load_header(device)
    assert isinstance(found.written, header2.Luks2)
    found.written.metadata["tokens"]["0"] = {"type": "x", "keyslots": ["0"]}
    await remove_key(device, found, 0)
    after = (await load_header(device)).written
    assert isinstance(after, header2.Luks2)
    assert after.metadata["tokens"]["0"]["keyslots"] == []


@pytest.mark.parametrize("token", [{"type": "x"}, {"type": "x", "keyslots": None}, {"type": "x", "keyslots": 5}])
async def test_a_token_of_no_slots_is_no_obstacle(token: dict[str, object]) -> None:
    device = await formatted(2)
    found = await load_header(device)
    assert isinstance(found.written, header2.Luks2)
    found.written.metadata["tokens"]["0"] = token
    await remove_key(device, found, 0)
    after = (await load_header(device)).written
    assert isinstance(after, header2.Luks2)
    assert after.metadata["keyslots"] == {}
    assert after.metadata["tokens"]["0"] == token


async def test_format_leaves_a_device_with_content_alone() -> None:
    device = await formatted(1)
    with pytest.raises(UserError, match=r"LUKS header already.*--force"):
        await format_device(device, Volume(2), b"x", EFFORT, force=False)
    ext4 = bytearray(SIZE)
    ext4[0x438:0x43A] = b"\x53\xef"
    with pytest.raises(UserError, match="ext4"):
        await format_device(Recorder(ext4), Volume(2), b"x", EFFORT, force=False)
    assert device.writes == []


@VERSIONS
async def test_format_sees_content_far_behind_the_beginning(version: int) -> None:
    device = Recorder(bytearray(SIZE))
    device.content[1_500_000] = 1
    with pytest.raises(UserError, match=r"something between 1048576 and 2097152.*--force"):
        await format_device(device, Volume(version), b"x", EFFORT, force=False)
    assert device.writes == []


WRONG: list[tuple[Callable[[], Volume], str]] = [
    (lambda: Volume(2, encryption="serpent-xts-plain64"), "serpent"),
    (lambda: Volume(2, key_size=16), "does not fit"),
    (lambda: Volume(1, sector_size=4096), "LUKS1 has only"),
    (lambda: Volume(2, sector_size=8192), "8192"),
    (lambda: Volume(2, label="x" * 48), "label"),
    (lambda: Volume(2, uuid="nonsense"), "UUID"),
]


@pytest.mark.parametrize(("make", "reason"), WRONG)
async def test_a_volume_that_makes_no_sense_is_not_made(make: Callable[[], Volume], reason: str) -> None:
    device = Recorder(bytearray(SIZE))
    with pytest.raises(UserError, match=reason):
        await format_device(device, make(), b"x", EFFORT, force=False)
    assert device.writes == []


async def test_a_small_device_is_refused() -> None:
    with pytest.raises(UserError, match="too small"):
        await format_device(Recorder(bytearray(1 << 20)), Volume(2), b"x", EFFORT, force=False)


@pytest.mark.parametrize("iv_tweak", [0, 8, 1 << 33])
async def test_iv_tweak_moves_the_sector_numbers(tmp_path: Path, iv_tweak: int) -> None:
    device = await formatted(2)
    key = await volume_key(device, b"first")
    written = (await load_header(device)).written
    assert isinstance(written, header2.Luks2)
    written.metadata["segments"]["0"]["iv_tweak"] = str(iv_tweak)
    for place in (0, written.size):
        device.content[place : place + written.size] = replace(written, place=place).pack()
    image, passphrase = tmp_path / "image", tmp_path / "key"
    image.write_bytes(device.content)
    passphrase.write_bytes(b"first")
    data = bytes(range(256)) * 2
    async with open_stack(f"luks,passphrase=+{passphrase}::{image}") as source:
        await source.pwrite(memoryview(data), 512)
        assert await read(source, 512, 512) == data
    sector = memoryview(bytearray(image.read_bytes()[(16 << 20) + 512 :][:512]))
    SectorCipher(CipherName.parse("aes-xts-plain64"), key).decrypt(sector, sector, iv_tweak + 1)
    assert sector == data
