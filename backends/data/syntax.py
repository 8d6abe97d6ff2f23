"""The grammar of data strings: tokens into a tree of nodes.

    items      = { seek | expression { "->" NAME } }
    seek       = "@" number | "@+" number | "@-" number | "@^" number
    expression = primary { "*" number | "[" [number] ":" [number] "]" }
    primary    = BYTE | ("le" | "be") ("16" | "32" | "64") ":" number | "base64:" TEXT | STRING
               | "<" FILE | "<(" SCRIPT ")" | "(" items ")" | NAME | VARIABLE | "include" FILE
    number     = decimal, octal or hexadecimal, a decimal one also with a size suffix; or VARIABLE

Blanks separate; `#` begins a comment that ends with its line.  A NAME is `\\name`, a VARIABLE `$name`.
"""

from __future__ import annotations

from nbdfs.backends.data import nodes
from nbdfs.backends.data.nodes import DataError, Place, Text
from nbdfs.backends.data.tokens import Token, decoded, parse_number, scan, unescaped
from nbdfs.errors import UsageError

_MOST_NESTED = 100  # parentheses inside each other
_OPERATORS = ("*", "[", "arrow")
_MISPLACED = {
    "*": "* must follow an expression",
    "[": "[ must follow an expression",
    "arrow": "-> must follow an expression that gives bytes: put an offset in parentheses",
}


def parse(text: Text) -> tuple[nodes.Item, ...]:
    """The items of a text.  Raises DataError."""
    return _Parser(text).parse()


class _Parser:
    def __init__(self, text: Text) -> None:
        self._tokens = list(scan(text))
        self._index = 0
        self._nested = 0

    def parse(self) -> tuple[nodes.Item, ...]:
        items = self._items()
        if self._next.kind != "end":
            raise DataError(self._next.at, "this ) has no (")
        return items

    @property
    def _next(self) -> Token:
        return self._tokens[self._index]

    def _take(self) -> Token:
        token = self._tokens[self._index]
        if token.kind != "end":
            self._index += 1
        return token

    def _items(self) -> tuple[nodes.Item, ...]:
        items: list[nodes.Item] = []
        while self._next.kind not in (")", "end"):
            if self._next.kind == "seek":
                token = self._take()
                items.append(nodes.Seek(token.at, token.value, self._number(f"a number must follow {token.value}")))
                continue
            expression = self._expression()
            names = []
            while self._next.kind == "arrow":
                arrow = self._take()
                if self._next.kind != "name":
                    raise DataError(self._next.at, "a name must follow ->, as in: 0x55 -> \\name")
                names.append(nodes.Define(arrow.at, self._take().value, expression))
            items += names or [expression]
        return tuple(items)

    def _expression(self) -> nodes.Expression:
        if self._next.kind == "number":
            literal, plain = self._bytes()
            if plain:
                return literal
            primary: nodes.Primary = literal
        else:
            primary = self._primary(self._take())
        changes: list[nodes.Repeat | nodes.Slice] = []
        while self._next.kind in ("*", "["):
            token = self._take()
            if token.kind == "*":
                changes.append(nodes.Repeat(token.at, self._number("a number must follow *")))
            else:
                changes.append(self._slice(token.at))
        return nodes.Changed(primary.at, primary, tuple(changes)) if changes else primary

    def _bytes(self) -> tuple[nodes.Literal, bool]:
        """A run of bytes, and whether it is no operand: one that an operator follows comes alone."""
        at, run = self._next.at, bytearray()
        while (token := self._next).kind == "number":
            value = self._value(token)
            if value > 255:
                raise DataError(token.at, f"{token.value} is no byte, 0 to 255: write le16:, be32: and so on for more")
            operand = self._tokens[self._index + 1].kind in _OPERATORS
            if operand and run:
                break
            self._take()
            run.append(value)
            if operand:
                return nodes.Literal(at, bytes(run)), False
        return nodes.Literal(at, bytes(run)), True

    def _primary(self, token: Token) -> nodes.Primary:
        kind, value, at = token
        match kind:
            case "word":
                return nodes.Word(
                    at,
                    int(value[2:]) // 8,
                    "little" if value[0] == "l" else "big",
                    self._number(f"a number must follow {value}:"),
                )
            case "base64":
                return nodes.Literal(at, decoded(at, value))
            case "string":
                return nodes.Literal(at, unescaped(at, value))
            case "script":
                return nodes.Script(at, value)
            case "file":
                return nodes.File(at, value.strip('"'))
            case "include":
                return nodes.Include(at, value.strip('"'))
            case "name":
                return nodes.Name(at, value)
            case "variable":
                return nodes.Variable(at, value)
            case "(":
                return self._group(at)
            case _:
                raise DataError(at, _MISPLACED.get(kind) or f"'{value}' has no meaning here")

    def _group(self, at: Place) -> nodes.Group:
        self._nested += 1
        if self._nested > _MOST_NESTED:
            raise DataError(at, f"more than {_MOST_NESTED} parentheses inside each other")
        items = self._items()
        if self._take().kind != ")":
            raise DataError(at, "this ( has no )")
        self._nested -= 1
        return nodes.Group(at, items)

    def _slice(self, at: Place) -> nodes.Slice:
        bounds: list[nodes.Number | None] = []
        for end in (":", "]"):
            bounds.append(None if self._next.kind == end else self._number(f"a number or {end} must follow"))
            if (token := self._take()).kind != end:
                raise DataError(token.at, "this is no slice: write [FROM:TO], [FROM:] or [:TO]")
        return nodes.Slice(at, bounds[0], bounds[1])

    def _number(self, missing: str) -> nodes.Number:
        token = self._next
        if token.kind == "variable":
            self._take()
            return nodes.Variable(token.at, token.value)
        if token.kind != "number":
            raise DataError(token.at, missing)
        self._take()
        return self._value(token)

    def _value(self, token: Token) -> int:
        try:
            return parse_number(token.value)
        except UsageError as error:
            raise DataError(token.at, str(error)) from error
