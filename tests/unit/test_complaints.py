"""Wrong input to every command, source and layer: one line that says what is wrong, and the documented status."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nbdfs import registry
from nbdfs.cli._commands import COMMANDS
from nbdfs.cli.main import main
from nbdfs.config.files import use_file
from nbdfs.errors import UsageError, printable, reason
from nbdfs.registry import Driver, LayerDriver, Option
from nbdfs.stack import plan
from tests.tools import TIMEOUT, command, complaint, key_file, nbdfs

FAILURE, USAGE = 1, 2
DIGITS = "9" * 5000  # more than Python makes a number of

Said = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The present folder, with a few things in it that are not what is wanted."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").touch()
    (tmp_path / "zeroes").write_bytes(bytes(1 << 20))
    (tmp_path / "noise").write_bytes(bytes(range(256)) * 16)
    key_file(tmp_path / "key", b"secret")
    yield tmp_path
    use_file("")


def refused(words: list[str], status: int, said: Said) -> str:
    """Run a command that must fail; give its one line."""
    assert main(words) == status
    out, err = said.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert err.startswith("nbdfs: ")
    return err


@pytest.mark.parametrize("name", COMMANDS)
def test_unknown_options(name: str, capsys: Said) -> None:
    assert f"nbdfs {name} --help" in refused([name, "--no-such-option"], USAGE, capsys)


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"check", "list", "reload", "sources", "top", "up"}))
def test_missing_words(name: str, capsys: Said) -> None:
    assert "are required" in refused([name], USAGE, capsys)


@pytest.mark.parametrize("name", ["dump", "info", "serve"])
@pytest.mark.parametrize(
    ("file", "status", "says"),
    [("absent", FAILURE, "No such file"), ("folder", FAILURE, "is no file"), ("noise", USAGE, "not UTF-8")],
)
def test_configurations_that_cannot_be_read(name: str, file: str, status: int, says: str, capsys: Said) -> None:
    assert says in refused([name, "conf:x", "--config", file], status, capsys)


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        ("add mount memory:1M", USAGE, "has no name"),
        ("add folder a=memory:1M", FAILURE, "no mount or server of yours is folder"),
        ("commit zeroes", USAGE, "no cow layer"),
        ("commit cow::zeroes", USAGE, "without overlay=FILE"),
        ("commit cow,overlay=empty::zeroes", FAILURE, "empty is no cow overlay"),
        ("compat nothing", USAGE, "no command line of 'nothing'"),
        ("copy zeroes folder", FAILURE, "is a directory"),
        ("copy absent new", FAILURE, "No such file"),
        ("info http://a..b/", FAILURE, "no name of a host"),
        ("dump nbd,fd=999999999999:", FAILURE, "there is no such number"),
        ("serve null:1M -i a..b", USAGE, "'a..b' is no host"),
        ("copy zeroes zeroes", FAILURE, "both source and destination"),
        ("copy zeroes memory:1k", FAILURE, "too small"),
        ("copy -C none zeroes null:", USAGE, "'none'"),
        ("copy --digest=none zeroes null:", USAGE, "no digest 'none'"),
        ("copy --blkhash=none zeroes null:", USAGE, "no block hash 'none'"),
        ("copy --blkhash=sha256/3 zeroes null:", USAGE, "a power of two, not 3"),
        ("copy --queue-size=0 zeroes null:", USAGE, "the queue size must be at least 1 byte, not 0"),
        ("copy --resume=folder zeroes memory:1M", FAILURE, "folder is no regular file"),
        ("dump folder", FAILURE, "is a directory"),
        ("dump --offset=2M zeroes", FAILURE, "ends at byte"),
        ("info --can=fly zeroes", FAILURE, "'fly' is nothing that can be asked"),
        ("info --map=none zeroes", FAILURE, "no map 'none'"),
        ("info --map --chart --totals zeroes", USAGE, "only one of --totals"),
        ("info --offset=1 zeroes", USAGE, "give --map too"),
        ("list absent", FAILURE, "no mount or server of yours is absent"),
        ("luks info zeroes", FAILURE, "no LUKS header"),
        ("luks format --passphrase +key empty", FAILURE, "too small"),
        ("luks format --passphrase +key noise", FAILURE, "is not empty"),
        ("luks format --passphrase +folder zeroes", FAILURE, "+folder: Is a directory"),
        ("luks format --passphrase -99 zeroes", FAILURE, "-99: Bad file descriptor"),
        ("luks format --pbkdf-force-iterations -1 --passphrase +key zeroes", FAILURE, "argon2id takes from 4"),
        ("luks format --cipher none --passphrase +key zeroes", FAILURE, "cipher 'none'"),
        ("mount memory:1M folder", USAGE, "folder is a directory"),
        ("mount a=memory:1M file", FAILURE, "file is no directory"),
        ("mount a=memory:1M zeroes", FAILURE, "zeroes is no directory"),
        ("mount memory:1M file --listen folder", USAGE, "no NBD URI"),
        ("mount memory:1M file --tls-verify-peer", USAGE, "--tls-certificates"),
        ("mount memory:1M file --tls-certificates .", USAGE, "give --listen too"),
        ("mount memory:1M file --max-clients 0", USAGE, "--max-clients must be at least 1"),
        ("mount memory:1M file --handshake-timeout 0", USAGE, "--handshake-timeout must be more than 0"),
        ("mount memory:1M file --metrics here", USAGE, "HOST:PORT"),
        (f"mount memory:1M file --metrics localhost:{DIGITS}", USAGE, "HOST:PORT"),
        ("mount memory:1M file --log-file folder", FAILURE, "folder: Is a directory"),
        ("mount memory:1M file -o uid=4294967295", USAGE, "uid: "),
        (f"mount memory:1M file -o uid={DIGITS}", USAGE, "uid: "),
        ("mount memory:1M file -o gid=\N{SUPERSCRIPT TWO}", USAGE, "gid: "),
        (f"mount memory:1M file -o timeout={DIGITS}", USAGE, "is too long"),
        ("remove folder name", FAILURE, "no mount or server of yours is folder"),
        ("resize folder large", USAGE, "'large' is not a size"),
        ("run memory:1M", USAGE, "a command is missing"),
        ("run absent -- true", FAILURE, "absent: No such file"),
        ("serve memory:1M -p -1", USAGE, "is no port"),
        ("serve memory:1M -p 65536", USAGE, "'65536' is no port"),
        ("serve memory:1M -p http", USAGE, "'http' is no port"),
        (f"serve memory:1M -p {DIGITS}", USAGE, "is no port"),
        ("serve memory:1M --vsock -p 4294967296", USAGE, "is no port"),
        ("serve memory:1M --fd -1", FAILURE, "descriptor -1 is no listening socket"),
        ("serve memory:1M --fd 99999999999999999999", FAILURE, "is no listening socket"),
        ("serve memory:1M -U zeroes", FAILURE, "no socket"),
        (f"serve memory:1M --listen nbd://localhost:{DIGITS}", USAGE, "is no port"),
        ("serve memory:1M --tls-verify-peer", USAGE, "--tls-certificates"),
        ("serve memory:1M --tls-psk key --tls-certificates .", USAGE, "take the place of certificates"),
        ("serve memory:1M --tls-psk key --tls-verify-peer", USAGE, "take the place of certificates"),
        ("serve memory:1M --tls on --tls-certificates folder", FAILURE, "server-cert.pem"),
        ("serve -s -U - memory:1M", USAGE, "--stdio"),
        ("sources nothing", USAGE, "no source or layer 'nothing'"),
        ("top --once --interval never", USAGE, "'never' is not a duration"),
        ("umount folder", FAILURE, "is not a mount"),
        ("up nothing", USAGE, "'nothing'"),
        ("nothing", USAGE, "no command 'nothing'"),
        ("help nothing", USAGE, "no command 'nothing'"),
        ("--config", USAGE, "--config FILE COMMAND"),
    ],
)
def test_commands(words: str, status: int, says: str, capsys: Said) -> None:
    assert says in refused(words.split(" "), status, capsys)


@pytest.mark.parametrize(
    ("spec", "status", "says"),
    [
        ("base64:?", FAILURE, "base64"),
        ("cache,block=3::zeroes", USAGE, "block"),
        ("cache,cache=noise::zeroes", FAILURE, "noise"),
        ("checkwrite::absent", FAILURE, "No such file"),
        ("conf:nothing", USAGE, "'nothing'"),
        ("cow,overlay=folder::zeroes", FAILURE, "folder: Is a directory"),
        ("data,from=%00:", USAGE, "a value cannot hold a NUL"),
        ("data,from=absent:", FAILURE, "absent"),
        ("error,rate=2::zeroes", USAGE, "rate"),
        ("file:", USAGE, "a path is missing"),
        ("gzip::noise", FAILURE, "no gzip file"),
        ("gzip::zeroes", FAILURE, "no gzip file"),
        ("http:", USAGE, "a URL is missing"),
        ("http:http://[", USAGE, "is not a URL"),
        ("http,proxy=\n::http://localhost/", USAGE, "no HTTP proxy"),
        ("http,ca=noise::https://localhost/", FAILURE, "no certificates in noise"),
        ("log,file=folder::zeroes", FAILURE, "cannot write folder: Is a directory"),
        ("luks::zeroes", FAILURE, "no LUKS header"),
        (f"memory:{DIGITS}", USAGE, "larger than a file can be"),
        ("nbd:", USAGE, "no NBD URI"),
        ("nbd://127.0.0.1:1", FAILURE, "cannot connect to 127.0.0.1:1: Connection refused"),
        ("offset,offset=2M::zeroes", FAILURE, "offset"),
        ("ones,byte=256:1M", USAGE, "byte"),
        ("partition::zeroes", FAILURE, "no partition table"),
        ("rate,iops=nan::zeroes", USAGE, "'nan' is not a number"),
        ("readahead,memory=0::zeroes", USAGE, "memory"),
        ("resize::zeroes", USAGE, "needs size="),
        ("retry,tries=0::zeroes", USAGE, "tries"),
        ("sparse-random,percent=inf:1M", USAGE, "'inf' is not a number"),
        ("stats,file=folder::zeroes", FAILURE, "cannot write folder: Is a directory"),
        ("torrent:empty", FAILURE, "ends too soon"),
        ("torrent:folder", FAILURE, "Is a directory"),
        ("xz::noise", FAILURE, "no xz file"),
        ("xz::zeroes", FAILURE, "no xz file"),
        ("zstd::zeroes", FAILURE, "no zstd file"),
    ],
)
def test_specs(spec: str, status: int, says: str, capsys: Said) -> None:
    assert says in refused(["info", spec], status, capsys)


DRIVERS = {name: registry.find(name) for name in registry.names()}


@pytest.mark.parametrize("name", DRIVERS)
def test_options_that_a_driver_does_not_have(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} has no option 'no-such-option'"):
        plan(_with_option(DRIVERS[name], "no-such-option=1"))


FREE = ("ADDRESS[:PORT]", "COMMAND", "PATH", "SECRET", "SPEC", "TEXT")  # kinds of option that any text may be
READ = [(driver, option) for driver in DRIVERS.values() for option in driver.option_table
        if option.kind.name not in FREE]  # fmt: skip


@pytest.mark.parametrize(("driver", "option"), READ, ids=[f"{driver.name}-{option.name}" for driver, option in READ])
@pytest.mark.parametrize("text", ["nonsense", "-nan", "\N{SUPERSCRIPT TWO}", "1e999", f"x{DIGITS}"])
def test_options_whose_text_makes_no_sense(driver: Driver, option: Option, text: str) -> None:
    with pytest.raises(UsageError, match=option.name):
        plan(_with_option(driver, f"{option.name}={text}"))


def _with_option(driver: Driver, option: str) -> str:
    return f"{driver.name},{option}" + ("::zeroes" if isinstance(driver, LayerDriver) else ":")


def test_help_on_a_command(capsys: Said) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["help", "mount"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: nbdfs mount ")


def test_a_mount_of_another_kind_is_left_alone(capsys: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("nbdfs.fuse.mounting.unmount")
    assert "a mount of proc, not of nbdfs" in refused(["umount", "/proc"], FAILURE, capsys)


def test_of_several_mounts_the_others_are_ended_too(capsys: Said) -> None:
    assert main(["umount", "folder", "empty"]) == FAILURE
    assert [line.split()[1].rpartition("/")[2] for line in capsys.readouterr().err.splitlines()] == ["folder", "empty"]


def test_names_of_files_that_are_no_utf_8(tmp_path: Path) -> None:
    image = os.fsdecode(bytes(tmp_path) + b"/\xff.img")
    os.rename(tmp_path / "zeroes", image)
    digest = hashlib.md5(bytes(1 << 20)).hexdigest()
    assert nbdfs("copy", "--digest=md5", image, "null:").stdout == os.fsencode(f"{digest}  {image}\n")
    assert json.loads(nbdfs("info", "--json", image).stdout)["exports"][0]["export-size"] == 1 << 20
    assert nbdfs("serve", image, "--run", 'nbdinfo --size "$uri"').stdout == b"1048576\n"


@pytest.mark.parametrize("words", ["info zero:1M", "dump -n 100k pattern:1M", "--help", "copy --help"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_standard_output_that_takes_nothing(words: str, unbuffered: str) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command(*words.split()), stdout=full, stderr=subprocess.PIPE, timeout=TIMEOUT,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )  # fmt: skip
    assert done.stderr == b"nbdfs: cannot write to standard output: No space left on device\n"
    assert done.returncode == FAILURE


@pytest.mark.parametrize("words", ["dump pattern:8M", "sources"])
def test_a_reader_of_standard_output_that_leaves(words: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(command(*words.split()), stdout=writing, stderr=subprocess.PIPE, timeout=TIMEOUT)
    finally:
        os.close(writing)
    assert done.stderr == b""
    assert done.returncode == FAILURE


@pytest.mark.parametrize(
    ("words", "closed", "line"),
    [
        ("sources", ">&-", "cannot write to standard output: Bad file descriptor"),
        ("sources", "<&- >&-", "cannot write to standard output: Bad file descriptor"),
        ("copy noise -", ">&-", "Bad file descriptor"),
        ("copy memory:1M -", ">&-", "Bad file descriptor"),
        ("copy - new", "<&-", "Bad file descriptor"),
        ("copy - null:", "<&-", "Bad file descriptor"),
    ],
)
def test_a_standard_stream_that_is_closed_takes_and_gives_nothing(words: str, closed: str, line: str) -> None:
    argv = ["sh", "-c", f'exec "$@" {closed}', "sh", *command(*words.split())]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=TIMEOUT)
    assert (done.returncode, done.stdout) == (FAILURE, "")
    (said,) = done.stderr.splitlines()
    assert said.startswith("nbdfs: ") and line in said
    assert "[Errno" not in said


@pytest.mark.parametrize("words", ["copy noise null:", "info --is=read noise"])
def test_who_needs_no_standard_stream_does_without(words: str) -> None:
    argv = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command(*words.split())]
    assert subprocess.run(argv, timeout=TIMEOUT).returncode == 0


def test_only_the_pipe_of_standard_output_may_break_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(_: list[str]) -> int:
        raise BrokenPipeError(errno.EPIPE, "of another descriptor")

    monkeypatch.setattr("nbdfs.cli.main._dispatch", breaks)
    with pytest.raises(ExceptionGroup) as raised:
        main(["sources"])
    assert raised.group_contains(BrokenPipeError)


def test_mount8_has_a_status_of_its_own() -> None:
    assert "No such file" in complaint("compat", "mount.nbdfs", "absent", "file", status=32)


def test_what_strangers_have_written_does_not_command_the_terminal(capsys: Said) -> None:
    assert refused(["info", "nbd:\x1b[2J"], USAGE, capsys).isascii()
    assert "\x1b" not in refused(["list", "\x1b[2J"], FAILURE, capsys)
    assert printable("a\x1b\n\udcffü") == "a\\x1b\\n\\udcffü"


def test_the_reason_of_a_failed_system_call_has_no_number() -> None:
    assert reason(OSError(2, "No such file", b"/x")) == "/x: No such file"
    assert reason(OSError(2, "No such file")) == "No such file"
    assert reason(OSError("odd")) == "odd"


def test_up_where_temporary_files_have_names_too_long(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = folder / ("long" * 25)
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    (folder / "config").write_text(f'[serve.a]\nsource = "memory:1M"\nunix = "{folder}/a"\n')
    assert complaint("up", "--config", "config") == "nbdfs: [serve.a] cannot be started: AF_UNIX path too long"


@pytest.mark.parametrize(
    "words",
    [
        "add mount luks,passphrase=geheim::volume",
        "commit luks,passphrase=geheim::volume",
        "commit cow,overlay=overlay::readonly::luks,passphrase=geheim::volume",
        "compat nbdinfo luks,passphrase=geheim::volume",
        "dump -o 9M luks,passphrase=geheim::volume",
        "info gopher://me:geheim@host/",
        "info nbd://me:geheim@host/",
        "info nbds://me:geheim@host/?nonsense=1",
        "info luks,passphrase=geheim::",
        "info error,errno=EIO,rate=100%::luks,passphrase=geheim::volume",
        "info --uri luks,passphrase=geheim::volume",
        "luks info error,errno=EIO,rate=100%::luks,passphrase=geheim::volume",
    ],
)
def test_no_secret_of_a_spec_is_told(folder: Path, words: str, capsys: Said) -> None:
    key_file(folder / "secret", b"geheim")
    (folder / "volume").write_bytes(bytes(4 << 20))
    effort = ("--type=luks1", "--pbkdf-force-iterations=1000", "--passphrase", "+secret")
    assert main(["luks", "format", *effort, "volume"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(words.split()) in (FAILURE, USAGE)
    said = capsys.readouterr()
    assert said.out == ""
    assert "geheim" not in said.err
