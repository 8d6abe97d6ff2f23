"""The packages in dist/, and a clean system to put them in."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.packaging.debian import depends, make_root, repacked


@pytest.fixture(scope="session")
def package() -> Path:
    """What `make deb` has made."""
    (package,) = (ROOT / "dist").glob("nbdfs_*.deb")
    return package


@pytest.fixture(scope="session")
def debian(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with what the package depends on, the package itself as /old.deb and a newer one as /new.deb."""
    folder = tmp_path_factory.mktemp("debian")
    root = folder / "root"
    make_root(root, depends(package))
    (root / "old.deb").write_bytes(package.read_bytes())
    (root / "new.deb").write_bytes(repacked(package, "99.0", folder).read_bytes())
    return root
