"""nbdkit's plugins and filters, and what each is called here: tables, so that what is missing shows."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from nbdfs.errors import UsageError
from nbdfs.nbd.uri import PORT, Address, Tcp, Unix, Uri, host_name, parse_port
from nbdfs.records import Record, field
from nbdfs.units import parse_number, parse_size

_YES = ("1", "true", "t", "yes", "y", "on")
_NO = ("0", "false", "f", "no", "n", "off")


class Key(Record):
    """Where a key=value of nbdkit goes: the options of the driver (blanks between), with the value changed by `value`.

    A key without an option is about nbdkit's own ways: `value` makes sure that nothing is lost by leaving it out.
    """

    option: str = ""
    value: Callable[[str], str] = str


def _last(values: Mapping[str, str]) -> str:
    return [*values.values()][-1]


class Plugin(Record):
    """A source.  `argument` are the keys that give its argument, the first one the plugin's magic key; `made` is what
    the source makes of their values."""

    source: str
    argument: tuple[str, ...]
    keys: Mapping[str, Key] = field(default_factory=dict)
    default: str = ""
    fixed: Mapping[str, str] = field(default_factory=dict)  # options that nbdkit has no key for
    made: Callable[[Mapping[str, str]], str] = _last


class Filter(Record):
    """A layer, and the keys that it takes from the command line.  An `idle` one does nothing without any."""

    layer: str
    keys: Mapping[str, Key] = field(default_factory=dict)
    fixed: Mapping[str, str] = field(default_factory=dict)  # options that nbdkit has no key for
    idle: bool = False


def _same(*names: str) -> dict[str, Key]:
    return {name: Key(name) for name in names}


def _one_of(*words: str, instead: str = "") -> Callable[[str], str]:
    """Takes `words` only; of others it says what to do `instead`."""

    def check(value: str) -> str:
        if value not in words:
            raise UsageError(f"'{value}' is not possible here: {instead or 'there are ' + ', '.join(words)}")
        return value

    return check


def _bits(value: str) -> str:
    """nbdkit counts bits a second."""
    return str(max(1, parse_size(value) // 8))


def _mlock(value: str) -> str:
    """What the memory allocator is told about locking: the one of its parameters that means something here."""
    kind, *parameters = value.split(",")
    _one_of("sparse", "malloc")(kind)
    for parameter in parameters:
        _one_of(*(f"mlock={word}" for word in (*_YES, *_NO)))(parameter)
    return "yes" if any(parameter.partition("=")[2] in _YES for parameter in parameters) else "no"


def _unlocked(value: str) -> str:
    if _mlock(value) == "yes":
        raise UsageError(f"'{value}' is not possible here: only the memory plugin locks its memory")
    return value


def _number(value: str) -> str:
    return str(parse_number(value, "number"))


def _size(value: str) -> str:
    return str(parse_size(value))


def _server(values: Mapping[str, str]) -> str:
    """The URI of a server that is told in parts."""
    match sorted(values.keys() - {"export"}):
        case ["uri"] if "export" not in values:
            return values["uri"]
        case ["socket"]:
            address: Address = Unix(os.path.abspath(values["socket"]))
        case ["hostname"] | ["hostname", "port"]:
            address = Tcp(host_name(values["hostname"]), parse_port(values.get("port", str(PORT))))
        case _:
            raise UsageError("nbdkit: nbd needs one of uri=, socket= and hostname=; port= goes with the last one only, "
                             "and export= does not go with uri=")  # fmt: skip
    return str(Uri(address, values.get("export", "")))


_SIZED = ("size",)
_DATA = {"size": Key("size"), "allocator": Key("", _unlocked)}
_CLIENT = {
    "connections": Key("connections"),
    "retry": Key("", _one_of("0", instead="start the server first")),
    "shared": Key("", _one_of(*_YES, *_NO)),
}

PLUGINS: Mapping[str, Plugin] = {
    "memory": Plugin("memory", _SIZED, {"allocator": Key("mlock", _mlock)}),
    "data": Plugin("data", ("data",), _DATA),
    "null": Plugin("null", _SIZED, default="0"),
    "zero": Plugin("zero", ()),
    "pattern": Plugin("pattern", _SIZED),
    "ones": Plugin("ones", _SIZED, _same("byte")),
    "full": Plugin("full", _SIZED),
    "random": Plugin("random", _SIZED, _same("seed")),
    "sparse-random": Plugin("sparse-random", _SIZED, _same("seed", "percent", "runlength", "random-content",
                                                           "blocksize")),
    "file": Plugin("file", ("file",), {
        "cache": Key("", _one_of("default", "none")), "fadvise": Key("", _one_of("normal", "random", "sequential")),
    }, fixed={"lock": "no"}),
    "nbd": Plugin("nbd", ("uri", "socket", "hostname", "port", "export"), _CLIENT, made=_server),
    "curl": Plugin("http", ("url",), _same("timeout")),
    "torrent": Plugin("torrent", ("torrent",), {**_same("file", "cache"), "connections-limit": Key("connections"),
                                                "download-rate-limit": Key("download-limit", _bits),
                                                "upload-rate-limit": Key("upload-limit", _bits),
                                                "user-agent": Key("user-agent")}),
}  # fmt: skip

# Where another key than the magic one chooses another source.
VARIANTS: Mapping[tuple[str, str], Plugin] = {
    ("data", "raw"): Plugin("raw", ("raw",), _DATA),
    ("data", "base64"): Plugin("base64", ("base64",), _DATA),
}

_ERRORS = ("pread", "pwrite", "trim", "zero", "extents", "cache")
_OURS = {"pread": "read", "pwrite": "write"}

_KEEPING = "put --filter=cache behind --filter=cow, it keeps what is read"

FILTERS: Mapping[str, Filter] = {
    "luks": Filter("luks", _same("passphrase")),
    "cow": Filter("cow", {
        "cow-block-size": Key("block"),
        **dict.fromkeys(("cow-on-cache", "cow-on-read"), Key("", _one_of(*_NO, instead=_KEEPING))),
    }),
    "cache": Filter("cache", {
        "cache-max-size": Key("size"), "cache-min-block-size": Key("block"),
        "cache-high-threshold": Key("", _number), "cache-low-threshold": Key("", _number),
        "cache-on-read": Key("", _one_of(*_YES, instead="what is read is always kept")),
    }),
    "offset": Filter("offset", {"offset": Key("offset"), "range": Key("size")}),
    "partition": Filter("partition", {"partition": Key("number"), "partition-sectorsize": Key("sector")}),
    "truncate": Filter("resize", {"truncate": Key("size"), "round-up": Key("round-up"),
                                  "round-down": Key("round-down")}, idle=True),
    "readahead": Filter("readahead"),
    "blocksize": Filter("blocksize", {"minblock": Key("minimum"), "maxdata": Key("maximum"), "maxlen": Key("", _size)}),
    "checkwrite": Filter("checkwrite"),
    "log": Filter("log", {"logfile": Key("file"), "logappend": Key("append")}),
    "stats": Filter("stats", {"statsfile": Key("file"), "statsappend": Key("append")}),
    "rate": Filter("rate", {"rate": Key("rate", _bits)}),
    "retry": Filter("retry", {"retries": Key("tries"), "retry-delay": Key("delay")}),
    "delay": Filter("delay", {
        "rdelay": Key("read"), "wdelay": Key("write zero trim"), "delay-read": Key("read"), "delay-write": Key("write"),
        "delay-trim": Key("trim"), "delay-zero": Key("zero"), "delay-flush": Key("flush"), "delay-cache": Key("cache"),
        "delay-extents": Key("extents"), "delay-open": Key("open"), "delay-close": Key("close"),
        "delay-fast-zero": Key("fast-zero"),
    }),
    "error": Filter("error", {
        "error": Key("errno"), "error-rate": Key("rate"), "error-file": Key("file"),
        **{f"error-{name}{end}": Key(f"{_OURS.get(name, name)}{ours}")
           for name in _ERRORS for end, ours in (("", "-errno"), ("-rate", "-rate"), ("-file", "-file"))},
    }, fixed={"flush-rate": "0"}),
    "gzip": Filter("gzip"),
    "xz": Filter("xz", {"xz-max-block": Key("", _size), "xz-max-depth": Key("", _number)}),
}  # fmt: skip
