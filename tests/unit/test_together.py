"""nbdfs.together: work done once for requests begun together, and an error of one is nobody else's."""

from collections.abc import Iterator, Sequence

import pytest
import trio

from nbdfs import eager
from nbdfs.eager import Run
from nbdfs.together import Together


class Bench:
    """Requests that bring items; `batches` are what was worked on, `ends` how each request ended."""

    def __init__(self, nursery: trio.Nursery, most: int = 100) -> None:
        self.together = Together(self._work, most)
        self.batches: list[list[str]] = []
        self.ends: dict[str, str] = {}
        self._nursery = nursery

    def _work(self, items: Sequence[str]) -> None:
        self.batches.append(list(items))
        if "bad" in items:
            raise OSError("bad")

    def begin(self, item: str) -> Run:
        run = Run(self._request(item), self._nursery)
        run.start()
        return run

    async def _request(self, item: str) -> None:
        self.ends[item] = "cancelled"
        try:
            await self.together.do(item)
            self.ends[item] = "done"
        except OSError:
            self.ends[item] = "failed"


@pytest.fixture
async def bench(nursery: trio.Nursery) -> Bench:
    return Bench(nursery)


@pytest.fixture
def corked() -> Iterator[None]:
    eager.cork()
    yield
    eager.uncork()


async def test_alone_it_is_done_at_once(bench: Bench) -> None:
    bench.begin("a")
    assert bench.batches == [["a"]]
    assert bench.ends == {"a": "done"}


async def test_in_a_task_too(bench: Bench) -> None:
    await bench.together.do("a")
    assert bench.batches == [["a"]]


async def test_what_was_begun_together_is_done_together(bench: Bench, corked: None) -> None:
    for item in "abc":
        bench.begin(item)
    assert not bench.batches
    eager.uncork()
    assert bench.batches == [["a", "b", "c"]]
    assert set(bench.ends.values()) == {"done"}


async def test_no_more_than_so_many(nursery: trio.Nursery, corked: None) -> None:
    bench = Bench(nursery, most=2)
    for item in "abcde":
        bench.begin(item)
    eager.uncork()
    assert sorted(bench.batches) == [["a", "b"], ["c", "d"], ["e"]]
    assert set(bench.ends.values()) == {"done"}


@pytest.mark.parametrize("order", [("bad", "b", "c"), ("a", "bad", "c")])
async def test_an_error_is_that_of_the_one_who_brought_it(bench: Bench, corked: None, order: tuple[str, ...]) -> None:
    """The first, who did the work of all, fails with it; of the others only the bad one does."""
    for item in order:
        bench.begin(item)
    eager.uncork()
    assert {item: end for item, end in bench.ends.items() if item not in ("bad", order[0])} == {
        item: "done" for item in order[1:] if item != "bad"
    }
    assert bench.ends["bad"] == "failed"


@pytest.mark.parametrize("who", [0, 1, 2])
async def test_one_that_is_cancelled_takes_its_item_along(bench: Bench, corked: None, who: int) -> None:
    runs = {item: bench.begin(item) for item in "abc"}
    gone = "abc"[who]
    runs[gone].cancel()
    eager.uncork()
    assert sorted(item for batch in bench.batches for item in batch) == sorted(set("abc") - {gone})
    assert bench.ends == {item: "cancelled" if item == gone else "done" for item in "abc"}


async def test_after_that_it_begins_anew(bench: Bench) -> None:
    for pair in ("ab", "cd"):
        eager.cork()
        for item in pair:
            bench.begin(item)
        eager.uncork()
    assert bench.batches == [["a", "b"], ["c", "d"]]
