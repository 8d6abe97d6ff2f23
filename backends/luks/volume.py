"""What a LUKS header says, in terms that LUKS1 and LUKS2 share.  Pure data."""

from __future__ import annotations

from nbdfs.errors import UserError
from nbdfs.records import Record

SECTOR = 512  # bytes; offsets in LUKS1 and initialisation vectors count these


class HeaderError(UserError):
    """A header that is not one, is damaged, or asks for what is not supported."""


class Kdf(Record):
    """How a passphrase becomes a key: `kind` is pbkdf2 (with `hash`), argon2i or argon2id.

    `iterations` is argon2's time cost too; `memory` is in KiB.
    """

    kind: str
    salt: bytes
    iterations: int
    hash: str = ""
    memory: int = 0
    lanes: int = 1


class Keyslot(Record):
    """One copy of the volume key, `key_size` bytes, split in `stripes` and encrypted in an area of the header device.

    `priority`: 2 is tried first, then 1; 0 only if asked for by number.
    """

    number: int
    key_size: int
    kdf: Kdf
    offset: int
    length: int
    encryption: str
    area_key_size: int
    stripes: int
    stripe_hash: str
    priority: int = 1


class Digest(Record):
    """What tells a right volume key from a wrong one: PBKDF2 of it."""

    number: int
    hash: str
    salt: bytes
    iterations: int
    value: bytes
    keyslots: frozenset[int]
    segments: frozenset[int]


class Segment(Record):
    """Where the data lies and how it is encrypted.  `size` None reaches to the end of the device.

    `trouble` says why it cannot be opened, if so.
    """

    number: int
    offset: int
    size: int | None
    encryption: str
    sector_size: int = SECTOR
    iv_tweak: int = 0
    trouble: str = ""


class Header(Record):
    """A whole header.  `length` is the size of all of it with its keyslots; `trouble` says why it cannot be opened.

    `notes` are for the log.
    """

    version: int
    uuid: str
    length: int
    keyslots: tuple[Keyslot, ...]
    digests: tuple[Digest, ...]
    segments: tuple[Segment, ...]
    label: str = ""
    subsystem: str = ""
    sequence: int = 0
    flags: tuple[str, ...] = ()
    requirements: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def data_segment(self) -> Segment:
        """The one segment that holds the data.  Raises HeaderError if this header cannot be opened, with the reason."""
        if self.requirements:
            raise HeaderError(
                f"LUKS2 requires what is not supported: {', '.join(self.requirements)}"
                + ("; finish the re-encryption with cryptsetup first" if "reencrypt" in str(self.requirements) else "")
            )
        if len(self.segments) != 1:
            raise HeaderError(f"LUKS2 with {len(self.segments)} data segments is not supported, only with one")
        segment = self.segments[0]
        if segment.trouble:
            raise HeaderError(segment.trouble)
        return segment

    def digest_of(self, segment: Segment) -> Digest:
        """The digest of a segment's key."""
        for digest in self.digests:
            if segment.number in digest.segments:
                return digest
        raise HeaderError(f"LUKS2 segment {segment.number} has no digest: no key can be checked")
