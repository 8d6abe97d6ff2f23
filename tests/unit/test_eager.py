"""nbdfs.eager: coroutines carried without tasks."""

import pytest
import trio

from nbdfs import eager
from nbdfs.eager import Run, Signal


async def test_a_run_executes_at_once_up_to_its_wait():
    signal, steps = Signal(), []

    async def work():
        steps.append("begun")
        await signal.wait()
        steps.append("woken")

    async with trio.open_nursery() as nursery:
        Run(work(), nursery, lambda: steps.append("ended")).start()
        assert steps == ["begun"]
        signal.set()
        assert steps == ["begun", "woken", "ended"]
        assert not nursery.child_tasks


async def test_runs_do_not_nest():
    first, second, steps = Signal(), Signal(), []

    async def waker():
        await first.wait()
        second.set()
        steps.append("the waker goes on before whom it woke")

    async def woken():
        await second.wait()
        steps.append("woken")

    async with trio.open_nursery() as nursery:
        for work in (waker, woken):
            Run(work(), nursery, lambda: None).start()
        first.set()
    assert steps == ["the waker goes on before whom it woke", "woken"]


async def test_a_run_begun_in_a_run_executes_when_that_has_paused():
    signal, steps = Signal(), []

    async def inner():
        steps.append("inner")
        await signal.wait()

    async def outer(nursery):
        Run(inner(), nursery).start()
        steps.append("outer")
        await signal.wait()
        steps.append("woken")

    async with trio.open_nursery() as nursery:
        Run(outer(nursery), nursery).start()
        assert steps == ["outer", "inner"]
        signal.set()
    assert steps == ["outer", "inner", "woken"]


async def test_a_long_chain_of_wakes_needs_no_deep_stack():
    signals = [Signal() for _ in range(5000)]

    async def link(number):
        await signals[number].wait()
        signals[number + 1].set()

    async with trio.open_nursery() as nursery:
        for number in range(len(signals) - 1):
            Run(link(number), nursery, lambda: None).start()
        signals[0].set()
    assert signals[-1].is_set


async def test_cancelling_raises_at_the_wait_and_forgets_the_waiter():
    signal, steps = Signal(), []

    async def work():
        try:
            await signal.wait()
        finally:
            steps.append("cleaned up")

    async with trio.open_nursery() as nursery:
        run = Run(work(), nursery, lambda: steps.append("ended"))
        run.start()
        run.cancel()
        assert steps == ["cleaned up", "ended"]
        signal.set()
        run.cancel()
    assert steps == ["cleaned up", "ended"]


async def test_a_run_becomes_a_task_where_it_must_and_can_be_cancelled_there():
    steps = []

    async def work():
        await eager.task()
        await trio.sleep(0)
        steps.append("slept")
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        run = Run(work(), nursery, lambda: steps.append("ended"))
        run.start()
        await trio.testing.wait_all_tasks_blocked()
        assert steps == ["slept"]
        run.cancel()
    assert steps == ["slept", "ended"]


async def test_an_error_of_trio_reaches_the_coroutine_of_a_task():
    steps = []

    async def work():
        await eager.task()
        with trio.move_on_after(0):
            await trio.sleep_forever()
        steps.append("timed out")

    async with trio.open_nursery() as nursery:
        Run(work(), nursery, lambda: None).start()
    assert steps == ["timed out"]


async def test_waiting_by_other_means_is_an_error_of_the_coroutine():
    caught = []

    async def work():
        try:
            await trio.sleep_forever()
        except RuntimeError as error:
            caught.append(str(error))

    async with trio.open_nursery() as nursery:
        Run(work(), nursery, lambda: None).start()
    assert len(caught) == 1
    assert "park" in caught[0]


async def test_tasks_wait_for_signals_too():
    signal = Signal()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(signal.wait)
        await trio.testing.wait_all_tasks_blocked()
        signal.set()
    with trio.move_on_after(0) as scope:
        await Signal().wait()
    assert scope.cancelled_caught


async def test_held_puts_runs_off_to_its_end():
    signal, steps = Signal(), []

    async def work():
        await signal.wait()
        steps.append("woken")

    async with trio.open_nursery() as nursery:
        Run(work(), nursery, lambda: None).start()
        with eager.held():
            signal.set()
            assert not steps
    assert steps == ["woken"]


@pytest.mark.parametrize("begin", ["start", "start_task"])
async def test_the_end_is_told_once(begin):
    ends = []

    async def work():
        return

    async with trio.open_nursery() as nursery:
        getattr(Run(work(), nursery, lambda: ends.append(1)), begin)()
    assert ends == [1]
