"""From the tree of a data string to its content: names, variables, files and scripts are looked up here.

Expressions are evaluated once, in the order they are written; a name stands for a content, so what it refers to is
settled where it is defined.
"""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress

import trio

from nbdfs.backends.data import content, nodes, syntax
from nbdfs.backends.data.content import EMPTY, Builder, Bytes, Content, ContentError
from nbdfs.backends.data.nodes import DataError, Place, Text
from nbdfs.backends.data.tokens import parse_number
from nbdfs.errors import UsageError, UserError
from nbdfs.records import Record, field, replace

_MOST_NESTED = 100  # groups, variables and included files inside each other
_MOST_OUTPUT = 1 << 30  # bytes of a script or endless file that no slice ends
_MOST_TEXT = 16 << 20  # bytes of a file in the language
_SMALL = 64 << 10  # bytes; a file of that size or less is read at once
_CHUNK = 1 << 20


class Scope(Record):
    """Where an expression is evaluated.

    `names` are those defined here, `outer` the scope around.  `open` are the variables and files under evaluation.
    """

    outer: Scope | None = None
    names: dict[str, Content] = field(default_factory=dict)
    open: tuple[str, ...] = ()
    nested: int = 0

    def find(self, name: str) -> Content | None:
        scope: Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            scope = scope.outer
        return None

    def known(self) -> set[str]:
        return set(self.names) | (self.outer.known() if self.outer else set())


class Evaluator(Record):
    """Evaluates texts.  `files` keeps the files that their contents read from open.

    `variables` come before those of the environment; `timeout` is the seconds that a script may take.
    """

    variables: Mapping[str, str]
    files: ExitStack
    timeout: float

    async def text(self, text: Text) -> Content:
        """The content of a whole text.  Raises DataError."""
        return await self._group(syntax.parse(text), Scope())

    async def file(self, path: str) -> Content:
        """The content of a file in the language.  Raises UserError."""
        return await self.text(await _read_text(path))

    async def _group(self, items: Sequence[nodes.Item], scope: Scope) -> Content:
        builder = Builder()
        for item in items:
            try:
                match item:
                    case nodes.Seek():
                        builder.seek(self._target(item, builder.offset))
                    case nodes.Define():
                        scope.names[item.name] = await self._value(item.operand, scope)
                    case _:
                        builder.add(await self._value(item, scope))
            except ContentError as error:
                raise DataError(item.at, str(error)) from error
        return builder.content()

    def _target(self, seek: nodes.Seek, offset: int) -> int:
        amount = self._number(seek.amount)
        match seek.how:
            case "@+":
                return offset + amount
            case "@-":
                return offset - amount
            case "@^":
                if amount <= 0 or amount & (amount - 1):
                    raise DataError(seek.at, f"the alignment {amount} is not a power of two")
                return (offset + amount - 1) & -amount
        return amount

    async def _value(self, item: nodes.Expression, scope: Scope, limit: int | None = None) -> Content:
        """The content of an expression; of an endless one the first `limit` bytes are enough."""
        match item:
            case nodes.Changed():
                return await self._changed(item, scope)
            case nodes.Literal():
                return Bytes(item.data)
            case nodes.Word():
                return Bytes(self._word(item))
            case nodes.Script():
                return await self._output(["/bin/sh", "-c", item.command], "the script", item.at, limit)
            case nodes.File():
                return await self._file(item, limit)
            case nodes.Include():
                return await self._include(item, scope)
            case nodes.Variable():
                return await self._variable(item, scope)
            case nodes.Name():
                return self._name(item, scope)
            case nodes.Group():
                return await self._group(item.items, self._inner(item.at, scope))

    async def _changed(self, item: nodes.Changed, scope: Scope) -> Content:
        changes = [(change, *self._bounds(change)) for change in item.changes]
        changes = [each for each in changes if each[1:] != (0, 1) or isinstance(each[0], nodes.Slice)]  # not `*1`
        if not changes:
            return await self._value(item.operand, scope)
        # What gives nothing is not looked at: neither `( ... )*0` nor `[7:7]` can go wrong.
        ends = [index for index, (_, low, high) in enumerate(changes) if low == high]
        if ends:
            value: Content = EMPTY
            changes = changes[ends[-1] + 1 :]
        else:
            read = _read_from_outside(item.operand)
            first, low, high = changes[0]
            value = await self._value(read or item.operand, scope, high if isinstance(first, nodes.Slice) else None)
            lenient = isinstance(read, nodes.File) or (read is not None and not low)
            if lenient and isinstance(first, nodes.Slice) and (high is None or low <= high):
                changes[0] = first, min(low, value.size), None if high is None else min(high, value.size)
        for change, low, high in changes:
            try:
                if isinstance(change, nodes.Repeat):
                    value = content.repeat(value, high or 0)
                else:
                    value = content.cut(value, low, value.size if high is None else high)
            except ContentError as error:
                raise DataError(change.at, str(error)) from error
        return value

    def _bounds(self, change: nodes.Repeat | nodes.Slice) -> tuple[int, int | None]:
        """The two numbers of a slice (the second None where left out), or 0 and the count of a repeat."""
        if isinstance(change, nodes.Repeat):
            return 0, self._number(change.count)
        low = 0 if change.start is None else self._number(change.start)
        return low, None if change.stop is None else self._number(change.stop)

    def _word(self, item: nodes.Word) -> bytes:
        value = self._number(item.value)
        try:
            return value.to_bytes(item.width, item.order)
        except OverflowError:
            raise DataError(item.at, f"{value} does not fit in {8 * item.width} bits") from None

    def _number(self, number: nodes.Number) -> int:
        if isinstance(number, int):
            return number
        text = self._lookup(number).strip()
        try:
            return parse_number(text)
        except UsageError as error:
            raise DataError(number.at, f"${number.name} is to be a number: {error}") from error

    def _lookup(self, variable: nodes.Variable) -> str:
        for known in self.variables, os.environ:
            if variable.name in known:
                return known[variable.name]
        hint = f"give it by the option set={variable.name}=... or in the environment"
        raise DataError(variable.at, f"there is no variable ${variable.name}: {hint}")

    def _name(self, item: nodes.Name, scope: Scope) -> Content:
        found = scope.find(item.name)
        if found is None:
            names = ", ".join(f"\\{name}" for name in sorted(scope.known())[:8])
            raise DataError(item.at, f"\\{item.name} is not defined here" + (f"; there are: {names}" if names else ""))
        return found

    async def _variable(self, item: nodes.Variable, scope: Scope) -> Content:
        text = Text(f"${item.name}", self._lookup(item), item.at.text.folder)
        return await self._group(syntax.parse(text), self._inner(item.at, scope, text.name))

    async def _include(self, item: nodes.Include, scope: Scope) -> Content:
        """What the file says in bytes; the names it defines become names of the scope that includes it."""
        path = os.path.join(item.at.text.folder, item.path)
        inner = self._inner(item.at, scope, os.path.realpath(path))
        try:
            text = await _read_text(path)
        except UserError as error:
            raise DataError(item.at, str(error)) from error
        value = await self._group(syntax.parse(text), inner)
        scope.names.update(inner.names)
        return value

    def _inner(self, at: Place, scope: Scope, opened: str = "") -> Scope:
        if opened in scope.open:
            raise DataError(at, f"{opened} is made of itself: {' -> '.join([*scope.open, opened])}")
        if scope.nested == _MOST_NESTED:
            raise DataError(at, f"more than {_MOST_NESTED} groups, variables and files inside each other")
        inside = (*scope.open, opened) if opened else scope.open
        return replace(scope, outer=scope, names={}, open=inside, nested=scope.nested + 1)

    async def _file(self, item: nodes.File, limit: int | None) -> Content:
        path = os.path.join(item.at.text.folder, item.path)
        try:
            opened = await trio.to_thread.run_sync(self._open, path)
        except OSError as error:
            raise DataError(item.at, f"cannot read {path}: {error.strerror}") from error
        if opened is not None:
            return opened
        return await self._output(["cat", "--", path], path, item.at, limit)

    def _open(self, path: str) -> Content | None:
        """A file with a size, or None for one that must be read to its end, as pipes, /dev/zero and those of /proc."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with ExitStack() as cleanup:
            cleanup.callback(os.close, fd)
            status = os.fstat(fd)
            if stat.S_ISDIR(status.st_mode):
                os.read(fd, 1)  # raises what it is
            size = os.lseek(fd, 0, os.SEEK_END) if stat.S_ISBLK(status.st_mode) else status.st_size
            if size == 0:
                return None
            file = content.File(fd, size, path)
            if size > _SMALL:
                self.files.push(cleanup.pop_all())
                return file
            data = bytearray(size)
            file.read(memoryview(data), 0)
            return Bytes(bytes(data))

    async def _output(self, argv: list[str], what: str, at: Place, limit: int | None) -> Content:
        """What a program writes, up to `limit` bytes if that is known to be enough."""
        data = bytearray()
        most = _MOST_OUTPUT if limit is None else limit
        with trio.move_on_after(self.timeout) as deadline:
            status = await _run(argv, {**os.environ, **self.variables}, data, most + (limit is None))
        if deadline.cancelled_caught:
            raise DataError(at, f"{what} took longer than {self.timeout:g} s; script-timeout allows for more")
        if len(data) > most:
            raise DataError(at, f"{what} does not end within {most >> 20} MiB: take a slice of it, as in {_hint(what)}")
        if status:
            raise DataError(at, f"{what} failed with status {status}")
        return Bytes(bytes(data))


async def _run(argv: list[str], environment: Mapping[str, str], data: bytearray, most: int) -> int:
    """Append up to `most` bytes of a program's output; give its exit status, 0 if it was stopped at `most`."""
    process = await trio.lowlevel.open_process(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True, env=environment
    )
    assert process.stdout is not None
    try:
        async with process.stdout:
            while len(data) < most:
                chunk = await process.stdout.receive_some(min(_CHUNK, most - len(data)))
                if not chunk:
                    return await process.wait()
                data += chunk
        return 0
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with whatever it started
            with trio.CancelScope(shield=True):
                await process.wait()


def _hint(what: str) -> str:
    return "<( ... )[:1M]" if what == "the script" else f"<{what}[:1M]"


async def _read_text(path: str) -> Text:
    """A file in the language."""

    def read() -> bytes:
        with open(path, "rb") as file:
            return file.read(_MOST_TEXT + 1)

    try:
        data = await trio.to_thread.run_sync(read, abandon_on_cancel=True)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > _MOST_TEXT:
        raise UserError(f"{path} is longer than {_MOST_TEXT >> 20} MiB: is it a data string?")
    return Text(path, data.decode("utf-8", "surrogateescape"), os.path.dirname(path))


def parse_variables(text: str) -> dict[str, str]:
    """The variables of `NAME=TEXT;NAME=TEXT`.  Raises UsageError."""
    variables = {}
    for item in filter(None, text.split(";")):
        name, equals, value = item.partition("=")
        if not equals or not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
            raise UsageError(f"'{item}' sets no variable: write NAME=TEXT, several with ; between")
        variables[name] = value
    return variables


def _read_from_outside(item: nodes.Item) -> nodes.File | nodes.Script | None:
    """The file or the script that is all of an expression: a slice of it takes what there is, as nbdkit's does."""
    match item:
        case nodes.File() | nodes.Script():
            return item
        case nodes.Group(items=[only]):
            return _read_from_outside(only)
        case nodes.Changed(operand=operand, changes=[nodes.Repeat(count=1)]):
            return _read_from_outside(operand)
    return None
