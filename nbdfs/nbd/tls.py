"""TLS contexts for both ends of a connection.

A folder of certificates holds, under the names that nbdkit, libnbd and qemu use too:

    ca-cert.pem                        whom to trust (a client without it trusts the system's authorities)
    server-cert.pem, server-key.pem    who the server is
    client-cert.pem, client-key.pem    who the client is, if the server asks

NBD protocol, "TLS versions": at least TLS 1.2.  Pre-shared keys (lines of `username:key in hex`) need Python 3.13.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pwd
import ssl
import sys
from collections.abc import Mapping

from nbdfs.errors import UsageError, UserError, reason
from nbdfs.nbd.uri import TlsOptions
from nbdfs.secret import exposed_file

log = logging.getLogger(__name__)

# Where nbdkit and libnbd look if no folder is named.
_USUAL_FOLDERS = ("~/.pki/libnbd", "~/.config/pki/libnbd", "/etc/pki/libnbd")
_PSK_CIPHERS = "PSK+HIGH:DHEPSK+HIGH:ECDHEPSK+HIGH"


def client_context(options: TlsOptions) -> ssl.SSLContext:
    """The context of a client.  Raises UserError for a file that is missing or makes no sense."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if options.psk_file:
        _use_psk(context, options.psk_file, options.username)
        return context
    folder = options.certificates or _usual_folder()
    if not options.verify_peer:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif folder and os.path.exists(os.path.join(folder, "ca-cert.pem")):
        _trust(context, folder)
    elif options.certificates:
        raise UserError(f"TLS: {folder}/ca-cert.pem is missing: it says which servers to trust")
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    if folder and os.path.exists(os.path.join(folder, "client-cert.pem")):
        _identify(context, folder, "client")
    return context


def server_context(folder: str = "", psk_file: str = "", *, verify_peer: bool = False) -> ssl.SSLContext:
    """The context of a server; with `verify_peer` a client must have a certificate that ca-cert.pem signed."""
    if psk_file and (folder or verify_peer):
        raise UsageError("pre-shared keys take the place of certificates: --tls-psk goes with nothing about those")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if psk_file:
        _serve_psk(context, psk_file)
        return context
    if not folder:
        raise UserError("TLS needs --tls-certificates DIR, a folder with server-cert.pem and server-key.pem")
    _identify(context, folder, "server")
    _check_dates(context, os.path.join(folder, "server-cert.pem"))
    if verify_peer:
        _trust(context, folder)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def explain(error: Exception) -> str:
    """What went wrong in a TLS handshake, in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLEOFError):
        return "the other end hung up"
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.lower().replace("_", " ")
    if isinstance(error, ssl.SSLError) and "PEM" in str(error):
        return "this is not PEM"
    return reason(error) or type(error).__name__


def _usual_folder() -> str:
    for folder in map(os.path.expanduser, _USUAL_FOLDERS):
        if os.path.exists(os.path.join(folder, "ca-cert.pem")):
            return folder
    return ""


def _trust(context: ssl.SSLContext, folder: str) -> None:
    path = os.path.join(folder, "ca-cert.pem")
    try:
        context.load_verify_locations(path)
    except (OSError, ssl.SSLError) as error:
        raise UserError(f"TLS: cannot use {path}: {explain(error)}") from error


def _identify(context: ssl.SSLContext, folder: str, role: str) -> None:
    certificate, key = (os.path.join(folder, f"{role}-{part}.pem") for part in ("cert", "key"))
    for path in (certificate, key):
        if not os.access(path, os.R_OK):
            raise UserError(f"TLS: {path} is missing or cannot be read")
    _warn_if_exposed(key)
    try:
        context.load_cert_chain(certificate, key, lambda: _no_pass_phrase(key))
    except (OSError, ssl.SSLError) as error:
        raise UserError(f"TLS: cannot use {certificate} with {key}: {explain(error)}") from error


def _no_pass_phrase(path: str) -> str:
    """OpenSSL would ask the terminal, which a service has not."""
    raise UserError(f"TLS: {path} needs a pass phrase: take it off, by openssl pkey, and let nobody else read the file")


def _warn_if_exposed(path: str) -> None:
    if exposed := exposed_file(path):
        log.warning("TLS: %s", exposed)


def _check_dates(context: ssl.SSLContext, path: str) -> None:
    """Refuse a server's certificate that no client would take today.

    It is clients that look at the dates, so one of ours shakes hands with the context, in memory.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the certificate vouches for itself
    client.load_verify_locations(path)
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = client.wrap_bio(to_client, to_server), context.wrap_bio(to_server, to_client, server_side=True)
    try:
        for end in ends * 2:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    except ssl.SSLCertVerificationError as error:
        raise UserError(f"TLS: {path}: {error.verify_message}") from error


def read_psk_file(path: str) -> Mapping[str, bytes]:
    """The keys of a file of pre-shared keys, by user name."""
    keys: dict[str, bytes] = {}
    _warn_if_exposed(path)
    try:
        with open(path, encoding="utf-8") as file:
            for line in filter(None, map(str.strip, file)):
                username, _, key = line.rpartition(":")
                keys[username] = bytes.fromhex(key)
    except (OSError, ValueError) as error:
        raise UserError(f"TLS: cannot use the keys in {path} (lines of USERNAME:HEX): {reason(error)}") from error
    if not keys or "" in keys:
        raise UserError(f"TLS: {path} must hold lines of USERNAME:HEX")
    return keys


def _need_psk() -> None:
    if sys.version_info < (3, 13):
        raise UserError("TLS with pre-shared keys needs Python 3.13 or newer: use certificates here")


def _use_psk(context: ssl.SSLContext, path: str, username: str) -> None:
    _need_psk()
    keys = read_psk_file(path)
    name = username or _login_name()
    if name not in keys:
        raise UserError(f"TLS: {path} has no key for '{name}': give tls-username")
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the key itself proves the server
    _only_psk(context)
    if sys.version_info >= (3, 13):
        context.set_psk_client_callback(lambda hint: (name, keys[name]))


def _login_name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        raise UserError(f"TLS: user {os.getuid()} has no name here: give tls-username") from None


def _serve_psk(context: ssl.SSLContext, path: str) -> None:
    _need_psk()
    keys = read_psk_file(path)
    _only_psk(context)
    if sys.version_info >= (3, 13):
        context.set_psk_server_callback(lambda name: keys.get(name or "", b""))


def _only_psk(context: ssl.SSLContext) -> None:
    # OpenSSL's callbacks for TLS 1.2 keys; with 1.3 a server would fall back to certificates that it does not have
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_PSK_CIPHERS)
