"""A clean Debian 12 in a folder: made by mmdebstrap, entered with a mount namespace of its own."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

TIMEOUT = 300  # seconds

# The host's own sources, where it has them in a file of their own: they are known to work.
SOURCES = [Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list")]


def depends(package: Path) -> list[str]:
    """The names of the packages that one depends on."""
    fields = subprocess.run(["dpkg-deb", "--field", package, "Depends"], capture_output=True, text=True, check=True)
    return sorted({re.split(r"[ (|]", field.strip())[0] for field in fields.stdout.split(",")})


def make_root(root: Path, packages: list[str]) -> None:
    """Debian's smallest system with these packages."""
    sources = [path for path in SOURCES if path.exists() and path.stat().st_size][:1]
    subprocess.run(
        ["mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", f"--include={','.join(packages)}",
         "--aptopt=Acquire::Languages \"none\"", "bookworm", root, *sources],
        check=True, timeout=TIMEOUT,
    )  # fmt: skip


def repacked(package: Path, version: str, folder: Path) -> Path:
    """The same package under another version, which it also tells when it runs."""
    tree = folder / "tree"
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
    _replace(tree / "DEBIAN/control", r"^Version: .*$", f"Version: {version}")
    _replace(tree / "usr/lib/nbdfs/nbdfs/__init__.py", r"^__version__ = .*$", f'__version__ = "{version}"')
    out = folder / f"nbdfs_{version}.deb"
    subprocess.run(
        ["dpkg-deb", "--build", "-Zgzip", "-z1", "--root-owner-group", tree, out], check=True, stdout=subprocess.DEVNULL
    )
    return out


def _replace(file: Path, pattern: str, text: str) -> None:
    old = file.read_text()
    new = re.sub(pattern, text, old, flags=re.MULTILINE)
    assert new != old
    file.write_text(new)


def inside(root: Path, script: str) -> str:
    """What a script prints that runs in the root; its mounts and processes end with it."""
    outer = (
        f"set -e; mount --bind /dev {shlex.quote(str(root))}/dev; mount -t proc proc {shlex.quote(str(root))}/proc; "
        f"exec chroot {shlex.quote(str(root))} sh -euc {shlex.quote(script)}"
    )
    words = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", outer]
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8",
                   "DEBIAN_FRONTEND": "noninteractive"}  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
