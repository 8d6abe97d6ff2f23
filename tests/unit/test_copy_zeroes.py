"""Zero detection against the slow and obvious way."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from nbdfs.buffers import is_zero
from nbdfs.copying.zeroes import runs, zero_pieces

chunks = st.lists(st.tuples(st.sampled_from([b"\0", b"\1", b"\0\1", b"\1\0"]), st.integers(1, 40)), max_size=12)


@given(chunks, st.integers(0, 200), st.sampled_from([1, 2, 8, 16, 64]))
def test_runs_are_the_zero_blocks_and_nothing_else(parts: list[tuple[bytes, int]], offset: int, block: int) -> None:
    data = b"".join(part * count for part, count in parts)
    found = list(runs(memoryview(data), offset, block))
    assert [start for start, _, _ in found] == [0, *(stop for _, stop, _ in found)][: len(found)]
    assert (found[-1][1] if found else 0) == len(data)
    assert all(left[2] != right[2] for left, right in pairwise(found))
    zero = {at for start, stop, is_zero_run in found if is_zero_run for at in range(start, stop)}
    expected = set()
    for number in range(offset // block, (offset + len(data)) // block + 1):
        part = range(max(number * block - offset, 0), min((number + 1) * block - offset, len(data)))
        if not any(data[at] for at in part):
            expected.update(part)
    assert zero == expected


@given(st.integers(0, 3 << 20))
def test_zero_pieces_add_up(length: int) -> None:
    pieces = list(zero_pieces(length))
    assert sum(map(len, pieces)) == length
    assert all(is_zero(piece) for piece in pieces)
