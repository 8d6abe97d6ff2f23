"""Contents shown as text, simplified: what a data string comes to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from nbdfs.backends.data.content import Bytes, Content, File, Layout, Repeat, Slice

_MOST_WRITTEN = 256  # bytes of a repeat that is shown written out
_MOST_ATOMS = 1000  # shown in all


class _Fill(NamedTuple):
    """The same byte so many times."""

    byte: int
    times: int

    def __str__(self) -> str:
        return f"fill({self.byte}*{self.times})" if self.times > 1 else str(self.byte)


class _Text(NamedTuple):
    """Bytes that are not all the same."""

    data: bytes

    def __str__(self) -> str:
        escaped = "".join(
            chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\x{byte:02x}" for byte in self.data
        )
        return f'"{escaped}"'


class _Other(NamedTuple):
    """What is not made of bytes that are known."""

    text: str

    def __str__(self) -> str:
        return self.text


_Atom = _Fill | _Text | _Other


def tree(content: Content) -> str:
    """A content as one expression; `null` if it is empty.

    Groups without holes are made one with what is around them.  What is too long ends with `...`.
    """
    return _shown(content, iter(range(_MOST_ATOMS)))


def _shown(content: Content, budget: Iterator[int]) -> str:
    atoms: list[_Atom] = []
    for atom in _atoms(content, budget):
        if next(budget, None) is None:
            atoms.append(_Other("..."))
            break
        joined = _joined(atoms[-1], atom) if atoms else None
        if joined is None:
            atoms.append(atom)
        else:
            atoms[-1] = joined
    if len(atoms) < 2:
        return str(atoms[0]) if atoms else "null"
    return f"( {' '.join(map(str, atoms))} )"


def _atoms(content: Content, budget: Iterator[int]) -> Iterator[_Atom]:
    match content:
        case Bytes(data=data):
            yield from _of_bytes(data)
        case Repeat(part=Bytes(data=data), count=count) if len(data) == 1:
            yield _Fill(data[0], count)
        case Repeat(part=Bytes(data=data), count=count) if content.size <= _MOST_WRITTEN:
            yield from _of_bytes(data * count)
        case Repeat(part=part, count=count):
            yield _Other(f"{_shown(part, budget)}*{count}")
        case Slice(whole=whole, start=start, size=size):
            yield _Other(f"{_shown(whole, budget)}[{start}:{start + size}]")
        case File(name=name):
            yield _Other(f"<{name}")
        case Layout():
            at = 0
            for start, part in zip(content.starts, content.parts, strict=True):
                if at < start:
                    yield _Other(f"@+{start - at}")
                yield from _atoms(part, budget)
                at = start + part.size
            if at < content.size:
                yield _Other(f"@+{content.size - at}")


def _of_bytes(data: bytes) -> Iterator[_Atom]:
    """A run of one byte at the beginning is a fill, a single byte only if it is all there is."""
    while data:
        rest = data.lstrip(data[:1])
        count = len(data) - len(rest)
        if count == 1 and rest:
            yield _Text(data)
            return
        yield _Fill(data[0], count)
        data = rest


def _joined(left: _Atom, right: _Atom) -> _Atom | None:
    match left, right:
        case _Fill(), _Fill() if left.byte == right.byte:
            return _Fill(left.byte, left.times + right.times)
        case ((_Fill(times=1) | _Text()), (_Fill(times=1) | _Text())):
            return _Text(_bytes(left) + _bytes(right))
    return None


def _bytes(atom: _Fill | _Text) -> bytes:
    return atom.data if isinstance(atom, _Text) else bytes([atom.byte])
