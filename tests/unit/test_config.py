"""What a configuration means: stacks, mounts, servers, references, and every way to get them wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nbdfs.cli.main import main, parser_of
from nbdfs.config.files import ConfigError, current, examine, use_file
from nbdfs.errors import UsageError, UserError
from nbdfs.names import named_plans
from nbdfs.source import read
from nbdfs.stack import open_stack, plan
from tests.conftest import ROOT
from tests.mounts import NOBODY
from tests.unit.test_config_reader import toml

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Write]:
    """Write the configuration of the process, and give its path."""

    def run(text: str) -> str:
        path = tmp_path / "nbdfs.toml"
        path.write_text(text)
        use_file(str(path))
        return str(path)

    yield run
    use_file("")


def faults(path: str) -> list[str]:
    """LINE: MESSAGE of everything that is wrong."""
    return [str(fault).removeprefix(f"{path}:") for fault in examine([path]).faults]


STACKS = """
[stack.text]
spec = "luks,passphrase=+/etc/key::/srv/enc.img"

[stack.tables]
layers = ["cow", {name = "luks", passphrase = "+/etc/a,b:%", header = "/srv/h"}]
leaf = "https://host/x?a::b"

[stack.leaf]
leaf = {name = "memory", argument = "1G", mlock = true}

[stack.uri]
leaf = {name = "http", argument = "https://host/x", connections = 8}

[stack.captive]
layers = ["cow"]
leaf = {argv = ["qemu-nbd", "-f", "qcow2", "a [ b ].qcow2"]}
"""


@pytest.mark.parametrize(
    "name, same",
    [
        ("text", "luks,passphrase=+/etc/key::/srv/enc.img"),
        ("tables", "cow::luks,passphrase=+/etc/a%2Cb%3A%25,header=/srv/h::https://host/x?a::b"),
        ("leaf", "memory,mlock=yes:1G"),
        ("uri", "http,connections=8::https://host/x"),
    ],
)
def test_a_stack_is_a_spec(write: Write, name: str, same: str) -> None:
    assert faults(write(STACKS)) == []
    assert str(plan(current().stack(name))) == str(plan(same))


def test_a_stack_with_a_captive_server(write: Write) -> None:
    write(STACKS)
    planned = plan(current().stack("captive"))
    assert planned.argv == ("qemu-nbd", "-f", "qcow2", "a [ b ].qcow2")
    assert [driver.name for driver, _ in planned.layers] == ["cow"]


MOUNTS = """
[mount.one]
target = "/srv/one.img"
source = "memory:1M"
options = ["allow_other", "mode=0644"]
readonly = true
listen = "nbd://localhost:10810"
max-clients = 3
verbose = 2

[mount.many]
target = "/srv/disks"
[mount.many.files]
"a.img" = "memory:1M"
"vm1/root" = {layers = ["cow"], leaf = "zero:1M"}

[serve.all]
files = {a = "memory:1M"}
unix = ["/run/a.sock", "/run/b.sock"]
tls-verify-peer = false
"""


def test_a_table_is_a_command_line(write: Write) -> None:
    assert faults(write(MOUNTS)) == []
    words = {name: command.words for name, command in current().commands.items()}
    assert words == {
        "one": ["mount", "--options=allow_other", "--options=mode=0644", "--readonly", "--listen=nbd://localhost:10810",
                "--max-clients=3", "--verbose", "--verbose", "--", "memory:1M", "/srv/one.img"],
        "many": ["mount", "--", "a.img=memory:1M", "vm1/root=cow::zero:1M", "/srv/disks"],
        "all": ["serve", "--unix=/run/a.sock", "--unix=/run/b.sock", "--", "a=memory:1M"],
    }  # fmt: skip


WRONG = [
    ('[stack.a]\nspec = "memroy:1G"', "2: there is no source or layer 'memroy'; did you mean 'memory'?"),
    ('[stack.a]\nspec = "memory,mlok:1G"', "2: memory has no option 'mlok'; did you mean 'mlock'?"),
    ('[stack.a]\nspec = "luks,header=memroy:1::x"', "2: there is no source or layer 'memroy'; did you mean 'memory'?"),
    ("[stack.a]\nspec = 1", "2: 'spec' must be text"),
    ('[stack.a]\nspce = "x"', "2: [stack.a] has no 'spce'; did you mean 'spec'?"),
    ('[stack.a]\nspec = "x"\nleaf = "y"', "1: [stack.a] needs either spec"),
    ("[stack.a]", "1: [stack.a] needs either spec"),
    ('[stack.a]\nleaf = {argv = []}', "2: a captive server is leaf"),
    ('[stack.a]\nleaf = {argv = ["x", 1]}', "2: a captive server is leaf"),
    ('[stack.a]\nleaf = {argv = "nbdkit memory 1M"}', "2: a captive server is leaf"),
    ('[stack.a]\nleaf = {argv = "x", size = 1}', "2: a captive server is leaf"),
    ('[stack.a]\nleaf = {size = 1}', "2: what is in 'leaf' must be text, or a table with a name and options"),
    ('[stack.a]\nleaf = {name = "memory", argument = 1}', "2: 'argument' must be text"),
    ('[stack.a]\nleaf = "x"\nlayers = "cow"', "3: 'layers' must be a list"),
    ('[stack.a]\nleaf = "x"\nlayers = [3]', "3: what is in 'layers' must be text, or a table with a name and options"),
    ('[stack.a]\nleaf = "x"\nlayers = [\n  {name = "rate", read = [1]}]', "3: the option 'read' must be"),
    ('[stack.a]\nleaf = "x"\nlayers = ["null", "cow"]', "1: null is a source, not a layer"),
    ('[stack."a/b"]\nspec = "x"', "1: the name 'a/b' must be of letters, digits, - and _"),
    ('[stack."a.b"]\nspec = "x"', "1: the name 'a.b' must be of letters, digits, - and _"),
    ('[stack]\na = "x"', "2: 'stack.a' must be a table: [stack.a]"),
    ("stack = 3", "1: 'stack' must be a table"),
    ("[stak.a]", "1: a configuration has no 'stak'; did you mean 'stack'?"),
    ('[stack.a]\nspec = "conf:b"\n[stack.b]\nspec = "cow::conf:c"\n[stack.c]\nspec = "conf:a"',
     "1: the stack rests on itself: conf:a -> conf:b -> conf:c -> conf:a"),
    ('[stack.a]\nspec = "luks,header=conf:a::x"', "1: the stack rests on itself: conf:a -> conf:a"),
    ('[stack.abc]\nspec = "x"\n[stack.b]\nspec = "conf:abd"', "3: conf:abd: there is no stack 'abd'; did you"),
    ('[mount.a]\nsource = "x"', "1: [mount.a] needs target"),
    ('[mount.a]\ntarget = "x"\nsource = "x"', "2: the target 'x' must be an absolute path"),
    ('[mount.a]\ntarget = "/x"', "1: [mount.a] needs either source"),
    ('[serve.a]\nsource = "x"\nport = "http"', "3: port: 'http' is no port"),
    ('[serve.a]\nsource = "x"\nhandshake-timeout = 0', "3: handshake-timeout: --handshake-timeout must be more than 0"),
    ('[mount.a]\ntarget = "/x"\nfiles = {}', "3: 'files' is empty"),
    ('[mount.a]\ntarget = "/x"\nfiles = ["x"]', "3: 'files' must be a table"),
    ('[mount.a]\ntarget = "/x"\nsource = ["x"]', "3: 'source' must be a spec"),
    ('[mount.a]\ntarget = "/x"\n[mount.a.files]\na = "x"\n"a/b" = "x"', "5: the name 'a/b' passes through 'a'"),
    ('[mount.a]\ntarget = "/x"\n[mount.a.files]\n"../b" = "x"', "4: the name '../b' has a part that is '..'"),
    ('[mount.a]\ntarget = "/x"\nsource = "x"\nreadonly = 1', "4: readonly: must be true or false"),
    ('[mount.a]\ntarget = "/x"\nsource = "x"\nmax-clients = "two"', "4: max-clients: invalid int value: 'two'"),
    ('[mount.a]\ntarget = "/x"\nsource = "x"\nmax-clients = true', "4: max-clients: must be text or a number"),
    ('[mount.a]\ntarget = "/x"\nsource = "x"\nlog-file = ["x"]', "4: log-file: must be text or a number"),
    ('[mount.a]\ntarget = "/x"\nsource = "x"\nverbose = -1', "4: verbose: must be a small number"),
    ('[mount.a]\ntarget = "/x"\nsource = "x"\ntls = "perhaps"', "4: tls: invalid choice: 'perhaps'"),
    ('[mount.a]\ntarget = "/x"\nsource = "x"\nlisten = ["nbd://h", "h"]', "4: listen: h: this is no NBD URI"),
    ('[mount.a]\ntarget = "/x"\nsource = "x"\noptions = "allow_others"', "did you mean 'allow_other'?"),
    ('[mount.a]\ntarget = "/x"\nsource = "x"\nbackground = true', "4: [mount.a] has no 'background'"),
    ('[mount.a.b]\nsource = "x"', "1: [mount.a] has no 'b'; there are: "),
    ('[serve.a]\nsource = "x"\ntarget = "/x"', "3: [serve.a] has no 'target'"),
    ('[serve.a]\nsource = "x"\n[mount.a]\nsource = "x"\ntarget = "/x"',
     "3: 'a' is the name of [serve.a] on line 1 already"),
    ('[stack.a]\nspec = "x"\n[stack.a]\nspec = "y"', "3: 'stack.a' is there twice, first on line 1"),
    ('[stack.a]\nspec = "x\\u0000"', "2: a spec has a NUL"),
    ('[stack.a]\nleaf = {name = "data", from = "\\u0000"}', "1: a spec has a NUL"),
    ('[stack.a]\nleaf = {argv = ["x", "y\\u0000z"]}', "2: a captive server is leaf"),
    ('[mount.a]\ntarget = "/x\\u0000"\nsource = "x"', "2: the target '/x\\x00' must be an absolute path"),
    ('[mount.a]\ntarget = "/x"\nsource = "x"\nlog-file = "\\u0000"', "4: log-file: must not hold a NUL"),
    ('[stack.a]\nspec = ', "2: not TOML: invalid value"),
]  # fmt: skip


@pytest.mark.parametrize("text, message", WRONG)
def test_what_is_wrong_has_its_line(write: Write, text: str, message: str) -> None:
    found = faults(write(text))
    assert any(message in fault for fault in found), found
    assert len(set(found)) == len(found)
    assert all("\n" not in fault for fault in found)


def test_all_that_is_wrong_is_said_at_once(write: Write, capfd: pytest.CaptureFixture[str]) -> None:
    path = write(
        '[stack.a]\nspec = "memroy:1"\nx = 1\n[stack.b]\nspec = \n[mount."c/d"]\n[mount.e]\nsource = "conf:z"\n'
        'target = 3\nlisten = "x"\n'
    )
    assert main(["check", path]) == 1
    lines = [line.removeprefix(f"{path}:") for line in capfd.readouterr().err.splitlines()]
    assert [int(line.partition(":")[0]) for line in lines] == [2, 3, 4, 5, 6, 8, 9, 10]


def test_a_right_file_is_silent(write: Write, capfd: pytest.CaptureFixture[str]) -> None:
    path = write(STACKS + MOUNTS)
    assert main(["check", path]) == 0
    assert main(["--config", path, "check"]) == 0
    assert capfd.readouterr() == ("", "")


def test_no_file_to_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("nbdfs.config.files.SYSTEM", str(tmp_path / "none"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert main(["check"]) == 1
    assert "there is no configuration" in capfd.readouterr().err
    with pytest.raises(UsageError, match=f"there is no stack 'x', as there is neither .* nor {tmp_path}/nbdfs.toml"):
        current().stack("x")


def test_names_of_the_user_come_before_those_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system, user = tmp_path / "system.toml", tmp_path / "nbdfs.toml"
    system.write_text('[stack.a]\nspec = "zero:1"\n[stack.b]\nspec = "conf:a"\n')
    user.write_text('[stack.a]\nspec = "ones:1"\n[stack.c]\nspec = "conf:b"\n')
    monkeypatch.setattr("nbdfs.config.files.SYSTEM", str(system))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert current().stacks == {"a": "ones:1", "b": "conf:a", "c": "conf:b"}
    assert current().resolved("cow::conf:c") == ("cow::conf:c", "conf:b", "conf:a", "ones:1")


@pytest.mark.root
def test_a_file_of_the_system_for_root_alone(nobody_path: Path, unprivileged: list[str]) -> None:
    system, user = nobody_path / "system.toml", nobody_path / "nbdfs.toml"
    system.write_text('[stack.a]\nspec = "zero:1M"\n')
    user.write_text('[stack.b]\nspec = "zero:1M"\n')
    script = f"from nbdfs.config import files; files.SYSTEM = {str(system)!r}\nprint(*files.current().stacks)"

    def stacks() -> str:
        words = [*unprivileged, sys.executable, "-c", script]
        env = {**os.environ, "XDG_CONFIG_HOME": str(nobody_path)}
        return subprocess.run(words, env=env, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    if len(unprivileged) > 4:
        pytest.skip("other users cannot run this Python")
    os.chown(user, NOBODY, NOBODY)
    assert stacks() == "a b"
    system.chmod(0o600)
    assert stacks() == "b"


def test_without_a_home_there_is_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = tmp_path / "system.toml"
    system.write_text('[stack.a]\nspec = "zero:1"\n')
    monkeypatch.setattr("nbdfs.config.files.SYSTEM", str(system))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", "")
    assert current().stacks == {"a": "zero:1"}


async def test_a_wrong_file_is_not_used(write: Write) -> None:
    path = write('[stack.a]\nspec = "zero:1M"\n[stack.b]\nx = 1\n')
    with pytest.raises(ConfigError, match=r"\[stack.b\] needs .* \(and 1 more: see nbdfs check\)") as error:
        async with open_stack("conf:a"):
            pass
    assert str(error.value).startswith(f"{path}:3: ")
    write('[stack.a]\nspec = "zero:1M"\n')  # what changed is read again
    async with open_stack("conf:a") as source:
        assert source.info.size == 1 << 20


async def test_layers_over_a_stack_of_a_file(write: Write) -> None:
    write(
        '[stack.base]\nspec = "data:1 2 3 4"\n'
        '[stack.tail]\nlayers = [{name = "offset", offset = "2"}]\nleaf = "conf:base"'
    )
    async with open_stack("cow::conf:tail") as source:
        assert await read(source, 0, 2) == b"\3\4"


@pytest.mark.parametrize("mode, refused", [(0o666, True), (0o644, False)])
def test_a_file_that_others_can_change_is_refused(write: Write, mode: int, refused: bool) -> None:
    path = write(STACKS)
    os.chmod(path, mode)
    if refused:
        with pytest.raises(UserError, match="could be changed by other users"):
            examine([path])
    else:
        assert examine([path]).faults == []


@pytest.mark.root
def test_a_file_of_another_user_is_refused(write: Write) -> None:
    path = write(STACKS)
    os.chown(path, 65534, 65534)
    with pytest.raises(UserError, match="could be changed by other users"):
        current()


@pytest.mark.parametrize("path", ["/no/such/file", "/dev/zero", "/"])
def test_what_cannot_be_read(path: str) -> None:
    with pytest.raises(UserError, match="the configuration /"):
        examine([path])


def test_secrets_that_others_may_read_are_warned_of(
    write: Write, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "key"
    key.write_text("secret")
    key.chmod(0o604)
    path = write(f'[stack.a]\nspec = "luks,passphrase=+{key}::/x"\n[stack.b]\nspec = "luks,passphrase=hunter2::/x"\n')
    os.chmod(path, 0o644)
    assert main(["check", path]) == 0
    said = capfd.readouterr().err.splitlines()
    assert said == [
        f"{path}:2: warning: luks: passphrase: other users may read the key file {key}: chmod 600 {key}",
        f"{path}:4: warning: luks: passphrase is written here, where others can read it: use +FILE",
    ]
    key.chmod(0o640)
    os.chmod(path, 0o600)
    assert main(["check", path]) == 0
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "words", [["--config"], ["--config", "/no/such", "info", "conf:a"], ["info", "--config=/no/such", "conf:a"]]
)
def test_a_file_named_before_or_after_the_command(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    try:
        assert main(words) in (1, 2)
    finally:
        use_file("")
    assert len(capfd.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    "spec, shown",
    [
        ("luks,passphrase=+/etc/key::/x", "luks,passphrase=+/etc/key::/x"),
        ("luks,passphrase=hunter2::/x", ""),
        ("a=luks,passphrase=hunter2::/x", ""),
        ("a=memory:1M b=luks,passphrase=hunter2::/x", ""),
        ("luks,header=luks%2Cpassphrase=hunter2%3A%3A/h::/x", ""),
    ],
)
def test_the_mount_table_shows_the_line_of_fstab_but_no_secret(
    spec: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nbdfs.cli import mount
    from nbdfs.compat import mount_nbdfs
    from nbdfs.fuse.options import parse_options

    found = []
    monkeypatch.setattr(mount, "run", lambda arguments: found.append(arguments) or 0)
    assert mount_nbdfs.run([spec, str(tmp_path / "x"), "-o", "rw"]) == 0
    assert parse_options(found[0].options).fsname == shown
    assert "hunter2" not in str(found[0].options)


WORDS = st.sampled_from(
    ["", "x", "a", "memory", "memory:1M", "conf:a", "conf:b", "cow::conf:a", "cow", "luks", "luks,passphrase=+/k::x",
     "http", "data", "https://h/x", "[", "[\0", "[\0]", "::", "cow::", "a=b", "../x", "/x", "\0", "=", ",", "nbd://h",
     "\n", "ro", "-v", "--"]
)  # fmt: skip
PARTS = st.sampled_from(["name", "argument", "argv", "spec", "leaf", "layers", "x/y", "passphrase"])
ANY = st.recursive(
    WORDS | st.booleans() | st.integers(-1, 3) | st.floats(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(PARTS, inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from(
    ["spec", "leaf", "layers", "source", "files", "target", "listen", "options", "readonly", "verbose", "max-clients",
     "unix", "metrics", "x"]
)  # fmt: skip
FILES = st.dictionaries(
    st.sampled_from(["stack", "mount", "serve"]),
    st.dictionaries(st.sampled_from(["a", "b", "x/y"]), st.dictionaries(KEYS, ANY, max_size=4) | ANY, max_size=2),
)


@settings(deadline=None)
@given(FILES)
@example({"mount": {"a": {"target": "\n"}}})
@example({"mount": {"a": {"listen": "--"}}})
def test_whatever_it_says_it_has_a_meaning_or_faults(tables: dict[str, object]) -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write("\n".join(f"{key} = {toml(value)}" for key, value in tables.items()))
        file.flush()
        config = examine([file.name])
    assert all(fault.line >= 1 and fault.message and "\n" not in fault.message for fault in config.faults)
    if not config.faults:
        for command in config.commands.values():
            assert parser_of(command.kind).parse_args(command.words[1:])
            named_plans(command.specs)
