"""How to copy, and what a copy did."""

from __future__ import annotations

from nbdfs.errors import UsageError, UserError
from nbdfs.progress import Progress
from nbdfs.ranges import RangeSet
from nbdfs.records import Record, field
from nbdfs.source import SourceInfo

SPARSE = 4096  # bytes; the least block in which zeroes are looked for
LARGEST_ALIGN = 64 << 10  # bytes; a preferred block size above that is a wish too costly to follow
REQUEST = 1 << 20  # bytes
NEAR_REQUEST = 512 << 10  # bytes; what a processor's cache holds on its way from one process to the next
LARGEST_REQUEST = 32 << 20  # bytes; NBD clients and servers agree on no more


class CopyOptions(Record):
    """How to copy.  Sizes in bytes; `sparse` None chooses a block size, 0 looks for no zeroes.

    `queue_size` is that of each connection which has a thread of its own, else of all.  `request_size` None chooses
    what is usual for the ends.  `blank` says that the destination reads as zero everywhere.
    `compare_zeroes` asks the destination which ranges are zero already and leaves those alone.  `rate` in bytes a
    second, 0 for no limit.  `digests` are names of hashlib, `block_hash` as `BlockHash` reads it, None for none.
    `resume` names the state file.
    """

    connections: int = 4
    requests: int = 64
    queue_size: int = 16 << 20
    request_size: int | None = None
    sparse: int | None = None
    allocated: bool = False
    blank: bool = False
    extents: bool = True
    compare_zeroes: bool = True
    synchronous: bool = False
    threads: int = 0
    rate: float = 0.0
    retry: int = 0
    verify: bool = False
    digests: tuple[str, ...] = ()
    block_hash: str | None = None
    resume: str = ""

    def longest(self, usual: int = REQUEST) -> int:
        """Bytes of the longest request."""
        return self.request_size or usual

    def check(self) -> None:
        """Raise UsageError for numbers that make no sense."""
        if self.request_size is not None and not 1 <= self.request_size <= LARGEST_REQUEST:
            raise UsageError(f"the request size is 1 to {LARGEST_REQUEST} bytes, not {self.request_size}")
        if self.sparse and self.sparse & (self.sparse - 1):
            raise UsageError(f"the block in which zeroes are looked for is a power of two, not {self.sparse}")
        if min(self.connections, self.requests) < 1:
            raise UsageError("at least one connection and one request are needed")
        if self.queue_size < 1:
            raise UsageError(f"the queue size must be at least 1 byte, not {self.queue_size}")


class Counters:
    """Bytes by what was done with them, and how often a request was tried again."""

    def __init__(self) -> None:
        self.copied = 0
        self.zeroed = 0
        self.skipped = 0
        self.retries = 0


class Begun(Record):
    """What of a copy was done before, in the same command.

    `created` if the destination was made for it, `touched` if it may have changed, by writes too that nobody answered.
    """

    done: RangeSet = field(default_factory=RangeSet)
    counters: Counters = field(default_factory=Counters)
    created: bool = False
    touched: bool = False


def check_whole(name: str, source: SourceInfo) -> None:
    """Raise UserError if a part of a source cannot be reached, so that a copy would lack it."""
    if source.missing:
        raise UserError(f"{name}: {source.missing}; nothing was copied")


def incomplete(name: str, progress: Progress) -> str:
    """What is to be said of a destination whose copy has failed."""
    text = f"{name} is incomplete"
    if progress.total is not None:
        text += f", {progress.done} of {progress.total} bytes are there"
    return text


class Summary(Record):
    """What a copy did, in bytes and seconds, ready for JSON.

    `way` is how the bytes moved: `files`, `memory` or `requests`.  `skipped` was right at the destination before, or
    finished by an earlier run.
    """

    source: str
    destination: str
    size: int
    way: str
    copied: int
    zeroed: int
    skipped: int
    retries: int
    seconds: float
    flushed: bool
    verified: bool
    digests: dict[str, str] = field(default_factory=dict)
    block_hash: dict[str, str] = field(default_factory=dict)
