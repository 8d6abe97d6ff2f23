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

from nbdfs.errors import UsageError
from nbdfs.records import Record

_SEGMENT = re.compile(r"([a-z][a-z0-9-]*)((?:,[^,:=]+(?:=(?:[^,:]|:(?!:))*)?)*)::")
_LEAF = re.compile(r"([a-z][a-z0-9-]*)((?:,[^,:=]+(?:=[^,:]*)?)*):(?!//)")
_FOLD = "\0"  # between the words of a folded captive server: what no argument can hold
_URI = re.compile(r"([a-z][a-z0-9+.-]*)://")


class Segment(Record):
    """A driver's name with its options as written, in order."""

    name: str
    options: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return self.name + "".join(f",{key}={_quote(value)}" if value else f",{key}" for key, value in self.options)


class Spec(Record):
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
    """Parse a spec.  Raises UsageError for an empty one, and for a NUL, which no path or argument can hold."""
    layers: list[Segment] = []
    at = 0
    while match := _SEGMENT.match(text, at):
        layers.append(_segment(match))
        at = match.end()
    leaf = text[at:]
    if not leaf:
        shown = "".join(f"{layer.name}::" for layer in layers)  # an option may be a secret
        raise UsageError(f"the spec '{shown}' names no source: write a URI, a path or NAME:ARGUMENT")
    if leaf.startswith("[" + _FOLD):
        return Spec(tuple(layers), argv=tuple(leaf.split(_FOLD)[1:-1]))
    if "\0" in leaf:
        raise UsageError("a spec has a NUL in it")
    if match := _URI.match(leaf):
        return Spec(tuple(layers), None, match[1], leaf)
    if match := _LEAF.match(leaf):
        return Spec(tuple(layers), _segment(match), "", leaf[match.end() :])
    return Spec(tuple(layers), None, "", leaf)


def fold_captives(words: Sequence[str]) -> list[str]:
    """Fold each `[ CMD ARGS ]` of a command line into one word, which `parse` reads.

    Every bracket is a word of its own, brackets inside are paired.  A word before it that ends in `::` (layers)
    becomes part of it.  Nothing is folded after `--`.  Raises UsageError for a bracket that has no partner.
    """
    folded: list[str] = []
    index = 0
    while index < len(words):
        word = words[index]
        if word == "--":
            return [*folded, *words[index:]]
        if word == "[":
            end = _closing(words, index)
            layers = folded.pop() if folded and folded[-1].endswith("::") else ""
            word = layers + fold(words[index + 1 : end])
            index = end
        folded.append(word)
        index += 1
    return folded


def fold(argv: Sequence[str]) -> str:
    """The leaf, as one word that `parse` reads, that is the captive server `argv`."""
    return _FOLD.join(["[", *argv, "]"])


def _closing(words: Sequence[str], opening: int) -> int:
    depth = 0
    for index in range(opening, len(words)):
        depth += {"[": 1, "]": -1}.get(words[index], 0)
        if depth == 0:
            if index == opening + 1:
                raise UsageError("there is no command between [ and ]")
            return index
    raise UsageError("the [ of a command has no ]: write [ CMD ARGS ] with blanks around the brackets")


def _segment(match: re.Match[str]) -> Segment:
    options = []
    for item in match[2].split(",")[1:]:
        key, _, quoted = item.partition("=")
        value = urllib.parse.unquote(quoted, errors="surrogateescape")
        if "\0" in value:
            raise UsageError(f"{match[1]}: {key}: a value cannot hold a NUL")
        options.append((key, value))
    return Segment(match[1], tuple(options))


def _quote(value: str) -> str:
    return re.sub(r"[,:%]", lambda match: f"%{ord(match[0]):02X}", value)
