"""The LUKS images of the corpus, unpacked, with what its manifest says of each."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import tarfile
from dataclasses import dataclass
from pathlib import Path

from nbdfs.source import read
from nbdfs.stack import open_stack

KEYFILE = "keyfile1"  # of cryptsetup's own images


@dataclass(frozen=True)
class Image:
    """An image, what opens it, and either the digest of its content or a word of the refusal."""

    name: str
    passphrase: str
    sha256: str = ""
    refusal: str = ""
    options: str = ""

    def __str__(self) -> str:
        return self.name + self.options


_D12 = "b6774aec1860ef1e4dbc7c10851c7864d3d8660430a7ce3946c3f7732d87c506"
_D14 = "5993888cb3b4d381c7f1d608ac0415df357bb0309d8523c706091a1cf854bc80"
_FVE = "9a62d6c7b90b4ff89818c67f5b5fb93f6b11d80a26b64cb04d4c33309c63025d"
EMPTY = hashlib.sha256().hexdigest()

VOLUMES = [
    Image("d01-l1-aes-xts512-sha256.img", "correct horse battery",
          "552b33b1a8d5fd8e014270308b9fa4be91c92dfa6e57bf1ffc94be40295ddd85"),
    Image("d02-l1-aes-cbc-essiv-sha1-slot3.img", "third slot only",
          "c7b44f571c082c537d68c0dcb2a88e8d9d364a31e4db8fec8c09f56656840535"),
    Image("d03-l1-serpent-xts-sha512.img", "serpent", refusal="serpent"),
    Image("d04-l1-twofish-cbc-plain64-ripemd160.img", "twofish", refusal="twofish"),
    Image("d05-l1-aes-cbc-plain-whirlpool.img", "whirl", refusal="whirlpool"),
    Image("d06-l1-aes-xts-plain-sha256.img", "plain32",
          "a474b0fbe56b54e85a9c248ac86e622bd36d80905d0b50fe59fe92ac005fb66f"),
    Image("d07-l1-detached.img", "detached one",
          "568955c576eeebb920ea5accf327210e6ea2445188c0d2556c17d6052d873a61",
          options=",header={folder}/d07-l1-detached.hdr"),
    Image("d07-l1-detached.hdr", "detached one", refusal="header="),
    Image("d08-l1-aes-cbc-benbi-sha1.img", "benbi",
          "32c2ed05674fba66ceb25b7b8f5dd9d6457400a30d2a0199b6d1da1dae558707"),
    Image("d10-l2-aes-xts256-argon2id-4096.img", "four thousand",
          "ebcf6a02c6c64ea03a61b52189c8465b6fd11520c2f002f1d32e3db7cd200852"),
    Image("d11-l2-aes-xts512-argon2i-p4.img", "four lanes",
          "2e4bffd152919a20f847eb29d4b7a13c8e73e471143894ad895f8981cd8f4c85"),
    Image("d12-l2-aes-cbc-essiv-pbkdf2-sha512.img", "essiv512", _D12),
    Image("d13-l2-serpent-xts-pbkdf2-1024.img", "snake", refusal="serpent"),
    Image("d14-l2-multi.img", "alpha", _D14),
    Image("d14-l2-multi.img", "beta", refusal="no key slot opens"),  # its slot is to be ignored
    Image("d14-l2-multi.img", "beta", _D14, options=",keyslot=1"),
    Image("d14-l2-multi.img", "alpha", refusal="no key slot opens", options=",keyslot=1"),
    Image("d14-l2-multi.img", "alpha", refusal="key slot 7", options=",keyslot=7"),
    Image("d14-l2-multi.img", "+d14.key", _D14),
    Image("d15-l2-detached-offset.img", "detached two",
          "61c5e784353345c143edc5057a11f462663d2a893e892a5a2849759ae4fdc505",
          options=",header={folder}/d15-l2-detached-offset.hdr"),
    Image("d16-l2-primary-json-flipped.img", "essiv512", _D12),
    Image("d17-l2-primary-wiped.img", "essiv512", _D12),
    Image("d18-l2-integrity-hmac.img", "integrity one", refusal="integrity"),
    Image("d19-l2-secondary-newer.img", "essiv512", _D12),
    Image("d20-l2-reencrypt-init.img", "reenc one", refusal="online-reencrypt"),
    Image("d21-l2-reencrypt-midway.img", "reenc two", refusal="online-reencrypt"),
    Image("d23-l2-both-checksums-bad.img", "essiv512", refusal="checksum"),
    Image("d24-l2-cipher-null.img", "null", refusal="nothing is encrypted"),
    Image("d26-l2-fixed-size.img", "essiv512", "317112f603e65d5bef6b4dc5279cae26ed92ad666131868c87ea0fb96a46263c"),
    Image("d27-l2-default-layout-xts512.img", "default layout",
          "71c941fb652e91a1f9b7493dd988c16c5df7bf09e3fd4f772972c92c84209e16"),
    Image("d28-l2-aes-cbc-essiv-4096.img", "essiv4096",
          "430674a5ab01069a80fdfa60002e591b55c58bbbc45699ea23cdbeea34e796c9"),
    Image("luks1_aes-xts-plain64-sha1.img", f"+{KEYFILE}",
          "f1c9268181840ccff69d719b9c592fc1e97c59d707e14cc12cc7288dca37e751"),
    Image("luks1_aes-cbc-essiv-sha256-sha1.img", f"+{KEYFILE}",
          "15898285e6c9ad576729cc01e5a557ebddfe562ea855bae0a2aba4fb8439eb1a"),
    Image("luks1_aes-xts-plain64-whirlpool.img", f"+{KEYFILE}", refusal="whirlpool"),
    Image("luks1_serpent-xts-plain64-sha1.img", f"+{KEYFILE}", refusal="serpent"),
    Image("luks1_twofish-xts-plain64-sha256.img", f"+{KEYFILE}", refusal="twofish"),
    Image("luks1_aes-lrw-plain64-sha1.img", f"+{KEYFILE}", refusal="lrw"),
    Image("compatimage2.img", "compatkey", "38ef2d1b8c387efb50680e1d3f234f170d2b7b6c6d9eb856b4f426543a6c4ef2"),
    Image("luks2_header_requirements", "blablabl", refusal="req0, req1"),
    Image("luks2_header_requirements_free", "blablabl", EMPTY),
    Image("luks2_invalid_cipher.img", "93R4P4pIqAH8", refusal="capi"),
    Image("luks2_valid_hdr.img", "unknown", refusal="no key slot"),
    Image("evil_hdr-keyslot_overlap", "unknown", refusal="overlaps"),
    Image("evil_hdr-payload_overwrite", "unknown", refusal="in the data"),
    Image("evil_hdr-small_luks_device", "unknown", refusal="device"),
    Image("fve-luks2-aes-xts-plain64.bin", "password", _FVE),
    Image("fve-luks2-aes-xts-plain64.bin", "password", refusal="memory-limit", options=",pbkdf-memory-limit=256M"),
    Image("fve-luks2-aes-ecb-pbkdf2.bin", "password", _FVE),
]  # fmt: skip

HOSTILE = {
    "adiantum-declared": "adiantum", "area-beyond-eof": "area", "area-size-zero": "area is empty",
    "argon2-cpus-huge": "memory", "argon2-mem-4TiB": "memory", "argon2-time-max": "costs", "capi-declared": "capi",
    "csum-alg-unknown": "crc32", "digest-iter-max": "costs", "encryption-path-traversal": "passwd",
    "hdr-size-2pow63": "9223372036854775808", "hdr-size-4MiB-truncated-file": "cut off", "hw-opal-segment": "opal",
    "json-depth-2900": "deeply", "json-duplicate-keys": "twice", "json-int-5000-digits": "cannot be read",
    "json-nan": "NaN", "key-size-2G": "key_size", "l1-cut-100": "cut off", "l1-cut-591": "cut off",
    "l1-cut-592": "device has only", "l1-cut-6": "no LUKS header", "l1-cut-mid-keyslot": "device has only",
    "l1-hash-unknown": "md4", "l1-iterations-max": "costs", "l1-keybytes-2G": "2147483647",
    "l1-mode-unknown": "plain65", "l1-payload-beyond-eof": "ends at", "l1-slot-offset-beyond-eof": "ends at",
    "l1-slot-state-garbage": "neither enabled nor disabled", "l1-stripes-max": "stripes", "pbkdf2-iter-max": "costs",
    "salt-not-base64": "base64", "sector-size-8192": "sector_size", "sector-size-zero": "sector_size",
    "segment-beyond-eof": "ends at", "segment-negative": "offset", "segment-unaligned": "sector",
    "stripes-2G": "stripes", "stripes-zero": "stripes", "unknown-requirement": "from-the-future",
    "version-3": "version 3",
}  # fmt: skip


def unpack(corpus: Path, folder: Path) -> None:
    """Put every image into the folder."""
    for packed in (corpus / "luks").iterdir():
        if packed.name.endswith(".tar.xz"):
            with tarfile.open(packed) as archive:
                for member in archive:
                    content = archive.extractfile(member)
                    if content:
                        (folder / Path(member.name).name).write_bytes(content.read())
        elif packed.suffix in (".xz", ".gz"):
            opener = lzma.open if packed.suffix == ".xz" else gzip.open
            with opener(packed) as file:
                (folder / packed.stem).write_bytes(file.read())


def spec(image: Image, folder: Path) -> str:
    """The stack that decrypts the image."""
    passphrase = f"+{folder}/{image.passphrase[1:]}" if image.passphrase.startswith("+") else image.passphrase
    return f"luks,passphrase={passphrase}{image.options.format(folder=folder)}::{folder}/{image.name}"


async def digest(stack: str) -> str:
    """The SHA-256 of the whole content."""
    async with open_stack(stack, readonly=True, debug=True) as source:
        return hashlib.sha256(await read(source, 0, source.info.size)).hexdigest()
