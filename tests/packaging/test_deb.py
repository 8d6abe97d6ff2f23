"""The Debian package that `make deb` has left in dist/: examined, and used in a clean Debian 12."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import nbdfs
from tests.conftest import ROOT
from tests.packaging.debian import inside

pytestmark = [pytest.mark.packages, pytest.mark.root, pytest.mark.timeout(600)]


def files(root: Path) -> set[str]:
    """All that is there but the package manager's own records, and what ends with the system."""
    records = ("var/lib/dpkg", "var/log", "var/cache/debconf", "var/cache/ldconfig", "run/", "dev/", "proc/")
    names = (path.relative_to(root).as_posix() for path in root.rglob("*"))
    return {name for name in names if not name.startswith(records) and "/__pycache__" not in f"/{name}"}


def test_lintian_finds_no_error(package: Path) -> None:
    words = ["lintian", "--fail-on", "error", "--allow-root", package]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    assert "no-manual-page" not in done.stdout


def test_nothing_of_the_machine_that_built_it(package: Path, tmp_path: Path) -> None:
    subprocess.run(["dpkg-deb", "--extract", package, tmp_path], check=True)
    ours = [
        *tmp_path.glob("usr/lib/nbdfs/*.dist-info"),
        *(tmp_path / name for name in ("usr/lib/nbdfs/nbdfs", "usr/bin")),
    ]
    named = subprocess.run(["grep", "-rlIE", f"{ROOT}|/tmp/tmp[.]", *ours], capture_output=True, text=True)
    assert named.stdout == ""


def test_installed_used_and_purged(debian: Path) -> None:
    before = files(debian)
    out = inside(
        debian,
        """
        dpkg --install /old.deb >&2
        nbdfs --version
        cd /root
        nbdfs copy random,seed=1:1M random.img
        nbdfs info --size random.img
        nbdfs sources luks >&2
        nbdfs mount --background memory:64M disk.img
        echo content | dd of=disk.img conv=notrunc,fsync status=none
        head -n 1 disk.img
        stat -c %s disk.img
        nbdfs umount disk.img
        test ! -e disk.img
        nbdfs copy zero:24M luks.img
        echo -n word > key
        nbdfs luks format --passphrase=+key --pbkdf=pbkdf2 --pbkdf-force-iterations=1000 luks.img
        nbdfs info --size luks,passphrase=+key::luks.img
        """,
    )
    assert out.splitlines() == [f"nbdfs {nbdfs.__version__}", "1048576", "content", "67108864", str(8 << 20)]
    assert (debian / "usr/lib/nbdfs/nbdfs/__pycache__").is_dir()
    inside(debian, "rm /root/*.img /root/key; dpkg --purge nbdfs")
    assert files(debian) == before
    assert not (debian / "usr/lib/nbdfs").exists()


def test_mounted_as_mount_does(debian: Path) -> None:
    out = inside(
        debian,
        """
        dpkg --install /old.deb >&2
        touch /srv/disk.img
        mount -t nbdfs memory:8M /srv/disk.img
        stat -c %s /srv/disk.img
        umount /srv/disk.img
        stat -c %s /srv/disk.img
        rm /srv/disk.img
        dpkg --purge nbdfs >&2
        """,
    )
    assert out.split() == ["8388608", "0"]


def test_a_live_mount_survives_an_upgrade(debian: Path) -> None:
    out = inside(
        debian,
        """
        dpkg --install /old.deb >&2
        cd /tmp
        nbdfs mount --background --listen 'nbd+unix:///?socket=/tmp/socket' --log-file log memory:64M disk.img >&2
        mkdir dir
        nbdfs mount --background a.img=memory:1M dir
        echo before | dd of=disk.img conv=notrunc,fsync status=none
        dpkg --install /new.deb >&2
        nbdfs --version
        head -n 1 disk.img
        echo after! | dd of=disk.img conv=notrunc,fsync status=none
        nbdfs dump --length=7 'nbd+unix:///?socket=/tmp/socket' | cut -d'|' -f2 | tr -d ' '
        nbdfs add dir b.img=pattern:1M
        ls dir
        nbdfs umount disk.img dir
        test ! -e disk.img
        cat log
        rm -r log dir
        """,
    )
    assert out.splitlines() == ["nbdfs 99.0", "before", "after!.", "a.img", "b.img"]
    inside(debian, "dpkg --purge nbdfs")
