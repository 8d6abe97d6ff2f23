"""An export whose size is no multiple of its minimum block: what lies at its end is not lost in silence."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.interop.servers import Server, run, serve
from tests.tools import TIMEOUT, command, complaint, nbdfs

__all__ = ["serve"]

SERVER = ("nbdkit", "-U", "-", "--filter=blocksize-policy", "pattern", "1000", "blocksize-minimum=512")
CAPTIVE = ("[", *SERVER[:1], *SERVER[3:], "]")
MISSING = "the last 488 of 1000 bytes cannot be reached, for its smallest block is 512"


@pytest.mark.parametrize("layers", [(), ("offset,offset=0::",), ("resize,round-up=1000::",), ("log::",)])
def test_a_copy_is_refused_before_anything_is_there(layers: tuple[str, ...], tmp_path: Path) -> None:
    assert f"{MISSING}; nothing was copied" in complaint("copy", *layers, *CAPTIVE, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_copy_by_lanes_is_refused_too(tmp_path: Path) -> None:
    told = " ".join(command("copy", "$uri", tmp_path / "new"))
    done = subprocess.run([*SERVER, "--run", told], capture_output=True, text=True, timeout=TIMEOUT)
    (line,) = done.stderr.splitlines()
    assert f"{MISSING}; nothing was copied" in line
    assert done.returncode == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("layer", ["resize,size=512::", "offset,size=512::"])
def test_who_says_how_much_is_wanted_gets_it(layer: str, tmp_path: Path) -> None:
    nbdfs("copy", layer, *CAPTIVE, tmp_path / "new")
    assert (tmp_path / "new").stat().st_size == 512


def test_a_destination_has_room_for_what_can_be_reached() -> None:
    captive = [word.replace("pattern", "memory") for word in CAPTIVE]
    nbdfs("copy", "pattern:512", *captive)
    assert "too small, 512 bytes for the 1000" in complaint("copy", "pattern:1000", *captive)


def test_who_serves_or_shows_it_is_warned(serve: Server) -> None:
    serving = serve(*CAPTIVE)
    assert run("nbdinfo", "--size", serving.uri).strip() == "512"
    assert serving.stop() == 0
    assert serving.logged().count(MISSING) == 1
    assert nbdfs("dump", *CAPTIVE).stderr.decode().count(MISSING) == 1
