"""The `http` source against a server with every fault: right bytes, or one clear error."""

from __future__ import annotations

import base64
import errno
import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trustme

from nbdfs.backends.http.access import Access
from nbdfs.backends.http.options import HttpOptions
from nbdfs.errors import UserError
from nbdfs.secret import Secret
from nbdfs.source import Caps, Health, read
from nbdfs.stack import open_stack
from tests.hostile_http import Served, hostile
from tests.tools import key_file

CONTENT = random.Random(1).randbytes(300_001)
ALWAYS = 1 << 30


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setenv("no_proxy", "*")
    with hostile(CONTENT) as served:
        yield served


def spec(server: Served, path: str, options: str = "", timeout: str = "3") -> str:
    return f"http,timeout={timeout}{options}::{server.url(path)}"


@pytest.mark.parametrize("options", ["", ",http2"], ids=["direct", "pooled"])  # without TLS it is HTTP/1.1 both ways
@pytest.mark.parametrize(
    "path", ["plain", "dated", "no-total", "in-parts", "no-head", "redirect", "unquoted", "elsewhere", "to-signed"]
)
async def test_honest_servers_give_the_right_bytes(server: Served, path: str, options: str) -> None:
    async with open_stack(spec(server, path, options)) as source:
        assert source.info.size == len(CONTENT)
        assert await read(source, 0, len(CONTENT)) == CONTENT
        assert await read(source, len(CONTENT) - 1, 1) == CONTENT[-1:]
        assert await read(source, 12_345, 54_321) == CONTENT[12_345 : 12_345 + 54_321]


@pytest.mark.parametrize("path", ["busy", "throttled", "hang-up", "short", "garbage", "silent"])
@pytest.mark.parametrize(("times", "options"), [(1, ""), (2, ""), (1, ",http2")])
async def test_what_passes_is_tried_again(server: Served, path: str, times: int, options: str) -> None:
    async with open_stack(spec(server, path, options, timeout="4")) as source:
        server.state.fail = times
        assert await read(source, 777, 100_000) == CONTENT[777:100_777]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("whole", "with 200 instead of 206"),
        ("wrong-range", "asked for bytes 777-10776"),
        ("no-content-range", "the server sends nothing"),
        ("multipart", "the server sends nothing"),
        ("wrong-length", "sends 10007 bytes for a range of 10000"),
        ("too-much", "more than was asked"),
        ("gzip", "coded as gzip"),
        ("throttled-long", "says 429"),
    ],
)
@pytest.mark.parametrize("options", ["", ",http2"], ids=["direct", "pooled"])
async def test_lies_are_an_error_at_once_and_never_bytes(server: Served, path: str, says: str, options: str) -> None:
    async with open_stack(spec(server, path, options, timeout="60")) as source:
        server.state.fail = 1
        with pytest.raises(OSError, match=says) as caught, trio.fail_after(30):
            await read(source, 777, 10_000)
        assert caught.value.errno == errno.EIO
        assert await read(source, 777, 10_000) == CONTENT[777:10_777]  # the source lives on


async def test_an_error_in_one_piece_of_a_long_read_is_the_whole_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    content = CONTENT * 12
    with hostile(content) as server:
        async with open_stack(spec(server, "whole")) as source:
            server.state.fail = 1
            with pytest.raises(OSError, match="with 200 instead of 206") as caught:
                await read(source, 0, len(content))
            assert caught.value.errno == errno.EIO
            assert await read(source, 0, len(content)) == content


async def test_a_long_read_over_few_connections_has_the_time_it_needs(server: Served) -> None:
    server.state.content *= 40
    async with open_stack(spec(server, "slow", ",connections=2", timeout="1")) as source:
        assert await read(source, 0, len(server.state.content)) == CONTENT * 40


async def test_a_server_that_asks_for_no_pause_is_not_asked_without_one(server: Served) -> None:
    async with open_stack(f"http,timeout=1::{server.url('throttled')}") as source:
        server.state.fail = ALWAYS
        server.state.requests.clear()
        with pytest.raises(OSError, match="given up within 1 s"):
            await read(source, 0, 5000)
    assert server.state.requests["GET"] < 20


@pytest.mark.parametrize("path", ["busy", "hang-up", "short", "silent"])
async def test_what_does_not_pass_is_eio_in_time(server: Served, path: str) -> None:
    async with open_stack(f"http,timeout=1::{server.url(path)}") as source:
        server.state.fail = ALWAYS
        with pytest.raises(OSError, match="given up within 1 s") as caught, trio.fail_after(30):
            await read(source, 0, 5000)
        assert caught.value.errno == errno.EIO
        server.state.fail = 0
        assert await read(source, 0, 5000) == CONTENT[:5000]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("no-range", "cannot send parts"),
        ("endless", "cannot send parts"),
        ("gzip-always", "coded as gzip"),
        ("loop", "in a circle"),
        ("nowhere", "leads to no http"),
        ("to-ftp", "leads to no http"),
        ("to-no-url", "leads to no http"),
        ("absurd-size", "cannot send parts"),
        ("absurd-length", "refuses the first byte"),
        ("too-large", "longer than a file can be"),
        ("absent", "404: there is no such file"),
        ("signed", "403: forbidden"),
        ("basic", "401: a login is needed"),
    ],
)
async def test_what_cannot_be_opened_is_one_clear_line(server: Served, path: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught, trio.fail_after(20):
        async with open_stack(spec(server, path)):
            pass
    assert "\n" not in str(caught.value)


async def test_a_dead_server_is_told_at_once() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        with pytest.raises(UserError, match="cannot reach the server"), trio.fail_after(20):
            async with open_stack(f"http,proxy=none::http://127.0.0.1:{held.getsockname()[1]}/x"):
                pass


async def test_a_server_that_dies_and_returns_is_survived(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with hostile(CONTENT, unix=path) as server:
        async with open_stack(spec(server, "plain")) as source:
            assert await read(source, 0, 5000) == CONTENT[:5000]
    Path(path).unlink()
    with hostile(CONTENT, unix=path) as server:
        async with open_stack(spec(server, "plain")) as source:
            assert await read(source, 0, 5000) == CONTENT[:5000]


@pytest.mark.parametrize(
    "argument", ["http://", "http://host name/x", "http://h:99999/", "http+unix://relative/x", "http://me:hush@h t/"]
)
async def test_urls_that_are_none(argument: str) -> None:
    with pytest.raises(UserError, match=r"not a URL|socket's path") as caught:
        async with open_stack(argument):
            pass
    assert "hush" not in str(caught.value)


# ---- the content changes


async def test_a_new_version_is_an_error_and_never_mixed(server: Served, caplog: pytest.LogCaptureFixture) -> None:
    async with open_stack(spec(server, "plain")) as source:
        assert await read(source, 0, 100) == CONTENT[:100]
        server.state.etag = '"two"'
        server.state.content[:] = bytes(len(CONTENT))
        with pytest.raises(OSError, match="has changed on the server") as caught:
            await read(source, 0, 100)
        assert caught.value.errno == errno.EIO
    assert "open it again" in caplog.text


@pytest.mark.parametrize("size", [100_000, 400_000])
async def test_another_size_is_seen(server: Served, size: int) -> None:
    async with open_stack(spec(server, "plain")) as source:
        server.state.content[:] = bytes(size)
        with pytest.raises(OSError, match=f"now has {size} bytes"):
            await read(source, 0, 100)


async def test_the_last_block_of_a_file_that_shrank(server: Served) -> None:
    async with open_stack(spec(server, "plain")) as source:
        del server.state.content[1000:]
        with pytest.raises(OSError, match="has changed"):
            await read(source, len(CONTENT) - 100, 100)


async def test_a_server_that_names_no_version_is_warned_of(server: Served, caplog: pytest.LogCaptureFixture) -> None:
    server.state.etag = ""
    async with open_stack(spec(server, "plain")) as source:
        assert source.info.identity == ""
        assert await read(source, 0, 100) == CONTENT[:100]
    assert "changes cannot be seen" in caplog.text


async def test_the_version_is_the_identity(server: Served) -> None:
    async with open_stack(spec(server, "plain")) as source:
        one = source.info.identity
    server.state.etag = '"two"'
    async with open_stack(spec(server, "plain?signature=x")) as source:
        assert source.info.identity not in ("", one)
        assert "signature" not in source.info.identity + source.info.description


async def test_a_query_tells_one_file_from_another(server: Served, tmp_path: Path) -> None:
    """Neither a date nor the tag of a server need differ between two files."""

    async def identity(spec: str) -> str:
        async with open_stack(spec) as source:
            return source.info.identity

    (tmp_path / "url").write_text(server.url("plain?signature=1"))
    script = f"http,timeout=3,url-script=cat {tmp_path}/url:"
    found = [await identity(spec(server, path)) for path in ("plain", "plain?file=a", "plain?file=b")]
    found.append(await identity(script))
    assert len(set(found)) == 4
    assert not any("file" in each or str(tmp_path) in each for each in found)
    (tmp_path / "url").write_text(server.url("plain?signature=2"))
    assert await identity(script) == found[-1]


async def test_an_empty_file_opens(server: Served) -> None:
    server.state.content.clear()
    async with open_stack(spec(server, "plain")) as source:
        assert source.info.size == 0


# ---- logins, scripts, redirects


@pytest.mark.parametrize("path", ["basic", "digest"])
async def test_logins(server: Served, path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    key = tmp_path / "key"
    key.write_text("secret\n")
    key.chmod(0o600)
    async with open_stack(spec(server, path, f",user=user,password=+{key}")) as source:
        assert await read(source, 5, 50) == CONTENT[5:55]
        assert await read(source, 6, 50) == CONTENT[6:56]
    key.write_text("wrong")
    with pytest.raises(UserError, match="401"):
        async with open_stack(spec(server, path, f",user=user,password=+{key}")):
            pass
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("digest-of-the-body", "protect the body too"),
        ("digest-unknown", "algorithm 'ROT13'"),
        ("digest-malformed", "makes no sense"),
    ],
)
async def test_a_login_that_is_not_possible_is_told_at_once(
    server: Served, path: str, says: str, tmp_path: Path
) -> None:
    key = key_file(tmp_path / "key", b"secret")
    with pytest.raises(UserError, match=f"login that is not possible here: .*{says}"), trio.fail_after(30):
        async with open_stack(spec(server, path, f",user=user,password=+{key}", timeout="60")):
            pass


@pytest.mark.parametrize(
    ("option", "content", "says"),
    [
        ("headers", "X-Price: 5 €", "X-Price has a character"),
        ("headers", "X-Bell: \a", "X-Bell has a character"),
        ("headers", "no colon", "Name: value"),
        ("cookie-file", "\0\xff", "no cookie file"),
        ("cookie-file", "# Netscape HTTP Cookie File\n127.0.0.1\tFALSE\t/\tFALSE\t0\tname\t€\n", "cookie name has a"),
    ],
)
async def test_what_no_request_can_carry(
    server: Served, option: str, content: str, says: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    file = key_file(tmp_path / "file", content.encode())
    plus = "+" if option == "headers" else ""
    with pytest.raises(UserError, match=says):
        async with open_stack(spec(server, "plain", f",{option}={plus}{file}")):
            pass
    assert not recwarn.list


async def test_a_login_in_the_url_works_and_is_not_shown(server: Served, caplog: pytest.LogCaptureFixture) -> None:
    async with open_stack(server.url("basic").replace("//", "//user:secret@")) as source:
        assert await read(source, 5, 50) == CONTENT[5:55]
        assert "secret" not in source.info.description + source.info.identity
    assert "can see it" in caplog.text


def test_a_login_goes_out_as_the_bytes_it_came_in(tmp_path: Path) -> None:
    key = key_file(tmp_path / "key", b"caf\xe9")
    by_option = Access("http://h/x", HttpOptions(user="\udcff", password=Secret(f"+{key}")))
    by_url = Access("http://%ff:caf%e9@h/x", HttpOptions())
    login = "Basic " + base64.b64encode(b"\xff:caf\xe9").decode()
    for access in by_option, by_url:
        assert ("Authorization", login) in access.headers("GET", "http://h/x", [])


async def test_secrets_do_not_follow_a_redirect_elsewhere(server: Served, tmp_path: Path) -> None:
    (tmp_path / "headers").write_text("X-Token: abc\n")
    cookies = [f"{host}\tFALSE\t/\tFALSE\t0\tsesame\topen\n" for host in ("127.0.0.1", "localhost.local")]
    (tmp_path / "cookies").write_text("# Netscape HTTP Cookie File\n" + "".join(cookies))
    options = f",user=user,password=+{tmp_path}/headers,headers=+{tmp_path}/headers,cookie-file={tmp_path}/cookies"
    async with open_stack(spec(server, "elsewhere", options)):
        pass
    first, second = server.state.headers[:2]
    assert first["x-token"] == "abc" and "authorization" in first and first["cookie"] == "sesame=open"
    assert not {"x-token", "authorization", "cookie"} & set(second)
    assert second["host"].startswith("localhost:")


async def test_url_script_is_run_again_when_its_url_expires(server: Served, tmp_path: Path) -> None:
    (tmp_path / "url").write_text(server.url("signed?fresh"))
    async with open_stack(f"http,timeout=3,url-script=cat {tmp_path}/url:") as source:
        assert await read(source, 5, 50) == CONTENT[5:55]
        server.state.token = "new"
        (tmp_path / "url").write_text(server.url("signed?new"))
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(read, source, 0, 4096)
        assert await read(source, 5, 50) == CONTENT[5:55]
        server.state.token = "unknown to the script"
        with pytest.raises(OSError, match="403"):
            await read(source, 5, 50)


async def test_header_script_is_run_again_when_refused(server: Served, tmp_path: Path) -> None:
    (tmp_path / "headers").write_text("X-Token: fresh\n")
    async with open_stack(spec(server, "token", f",header-script=cat {tmp_path}/headers")) as source:
        server.state.token = "new"
        (tmp_path / "headers").write_text("X-Token: new\n")
        assert await read(source, 5, 50) == CONTENT[5:55]


async def test_a_failing_script_is_an_error(server: Served) -> None:
    with pytest.raises(UserError, match="url-script ended with status 3"):
        async with open_stack("http,url-script=exit 3:"):
            pass


async def test_a_redirect_to_a_signed_url_is_followed_again_when_it_expires(server: Served) -> None:
    async with open_stack(spec(server, "to-signed")) as source:
        before = server.state.requests["GET"]
        assert await read(source, 5, 50) == CONTENT[5:55]
        assert server.state.requests["GET"] == before + 1  # the target was remembered
        server.state.token = "new"
        assert await read(source, 5, 50) == CONTENT[5:55]


async def test_cookies(server: Served, tmp_path: Path) -> None:
    file = tmp_path / "cookies"
    file.write_text("# Netscape HTTP Cookie File\n127.0.0.1\tFALSE\t/\tFALSE\t0\tsesame\topen\n")
    async with open_stack(spec(server, "cookie", f",cookie-file={file}")) as source:
        assert await read(source, 5, 50) == CONTENT[5:55]
    file.write_text("nonsense")
    with pytest.raises(UserError, match="cookie-file"):
        async with open_stack(spec(server, "cookie", f",cookie-file={file}")):
            pass


@pytest.mark.parametrize("header", ["no colon", ": no name", "bad name: x"])
async def test_headers_that_are_none(server: Served, tmp_path: Path, header: str) -> None:
    (tmp_path / "headers").write_text(header)
    with pytest.raises(UserError, match="Name: value"):
        async with open_stack(spec(server, "plain", f",headers=+{tmp_path}/headers")):
            pass


# ---- transports


async def test_unix_socket(tmp_path: Path) -> None:
    with hostile(CONTENT, unix=str(tmp_path / "sock")) as server:
        async with open_stack(server.url("plain")) as source:
            assert await read(source, 5, 50) == CONTENT[5:55]


async def test_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with hostile(CONTENT, tls=authority.issue_cert("localhost").configure_cert) as server:
        with pytest.raises(UserError, match=r"certificate is not accepted.*ca=FILE"):
            async with open_stack(server.url("plain")):
                pass
        for option in f"ca={tmp_path}/ca.pem", "insecure":
            async with open_stack(f"http,{option}::{server.url('plain')}") as source:
                assert await read(source, 5, 50) == CONTENT[5:55]
        with pytest.raises(UserError, match="from https to http"):
            async with open_stack(f"http,ca={tmp_path}/ca.pem::{server.url('downgrade')}"):
                pass
    with hostile(CONTENT, tls=authority.issue_cert("other.example").configure_cert) as server:
        with pytest.raises(UserError, match="certificate is not accepted"):
            async with open_stack(f"http,ca={tmp_path}/ca.pem::{server.url('plain')}"):
                pass
    (tmp_path / "empty").touch()
    with pytest.raises(UserError, match="ca: no certificates"):
        async with open_stack(f"http,ca={tmp_path}/empty::https://localhost/"):
            pass


async def test_proxy(server: Served, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret\n")
    url = "http://no.such.host.example/plain"
    login = f",proxy-user=user,proxy-password=+{tmp_path}/key"
    async with open_stack(f"http,proxy={server.base}{login}::{url}") as source:
        assert await read(source, 5, 50) == CONTENT[5:55]
        assert "secret" not in source.info.description + source.info.identity
    assert server.state.requests["proxied"] == 2
    with pytest.raises(UserError, match="407: the proxy wants a login"):
        async with open_stack(f"http,proxy={server.base}::{url}"):
            pass
    with pytest.raises(UserError, match="is no HTTP proxy"):
        async with open_stack(f"http,proxy=socks5://x::{url}"):
            pass
    with pytest.raises(UserError, match="cannot reach the server: this is no name of a host"):
        async with open_stack(f"http,proxy=.::{url}"):
            pass
    (tmp_path / "key").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match="407: the proxy wants a login"):
        async with open_stack(f"http,proxy={server.base}{login}::{url}"):
            pass


async def test_the_environment_names_a_proxy(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("http_proxy", server.base.replace("//", "//user:s%65cret@"))
    async with open_stack("http://no.such.host.example/plain") as source:
        assert await read(source, 5, 50) == CONTENT[5:55]


async def test_connections_are_kept_and_bounded(server: Served) -> None:
    async with open_stack(spec(server, "plain", ",connections=4")) as source:
        for _ in range(3):
            async with trio.open_nursery() as nursery:
                for index in range(20):
                    nursery.start_soon(read, source, index * 1000, 1000)
    assert server.state.connections <= 4


async def test_a_cancelled_read_leaves_the_source_usable(server: Served) -> None:
    async with open_stack(spec(server, "silent")) as source:
        server.state.fail = 1
        with trio.move_on_after(0.1) as scope:
            await read(source, 0, 1000)
        assert scope.cancelled_caught
        assert await read(source, 0, 1000) == CONTENT[:1000]


# ---- writes and whole files


async def test_writes_need_the_option(server: Served) -> None:
    async with open_stack(spec(server, "writable")) as source:
        assert Caps.WRITE not in source.info.caps


async def test_writes(server: Served) -> None:
    async with open_stack(spec(server, "writable", ",writable")) as source:
        await source.pwrite(memoryview(b"new"), 1000)
        await source.pwrite(memoryview(b"er"), 1003)
        assert await read(source, 999, 7) == CONTENT[999:1000] + b"newer" + CONTENT[1005:1006]
    assert server.state.content == CONTENT[:1000] + b"newer" + CONTENT[1005:]


async def test_a_server_that_takes_a_part_for_all_is_found_out(server: Served) -> None:
    async with open_stack(spec(server, "takes-parts-for-all", ",writable")) as source:
        with pytest.raises(OSError, match="for the whole file"):
            await source.pwrite(memoryview(b"new"), 1000)


@pytest.mark.parametrize("path", ["no-range", "chunked"])
async def test_download_where_there_are_no_ranges(server: Served, path: str) -> None:
    server.state.fail = 2 if path == "chunked" else 0
    async with open_stack(spec(server, path, ",fallback=download")) as source:
        assert await read(source, 0, len(CONTENT)) == CONTENT
        assert Caps.WRITE not in source.info.caps


async def test_a_download_that_never_comes_whole(server: Served) -> None:
    server.state.fail = ALWAYS
    with pytest.raises(UserError, match="broke off 3 times"):
        async with open_stack(spec(server, "chunked", ",fallback=download")):
            pass


async def test_a_download_without_an_end_is_refused(server: Served) -> None:
    with pytest.raises(UserError, match="where the file ends"):
        async with open_stack(spec(server, "endless", ",fallback=download")):
            pass


async def test_it_tells_how_often_it_tried_again_and_that_it_does(server: Served) -> None:
    async with open_stack(spec(server, "busy", timeout="60")) as source:
        (part,) = source.parts
        assert (part.statistics()["retries_total"], source.health()) == (0, Health.OK)
        server.state.fail = ALWAYS
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, source, 0, 100)
            with trio.fail_after(30):
                while source.health() is Health.OK:
                    await trio.sleep(0.01)
            assert source.health() is Health.RECONNECTING
            server.state.fail = 0
        assert part.statistics()["retries_total"] >= 1
        assert source.health() is Health.OK
