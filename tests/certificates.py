"""Certificates of an authority that lives for the tests only."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme


def write(folder: Path, role: str, certificate: trustme.LeafCert) -> None:
    """Write a certificate and its key as the programs of NBD look for them."""
    key = folder / f"{role}-key.pem"
    certificate.private_key_pem.write_to_path(str(key))
    key.chmod(0o600)
    (folder / f"{role}-cert.pem").write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority, and a server (localhost, server.example) and a client that it knows."""
    folder = tmp_path_factory.mktemp("pki")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca-cert.pem"))
    for role in ("server", "client"):
        write(folder, role, authority.issue_cert("localhost", "server.example"))
    return folder
