"""What the wheel and the source distribution are told to hold."""

from __future__ import annotations

import configparser

from tests.conftest import ROOT


def test_every_package_is_in_the_wheel() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    there = {path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("nbdfs/**/__init__.py")}
    there |= {f"nbdfs/{path.parent.relative_to(ROOT).as_posix()}" for path in ROOT.glob("backends/**/__init__.py")}
    assert {name.replace(".", "/") for name in setup["options"]["packages"].split()} == there
