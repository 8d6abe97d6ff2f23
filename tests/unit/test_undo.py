"""nbdfs.undo."""

import pytest
import trio

from nbdfs.undo import unless_done


def test_a_block_that_ends_keeps_what_it_made():
    undone = []
    with unless_done(lambda: undone.append(1)):
        pass
    assert not undone


@pytest.mark.parametrize("error", [OSError(5, "x"), KeyboardInterrupt()])
def test_an_error_undoes_and_goes_on(error):
    undone = []
    with pytest.raises(type(error)) as caught, unless_done(lambda: undone.append(1)):
        raise error
    assert caught.value is error
    assert undone == [1]


async def test_cancellation_undoes():
    undone = []
    with trio.CancelScope() as scope:
        with unless_done(lambda: undone.append(1)):
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert undone == [1]
