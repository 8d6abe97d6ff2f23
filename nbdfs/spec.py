"""The grammar of specs.  Pure text: what the names mean is `nbdfs.stack`'s business.

    spec    = *(segment "::") leaf
    segment = name *("," key ["=" value])
    leaf    = URI / path / segment ":" argument

Segments come outermost first.  A leaf is taken verbatim, whatever it contains.  In a value
`%XX` stands for a byte; `,` `:` and `%` must be written that way where they would end the value.
A captive server, `[ CMD ARGS ]`, is a leaf that only an argument vector can hold.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Sequence
from dataclasses import dataclass

from nbdfs.errors import UsageError

_SEGMENT = re.compile(r"([a-z][a-z0-9-]*)((?:,[^,:=]+(?:=(?:[^,:]|:(?!:))*)?)*)::")
_LEAF = re.compile(r"([a-z][a-z0-9-]*)((?:,[^,:=]+(?:=[^,:]*)?)*):(?!//)")
_URI = re.compile(r"([a-z][a-z0-9+.-]*)://")


@dataclass(frozen=True)
class Segment:
    """A driver's name with its options as written, in order."""

    name: str
    options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return self.name + "".join(f",{key}={_quote(value)}" if value else f",{key}" for key, value in self.options)


@dataclass(frozen=True)
class Spec:
    """A parsed spec: `layers` outermost first, then a leaf.

    The leaf is one of: a URI (`scheme` is set and `argument` the whole of it), a named source
    (`source` is set), a path (neither is), or a captive server (`argv` is set).
    """

    layers: tuple[Segment, ...] = ()
    source: Segment | None = None
    scheme: str = ""
    argument: str = ""
    argv: tuple[str, ...] = ()

    def __str__(self) -> str:
        leaf = f"[ {' '.join(self.argv)} ]" if self.argv else self.argument
        if self.source:
            leaf = f"{self.source}:{leaf}"
        return "".join(f"{layer}::" for layer in self.layers) + leaf


def parse(text: str) -> Spec:
    """Parse a spec.  Raises UsageError for an empty one."""
    layers: list[Segment] = []
    at = 0
    while match := _SEGMENT.match(text, at):
        layers.append(_segment(match))
        at = match.end()
    leaf = text[at:]
    if not leaf:
        raise UsageError(f"the spec '{text}' names no source: write a URI, a path or NAME:ARGUMENT")
    if match := _URI.match(leaf):
        return Spec(tuple(layers), None, match[1], leaf)
    if match := _LEAF.match(leaf):
        return Spec(tuple(layers), _segment(match), "", leaf[match.end() :])
    return Spec(tuple(layers), None, "", leaf)


def parse_arguments(arguments: Sequence[str]) -> tuple[Spec, Sequence[str]]:
    """Parse the spec at the head of a command's arguments; give it and what follows.

    `[ CMD ARGS ]` (each bracket an argument of its own, brackets inside paired) is a captive server; the word
    before the first bracket may hold layers: `luks,...:: [ CMD ]`.
    """
    if not arguments:
        raise UsageError("a source is missing: write a URI, a path or NAME:ARGUMENT")
    first, *rest = arguments
    if first != "[" and first.endswith("::") and rest[:1] == ["["]:
        captive, rest = parse_arguments(rest)
        return Spec(parse(first + "x").layers, argv=captive.argv), rest
    if first != "[":
        return parse(first), rest
    depth = 1
    for index, word in enumerate(rest):
        depth += {"[": 1, "]": -1}.get(word, 0)
        if depth == 0:
            if index == 0:
                raise UsageError("there is no command between [ and ]")
            return Spec(argv=tuple(rest[:index])), rest[index + 1 :]
    raise UsageError("the [ of a command has no ]: write [ CMD ARGS ] with blanks around the brackets")


def _segment(match: re.Match[str]) -> Segment:
    options = []
    for item in match[2].split(",")[1:]:
        key, _, value = item.partition("=")
        options.append((key, urllib.parse.unquote(value, errors="surrogateescape")))
    return Segment(match[1], tuple(options))


def _quote(value: str) -> str:
    return re.sub(r"[,:%]", lambda match: f"%{ord(match[0]):02X}", value)
