"""The table of subcommands is that of the modules there are."""

from __future__ import annotations

import importlib
import pkgutil

import nbdfs.cli
from nbdfs.cli._commands import COMMANDS


def test_each_command_is_in_the_table() -> None:
    modules = {info.name for info in pkgutil.iter_modules(nbdfs.cli.__path__)}
    assert [*COMMANDS] == sorted(name for name in modules if name != "main" and not name.startswith("_"))
    for name in COMMANDS:
        assert importlib.import_module(f"nbdfs.cli.{name}").run
