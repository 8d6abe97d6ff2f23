"""Extended headers, which libnbd here does not have: our client with our server, requests beyond 32 bits as one."""

from __future__ import annotations

from pathlib import Path

from nbdfs.nbd.client import connected
from nbdfs.nbd.links import ClientOptions
from nbdfs.nbd.target import target_of_uri
from nbdfs.nbd.uri import parse_uri
from nbdfs.source import ALLOCATION, HOLE, ZERO, Extent, read
from nbdfs.stack import open_stack
from tests.interop.servers import Server, serve

__all__ = ["serve"]

GIB, TIB = 1 << 30, 1 << 40


async def test_they_are_agreed_on_unless_the_client_wants_none(serve: Server) -> None:
    target = target_of_uri(parse_uri(serve("memory:1M").uri))
    for extended in (True, False):
        async with connected(target, ClientOptions(extended=extended)) as client:
            assert client.server.extended is extended and client.server.structured


async def test_one_request_zeroes_trims_and_asks_beyond_32_bits(serve: Server, tmp_path: Path) -> None:
    log = tmp_path / "requests"
    uri = serve(f"log,file={log}::memory:{TIB}").uri
    async with open_stack(uri) as source:
        await source.pwrite(memoryview(b"data"), 9 * GIB)
        await source.zero(0, 5 * GIB)
        await source.trim(0, 6 * GIB)
        assert await read(source, 9 * GIB, 4) == b"data"
        first, second, *_ = await source.extents(0, TIB)
        assert first == Extent(0, 9 * GIB, HOLE | ZERO)
        assert second.offset == 9 * GIB and not second.flags
        assert await source.extents(10 * GIB, TIB - 10 * GIB, context=ALLOCATION) == [
            Extent(10 * GIB, TIB - 10 * GIB, HOLE | ZERO)
        ]
    lines = log.read_text()
    assert f"Zero id=2 offset=0x0 count={5 * GIB:#x}" in lines
    assert f"Trim id=3 offset=0x0 count={6 * GIB:#x}" in lines


async def test_content_is_the_same_with_and_without(serve: Server) -> None:
    uri = serve("memory:1M").uri
    async with open_stack(f"nbd,extended=no::{uri}") as compact, open_stack(uri) as extended:
        await extended.pwrite(memoryview(bytes(range(256)) * 256), 1000)
        assert await read(compact, 1000, 65536) == bytes(range(256)) * 256
        await compact.zero(2000, 30_000)
        assert await read(extended, 2000, 30_000) == bytes(30_000)
