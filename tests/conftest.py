"""What every test can use: the markers, the corpus of images, and a user without privileges."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounts import NOBODY, mount, mount_data_plane

__all__ = ["mount", "mount_data_plane"]

ROOT = Path(__file__).parent.parent


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: a campaign of minutes; `make test-long` runs it")
    config.addinivalue_line("markers", "guest: runs in a virtual machine; `make test-guest` runs it")
    config.addinivalue_line("markers", "packages: installs what `make deb` made; `make test-packages` runs it")
    config.addinivalue_line("markers", "root: needs to be root (mounts, namespaces, other users)")
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup has ignored, as would all that the tests start


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.option.markexpr:
        for marker in "long", "guest", "packages":
            items[:], chosen_out = _split(items, marker)
            if chosen_out:
                config.hook.pytest_deselected(items=chosen_out)
    if os.geteuid() != 0:
        for item in items:
            if item.get_closest_marker("root"):
                item.add_marker(pytest.mark.skip(reason="needs root"))


def _split(items: list[pytest.Item], marker: str) -> tuple[list[pytest.Item], list[pytest.Item]]:
    without = [item for item in items if not item.get_closest_marker(marker)]
    return without, [item for item in items if item.get_closest_marker(marker)]


@pytest.fixture(scope="session")
def corpus() -> Path:
    """The folder of images made by other programs: $NBDFS_CORPUS, or shared/corpus beside the repository."""
    folder = Path(os.environ.get("NBDFS_CORPUS") or ROOT.parent / "shared" / "corpus")
    if not folder.is_dir():
        pytest.skip(f"there is no corpus in {folder}")
    return folder


@pytest.fixture
def without_holes(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system that cannot punch holes."""
    folder = tmp_path / "ramfs"
    folder.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "none", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture(scope="session")
def unprivileged() -> list[str]:
    """The words that, put before a command, run it as a user without privileges (empty if we are one).

    The user may open /dev/fuse, as udev's rule has it.  Where Python or the project lies in a folder closed to others
    the user is lent the right to read everything, and nothing more.  Give such a command a folder it may write to:
    `nobody_path`.
    """
    if os.geteuid() != 0:
        return []
    fuse = Path("/dev/fuse")
    if stat.S_IMODE(fuse.stat().st_mode) != 0o666:
        fuse.chmod(0o666)
    words = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    if subprocess.run([*words, sys.executable, "-c", "import nbdfs"], cwd=ROOT, capture_output=True).returncode:
        words += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return words


@pytest.fixture
def nobody_path() -> Iterator[Path]:
    """A folder of the user that `unprivileged` is, reachable by it, in an empty folder of ours.

    It is not in pytest's own folder, which each run of pytest closes to other users.
    """
    with tempfile.TemporaryDirectory(prefix="nbdfs-test-") as outer:
        Path(outer).chmod(0o711)
        folder = Path(outer) / "nobody"
        folder.mkdir()
        if os.geteuid() == 0:
            os.chown(folder, NOBODY, NOBODY)
        yield folder
