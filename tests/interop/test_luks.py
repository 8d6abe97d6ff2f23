"""LUKS with other programs as judges: cryptsetup and qemu-img make, read and check what we make, read and check."""

from __future__ import annotations

import hashlib
import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nbdfs.cli.main import main
from nbdfs.errors import UserError
from nbdfs.source import Caps, read
from nbdfs.stack import open_stack
from tests.tools import command, complaint, key_file, luks_by_qemu, nbdfs

SIZE = 2 << 20  # bytes of data
CONTENT = hashlib.shake_128(b"luks").digest(SIZE)
PASSPHRASE = b"with NUL \0 and newline\n"
QUICK = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]

QEMU = [  # without AES-192, on which this qemu-img aborts
    ("aes-256", "xts", "plain64", ""),
    ("aes-128", "xts", "plain", ""),
    ("aes-256", "cbc", "essiv", "sha256"),
    ("aes-128", "cbc", "plain64", ""),
    ("aes-256", "ecb", "plain", ""),
]
CRYPTSETUP = [
    ("luks1", "aes-xts-plain64", 256, 512, []),
    ("luks1", "aes-cbc-plain64be", 128, 512, []),
    ("luks1", "aes-cbc-essiv:sha256", 256, 512, ["--hash", "ripemd160"]),
    ("luks2", "aes-xts-plain64", 512, 512, []),
    ("luks2", "aes-xts-plain64", 512, 1024, []),
    ("luks2", "aes-xts-plain64", 512, 2048, []),
    ("luks2", "aes-xts-plain64", 512, 4096, []),
    ("luks2", "aes-cbc-essiv:sha256", 256, 4096, ["--hash", "sha3-256"]),
]


@pytest.fixture
def key(tmp_path: Path) -> Path:
    return key_file(tmp_path / "key", PASSPHRASE)


def cryptsetup(*words: str | Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["cryptsetup", "-q", *words], check=True, capture_output=True)


def qemu_image(image: Path, key: Path) -> list[str]:
    return [f"driver=luks,key-secret=s,file.filename={image}", "--object", f"secret,id=s,file={key}"]


@pytest.mark.parametrize(("cipher", "mode", "iv", "iv_hash"), QEMU)
async def test_qemu(cipher: str, mode: str, iv: str, iv_hash: str, tmp_path: Path, key: Path) -> None:
    """Made and filled by qemu, read and overwritten here, read by qemu."""
    image, plain = tmp_path / "image", tmp_path / "plain"
    key.write_bytes(b"qemu takes text")
    options = f",cipher-alg={cipher},cipher-mode={mode},ivgen-alg={iv}"
    options += f",ivgen-hash-alg={iv_hash}" if iv_hash else ""
    luks_by_qemu(image, key, SIZE, options=options)
    secret = ["--object", f"secret,id=s,file={key}"]
    plain.write_bytes(CONTENT)
    convert = ["qemu-img", "convert", "-n", *secret]
    subprocess.run([*convert, "-f", "raw", plain, "--target-image-opts", qemu_image(image, key)[0]], check=True)
    async with open_stack(f"luks,passphrase=+{key}::{image}") as source:
        assert await read(source, 0, SIZE) == CONTENT
        await source.pwrite(memoryview(CONTENT)[7:300_007], 1001)  # neither end at a sector
        await source.flush()
    subprocess.run(["qemu-img", "convert", *secret, "--image-opts", qemu_image(image, key)[0], "-O", "raw", plain],
                   check=True)  # fmt: skip
    assert plain.read_bytes() == CONTENT[:1001] + CONTENT[7:300_007] + CONTENT[301_001:]


@pytest.mark.parametrize(("kind", "cipher", "bits", "sector", "more"), CRYPTSETUP)
async def test_made_by_cryptsetup(
    kind: str, cipher: str, bits: int, sector: int, more: list[str], tmp_path: Path, key: Path
) -> None:
    """The key that cryptsetup shows is the one we find, and the sectors are those of that key."""
    image, volume_key = tmp_path / "image", tmp_path / "volume-key"
    image.write_bytes(bytes((17 << 20) + SIZE))
    sectors = ["--sector-size", str(sector)] if kind == "luks2" else []
    cryptsetup("luksFormat", "--type", kind, "-c", cipher, "-s", str(bits), *sectors, *QUICK, *more, image, key)
    async with open_stack(f"luks,passphrase=+{key}::{image}") as source:
        await source.pwrite(memoryview(CONTENT), 0)
    cryptsetup("luksDump", "--dump-volume-key", "--volume-key-file", volume_key, "--key-file", key, image)
    assert len(volume_key.read_bytes()) * 8 == bits
    async with open_stack(f"luks,master-key=+{volume_key}::{image}", readonly=True) as source:
        assert await read(source, 0, SIZE) == CONTENT
    assert CONTENT[:512] not in image.read_bytes()
    with pytest.raises(UserError, match="not the volume key"):
        async with open_stack(f"luks,master-key=+{key}::{image}"):
            pass


@pytest.mark.parametrize("kdf", ["argon2i", "argon2id"])
async def test_argon2_of_cryptsetup(kdf: str, tmp_path: Path, key: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(18 << 20))
    cryptsetup("luksFormat", "--pbkdf", kdf, "--pbkdf-force-iterations", "4", "--pbkdf-memory", "32768",
               "--pbkdf-parallel", "2", image, key)  # fmt: skip
    async with open_stack(f"luks,passphrase=+{key}::{image}") as source:
        assert source.info.size == 2 << 20
    for limit in ("pbkdf-memory-limit=16M", f"pbkdf-cost-limit={4 * 32768}"):  # the key slot costs all of that
        with pytest.raises(UserError, match=f"raise {limit.partition('=')[0]} if you trust"):
            async with open_stack(f"luks,{limit},passphrase=+{key}::{image}"):
                pass


FORMATS = [["--type", "luks1"], ["--type", "luks2"], ["--type", "luks2", "--sector-size", "4k"],
           ["--type", "luks1", "--cipher", "aes-cbc-essiv:sha256", "--key-size", "256"],
           ["--type", "luks2", "--pbkdf", "pbkdf2"]]  # fmt: skip


@pytest.mark.parametrize("words", FORMATS, ids=" ".join)
def test_keys_as_cryptsetup_sees_them(words: list[str], tmp_path: Path, key: Path) -> None:
    """Each step of ours leaves what cryptsetup opens, with the keys there shall be and no other."""
    image = tmp_path / "image"
    other, third = (key_file(tmp_path / name, name.encode()) for name in ("other", "third"))
    image.write_bytes(bytes(18 << 20))

    def opening() -> list[Path]:
        tries = [(path, ["cryptsetup", "open", "--test-passphrase", "-d", path, image]) for path in (key, other, third)]
        return [path for path, words in tries if subprocess.run(words, capture_output=True).returncode == 0]

    effort = ["--iter-time", "10ms"]
    nbdfs("luks", "format", *words, *effort, "--passphrase", f"+{key}", image)
    assert opening() == [key]
    nbdfs("luks", "add-key", *effort, "--passphrase", f"+{key}", "--new-passphrase", f"+{other}", image)
    assert opening() == [key, other]
    nbdfs("luks", "change-key", *effort, "--passphrase", f"+{key}", "--new-passphrase", f"+{third}", image)
    assert opening() == [other, third]
    nbdfs("luks", "remove-key", "--passphrase", f"+{other}", image)
    assert opening() == [third]
    assert "last key slot" in complaint("luks", "remove-key", "--passphrase", f"+{third}", image)
    assert opening() == [third]
    assert subprocess.run(["cryptsetup", "repair", "-q", image], capture_output=True).returncode == 0


@pytest.mark.parametrize("version", ["luks1", "luks2"])
@pytest.mark.parametrize("name", ["SHA512", "sha3_256", "sha512_256", "blake2b", "blake2s", "ripemd160"])
def test_a_hash_has_the_name_in_the_header_that_cryptsetup_knows(
    version: str, name: str, tmp_path: Path, key: Path
) -> None:
    image, other = tmp_path / "image", key_file(tmp_path / "other", b"other")
    image.write_bytes(bytes(18 << 20))
    effort = ["--hash", name, "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]
    nbdfs("luks", "format", "--type", version, *effort, "--passphrase", f"+{key}", image)
    nbdfs("luks", "add-key", *effort, "--passphrase", f"+{key}", "--new-passphrase", f"+{other}", image)
    for path in key, other:
        cryptsetup("open", "--test-passphrase", "-d", path, image)


def test_the_hash_of_essiv_has_the_name_that_the_kernel_knows(tmp_path: Path, key: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(18 << 20))
    cipher = ["--cipher", "aes-cbc-essiv:blake2s", "--key-size", "256"]
    effort = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]
    nbdfs("luks", "format", *cipher, *effort, "--passphrase", f"+{key}", image)
    assert b"aes-cbc-essiv:blake2s-256\n" in cryptsetup("luksDump", image).stdout


def test_a_hash_that_no_header_can_have_is_refused(tmp_path: Path, key: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(18 << 20))
    new = ["--passphrase", f"+{key}", image]
    assert "no hash of less than 20 bytes" in complaint("luks", "format", "--type", "luks1", "--hash", "md5", *new)
    nbdfs("luks", "format", "--iter-time", "10ms", *new)
    before = image.read_bytes()
    for name in "shake_128", "nosuch":
        for action in "add-key", "change-key":
            assert "is not supported" in complaint("luks", action, "--hash", name, "--new-passphrase", f"+{key}", *new)
    assert image.read_bytes() == before


@pytest.mark.parametrize("form", ["{{{}}}", "urn:uuid:{}", "{}"])
def test_a_uuid_is_written_in_one_form(form: str, tmp_path: Path, key: Path) -> None:
    image, known = tmp_path / "image", "12345678-90ab-cdef-1234-567890abcdef"
    image.write_bytes(bytes(18 << 20))
    words = ["--iter-time", "10ms", "--uuid", form.format(known.upper()), "--passphrase", f"+{key}", image]
    nbdfs("luks", "format", *words)
    assert cryptsetup("luksUUID", image).stdout.decode().strip() == known


def test_the_last_key_stays_although_an_unbound_one_is_there(tmp_path: Path, key: Path) -> None:
    """An unbound key slot opens a key of its own, no data."""
    image, other = tmp_path / "image", key_file(tmp_path / "other", b"other")
    image.write_bytes(bytes(18 << 20))
    cryptsetup("luksFormat", *QUICK, image, key)
    cryptsetup("luksAddKey", "--unbound", "--key-size", "512", *QUICK, image, other)
    assert "last key slot" in complaint("luks", "remove-key", "--passphrase", f"+{key}", image)
    cryptsetup("open", "--test-passphrase", "-d", key, image)
    nbdfs("luks", "remove-key", "--passphrase", f"+{key}", "--keyslot", "1", image)


@pytest.mark.parametrize("answers", [["new", "new"], ["new", "knew"]])
def test_a_new_passphrase_is_typed_twice(
    answers: list[str], tmp_path: Path, key: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image, new = tmp_path / "image", key_file(tmp_path / "new", b"new")
    image.write_bytes(bytes(18 << 20))
    cryptsetup("luksFormat", *QUICK, image, key)
    before = image.read_bytes()
    typed = iter(answers)
    monkeypatch.setattr("getpass.getpass", lambda prompt: next(typed))
    words = ["luks", "add-key", "--passphrase", f"+{key}", "--pbkdf", "pbkdf2", "--iter-time", "10ms", str(image)]
    if answers[0] == answers[1]:
        assert main(words) == 0
        cryptsetup("open", "--test-passphrase", "-d", new, image)
    else:
        assert main(words) == 1
        assert "differ" in capsys.readouterr().err
        assert image.read_bytes() == before


def test_a_wrong_passphrase_is_one_line_and_writes_nothing(tmp_path: Path, key: Path) -> None:
    image = tmp_path / "image"
    other = key_file(tmp_path / "other", PASSPHRASE.rstrip(b"\n"))  # taken whole: without its newline it is another one
    image.write_bytes(bytes(18 << 20))
    nbdfs("luks", "format", "--pbkdf", "pbkdf2", "--iter-time", "10ms", "--passphrase", f"+{key}", image)
    before = image.read_bytes()
    line = complaint("luks", "add-key", "--passphrase", f"+{other}", "--new-passphrase", f"+{other}", image)
    assert line == "nbdfs: no key slot opens with this passphrase"
    assert (
        complaint("dump", f"luks,passphrase=+{other}::{image}") == "nbdfs: luks: no key slot opens with this passphrase"
    )
    assert "--force" in complaint("luks", "format", "--passphrase", f"+{other}", image)
    assert image.read_bytes() == before


def test_info_shows_what_cryptsetup_made_and_no_secret(tmp_path: Path, key: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(18 << 20))
    cryptsetup("luksFormat", "--label", "my disk", *QUICK, "--sector-size", "4096", image, key)
    facts = json.loads(nbdfs("luks", "info", "--json", image).stdout)
    assert facts["label"] == "my disk"
    assert facts["uuid"] == cryptsetup("luksUUID", image).stdout.decode().strip()
    assert facts["segments"]["0"] == {
        "offset": 16 << 20, "size": "dynamic", "cipher": "aes-xts-plain64", "sector_size": 4096, "iv_tweak": 0,
    }  # fmt: skip
    assert facts["keyslots"]["0"]["kdf"] == {"type": "pbkdf2", "hash": "sha256", "iterations": 1000}
    assert "salt" not in str(facts)
    text = nbdfs("luks", "info", image).stdout.decode()
    assert "label: my disk" in text
    assert "no LUKS header" in complaint("luks", "info", key)


def test_a_wrong_passphrase_is_asked_for_once(tmp_path: Path, key: Path) -> None:
    """Also where what cannot be opened for writing would be opened again."""
    image = tmp_path / "image"
    image.write_bytes(bytes(18 << 20))
    cryptsetup("luksFormat", *QUICK, image, key)
    assert "no key slot opens" in complaint("info", f"luks,passphrase=-0::{image}", stdin=b"wrong")


async def test_keyfile_offset_and_size_as_cryptsetup_has_them(tmp_path: Path, key: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(18 << 20))
    cryptsetup("luksFormat", *QUICK, "--keyfile-offset", "5", "--keyfile-size", "10", image, key)
    options = "keyfile-offset=5,keyfile-size=10"
    async with open_stack(f"luks,passphrase=+{key},{options}::{image}") as source:
        assert source.info.size == 2 << 20
    with pytest.raises(UserError, match="key file ends"):
        async with open_stack(f"luks,passphrase=+{key},keyfile-offset=100::{image}"):
            pass


async def test_discards_pass_only_when_allowed(tmp_path: Path, key: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(18 << 20))
    cryptsetup("luksFormat", *QUICK, image, key)
    spec = f"passphrase=+{key}::{image}"
    async with open_stack(f"luks,{spec}", debug=True) as source:
        assert not source.info.caps & (Caps.TRIM | Caps.EXTENTS)
        assert [extent.flags for extent in await source.extents(0, 1 << 20)] == [0]
    async with open_stack(f"luks,allow-discards,{spec}", debug=True) as source:
        await source.pwrite(memoryview(CONTENT[: 1 << 20]), 0)
        await source.trim(0, 1 << 20)
        assert {extent.flags for extent in await source.extents(0, 1 << 20)} <= {0, 1}  # a hole, but not zeroes
    assert image.stat().st_blocks * 512 < 18 << 20


async def test_a_partition_by_offset(tmp_path: Path, key: Path) -> None:
    image, disk = tmp_path / "image", tmp_path / "disk"
    image.write_bytes(bytes(18 << 20))
    cryptsetup("luksFormat", *QUICK, image, key)
    disk.write_bytes(bytes(1 << 20) + image.read_bytes())
    async with open_stack(f"luks,offset=1M,passphrase=+{key}::{disk}") as source:
        await source.pwrite(memoryview(CONTENT), 0)
    image.write_bytes(disk.read_bytes()[1 << 20 :])
    async with open_stack(f"luks,passphrase=+{key}::{image}") as source:
        assert await read(source, 0, SIZE) == CONTENT


@contextmanager
def nbd_server(image: Path, sock: Path) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["nbdkit", "-f", "-U", sock, "file", image], stderr=subprocess.DEVNULL) as server:
        try:
            while not _listens(sock):
                assert server.poll() is None
                time.sleep(0.02)
            yield server
        finally:
            server.kill()


def _listens(sock: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(sock)) == 0


async def test_over_nbd_whose_server_is_killed_and_started_again(tmp_path: Path, key: Path) -> None:
    image, sock = tmp_path / "image", tmp_path / "sock"
    image.write_bytes(bytes(18 << 20))
    cryptsetup("luksFormat", *QUICK, image, key)
    with nbd_server(image, sock) as server:
        async with open_stack(f"luks,passphrase=+{key}::nbd+unix:///?socket={sock}") as source:
            await source.pwrite(memoryview(CONTENT[: 1 << 20]), 0)
            await source.flush()
            server.send_signal(signal.SIGKILL)
            server.wait()
            sock.unlink()
            with nbd_server(image, sock):
                await source.pwrite(memoryview(CONTENT[1 << 20 :]), 1 << 20)
                assert await read(source, 0, SIZE) == CONTENT


def test_served_to_qemu_with_one_derivation(tmp_path: Path, key: Path) -> None:
    """Several clients at once get the plain text; what they write is on the disk encrypted."""
    image, sock, plain = tmp_path / "image", tmp_path / "sock", tmp_path / "plain"
    image.write_bytes(bytes(18 << 20))
    cryptsetup("luksFormat", *QUICK, image, key)
    plain.write_bytes(CONTENT)
    with subprocess.Popen(command("serve", f"luks,passphrase=+{key}::{image}", "-U", sock)) as server:
        while not sock.exists() or not _listens(sock):
            assert server.poll() is None
            time.sleep(0.02)
        uri = f"nbd+unix:///?socket={sock}"
        subprocess.run(["nbdcopy", plain, uri], check=True)
        readers = [subprocess.Popen(["nbdcopy", uri, "-"], stdout=subprocess.PIPE) for _ in range(3)]
        assert [reader.communicate()[0] for reader in readers] == [CONTENT] * 3
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
    assert CONTENT[:512] not in image.read_bytes()
