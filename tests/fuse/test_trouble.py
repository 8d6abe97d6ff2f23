"""What goes wrong while something is mounted: nothing acknowledged is lost, and no mount dies of it."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounts import SECONDS, Mounter, is_mounted, wait_until

BLOCK = 4096
SIZE = 8 << 20


def make_image(mount: Mounter, size: int = SIZE) -> Path:
    image = mount.folder / "image"
    mount.do(lambda: image.write_bytes(bytes(size)))
    return image


@pytest.mark.parametrize("flags", [0, os.O_DIRECT])
def test_sigterm_under_load_loses_nothing(mount: Mounter, flags: int) -> None:
    """Every write that returned before the end is in the file afterwards."""
    image = make_image(mount)
    mounted = mount(str(image))
    written: dict[int, bytes] = {}
    going = threading.Event()

    def load(worker: int) -> None:
        chance = random.Random(worker)
        descriptor = os.open(mounted.file, os.O_WRONLY | flags)
        memory = memoryview(bytearray(2 * BLOCK))
        at = -memory.obj.__alignof__ if False else 0
        try:
            while True:
                block = chance.randrange(worker, SIZE // BLOCK, 4)
                data = chance.randbytes(BLOCK)
                os.pwrite(descriptor, data, block * BLOCK)
                written[block] = data
                going.set()
        except OSError as error:
            assert error.errno in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.ENODEV)
        finally:
            del memory, at
            os.close(descriptor)

    del load
