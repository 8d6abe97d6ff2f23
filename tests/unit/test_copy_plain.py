"""Copies between plain files: which way is taken, and what happens if it cannot be."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbdfs.copying import CopyOptions, copy
from nbdfs.copying.plain import Files
from nbdfs.source import Backing
from nbdfs.spec import parse

CONTENT = os.urandom(300_000)


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[tuple[Backing, Backing]]:
    """A source that begins at byte 1000 of its file, and an empty destination that begins at byte 10."""
    (tmp_path / "source").write_bytes(bytes(1000) + CONTENT)
    source = os.open(tmp_path / "source", os.O_RDONLY)
    destination = os.open(tmp_path / "destination", os.O_RDWR | os.O_CREAT)
    yield Backing(source, 1000, True), Backing(destination, 10, False)
    os.close(source)
    os.close(destination)


def copied(destination: Backing) -> bytes:
    return os.pread(destination.fd, len(CONTENT), destination.offset)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("buffer", [1000, 1 << 20])
def test_any_range_of_two_files_is_copied(share: bool, buffer: int, ends: tuple[Backing, Backing]) -> None:
    files = Files(*ends, share=share)
    for start in range(0, len(CONTENT), 70_000):
        files.copy(start, min(70_000, len(CONTENT) - start), memoryview(bytearray(buffer)))
    assert copied(ends[1]) == CONTENT


def test_file_systems_that_may_be_far_are_asked_to_copy_by_themselves(
    ends: tuple[Backing, Backing], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    copy_file_range = os.copy_file_range

    def ask(*arguments: int) -> int:
        asked.append(arguments)
        return copy_file_range(*arguments)

    monkeypatch.setattr("nbdfs.libc.filesystem_type", lambda fd: 0x6969)  # NFS
    monkeypatch.setattr(os, "copy_file_range", ask)
    Files(*ends).copy(0, len(CONTENT), memoryview(bytearray(1)))
    assert asked
    assert copied(ends[1]) == CONTENT


def test_what_is_refused_once_is_not_asked_again(
    ends: tuple[Backing, Backing], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuse(*arguments: int) -> int:
        asked.append(arguments)
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr("nbdfs.libc.filesystem_type", lambda fd: 0x6969)
    monkeypatch.setattr(os, "copy_file_range", refuse)
    files = Files(*ends)
    for start in (0, 150_000):
        files.copy(start, 150_000, memoryview(bytearray(4096)))
    assert len(asked) == 1
    assert copied(ends[1]) == CONTENT


@pytest.mark.parametrize("kind", [0x6969, 0xEF53])
def test_a_source_that_became_shorter_is_an_error(
    kind: int, ends: tuple[Backing, Backing], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbdfs.libc.filesystem_type", lambda fd: kind)
    with pytest.raises(OSError, match="the file ended at byte 300000") as raised:
        Files(*ends).copy(0, len(CONTENT) + 1, memoryview(bytearray(4096)))
    assert raised.value.errno == errno.EIO


def test_one_process_copies_files_many_times(tmp_path: Path) -> None:
    (tmp_path / "0").write_bytes(CONTENT)
    for number in range(3):
        summary = copy(parse(f"{tmp_path}/{number}"), parse(f"{tmp_path}/{number + 1}"), CopyOptions())
        assert summary.way == "files"
    assert (tmp_path / "3").read_bytes() == CONTENT
