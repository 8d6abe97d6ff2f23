"""No message has a failed system call as Python shows it, `[Errno 5] ...`: `nbdfs.errors.reason` tells it."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from pathlib import Path

import nbdfs
from nbdfs import backends

_ROOTS = [Path(path) for package in (nbdfs, backends) for path in package.__path__]
_SYSTEM = {
    name
    for name, kind in vars(builtins).items()
    if isinstance(kind, type) and (issubclass(kind, OSError) or kind is Exception)
}


def told_raw(tree: ast.AST) -> Iterator[int]:
    """Lines that put a caught OSError into a text as it is, and not for want of another one: `... or str(error)`."""
    last_resorts = {id(node.values[-1]) for node in ast.walk(tree) if isinstance(node, ast.BoolOp)}
    for handler in ast.walk(tree):
        if isinstance(handler, ast.ExceptHandler) and handler.name and handler.type:
            caught = {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)}
            if caught & _SYSTEM:
                for statement in handler.body:
                    shown = (node for node in ast.walk(statement) if _shows(node, handler.name))
                    yield from (node.lineno for node in shown if id(node) not in last_resorts)


def _shows(node: ast.AST, name: str) -> bool:
    shown: list[ast.expr] = []
    if isinstance(node, ast.FormattedValue):
        shown = [node.value]
    elif isinstance(node, ast.Call):
        called = ast.unparse(node.func)
        if called == "str" or called.startswith("log."):
            shown = node.args
    return any(isinstance(value, ast.Name) and value.id == name for value in shown)


def test_failed_system_calls_are_told_by_their_reason() -> None:
    files = {path for root in _ROOTS for path in root.rglob("*.py")}
    assert len(files) > 100
    found = [f"{path}:{line}" for path in sorted(files) for line in told_raw(ast.parse(path.read_text()))]
    assert not found, "say reason(error): " + ", ".join(found)


def test_what_is_found() -> None:
    raw = "try: pass\nexcept (ValueError, OSError) as e:\n  log.info('%s', e)\n  x = f'{e}'\n  y = str(e)\n"
    assert list(told_raw(ast.parse(raw))) == [3, 4, 5]
    told = "try: pass\nexcept OSError as e:\n  log.info('%s', reason(e))\n  x = f'{e.strerror}'\n"
    assert list(told_raw(ast.parse(told))) == []
