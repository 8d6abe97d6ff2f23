"""The control socket: what goes over it, who may use it, and what is left of it."""

from __future__ import annotations

import json
import os
import socket
import stat
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from nbdfs.cli._control import for_each
from nbdfs.cli.remove import _remove
from nbdfs.control import place, protocol
from nbdfs.control.client import Client, Process, processes
from nbdfs.control.protocol import LONGEST_REQUEST, Request, RequestError, parse_reply, parse_request
from nbdfs.control.rates import rows
from nbdfs.control.server import Method, controlled
from nbdfs.errors import UsageError, UserError
from nbdfs.secret import Secret, far_away
from tests.mounts import NOBODY
from tests.tools import no_more_descriptors

TIMEOUT = 30  # seconds

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_line_is_a_request_or_refused(line: bytes) -> None:
    try:
        request = parse_request(line)
    except RequestError as error:
        if not error.notification:
            assert parse_error(protocol.failure(None, error)) == (error.code, str(error))
    else:
        assert isinstance(request.params, dict)


def parse_error(line: bytes) -> tuple[int, str]:
    with pytest.raises(RequestError) as error:
        parse_reply(line)
    return error.value.code, str(error.value)


@settings(max_examples=50)
@given(st.text(), st.dictionaries(st.text(), JSON), st.none() | st.integers() | st.text())
def test_requests_and_results_come_back_as_they_were(method: str, params: dict[str, object], number: int | str) -> None:
    request = Request(method, params, number)
    line = request.encode()
    assert line.count(b"\n") == 1
    assert parse_request(line) == request
    assert parse_reply(protocol.result(request, params)) == params


@pytest.mark.parametrize("text", ["NaN", "-Infinity", r'"\ud800"', r'{"a": ["\udc7f"]}', r'{"\udfff": 1}'])
def test_what_python_calls_json_and_is_none(text: str) -> None:
    with pytest.raises(RequestError, match=r"no JSON|no character"):
        parse_request(f'{{"method": "add", "params": {{"spec": {text}}}}}'.encode())


def test_a_request_with_parameters_by_place_is_refused_by_its_number() -> None:
    with pytest.raises(RequestError, match="by name") as error:
        parse_request(b'{"id": 7, "method": "add", "params": ["a", "memory:1M"]}')
    assert json.loads(protocol.failure(None, error.value))["id"] == 7


def test_a_name_that_is_no_utf_8_is_carried() -> None:
    request = Request("add", {"spec": "caf\udce9"})
    assert parse_request(request.encode()) == request


@pytest.mark.parametrize("line", [b"", b"{}", b"[]", b'{"error": 1}', b'{"error": {"code": "x"}}', b"\xff"])
def test_what_is_no_reply(line: bytes) -> None:
    with pytest.raises(ValueError):
        parse_reply(line)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    found = tmp_path / "nbdfs"
    monkeypatch.setattr(place, "folders", lambda: [found])
    return found


async def echo(text: str) -> str:
    return text


async def fail(usage: bool = False) -> None:
    raise (UsageError if usage else UserError)("it cannot be done")


async def crash() -> None:
    raise ZeroDivisionError


async def wait(seconds: float = 0.0) -> float:
    return seconds


METHODS = {
    "wait": Method(wait, options={"seconds": float}),
    "echo": Method(echo, {"text": str}),
    "fail": Method(fail, options={"usage": bool}),
    "crash": Method(crash),
}


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[Path]:
    with trio.fail_after(TIMEOUT):
        async with controlled(METHODS):
            yield folder / f"{os.getpid()}.sock"
        assert list(folder.iterdir()) == []


async def test_calls(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    def use(path: Path) -> None:
        with Client(path) as client:
            for text in ("hello", "x" * (LONGEST_REQUEST - 200), "ü\n\0"):
                assert client.call("echo", text=text) == text
            with pytest.raises(UserError, match=r"^it cannot be done$"):
                client.call("fail")
            with pytest.raises(UsageError, match=r"^it cannot be done$"):
                client.call("fail", usage=True)
            with pytest.raises(UserError, match="internal error"):
                client.call("crash")
            assert [client.call("wait", seconds=seconds) for seconds in (1, 0.5)] == [1, 0.5]
            with pytest.raises(UserError, match="seconds is not of type float"):
                client.call("wait", seconds=True)
            assert client.call("echo", text="still there") == "still there"

    async with served(folder) as path:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        await trio.to_thread.run_sync(use, path)
    assert "ZeroDivisionError" in caplog.text


async def test_what_asks_for_no_reply_gets_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    async def note(word: str) -> str:
        called.append(word)
        if word == "fail":
            raise UserError("no")
        return word

    monkeypatch.setitem(METHODS, "note", Method(note, {"word": str}))
    async with served(folder) as path:
        stream = await trio.open_unix_socket(str(path))
        async with stream:
            for params in ({"word": "one"}, {"word": "fail"}, {"word": 1}, {}, ["by place"]):
                await stream.send_all(json.dumps({"method": "note", "params": params}).encode() + b"\n")
            await stream.send_all(b'{"method": "no such"}\n{"method": "note", "params": {"word": "two"}, "id": null}\n')
            with trio.fail_after(TIMEOUT):
                reply = json.loads(await stream.receive_some())
    assert reply == {"jsonrpc": "2.0", "result": "two", "id": None}
    assert called == ["one", "fail", "two"]


async def test_the_socket_of_a_dead_process_is_replaced_and_forgotten(folder: Path) -> None:
    folder.mkdir(0o700)
    dead, other = folder / f"{os.getpid()}.sock", folder / "1.sock"
    for path in (dead, other):
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))
    async with served(folder) as path:
        found = await trio.to_thread.run_sync(processes, "echo")
        assert [process.path for process in found] == [path]
        assert "the parameter text is missing" in found[0].trouble
        assert not other.exists()


@pytest.mark.parametrize("wrong", ["open to others", "a link", "a file"])
async def test_without_a_folder_of_ones_own_there_is_no_socket(
    folder: Path, wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    if wrong == "a link":
        (folder.parent / "elsewhere").mkdir(0o700)
        folder.symlink_to(folder.parent / "elsewhere")
    elif wrong == "a file":
        folder.write_text("")
    else:
        folder.mkdir()
        folder.chmod(0o755)
    async with controlled(METHODS):
        assert list(place.sockets()) == []
    assert "no control socket" in caplog.text


# Calls a method at a socket and prints what comes back.
_CALLER = """
import contextlib, socket, sys
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(sys.argv[1])
    with contextlib.suppress(BrokenPipeError):  # who is refused may be so before
        connection.sendall(b'{"id": 1, "method": "echo", "params": {"text": "hello"}}\\n')
    print(connection.makefile().readline())
"""


@pytest.mark.root
async def test_another_user_is_refused(folder: Path, nobody_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the file system would let them."""
    nobody_path.chmod(0o755)
    monkeypatch.setattr(place, "folders", lambda: [nobody_path / "nbdfs"])
    with trio.fail_after(TIMEOUT):
        async with controlled(METHODS):
            (nobody_path / "nbdfs").chmod(0o777)
            path = nobody_path / "nbdfs" / f"{os.getpid()}.sock"
            path.chmod(0o777)
            for user, answer in ((NOBODY, "only user 0 and root may control this process"), (0, "hello")):
                command = ["setpriv", f"--reuid={user}", "--clear-groups", "/usr/bin/python3", "-c", _CALLER, str(path)]
                done = await trio.run_process(command, capture_stdout=True)
                assert answer in done.stdout.decode()


def test_nobody_is_asked_for_a_secret_at_the_terminal_of_another_process() -> None:
    for text in ("-", "-0"):
        with far_away(), pytest.raises(UserError, match=r"cannot ask you: use \+FILE"):
            Secret(text).read()


def test_a_process_that_does_not_answer_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbdfs.control.client._LOOK", 0.2)
    folder.mkdir(0o700)
    with socket.socket(socket.AF_UNIX) as stuck:
        stuck.bind(str(folder / "1.sock"))
        stuck.listen()
        (process,) = processes()
        assert "1.sock does not answer" in process.trouble
        assert process.facts == {}


def listed(now: float, *exports: tuple[int, str, int, int, bool]) -> list[Process]:
    """A look at a process with exports: number, name, bytes read and written, and whether it is in passthrough."""
    facts = [
        {"id": number, "name": name, "passthrough": passthrough, "read": {"bytes": read}, "write": {"bytes": written}}
        for number, name, read, written, passthrough in exports
    ]
    return [Process(Path("x"), {"now": now, "target": "/d", "uris": [], "pid": 1, "exports": facts})]


def test_rates_are_what_was_done_in_the_time_between() -> None:
    before = listed(10.0, (1, "a", 100, 0, False), (2, "kernel", 0, 0, True))
    after = listed(12.0, (1, "a", 300, 50, False), (2, "kernel", 0, 6, True), (3, "new", 6, 4, False))
    rates = {row.place: (row.read, row.write) for row in rows(before, after)}
    assert rates == {"/d/a": (100, 25), "/d/kernel": (None, 3), "/d/new": (3, 2)}


def test_exports_of_one_name_are_told_apart() -> None:
    """Removed or replaced ones stay for as long as they are used, and count on."""
    before = listed(10.0, (1, "a", 900, 0, False), (2, "a", 50, 0, False))
    after = listed(12.0, (3, "a", 8, 0, False), (1, "a", 910, 0, False), (2, "a", 52, 0, False))
    assert [row.read for row in rows(before, after)] == [4, 5, 1]


def test_nothing_of_a_look_that_is_the_first() -> None:
    assert [row.read for row in rows([], listed(10.0, (1, "a", 900, 0, False)))] == [None]


async def test_many_clients_at_once_wait_for_their_turn(folder: Path) -> None:
    """More than are served, and more than wait in the kernel."""

    def use(path: Path) -> None:
        with ThreadPoolExecutor(200) as threads:
            assert set(threads.map(lambda _: ask(path), range(400))) == {"hello"}

    def ask(path: Path) -> object:
        with Client(path) as client:
            return client.call("echo", text="hello")

    async with served(folder) as path:
        await trio.to_thread.run_sync(use, path)


async def test_clients_wait_while_there_are_no_descriptors_and_that_is_told_once(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nbdfs.control.server._PAUSE", 0.001)

    def told(words: str) -> int:
        return sum(words in record.getMessage() for record in caplog.records)

    async with served(folder) as path:
        with socket.socket(socket.AF_UNIX) as client:
            with no_more_descriptors():
                await trio.sleep(0.05)
                assert told("cannot accept") == 0, "nobody has come yet"
                client.connect(str(path))
                while not told("cannot accept"):
                    await trio.sleep(0.01)
                await trio.sleep(0.05)
            client.sendall(Request("echo", {"text": "hello"}, 1).encode())
            await trio.lowlevel.wait_readable(client)
            assert parse_reply(client.recv(1 << 16)) == "hello"
    assert (told("cannot accept"), told("accepted again")) == (1, 1)


def test_what_failed_for_one_of_many_is_said_as_for_one(capsys: pytest.CaptureFixture[str]) -> None:
    """Where a mistake is shown in its place, that takes several lines."""

    def fail(item: str) -> None:
        raise UsageError(f"{item}\x1b has no meaning here:\n  ^")

    assert for_each("ab", fail) == 2
    assert capsys.readouterr().err == "".join(f"nbdfs: {item}\\x1b has no meaning here:\n  ^\n" for item in "ab")


def test_a_full_queue_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbdfs.control.client._CONNECT", 0.2)
    folder.mkdir(0o700)
    path = folder / "1.sock"
    with socket.socket(socket.AF_UNIX) as stuck, socket.socket(socket.AF_UNIX) as first:
        stuck.bind(str(path))
        stuck.listen(0)
        first.connect(str(path))
        with pytest.raises(UserError, match="too many others wait for its process"):
            Client(path)


async def test_a_request_that_is_too_long_ends_no_connection(folder: Path) -> None:
    def use(path: Path) -> None:
        with Client(path) as client:
            with pytest.raises(UserError, match=r"^echo: this is too long, a request has at most 65536 bytes$"):
                client.call("echo", text="x" * LONGEST_REQUEST)
            assert client.call("echo", text="hello") == "hello"

    async with served(folder) as path:
        await trio.to_thread.run_sync(use, path)


def test_a_late_reply_is_not_taken_for_that_to_another_request(folder: Path) -> None:
    folder.mkdir(0o700)
    path = folder / "1.sock"
    with socket.socket(socket.AF_UNIX) as slow:
        slow.bind(str(path))
        slow.listen()
        with Client(path) as client, slow.accept()[0] as connection:
            with pytest.raises(UserError, match="does not answer: timed out"):
                client.call("add", 0.1, name="a")
            connection.sendall(protocol.result(Request("add", {}, 1), "the late one"))
            with pytest.raises(UserError, match="does not answer: timed out"):
                client.call("add", name="b")


def test_a_reply_that_comes_in_drops_has_an_end(folder: Path) -> None:
    folder.mkdir(0o700)
    path = folder / "1.sock"
    with socket.socket(socket.AF_UNIX) as slow:
        slow.bind(str(path))
        slow.listen()
        with Client(path) as client, slow.accept()[0] as connection, ThreadPoolExecutor() as threads:
            asked = threads.submit(client.call, "about", 0.5)
            while not asked.done():
                connection.sendall(b" ")
                time.sleep(0.05)
            with pytest.raises(UserError, match="does not answer: timed out"):
                asked.result()


async def test_remove_waits_for_longer_than_a_request_may(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbdfs.cli.remove._LOOK", 0.01)
    looks = iter([[7, 8], [7, 8], [8]])

    async def remove(name: str, wait: float) -> dict[str, object]:
        return {"id": 7, "closed": False}

    async def look() -> dict[str, object]:
        return {"exports": [{"id": number} for number in next(looks)]}

    monkeypatch.setitem(METHODS, "remove", Method(remove, {"name": str, "wait": float}))
    monkeypatch.setitem(METHODS, "list", Method(look))

    def use(path: Path) -> None:
        with Client(path) as client:
            _remove(client, "a", 600)

    async with served(folder) as path:
        await trio.to_thread.run_sync(use, path)
    assert list(looks) == []
