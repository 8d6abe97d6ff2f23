"""The server under TLS: libnbd and qemu judge; what is missing or wrong is told at start."""

from __future__ import annotations

import datetime
import ssl
import struct
from pathlib import Path

import pytest
import trustme

from nbdfs.nbd.proto import constants as nbd
from tests.certificates import certificates, write
from tests.interop.servers import Server, ask, greet, hung_up, raw, receive, request, run, serve, wait_for
from tests.tools import complaint, key_file

__all__ = ["certificates", "serve"]


def size(uri: str, certificates: Path, scheme: str = "nbds") -> str:
    """What nbdinfo says, going to `uri` by this scheme."""
    rest = uri.partition("+unix")[2]
    query = f"&tls-certificates={certificates}&tls-hostname=localhost" if scheme == "nbds" else ""
    return run("nbdinfo", "--size", f"{scheme}+unix{rest.partition('&')[0]}{query}", check=False).strip()


@pytest.mark.parametrize(("mode", "in_the_clear"), [("on", str(1 << 20)), ("require", "")])
def test_modes(serve: Server, certificates: Path, mode: str, in_the_clear: str) -> None:
    uri = serve("memory:1M", "--tls", mode, "--tls-certificates", str(certificates)).uri
    assert size(uri, certificates) == str(1 << 20)
    assert size(uri, certificates, "nbd") == in_the_clear


def test_data_under_tls(serve: Server, certificates: Path, tmp_path: Path) -> None:
    listen = f"nbds://localhost:0/?tls-certificates={certificates}"
    uri = serve("memory:16M", where=("--listen", listen)).uri
    image, back = tmp_path / "image", tmp_path / "back"
    image.write_bytes(bytes(range(256)) * (16 << 12))
    inside = f"{uri.partition('?')[0]}?tls-certificates={certificates}"
    run("nbdcopy", str(image), inside)
    run("nbdcopy", inside, str(back))
    assert back.read_bytes() == image.read_bytes()


def test_client_must_have_a_certificate(serve: Server, certificates: Path, tmp_path: Path) -> None:
    uri = serve("memory:1M", "--tls", "require", "--tls-certificates", str(certificates), "--tls-verify-peer").uri
    assert size(uri, certificates) == str(1 << 20)
    (tmp_path / "ca-cert.pem").write_bytes((certificates / "ca-cert.pem").read_bytes())
    assert size(uri, tmp_path) == ""


def test_data_in_the_clear_after_tls_was_agreed_on_is_refused(serve: Server, certificates: Path) -> None:
    serving = serve("memory:1M", "--tls", "on", "--tls-certificates", str(certificates))
    with raw(serving) as sock:
        receive(sock, 18)
        listing = struct.pack(">QII", nbd.OPTION_MAGIC, nbd.OPT_LIST, 0)
        sock.sendall(struct.pack(">IQII", 3, nbd.OPTION_MAGIC, nbd.OPT_STARTTLS, 0) + listing)
        assert hung_up(sock)
    wait_for(lambda: "in the clear" in serving.logged(), "not refused")


@pytest.mark.parametrize("words", [("serve",), ("compat", "nbdkit", "-f")], ids=" ".join)
def test_pre_shared_keys_need_a_newer_python(serve: Server, words: tuple[str, ...], tmp_path: Path) -> None:
    keys = key_file(tmp_path / "keys", b"alice:00112233445566778899aabbccddeeff")
    place = ("-U", str(tmp_path / "s"), "--tls=require", f"--tls-psk={keys}")
    if hasattr(ssl.SSLContext, "set_psk_server_callback"):
        serve("memory:1M", where=place)
        query = f"socket={tmp_path}/s&tls-psk-file={keys}"
        assert run("nbdinfo", "--size", f"nbds+unix://alice@/?{query}").strip() == str(1 << 20)
    else:
        source = ("memory", "1M") if "nbdkit" in words else ("memory:1M",)
        assert "needs Python 3.13 or newer: use certificates" in complaint(*words, *place, *source)
        assert not (tmp_path / "s").exists()


def test_certificate_that_is_missing_or_expired(tmp_path: Path) -> None:
    words = ("serve", "memory:1M", "-U", tmp_path / "s", "--tls", "on", "--tls-certificates", tmp_path)
    assert "server-cert.pem is missing" in complaint(*words)
    past = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    write(tmp_path, "server", trustme.CA().issue_cert("localhost", not_after=past))
    assert "expired" in complaint(*words)
    (tmp_path / "server-cert.pem").write_text("junk")
    assert complaint(*words).endswith("server-key.pem: this is not PEM")


def test_hanging_up_with_replies_on_their_way(serve: Server, certificates: Path) -> None:
    serving = serve("delay,read=1ms::memory:64M", "--tls", "require", "--tls-certificates", str(certificates))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(certificates / "ca-cert.pem")
    with raw(serving) as plain:
        greet(plain)
        ask(plain, nbd.OPT_STARTTLS)
        with context.wrap_socket(plain, server_hostname="localhost") as sock:
            sock.sendall(struct.pack(">QII", nbd.OPTION_MAGIC, nbd.OPT_EXPORT_NAME, 0))
            receive(sock, 10)
            sock.sendall(request(nbd.CMD_READ, 0, 16 << 20) * 20)
            receive(sock, 16)
    wait_for(lambda: ": lost: TLS: the other end hung up" in serving.logged(), "no line in the log")


def test_a_key_with_a_pass_phrase_is_not_asked_for_it(tmp_path: Path) -> None:
    write(tmp_path, "server", trustme.CA().issue_cert("localhost"))
    key, plain = tmp_path / "server-key.pem", tmp_path / "plain.pem"
    key.rename(plain)
    run("openssl", "pkey", "-in", str(plain), "-out", str(key), "-aes256", "-passout", "pass:secret")
    line = complaint("serve", "memory:1M", "-U", tmp_path / "s", "--tls", "on", "--tls-certificates", tmp_path)
    assert line.startswith(f"nbdfs: TLS: {key} needs a pass phrase")


def test_a_key_that_others_may_read_is_warned_of(serve: Server, tmp_path: Path) -> None:
    write(tmp_path, "server", trustme.CA().issue_cert("localhost"))
    key = tmp_path / "server-key.pem"
    words = ("memory:1M", "--tls", "on", "--tls-certificates", str(tmp_path))
    serving = serve(*words)
    assert serving.stop() == 0
    assert "other users" not in serving.logged()
    key.chmod(0o644)
    serving = serve(*words)
    assert serving.stop() == 0
    assert serving.logged().count(f"other users may read the key file {key}: chmod 600 {key}") == 1
