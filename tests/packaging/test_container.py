"""The image that packaging/Containerfile describes, made by buildah over a Debian of our own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = [pytest.mark.packages, pytest.mark.root, pytest.mark.timeout(600)]

Buildah = Callable[..., str]


@pytest.fixture
def buildah(tmp_path: Path) -> Iterator[Buildah]:
    """Run buildah with a storage of its own."""
    at = ("--root", tmp_path / "storage", "--runroot", tmp_path / "run", "--storage-driver", "vfs")
    environment = {**os.environ, "BUILDAH_ISOLATION": "chroot"}

    def run(*words: str | Path) -> str:
        done = subprocess.run(["buildah", *at, *words], capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    yield run
    run("rm", "--all")


def test_image(buildah: Buildah, debian: Path) -> None:
    base = buildah("from", "scratch")
    buildah("add", "--quiet", base, debian, "/")
    buildah("commit", "--quiet", base, "localhost/debian")
    buildah(
        "build",
        "--build-arg",
        "BASE=localhost/debian",
        "--file",
        ROOT / "packaging/Containerfile",
        "--tag",
        "nbdfs",
        ROOT,
    )
    image = buildah("from", "localhost/nbdfs")
    assert buildah("run", image, "--", "nbdfs", "info", "--size", "memory:1G") == str(1 << 30)
    assert buildah("inspect", "--format", "{{.OCIv1.Config.Entrypoint}}", image) == "[/usr/bin/nbdfs]"
