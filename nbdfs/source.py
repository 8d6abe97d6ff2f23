"""The interface every source and layer implements.

A *source* is a block device opened from a spec; a *layer* is a source over another source.
Front ends never call a source directly: `nbdfs.checked.Checked` stands in between and
enforces the contract written here, so an implementation may rely on it:

* offsets and lengths lie inside the device, lengths are not zero, and both are multiples of
  `BlockSize.minimum`;
* an operation is called only if `SourceInfo.caps` declares it;
* the buffer given to an operation stays untouched by others until the operation returns.

In return every operation is all or error: it does the whole of what was asked or raises an
`OSError` with an errno (`nbdfs.errors.SourceError` for anything that is not a failed system
call).  After an operation returned or was cancelled, the implementation no longer touches the
caller's buffer.
"""

from __future__ import annotations

import abc
import enum
import errno
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import NamedTuple, Self

from nbdfs.errors import SourceError
from nbdfs.records import Record

ALLOCATION = "base:allocation"  # NBD metadata context: which parts are allocated, which read as zero
RESIDENT = "nbdfs:resident"  # which parts can be read without fetching them from elsewhere

HOLE = 1  # NBD_STATE_HOLE: not allocated (in RESIDENT: not here yet)
ZERO = 2  # NBD_STATE_ZERO: reads as zero

MAX_SIZE = (1 << 63) - 1  # bytes; NBD and off_t hold no more
CLOSE_TIMEOUT = 30.0  # seconds that closing may take, whatever is cancelled meanwhile


class Caps(enum.Flag):
    """What a source can do.  What is not declared is never called."""

    NONE = 0
    WRITE = enum.auto()
    FLUSH = enum.auto()  # has volatile state that flush() makes durable
    FUA = enum.auto()  # can make a single request durable; without it the door flushes instead
    TRIM = enum.auto()
    ZERO = enum.auto()  # can zero without being sent zeroes
    FAST_ZERO = enum.auto()  # zero(fast=True) is answered at once, by success or ENOTSUP
    EXTENTS = enum.auto()
    CACHE = enum.auto()  # cache() fetches a range ahead of a read
    MULTI_CONN = enum.auto()  # a flush covers the completed writes of every connection
    ROTATIONAL = enum.auto()
    IMMEDIATE = enum.auto()  # every operation finishes without waiting: data in memory


class Health(enum.StrEnum):
    """Whether a source's requests get on."""

    OK = "ok"
    STALLED = "stalled"  # requests wait, and nothing comes
    RECONNECTING = "reconnecting"  # what it reads from is out of reach, and is tried again
    FAILED = "failed"  # and will not be tried again


class BlockSize(Record):
    """Request sizes in bytes, as in NBD_INFO_BLOCK_SIZE.

    `minimum` is a power of two that every offset and length is a multiple of; `maximum` is the
    longest read or write accepted (other operations have no limit).
    """

    minimum: int = 1
    preferred: int = 4096
    maximum: int = 32 << 20


class SourceInfo(Record):
    """The facts of an open source; while it is open only `Source.resize` changes one, the size.

    `size` is in bytes and is a multiple of `block.minimum`.  `identity` names the content
    (a UUID, an ETag, an info-hash) as the key of caches; empty where nothing names it.  `missing` says in words what
    there is behind `size` that cannot be reached.
    """

    size: int
    caps: Caps = Caps.NONE
    block: BlockSize = BlockSize()
    description: str = ""
    identity: str = ""
    contexts: tuple[str, ...] = (ALLOCATION,)
    missing: str = ""


class Extent(NamedTuple):
    """A run of `length` bytes at `offset` with the same `flags` (HOLE, ZERO; 0 is data)."""

    offset: int
    length: int
    flags: int


class Backing(NamedTuple):
    """A file descriptor that *is* the data: byte N of the source is byte `offset` + N of `fd`.

    The descriptor stays the source's own.  `fixed_size` says that a write to it can never make it
    grow (a sealed memfd, a block device, a descriptor that is read-only).
    """

    fd: int
    offset: int
    fixed_size: bool


class Fetching(Record):
    """How a source gets on that fetches pieces of its data from peers; rates are bytes a second.

    `waiting` are the pieces that reads wait for.  Sources that share what is fetched give the same.
    """

    name: str
    pieces: int
    here: int
    peers: int
    download_rate: int
    upload_rate: int
    waiting: tuple[int, ...]


class Source(abc.ABC):
    """An open block device.  Use it as an async context manager; leaving it closes it.

    `info` is valid from entry on.  Only `pread_into` is mandatory; whatever else a source
    implements it declares in `info.caps`.  `eager` says that its operations can be begun without a task: they
    wait only as `nbdfs.eager` has it.  `batches` says that `read_now` and `write_now` are worth trying.
    """

    info: SourceInfo
    eager: bool = False
    batches: bool = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import trio  # half of a short command's start, and not needed by all of them

        with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
            await self.aclose()

    async def aclose(self) -> None:
        """Release everything.  Called once, when no operation is under way; does not flush.

        It runs shielded from cancellation, for CLOSE_TIMEOUT at most.  A source that is a generator with a nursery
        of its own (`asynccontextmanager`) must do the same."""
        return

    @abc.abstractmethod
    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        """Fill the whole of `buffer` (writable, bytes) from `offset`."""

    async def pwrite(self, data: memoryview, offset: int, *, fua: bool = False) -> None:
        """Write all of `data` at `offset`; with `fua` it is durable on return."""
        raise self._unsupported("write")

    async def flush(self) -> None:
        """Make every write that completed before this call durable."""
        raise self._unsupported("flush")

    async def trim(self, offset: int, length: int, *, fua: bool = False) -> None:
        """Say that the content is no longer needed; what it reads as afterwards is not defined."""
        raise self._unsupported("trim")

    async def zero(
        self, offset: int, length: int, *, may_trim: bool = True, fast: bool = False, fua: bool = False
    ) -> None:
        """Make the range read as zero.

        `may_trim` allows a hole, else the space stays allocated.  With `fast` the call raises
        ENOTSUP at once if it would be no faster than writing zeroes.
        """
        raise self._unsupported("zero")

    async def extents(self, offset: int, length: int, *, context: str = ALLOCATION, one: bool = False) -> list[Extent]:
        """Describe the range in one of `info.contexts`.

        Extents ascend without gaps and begin at `offset`; there is at least one.  They may stop
        short of the range, or with the last one pass its end.  `one` asks for the first only.
        """
        raise self._unsupported("extents")

    async def cache(self, offset: int, length: int) -> None:
        """Fetch the range, so that a read of it need not wait."""
        raise self._unsupported("cache")

    async def resize(self, size: int) -> None:
        """Become `size` bytes long, which `info` then says: what is left keeps its content, what is new reads as zero.

        A source may be grown under requests.  It is shrunk, and if its `backing` is of a fixed size grown, only
        while there are none and nobody holds what `backing` gave.
        """
        raise self._unsupported("changing the size")

    def written_back(self) -> int:
        """How often something that was written got where it belongs later: who waits for that sees that it gets on."""
        return 0

    def view(self, offset: int, length: int, *, writable: bool = False) -> memoryview | None:
        """The bytes themselves if they are in memory, else None.  Never waits.

        With `writable` a source may take memory for them.  The view is read, or with `writable` written, before the
        caller's next checkpoint.
        """
        return None

    def views(self, length: int, offsets: Sequence[int], *, writable: bool = False) -> Sequence[memoryview | None]:
        """`view` for `length` bytes at each of the offsets."""
        return [self.view(offset, length, writable=writable) for offset in offsets]

    def read_now(self, buffer: memoryview, length: int, offsets: Sequence[int]) -> int:
        """Fill `buffer` with `length` bytes from each of the offsets, one behind the other, as far as nothing waits.

        The number of reads that were done, from the first on.  What is left is for `pread_into`, which waits, or
        tells what is wrong.
        """
        return 0

    def write_now(self, data: memoryview, length: int, offsets: Sequence[int]) -> int:
        """Write `data`, `length` bytes to each of the offsets, as far as nothing waits: the number that were done.

        Of what is left, and is for `pwrite`, a part may have been written.
        """
        return 0

    def backing(self) -> Backing | None:
        """A plain file that is the data, if there is one."""
        return None

    def poller(self) -> Callable[[], bool] | None:
        """What looks, without waiting, whether something came that operations wait for; it is true if so.

        For front ends that would rather look again for a moment than sleep.
        """
        return None

    def statistics(self) -> Mapping[str, int]:
        """This source's own figures by name, for people and metrics.  Never waits and costs little.

        A name that ends in `_total` only ever grows; any other is a present amount.  `nbdfs.parts.STATISTICS` has
        the names in use.  A layer leaves out what the source below it counts.
        """
        return {}

    def fetching(self) -> Fetching | None:
        """How the fetching gets on, if this source fetches from peers.  Never waits."""
        return None

    def health(self) -> Health:
        """Whether this source's own requests get on.  Never waits."""
        return Health.OK

    def _unsupported(self, operation: str) -> SourceError:
        return SourceError(errno.ENOTSUP, f"{operation} is not supported", where=self.info.description)


class Layer(Source):
    """A source over `below`.  It passes nothing on by itself.

    Capabilities and fast paths that a layer does not state it does not have: an operation
    unknown to a layer must vanish there, since passing it through could bypass what the layer does.
    The layer does not close `below`; the stack does.
    """

    def __init__(self, below: Source) -> None:
        self.below = below


async def read(source: Source, offset: int, length: int) -> bytearray:
    """Read `length` bytes at `offset` into memory of their own."""
    data = bytearray(length)
    if length:
        await source.pread_into(memoryview(data), offset)
    return data


def count_views(views: Sequence[memoryview | None]) -> int:
    """How many of `Source.views` are there.

    None is not looked for: a view that is compared with it looks for its buffer first, which takes ten times as long.
    """
    return sum(map(bool, views))  # none is empty
