"""Where secrets are read from, and that nothing shows them."""

from __future__ import annotations

import getpass
import logging
import os
import pty
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from nbdfs.errors import UserError
from nbdfs.secret import Secret


def test_from_a_file(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"\0secret\n")
    secret = Secret(f"+{key}")
    assert secret.read() == b"\0secret\n"
    assert secret.read() == b"\0secret\n"
    assert str(secret) == f"+{key}"


def test_from_a_descriptor() -> None:
    reading, writing = os.pipe()
    os.set_inheritable(reading, True)  # as one is that was inherited
    os.write(writing, b"from a pipe")
    os.close(writing)
    assert Secret(f"-{reading}").read(offset=2, size=6) == b"om a p"


def test_a_descriptor_is_read_once_and_then_may_be_that_of_any_file(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(b"what is on a disk")
    descriptor = os.open(tmp_path / "disk", os.O_RDONLY)
    try:
        with pytest.raises(UserError, match="not given to this program, or has been read"):
            Secret(f"-{descriptor}").read()
        assert os.read(descriptor, 4) == b"what"
    finally:
        os.close(descriptor)


def test_standard_input_stays_open_when_it_held_a_secret() -> None:
    """Or its number would be that of the next file, and who tends the standard streams would close that."""
    script = (
        "import os; from nbdfs.secret import Secret; print(Secret('-0').read(), os.read(0, 9), os.open('/', 0) > 2)\n"
        "try: Secret('-0').read()\nexcept Exception as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], input=b"secret\n", capture_output=True, check=True)
    assert done.stdout.decode().splitlines() == [
        r"b'secret\n' b'' True",
        "cannot read the secret -0: it was not given to this program, or has been read already",
    ]


def test_a_file_without_end_is_refused_but_a_part_of_it_is_a_secret() -> None:
    with pytest.raises(UserError, match="more than 8 MiB"):
        Secret("+/dev/zero").read()
    assert Secret("+/dev/zero").read(offset=1 << 40, size=32) == bytes(32)


def test_a_literal_is_the_bytes_of_the_command_line() -> None:
    assert Secret("caf\udce9").read() == b"caf\xe9"


def test_from_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(prompt: str) -> str:
        asked.append(prompt)
        return "typed é"

    monkeypatch.setattr("getpass.getpass", answer)
    assert Secret("-").read("Passphrase of x") == "typed é".encode()
    assert asked == ["Passphrase of x: "]


def test_what_is_typed_in_another_encoding_is_refused_and_not_shown() -> None:
    child, terminal = pty.fork()
    if not child:
        os.execv(sys.executable, [sys.executable, "-c", "from nbdfs.secret import Secret; Secret('-').read()"])
    said = b""
    with suppress(OSError):  # EIO: the child has ended
        while received := os.read(terminal, 4096):
            said += received
            if said.endswith(b"Passphrase: "):
                os.write(terminal, b"caf\xe9\n")
    os.waitpid(child, 0)
    os.close(terminal)
    assert b"UserError: the passphrase was not typed in the encoding of the locale: use +FILE" in said
    assert b"caf" not in said and b"xe9" not in said


def test_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getpass", getpass.fallback_getpass)  # type: ignore[attr-defined]  # which it calls then
    with pytest.raises(UserError, match="no terminal to ask for the passphrase of x on: use"):
        Secret("-").read("Passphrase of x")


@pytest.mark.parametrize(("text", "says"), [("-99", "Bad file"), ("+/", "Is a dir")])
def test_what_cannot_be_read(text: str, says: str) -> None:
    with pytest.raises(UserError, match=f"cannot read the secret .*: {says}"):
        Secret(text).read()


@pytest.mark.parametrize("text", ["-hunter2", "-" + "9" * 30, "-\N{SUPERSCRIPT TWO}"])
def test_what_begins_like_a_descriptor_is_none_and_no_secret(text: str) -> None:
    with pytest.raises(UserError, match="is -FD") as caught:
        Secret(text).read()
    assert text[1:] not in str(caught.value)


def test_a_literal_is_read_with_a_warning_and_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    secret = Secret("hunter2")
    with caplog.at_level(logging.WARNING):
        assert secret.read() == b"hunter2"
    assert "others can see it" in caplog.text
    assert "hunter2" not in caplog.text + str(secret) + repr(secret)


@pytest.mark.parametrize("mode, warned", [(0o600, False), (0o640, False), (0o604, True), (0o602, True)])
def test_a_key_file_that_others_may_use_is_warned_of(
    tmp_path: Path, mode: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    key = tmp_path / "my key"
    key.write_bytes(b"secret")
    key.chmod(mode)
    with caplog.at_level(logging.WARNING):
        assert Secret(f"+{key}").read() == b"secret"
    assert ([record.getMessage() for record in caplog.records] != []) == warned
    assert (f"chmod 600 '{key}'" in caplog.text) == warned


@pytest.mark.parametrize("text", ["+/no/such/file", "-999999"])
def test_what_cannot_be_read_is_one_line(text: str) -> None:
    with pytest.raises(UserError, match="cannot read the secret") as error:
        Secret(text).read()
    assert "\n" not in str(error.value)


def test_a_key_file_that_others_may_read_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = tmp_path / "key"
    key.write_bytes(b"secret")
    key.chmod(0o644)
    for _ in range(2):
        Secret(f"+{key}").read()
    assert [record.getMessage() for record in caplog.records] == [
        f"other users may read the key file {key}: chmod 600 {key}"
    ]
