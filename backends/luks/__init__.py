"""The `luks` layer: LUKS1 and LUKS2 disk encryption."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from nbdfs.records import Record
from nbdfs.registry import BOOLEAN, INTEGER, SECRET, SIZE, SPEC, LayerDriver, OpenContext, option
from nbdfs.secret import Secret
from nbdfs.source import Source


class LuksOptions(Record):
    passphrase: Secret | None = option(None, SECRET, "what opens a key slot; a file is taken whole, newline and all")
    keyfile_offset: int = option(0, SIZE, "where in the passphrase to begin")
    keyfile_size: int = option(0, SIZE, "how much of the passphrase to use; 0 stands for all that follows")
    keyslot: int | None = option(None, INTEGER, "try only this key slot")
    master_key: Secret | None = option(None, SECRET, "the volume key itself, instead of a passphrase")
    header: str = option("", SPEC, "a source that holds the header, where it is apart from the data")
    offset: int = option(0, SIZE, "where the encrypted device begins, such as a partition")
    allow_discards: bool = option(False, BOOLEAN, "pass on trims and holes, which tell where data is")
    pbkdf_memory_limit: int = option(1 << 30, SIZE, "the most memory that the header may ask for")
    pbkdf_cost_limit: int = option(
        50_000_000,
        INTEGER,
        "the most iterations, or KiB filled by argon2, that the header may ask for: about a us each",
    )


def _open(below: Source, options: LuksOptions, context: OpenContext) -> AbstractAsyncContextManager[Source]:
    from nbdfs.backends.luks.layer import open_luks

    return open_luks(below, options, context)


DRIVER = LayerDriver("luks", "LUKS1 and LUKS2 disk encryption", LuksOptions, "luks", open=_open)
