"""From a spec to an open stack."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nbdfs import registry
from nbdfs.backends.blocksize import Blocksize
from nbdfs.errors import UsageError, UserError
from nbdfs.registry import LayerDriver, NoOptions, OpenContext
from nbdfs.source import Caps, Source, read
from nbdfs.spec import fold_captives
from nbdfs.stack import open_stack, plan


@pytest.mark.parametrize(
    "text, message",
    [
        ("memroy:1G", "there is no source or layer 'memroy'; did you mean 'memory'?"),
        ("memory,mlok:1G", "memory has no option 'mlok'; did you mean 'mlock'?"),
        ("memory,mlock,mlock:1G", "given twice"),
        ("cow::null::memory:1G", "null is a source, not a layer"),
        ("cow:1G", "cow is a layer and needs a source under it: cow::SOURCE"),
        ("gopher://host/x", "no source knows the scheme 'gopher://'"),
        ("memory", "as a source it needs an argument: memory:"),
        ("", "names no source"),
    ],
)
def test_wrong_specs_are_one_line(text: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        plan(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["memory:1Q", "memory:", "memory:-1", "null:x", "pattern:9E"])
async def test_wrong_sizes_are_usage_errors(text: str) -> None:
    with pytest.raises(UsageError, match=r"is not a size|larger than a file can be"):
        async with open_stack(text):
            pass


@pytest.mark.parametrize(
    "text, shown",
    [
        ("memory:1G", "memory:1G"),
        ("memory,mlock=yes:1G", "memory,mlock=True:1G"),
        ("/srv/disk.img", "/srv/disk.img"),
        ("blocksize::blocksize::/x", "blocksize::blocksize::/x"),
        ("nbd://host/x", "nbd://host/x"),
    ],
)
def test_a_plan_is_shown_as_a_spec(text: str, shown: str) -> None:
    assert str(plan(text)) == shown
    assert str(plan(shown)) == shown


@pytest.mark.parametrize(
    "text, shown",
    [
        ("https://user:hush@host/x?a=b@c", "https://user:***@host/x?***"),
        ("https://user:hu@sh@host/x", "https://user:***@host/x"),
        ("http,url-script=curl -u me%3Ahush https%3A//x:", "http,url-script=***:"),
        ("http+unix://%2Frun%2Fs/x?signature=hush", "http+unix://%2Frun%2Fs/x?***"),
        ("nbd+unix:///x?socket=/run/s", "nbd+unix:///x?socket=/run/s"),
        ("raw:https://host/?a", "raw:https://host/?***"),
        ("https://user@host/x:y@z", "https://user@host/x:y@z"),
        ("cow::https://:hush@[::1]:80/x", "cow::https://:***@[::1]:80/x"),
        ("luks,header=https%3A//user%3Ahush@host/x::/img", "luks,header=https%3A//user%3A***@host/x::/img"),
        (
            "http,proxy=http%3A//user%3Ahush@proxy::https://host/x",
            "http,proxy=http%3A//user%3A***@proxy:https://host/x",
        ),
        ("/srv/a:b@c", "/srv/a:b@c"),
    ],
)
def test_a_password_in_a_uri_is_not_shown(text: str, shown: str) -> None:
    assert str(plan(text)) == shown


def test_a_password_among_the_words_of_a_captive_server_is_not_shown() -> None:
    words = ["[", "nbdkit", "curl", "url=https://user:hush@host/x", "]"]
    assert str(plan(fold_captives(words)[0])) == "[ nbdkit curl url=https://user:***@host/x ]"


def test_a_secret_is_not_shown() -> None:
    assert "hunter2" not in str(plan("http,password=hunter2::http://host/x"))


def test_options_of_a_uri_stand_in_a_segment_before_it() -> None:
    planned = plan("http,connections=8::https://host/x")
    assert planned.source.name == "http"
    assert planned.options.connections == 8
    assert planned.layers == ()


async def test_debug_puts_a_door_between_all_layers() -> None:
    async with open_stack("blocksize::null:1M", debug=True) as door:
        assert type(door.below) is Blocksize
        assert type(door.below.below).__name__ == "Checked"
    async with open_stack("blocksize::null:1M") as door:
        assert type(door.below.below).__name__ == "Null"  # type: ignore[attr-defined]


class Traced(Source):
    """A layer that notes when it is opened and closed, and whether it is the one that fails."""

    def __init__(self, below: Source, name: str, events: list[str], *, fails: bool) -> None:
        self.info = below.info
        self.below, self.name, self.events, self.fails = below, name, events, fails

    async def __aenter__(self) -> Traced:
        if self.fails:
            raise OSError(5, "cannot open")
        self.events.append(f"open {self.name}")
        return self

    async def aclose(self) -> None:
        self.events.append(f"close {self.name}")

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        await self.below.pread_into(buffer, offset)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Adds the layers a, b and bad, which note their opening and closing in the list."""
    events: list[str] = []

    def driver(name: str) -> LayerDriver:
        def opened(below: Source, options: NoOptions, context: OpenContext) -> Source:
            return Traced(below, name, events, fails=name == "bad")

        return LayerDriver(name, name, open=opened)

    real = registry.find
    mine = {name: driver(name) for name in ("a", "b", "bad")}
    monkeypatch.setattr(registry, "find", lambda name: mine.get(name) or real(name))
    return events


async def test_opens_from_the_leaf_up_and_closes_from_the_top_down(traced: list[str]) -> None:
    async with open_stack("a::b::null:1M") as door:
        await read(door, 0, 1)
    assert traced == ["open b", "open a", "close a", "close b"]


async def test_what_was_opened_is_closed_when_a_layer_fails(traced: list[str]) -> None:
    with pytest.raises(UserError, match="bad: "):
        async with open_stack("bad::b::null:1M"):
            pass
    assert traced == ["open b", "close b"]


async def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def opened(below: Source, options: NoOptions, context: OpenContext) -> AsyncIterator[Source]:
        import no_such_package  # type: ignore[import-not-found]

        yield no_such_package

    real = registry.find
    lacking = LayerDriver("lacking", "x", extra="things", open=opened)
    monkeypatch.setattr(registry, "find", lambda name: lacking if name == "lacking" else real(name))
    with pytest.raises(UserError, match=r"lacking needs no_such_package: pip install 'nbdfs\[things\]'"):
        async with open_stack("lacking::null:1M"):
            pass


async def test_limits_get_a_blocksize_layer(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(range(256)) * 64)
    async with open_stack(f"file,direct:{image}", readonly=True) as door:
        assert door.info.block.minimum == 1
        assert await read(door, 300, 5) == bytes(range(44, 49))


async def test_readonly_takes_writing_away() -> None:
    async with open_stack("null:1M", readonly=True) as door:
        assert not door.writable
        assert not door.info.caps & Caps.WRITE
