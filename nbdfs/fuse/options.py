"""The `-o` options of a mount: those of mount(8), those of FUSE, and our own."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from nbdfs.errors import UsageError
from nbdfs.records import Record, replace
from nbdfs.registry import nearest
from nbdfs.units import parse_duration, parse_number

# mount(2) flags, <linux/mount.h>.
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_SYNCHRONOUS, MS_NOATIME = 1, 2, 4, 8, 16, 1024
MS_NODIRATIME, MS_RELATIME, MS_STRICTATIME = 2048, 1 << 21, 1 << 24

_LARGEST_ID = 0xFFFFFFFE  # of a user or group; chown(2) takes the next one for none


class MountOptions(Record):
    """How a mount behaves.  `timeout` is in seconds; `passthrough` None means where it is possible."""

    readonly: bool = False
    allow_other: bool = False
    auto_unmount: bool = False
    uid: int | None = None
    gid: int | None = None
    mode: int | None = None
    suid: bool = False
    dev: bool = False
    exec: bool = True
    synchronous: bool = False
    atime: str = "relatime"
    fsname: str = ""
    subtype: str = "nbdfs"
    timeout: float = 60.0
    passthrough: bool | None = None
    writeback: bool = False
    poll: bool = True

    @property
    def mount_flags(self) -> int:
        """The flags of mount(2)."""
        chosen = (
            (self.readonly, MS_RDONLY),
            (not self.suid, MS_NOSUID),
            (not self.dev, MS_NODEV),
            (not self.exec, MS_NOEXEC),
            (self.synchronous, MS_SYNCHRONOUS),
        )
        return sum(flag for wanted, flag in chosen if wanted) | _ATIME[self.atime]


_ATIME = {"relatime": MS_RELATIME, "noatime": MS_NOATIME, "nodiratime": MS_NODIRATIME, "strictatime": MS_STRICTATIME,
          "atime": 0}  # fmt: skip

# Words without a value: the field they set, and to what.
_WORDS: dict[str, tuple[str, object]] = {
    "ro": ("readonly", True),
    "rw": ("readonly", False),
    "allow_other": ("allow_other", True),
    "auto_unmount": ("auto_unmount", True),
    "suid": ("suid", True),
    "nosuid": ("suid", False),
    "dev": ("dev", True),
    "nodev": ("dev", False),
    "exec": ("exec", True),
    "noexec": ("exec", False),
    "sync": ("synchronous", True),
    "async": ("synchronous", False),
    **{word: ("atime", word) for word in _ATIME},
    "passthrough": ("passthrough", True),
    "nopassthrough": ("passthrough", False),
    "writeback": ("writeback", True),
    "nowriteback": ("writeback", False),
    "poll": ("poll", True),
    "nopoll": ("poll", False),
}

# Words of fstab that are for others, or that say what is so anyway: there are no links here, and folders and times are
# not written anywhere.
_IGNORED = {"defaults", "auto", "noauto", "user", "nouser", "users", "owner", "group", "_netdev", "nofail", "comment",
            "loud", "silent", "default_permissions", "nonempty", "dirsync", "nosymfollow", "lazytime", "nolazytime",
            "iversion", "noiversion", "nomand"}  # fmt: skip


def _owner(text: str) -> int:
    return parse_number(text, "user or group id", _LARGEST_ID)


def _permissions(text: str) -> int:
    try:
        mode = int(text, 8)
    except ValueError:
        raise UsageError(f"'{text}' is not an octal number") from None
    if mode > 0o777:
        raise UsageError(f"'{text}' is more than 0777")
    return mode


def _subtype(text: str) -> str:
    if not text:
        raise UsageError("the type of a mount, fuse.SUBTYPE, ends with a name")
    return text


def _positive(text: str) -> float:
    seconds = parse_duration(text)
    if seconds <= 0:
        raise UsageError("must be more than 0")
    return seconds


# Words with a value, each a field: what the value is called, and how it is read.
_VALUES: dict[str, tuple[str, Callable[[str], object]]] = {
    "uid": ("N", _owner),
    "gid": ("N", _owner),
    "mode": ("OCTAL", _permissions),
    "fsname": ("TEXT", str),
    "subtype": ("NAME", _subtype),
    "timeout": ("SECONDS", _positive),
}

HELP = "mount options, separated by commas: " + ", ".join(
    [*_WORDS, *(f"{key}={value}" for key, (value, _) in _VALUES.items())]
)

# What each field is about, for the manual.
MEANINGS = {
    "readonly": "whether anybody can write; with `ro` the sources are opened for reading only, as with `-r`",
    "allow_other": "other users, and root, may enter; who is not root needs `user_allow_other` in /etc/fuse.conf",
    "auto_unmount": "a helper takes the mount away should the process be killed",
    "uid": "owner of the files (default: who mounts)",
    "gid": "group of the files (default: that of who mounts)",
    "mode": "permissions of the files (default 0600); what cannot be written loses those to write",
    "suid": "set-user-ID bits count; only root may ask for it",
    "dev": "device files count; only root may ask for it",
    "exec": "files may be executed",
    "synchronous": "each write is durable on return",
    "atime": "times of reading, as in mount(8)",
    "fsname": "what the mount table calls the source (default: the spec, without secrets)",
    "subtype": "the type of the mount is fuse.NAME (default nbdfs)",
    "timeout": "how long a request may take before it fails with EIO; longer if it gets on (default 60)",
    "passthrough": "the kernel serves the file from memory or a device by itself (default: where it can; `passthrough` "
    "fails where it cannot)",
    "writeback": "the kernel gathers small writes, see [semantics](semantics.md); not together with `passthrough`",
    "poll": "look for the next request for up to 50 us before sleeping, while requests come fast",
}


def parse_options(texts: Iterable[str]) -> MountOptions:
    """Parse `-o` values, each a list with commas (one in a value is written `\\,`).

    What is unknown, contradictory or given twice is a usage error.
    """
    found: dict[str, object] = {}
    for item in (item.replace("\\,", ",") for text in texts for item in split_options(text)):
        key, equals, value = item.partition("=")
        if not item or is_for_others(key):
            continue
        if key in _WORDS and not equals:
            field, chosen = _WORDS[key]
        elif key in _VALUES and equals:
            field = key
            chosen = _value(key, value)
        else:
            raise UsageError(_what_is_wrong(key))
        if field in found:
            raise UsageError(f"-o: '{item}' comes after another value of the same option")
        found[field] = chosen
    options = replace(MountOptions(), **found)
    if options.writeback and options.passthrough:
        raise UsageError("-o: writeback and passthrough exclude each other")
    return options


def split_options(text: str) -> list[str]:
    """The items of an `-o` value, as they are written."""
    return re.split(r"(?<!\\),", text)


def is_for_others(key: str) -> bool:
    """Whether an option says something to mount(8), systemd or a person, and nothing to us."""
    return key in _IGNORED or key.lower().startswith("x-")


def field_of(key: str) -> str:
    """The field of MountOptions that an option sets; empty if there is no such option."""
    return _WORDS[key][0] if key in _WORDS else key if key in _VALUES else ""


def spellings() -> Iterator[tuple[str, str]]:
    """For the manual: how each field is written, the default first, and what it is about."""
    default = MountOptions()
    for field, meaning in MEANINGS.items():
        chosen = getattr(default, field)
        words = sorted((word for word in _WORDS if field_of(word) == field), key=lambda word: _WORDS[word][1] != chosen)
        yield ", ".join(f"`{word}`" for word in words or [f"{field}={_VALUES[field][0]}"]), meaning


def _value(key: str, text: str) -> object:
    try:
        _, parse = _VALUES[key]
        return parse(text)
    except UsageError as error:
        raise UsageError(f"-o {key}: {error}") from error


def _what_is_wrong(key: str) -> str:
    if key in _WORDS:
        return f"-o {key} takes no value"
    if key in _VALUES:
        return f"-o {key} needs a value: {key}=..."
    return f"-o: there is no mount option '{key}'{nearest(key, [*_WORDS, *_VALUES])}"
