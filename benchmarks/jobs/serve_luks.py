"""A LUKS1 image (512 MiB, aes-256-xts, 512-byte sectors), decrypted and served over NBD."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from benchmarks.jobs.serve_memory import over, whole
from benchmarks.systems import NBDFS, Job, System, Work, iops, mbps, on_uri
from tests.tools import luks_by_qemu

_SIZE = 512 << 20


def _image(home: str) -> tuple[str, str]:
    """An image that qemu has made and filled, so that reads decrypt real data, and its key file."""
    image, key = Path(home, "luks.img"), Path(home, "key")
    key.write_text("secret")
    key.chmod(0o600)
    secret = ["--object", f"secret,id=s,file={key}"]
    luks_by_qemu(image, key, _SIZE, iter_time=2000)  # what qemu-img takes by itself
    fill = [
        "qemu-io",
        "-c",
        f"write -P 0x5a 0 {_SIZE}",
        *secret,
        "--image-opts",
        f"driver=luks,key-secret=s,file.filename={image}",
    ]
    subprocess.run(fill, check=True, stdout=subprocess.DEVNULL)
    return str(image), str(key)


def job(home: str) -> Job:
    image, key = _image(home)
    socket = f"{home}/l.sock"
    nbdkit = ["nbdkit", "-f", "-U", socket, "file", image, "--filter=luks", f"passphrase=+{key}"]
    qemu = ["qemu-nbd", "-t", "-e", "16", "-k", socket, "--object", f"secret,id=s,file={key}",
            "--image-opts", f"driver=luks,key-secret=s,file.filename={image}"]  # fmt: skip
    ours = [*NBDFS, "serve", f"luks,passphrase=+{key}::{image}", "-U", socket]
    systems = {
        "nbdkit": System(over(nbdkit, socket), ["nbdkit", "nbdcopy"]),
        "qemu-nbd": System(over(qemu, socket), ["qemu-nbd"]),
        "nbdfs": System(over(ours, socket), [NBDFS[0]]),
    }
    work: Mapping[str, Work] = {
        "nbdcopy to null [MB/s]": whole(_SIZE),
        "randread 4k qd16 [IOPS]": on_uri(iops, size=_SIZE, rw="randread", bs="4k", iodepth=16),
        "randwrite 4k qd16 [IOPS]": on_uri(iops, size=_SIZE, rw="randwrite", bs="4k", iodepth=16),
        "seqwrite 256k qd8 [MB/s]": on_uri(mbps, size=_SIZE, rw="write", bs="256k", iodepth=8),
    }
    return Job("A LUKS1 image decrypted and served over NBD", systems, work)
