"""What leaves a serving nursery."""

from __future__ import annotations

import pytest
import trio

from nbdfs.errors import UserError
from nbdfs.nursery import serving_nursery


async def test_an_error_of_the_block_is_raised_itself() -> None:
    cause = OSError("why")
    with pytest.raises(UserError, match="what") as caught:
        async with serving_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise UserError("what") from cause
    assert caught.value.__cause__ is cause


async def test_its_tasks_end_with_the_block() -> None:
    with trio.fail_after(30):
        async with serving_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)


async def test_an_error_of_a_task_ends_the_block() -> None:
    async def fail() -> None:
        raise ValueError("task")

    with pytest.raises(ValueError, match="task"):
        async with serving_nursery() as nursery:
            nursery.start_soon(fail)
            await trio.sleep_forever()


async def test_two_errors_stay_a_group() -> None:
    async def fail() -> None:
        raise ValueError("task")

    with pytest.raises(BaseExceptionGroup):
        async with serving_nursery() as nursery:
            nursery.start_soon(fail)
            try:
                await trio.sleep_forever()
            finally:
                raise UserError("block")


async def test_cancellation_from_outside_passes() -> None:
    with trio.move_on_after(0.01) as scope:
        async with serving_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            await trio.sleep_forever()
    assert scope.cancelled_caught
