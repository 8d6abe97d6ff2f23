"""The `random` source: random bytes that a seed repeats; a write is accepted if it is what is there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbdfs.backends.checkwrite import mismatch
from nbdfs.records import Record
from nbdfs.registry import INTEGER, OpenContext, SourceDriver, option
from nbdfs.source import Caps, Source, SourceInfo
from nbdfs.units import parse_size

if TYPE_CHECKING:
    from nbdfs.keystream import Keystream


class Noise:
    """Every byte is random."""

    def __init__(self, stream: Keystream) -> None:
        self.fill = stream.fill
        self._spare = bytearray()

    def differs(self, data: memoryview, offset: int) -> bool:
        """Whether `data` is anything but what is there."""
        if len(self._spare) != len(data):
            self._spare = bytearray(len(data))
        self.fill(memoryview(self._spare), offset)
        return self._spare != data


class Random(Source):
    """`size` random bytes, none of them a hole."""

    def __init__(self, size: int, seed: int, noise: Noise) -> None:
        caps = Caps.WRITE | Caps.FUA | Caps.MULTI_CONN | Caps.IMMEDIATE
        self.info = SourceInfo(size, caps, description=f"random, seed {seed}", identity=f"random-{seed}")
        self._noise = noise

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        self._noise.fill(buffer, offset)

    async def pwrite(self, data: memoryview, offset: int, *, fua: bool = False) -> None:
        if self._noise.differs(data, offset):
            raise mismatch(offset, len(data), self.info.description)


class RandomOptions(Record):
    seed: int | None = option(None, INTEGER, "what repeats the content; without it the content is new at each opening")


def _open(argument: str, options: RandomOptions, context: OpenContext) -> Source:
    from nbdfs.keystream import Keystream, new_seed

    size = parse_size(argument)
    seed = new_seed() if options.seed is None else options.seed
    return Random(size, seed, Noise(Keystream(seed, "random")))


DRIVER = SourceDriver(
    "random", "random bytes from a seed; writes must equal them", RandomOptions, "random", open=_open, argument="SIZE"
)
