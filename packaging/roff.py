"""Markdown as roff for man(1), in the macros of man(7) that both groff and mandoc know."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from markdown_it import MarkdownIt
from markdown_it.token import Token

_MARKDOWN = MarkdownIt("commonmark").enable("table")

# Also what typesetting would replace by characters that a shell does not know.
_ESCAPES = str.maketrans({"\\": r"\e", "-": r"\-", "^": r"\(ha", "~": r"\(ti", "`": r"\(ga"})

Resolve = Callable[[str], str]


def escaped(text: str) -> str:
    """Text that roff takes as it is: no request, no escape; a hyphen that can be copied into a shell."""
    return re.sub(r"^(?=[.'])", r"\\&", text.translate(_ESCAPES), flags=re.MULTILINE)


def bold(text: str) -> str:
    return rf"\fB{escaped(text)}\fR"


def quoted(text: str) -> str:
    """An argument of a macro."""
    return '"' + escaped(text).replace('"', r"\(dq") + '"'


def title(name: str, section: int, date: str, version: str) -> str:
    """How a page begins: its title, and no stretching of lines that are mostly commands."""
    return f'.TH {quoted(name.upper())} {section} "{date}" {quoted(f"nbdfs {version}")} "nbdfs manual"\n.ad l\n'


def tidied(page: str) -> str:
    """A page without the paragraphs that a head begins anyway."""
    return re.sub(r"^(\.S[HS] .*\n)\.PP\n", r"\1", page, flags=re.MULTILINE)


def section(head: str) -> str:
    return f".SH {quoted(head.upper())}\n"


def item(tag: str, text: str) -> str:
    """A tag, already roff, with a plain paragraph beside it."""
    return f".TP\n{tag}\n{escaped(text) or chr(92) + '&'}\n"


def example(text: str) -> str:
    """Text as it stands, indented."""
    return f".PP\n.RS 4\n.nf\n{escaped(text.rstrip())}\n.fi\n.RE\n"


def plain(markdown: str) -> str:
    """One line of Markdown as plain text."""
    return _strip(_MARKDOWN.parseInline(markdown)[0])


def body(markdown: str, resolve: Resolve) -> str:
    """Markdown without its title as sections; `resolve` turns the target of a link into what a reader sees for it."""
    return "".join(_blocks(_MARKDOWN.parse(markdown), resolve))


def _blocks(tokens: Sequence[Token], resolve: Resolve) -> Iterator[str]:
    at = 0
    while at < len(tokens):
        token = tokens[at]
        end = _end(tokens, at)
        inside = tokens[at + 1 : end]
        match token.type:
            case "heading_open":
                macro = ".SH" if token.tag == "h2" else ".SS"
                words = _strip(inside[0])
                yield f"{macro} {quoted(words.upper() if macro == '.SH' else words)}\n"
            case "paragraph_open":
                yield f".PP\n{_inline(inside[0], resolve)}\n"
            case "code_block" | "fence":
                yield example(token.content)
            case "bullet_list_open" | "ordered_list_open":
                yield from _list(inside, resolve, ordered=token.type.startswith("ordered"))
            case "table_open":
                yield from _table(inside, resolve)
            case "html_block":
                pass  # the marks of generated parts
            case other:
                raise ValueError(f"no roff for {other}, line {(token.map or [0])[0]}")
        at = end + 1


def _end(tokens: Sequence[Token], at: int) -> int:
    """Where what begins at `at` ends."""
    depth = 0
    for index in range(at, len(tokens)):
        depth += tokens[index].nesting
        if depth == 0:
            return index
    raise ValueError("an open block")


def _list(tokens: Sequence[Token], resolve: Resolve, *, ordered: bool) -> Iterator[str]:
    at, number = 0, 0
    while at < len(tokens):
        end = _end(tokens, at)
        number += 1
        mark = f"{number}." if ordered else r"\(bu"
        first, *more = list(_blocks(tokens[at + 1 : end], resolve))
        yield f".IP {mark} 4\n{first.removeprefix('.PP' + chr(10))}"
        if more:
            yield ".RS 4\n" + "".join(more) + ".RE\n"
        at = end + 1


def _table(tokens: Sequence[Token], resolve: Resolve) -> Iterator[str]:
    """A table as a list: the first cell is the tag, the second what it means, others stand under their heads."""
    cells = [token for token in tokens if token.type == "inline"]
    heads = [tokens[index + 1] for index, token in enumerate(tokens) if token.type == "th_open"]
    rows = [cells[index : index + len(heads)] for index in range(len(heads), len(cells), len(heads))]
    for tag, *others in rows:
        yield f".TP\n{_inline(tag, resolve) or chr(92) + '&'}\n"
        texts = [
            _inline(cell, resolve) if index == 0 else f"{_inline(heads[index + 1], resolve)}: {_inline(cell, resolve)}"
            for index, cell in enumerate(others)
            if cell.content
        ]
        yield "\n.br\n".join(texts) + "\n" if texts else "\\&\n"


def _inline(token: Token, resolve: Resolve) -> str:
    parts: list[str] = []
    for child in token.children or []:
        match child.type:
            case "text":
                parts.append(escaped(child.content))
            case "code_inline":
                parts.append(bold(child.content))
            case "strong_open":
                parts.append(r"\fB")
            case "em_open":
                parts.append(r"\fI")
            case "strong_close" | "em_close":
                parts.append(r"\fR")
            case "softbreak":
                parts.append("\n")
            case "hardbreak":
                parts.append("\n.br\n")
            case "link_open":
                parts.append(_Link(resolve(str(child.attrs["href"]))))
            case "link_close":
                parts[:] = _linked(parts)
            case "image":
                parts.append(escaped(child.content))
            case other:
                raise ValueError(f"no roff for {other}")
    return "".join(parts)


class _Link(str):
    """Where in the parts of a line a link begins, with what stands for its target."""


def _linked(parts: list[str]) -> list[str]:
    begin = max(index for index, part in enumerate(parts) if isinstance(part, _Link))
    target, words = str(parts[begin]), "".join(parts[begin + 1 :])
    page = re.fullmatch(r"(.+)(\(\d\))", target)
    if page:
        return [*parts[:begin], bold(page[1]) + page[2]]
    return [*parts[:begin], words, f" ({escaped(target)})" if target and target != words else ""]


def _strip(token: Token) -> str:
    return "".join(
        " " if child.type == "softbreak" else child.content
        for child in token.children or []
        if child.type in ("text", "code_inline", "softbreak")
    )
