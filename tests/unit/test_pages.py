"""Views of memory are given only where they allocate nothing."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import pytest

from nbdfs.pages import Pages
from nbdfs.scratch import memory_scratch

PAGE = mmap.PAGESIZE


@pytest.fixture
def memfd() -> Iterator[int]:
    descriptor = os.memfd_create("test", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, 64 * PAGE)
    yield descriptor
    os.close(descriptor)


def test_a_view_is_the_bytes_themselves(memfd: int) -> None:
    pages = Pages(memfd, 64 * PAGE)
    os.pwrite(memfd, b"here" * PAGE, PAGE)
    view = pages.view(PAGE + 4, 8)
    assert view == b"herehere"
    os.pwrite(memfd, b"gone", PAGE + 4)
    assert view == b"gonehere"
    del view
    pages.close()


def test_holes_have_none_and_stay_holes(memfd: int) -> None:
    pages = Pages(memfd, 64 * PAGE)
    os.pwrite(memfd, b"x" * 2 * PAGE, 8 * PAGE)
    before = os.fstat(memfd).st_blocks
    assert pages.view(0, 10) is None
    assert pages.view(8 * PAGE, 2 * PAGE + 1) is None
    assert pages.view(8 * PAGE - 1, 2) is None
    assert pages.view(8 * PAGE, 2 * PAGE) == b"x" * 2 * PAGE
    assert os.fstat(memfd).st_blocks == before
    pages.close()


async def test_a_scratch_gives_views_of_what_was_written_and_not_discarded() -> None:
    scratch = memory_scratch("test", 64 * PAGE)
    await scratch.write(memoryview(b"y" * 4 * PAGE), 0)
    assert scratch.view(0, 4 * PAGE) == b"y" * 4 * PAGE
    await scratch.discard(PAGE, PAGE)
    assert scratch.view(0, 4 * PAGE) is None
    assert scratch.view(0, PAGE) == b"y" * PAGE
    scratch.close()
