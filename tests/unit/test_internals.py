"""The pages of docs/internals, docstrings and comments name what there is: modules, classes and their members."""

from __future__ import annotations

import ast
import builtins
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PAGES = sorted(ROOT.glob("docs/internals/*.md"))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])
SOURCES = [*ROOT.glob("nbdfs/**/*.py"), *ROOT.glob("backends/**/*.py")]
# Where a page's modules lie, when it names them by less than their path from the root.
FOLDERS = {
    "config.md": ("nbdfs/config", "."),
    "copy.md": ("nbdfs/copying", "nbdfs/copying/direct", "."),
    "fuse.md": ("nbdfs/fuse", "."),
    "index.md": (".",),
    "layers.md": ("backends/cow", "backends/cache", "."),
    "live.md": ("nbdfs", "nbdfs/nbd", "nbdfs/control", "."),
    "luks.md": ("backends/luks", "."),
    "nbd.md": ("nbdfs/nbd", "."),
    "torrent.md": ("backends/torrent", "."),
}
FOREIGN = {"fs", "os", "pyfuse3", "threading"}  # what a name begins with that is not ours
OTHERS = {"flags2", "finished_duration"}  # of the kernel and of libtorrent


DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


class Names(ast.NodeVisitor):
    """What the source names: everything, and by class or module what is bound in it."""

    def __init__(self) -> None:
        self.all: set[str] = set()
        self.members: dict[str, set[str]] = {}
        self._around: list[str] = []

    def read(self, path: Path) -> None:
        self._around = [path.parent.name if path.stem == "__init__" else path.stem]
        self.members.setdefault(path.parent.name, set()).add(path.stem)
        self.visit(ast.parse(path.read_text()))

    def _bind(self, name: str) -> None:
        self.all.add(name)
        for owner in self._around:
            self.members.setdefault(owner, set()).add(name)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._bind(node.name)
        self._around.append(node.name)
        for base in node.bases:
            self.members.setdefault(node.name, set()).update(self.members.get(ast.unparse(base), ()))
        self.generic_visit(node)
        self._around.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._bind(node.name)
        self.generic_visit(node)

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def visit_Name(self, node: ast.Name) -> None:
        self._bind(node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._bind(node.attr)
        self.generic_visit(node)


@pytest.fixture(scope="module")
def names() -> Names:
    found = Names()
    for path in SOURCES:
        found.read(path)
    return found


def words(page: Path) -> Iterator[str]:
    """What a page says in the form of code, pictures and examples left out."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    yield from re.findall(r"`([^`\n]+)`", text)


def test_every_page_is_looked_at() -> None:
    assert [page.name for page in PAGES] == sorted(FOLDERS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_modules(page: Path) -> None:
    named = [word for text in words(page) for word in re.findall(r"[\w/]+\.py|\w+/(?:\w+/)*(?= |$)", text)]
    absent = [word for word in named if not any((ROOT / folder / word).exists() for folder in FOLDERS[page.name])]
    assert not absent


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names(page: Path, names: Names) -> None:
    """A word with a capital, an underscore in front or a dot in it is a name of ours."""
    absent = []
    for word in (text.removesuffix("()") for text in words(page)):
        if not re.fullmatch(r"\w+(\.\w+)*", word) or word.endswith(".py") or not re.search(r"[A-Z.]|^_", word):
            continue
        owner, _, member = word.rpartition(".")
        owner = owner.rpartition(".")[2]
        if owner.split(".")[0] in FOREIGN or word.split(".")[0] in FOREIGN:
            continue
        known = names.members.get(owner, set()) if owner else names.all
        if member not in known:
            absent.append(word)
    assert not absent


def said_and_named(path: Path) -> tuple[str, set[str]]:
    """The docstrings and comments of a module, and every name and word of the rest of it."""
    text = path.read_text()
    strings = (
        ast.get_docstring(node, clean=False) for node in ast.walk(ast.parse(text)) if isinstance(node, DOCUMENTED)
    )
    said = {string for string in strings if string}
    named = set(path.with_suffix("").parts)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            said.add(token.string)
        elif token.type == tokenize.NAME or (token.type == tokenize.STRING and token.string.strip('"') not in said):
            named.update(re.findall(r"\w+", token.string))
    return "\n".join(said), named


def test_docstrings_and_comments_name_what_there_is() -> None:
    modules = {path: said_and_named(path) for path in SOURCES}
    known = {*dir(builtins), *OTHERS}.union(*(named for _, named in modules.values()))
    absent = [
        f"{path.relative_to(ROOT)}: {word}"
        for path, (said, _) in modules.items()
        for word in re.findall(r"`([A-Za-z_][\w.]*)(?:\(\))?`", said)
        for name in word.removesuffix(".py").split(".")
        if name not in known and not any(each.endswith(name) for each in known)  # or what all of a kind end with
    ]
    assert absent == []


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page: Path) -> None:
    links = re.findall(r"\]\((?!\w+:)([^)#\s]+)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))
    assert [link for link in links if not (page.parent / link).exists()] == []
