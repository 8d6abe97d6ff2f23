"""The stacks of docs/stacks.md, run as they are written there, in a network that ends at this process's loopback."""

from __future__ import annotations

import hashlib
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import trustme

from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "stacks.md").read_text()
STACKS = dict(re.findall(r"^## (.*?)\n.*?^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))

# What must hold afterwards, as shell commands.
CHECKS = {
    "A golden image on a web server, an overlay here": """
        test "$(dd if=disk.img bs=1 skip=8192 count=4 status=none)" = mine
        cmp -n 8192 disk.img golden.img; cmp -i 8197 disk.img golden.img
        cmp golden.img golden.orig; nbdfs umount disk.img; ! test -e disk.img""",
    "Try first, keep later": """
        cmp -i 12288:0 -n 5000 golden.img new.bin; cmp -n 12288 golden.img golden.orig
        cmp -i 17288 golden.img golden.orig""",
    "An encrypted image on someone else's web server": "cmp -n 8388608 plain.img golden.img; nbdfs umount plain.img",
    "The encrypted partition of a disk on a web server": "cmp -n 8388608 home.img golden.img; nbdfs umount home.img",
    "Boot from the network, with a cache": "grep -q booted console.txt; ls /var/cache/nbdfs/*.cache",
    "A qcow2 image, by a captive server": "! pgrep -x qemu-nbd",
    "A fleet on one torrent, an overlay each": """
        cmp fleet/one golden.img; cmp fleet/two golden.img
        echo different | dd of=fleet/one conv=notrunc status=none; ! cmp -s fleet/one fleet/two
        nbdfs umount fleet; cmp golden.img golden.orig""",
    "A look into one partition of a compressed image": """
        cmp data.img part.orig; ! sh -c ': >> data.img' 2>/dev/null || test $(stat -c %a data.img) = 400
        nbdfs umount data.img""",
    "The same over the network": "cmp copy.img part.orig",
    "A RAM disk loaded from a file": "cmp ram.img golden.img; nbdfs umount ram.img",
    "A small image made large": "cmp golden.img golden.orig",
    "A far disk with a write-back cache": "cmp -i 20480:0 -n 5000 far.img new.bin; nbdfs umount near.img",
    "A polite download": "cmp local.img golden.img",
    "A file system inside a firmware blob": "cmp part.img part.orig",
}
FAR_SERVER = """
        qemu-nbd -f raw -k $PWD/far.sock -t far.img &
        until nbdinfo --size "nbd+unix:///?socket=$PWD/far.sock" > /dev/null 2>&1; do sleep 0.05; done"""
SIZE = 8 << 20


def nginx(folder: Path) -> str:
    return f"""
        user root; pid {folder}/nginx.pid; error_log {folder}/error.log; worker_processes 1;
        events {{ }}
        http {{ access_log off; client_body_temp_path {folder}/body; server {{
            listen 80; listen 443 ssl; root {folder}/served;
            ssl_certificate {folder}/server.pem; ssl_certificate_key {folder}/server.pem; }} }}"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything the stacks name."""
    folder = tmp_path_factory.mktemp("stacks")
    served = folder / "served"
    served.mkdir()
    golden = random.Random(1).randbytes(SIZE)
    for name in "golden.img", "golden.orig", "served/golden.img", "far.img":
        (folder / name).write_bytes(golden)
    (folder / "new.bin").write_bytes(random.Random(2).randbytes(5000))
    (served / "bootable.img").write_bytes(boot_sector() + bytes(SIZE - 512))
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    authority.issue_cert("images.example").private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    (folder / "nginx.conf").write_text(nginx(folder))
    (folder / "hosts").write_text("127.0.0.1 localhost images.example\n")
    (folder / "key").write_text("a passphrase")
    (folder / "golden.torrent").write_bytes(torrent(golden))
    run = subprocess.run
    run(["qemu-img", "convert", "-O", "qcow2", folder / "golden.img", folder / "disk.qcow2"], check=True)
    encrypt(folder, golden)
    encrypted = (served / "encrypted.img").read_bytes()
    partitioned(served / "laptop.img", "home", encrypted)
    evidence = folder / "evidence.img"
    partitioned(evidence, "data", golden[: 1 << 20])
    (folder / "part.orig").write_bytes(golden[: 1 << 20])
    run(["xz", "-k", "-0", "--block-size=1MiB", evidence], check=True)
    return folder


def partitioned(path: Path, label: str, content: bytes) -> None:
    """A disk with the content in its first partition, and a second one behind it."""
    path.write_bytes(bytes(len(content) + (4 << 20)))
    script = f"label: gpt\nstart=2048, size={len(content) // 512}, name={label}\nsize=1M, name=other\n"
    subprocess.run(["sfdisk", "-q", path], input=script, text=True, check=True)
    with path.open("r+b") as file:
        file.seek(2048 * 512)
        file.write(content)


def boot_sector() -> bytes:
    """Code that prints `booted` on the serial line, then resets: lodsb, out 3f8h until zero, jmp ffff:0."""
    code = bytes.fromhex("31c0 8ed8 be1b7c fc baf803 ac 84c0 7403 ee ebf8 ea0000ffff")
    text_at = 0x7C00 + len(code)
    code = code.replace(b"\xbe\x1b\x7c", b"\xbe" + text_at.to_bytes(2, "little"))
    return (code + b"booted\r\n\0").ljust(510, b"\0") + b"\x55\xaa"


def encrypt(folder: Path, content: bytes) -> None:
    """A LUKS2 image of the content, by cryptsetup without a device: format, then encrypt in place."""
    image = folder / "served" / "encrypted.img"
    image.write_bytes(content + bytes(32 << 20))
    cheap = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--key-file", str(folder / "key")]
    command = [
        "cryptsetup",
        "reencrypt",
        "--encrypt",
        "--type",
        "luks2",
        "--reduce-device-size",
        "32M",
        "-q",
        *cheap,
        image,
    ]
    subprocess.run(command, check=True, capture_output=True)


def torrent(content: bytes) -> bytes:
    """A torrent of golden.img with the web server as its seed, bencoded by hand."""
    pieces = b"".join(hashlib.sha1(content[at : at + 65536]).digest() for at in range(0, len(content), 65536))
    info = b"d6:lengthi%de4:name10:golden.img12:piece lengthi65536e6:pieces%d:%se" % (len(content), len(pieces), pieces)
    seed = b"http://images.example/golden.img"
    return b"d4:info%s8:url-list%d:%se" % (info, len(seed), seed)


@pytest.mark.root
@pytest.mark.parametrize("name", STACKS)
def test_stack(name: str, prepared: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    subprocess.run(["cp", "-a", "--sparse=always", prepared, work], check=True)
    (work / "nginx.conf").write_text(nginx(work))
    (tmp_path / "cache").mkdir()
    script = f"""
        set -e
        ip link set lo up
        mount --bind hosts /etc/hosts
        mount --bind ../cache /var/cache
        nginx -c {work}/nginx.conf
        {FAR_SERVER if "far.sock" in STACKS[name] else ""}
        trap 'kill $(jobs -p) $(cat {work}/nginx.pid) 2>/dev/null || true' EXIT
        mkdir -p fleet
    """
    script += STACKS[name] + CHECKS[name]
    path = f"{Path(sys.executable).parent}:/usr/sbin:/sbin:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "SSL_CERT_FILE": f"{work}/ca.pem", "no_proxy": "*"}
    done = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "bash", "-c", script],
        cwd=work, env=environment, capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_stack_is_checked() -> None:
    assert list(CHECKS) == list(STACKS)
    assert len(STACKS) >= 12
