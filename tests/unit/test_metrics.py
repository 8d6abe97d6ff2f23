"""The figures for Prometheus: what is counted, the text as another parser reads it, and the server that tells it."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from prometheus_client.parser import text_string_to_metric_families

from nbdfs.cli._observing import parse_address
from nbdfs.errors import UsageError, UserError
from nbdfs.export import Export
from nbdfs.metering import BOUNDS, CANCELLED, Metered
from nbdfs.metrics.families import families
from nbdfs.metrics.server import serving_metrics
from nbdfs.metrics.text import Family, Sample
from nbdfs.nbd.uri import Tcp, Unix
from nbdfs.source import Caps, Health, Source, SourceInfo, read
from nbdfs.stack import open_stack

Figures = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(exports: Iterable[Export]) -> Figures:
    return parsed_text("".join(f"{line}\n" for family in families(exports) for line in family.lines()))


def parsed_text(text: str) -> Figures:
    found: Figures = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, f"{key} is told twice"
            found[key] = sample.value
    return found


def value(figures: Figures, name: str, **labels: str) -> float:
    """The only sample of that name with those labels among its labels."""
    (found,) = [figure for (title, pairs), figure in figures.items() if title == name and labels.items() <= pairs]
    return found


@asynccontextmanager
async def opened(spec: str) -> AsyncIterator[Export]:
    async with open_stack(spec, metered=True) as source:
        yield Export("disk", source, spec)


async def test_each_layer_is_counted_at_its_own_boundary() -> None:
    async with opened("offset,offset=4k::pattern:1M") as export:
        await read(export.source, 0, 1000)
        await read(export.source, 5000, 24)
        figures = parsed([export])
    for layer, depth in (("offset", "0"), ("pattern", "1")):
        place = {"export": "disk", "layer": layer, "depth": depth, "operation": "read"}
        assert value(figures, "nbdfs_request_bytes_total", **place) == 1024
        assert value(figures, "nbdfs_request_duration_seconds_count", **place) == 2
        assert value(figures, "nbdfs_requests_in_flight", **place) == 0
    assert value(figures, "nbdfs_export_size_bytes", export="disk") == (1 << 20) - 4096


async def test_what_never_happened_has_no_series() -> None:
    async with opened("memory:1M") as export:
        figures = parsed([export])
    assert not [name for name, _ in figures if name.startswith("nbdfs_request")]


async def test_errors_are_counted_by_name_and_their_bytes_are_not() -> None:
    async with opened("error,errno=ENOSPC,rate=100%::memory:1M") as export:
        for _ in range(3):
            with pytest.raises(OSError) as caught:
                await export.source.pwrite(memoryview(b"x" * 512), 0)
            assert caught.value.errno == errno.ENOSPC
        figures = parsed([export])
    place = {"layer": "error", "operation": "write"}
    assert value(figures, "nbdfs_request_errors_total", **place) == 3
    assert value(figures, "nbdfs_request_errors_total", **place, error="ENOSPC") == 3
    assert value(figures, "nbdfs_request_bytes_total", **place) == 0
    assert value(figures, "nbdfs_request_duration_seconds_count", **place) == 3


async def test_durations_fall_into_the_buckets_of_a_real_histogram(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0, 0.002, 10, 10.003, 20, 60])  # 2 ms, 3 ms, and longer than every bound
    monkeypatch.setattr("time.perf_counter", lambda: next(seconds))
    async with opened("pattern:1M") as export:
        for _ in range(3):
            await read(export.source, 0, 512)
        figures = parsed([export])
    counts = [
        value(figures, "nbdfs_request_duration_seconds_bucket", operation="read", le=le)
        for le in ("0.001", "0.0025", "0.005", "30", "+Inf")
    ]
    assert counts == [0, 1, 2, 2, 3]
    assert value(figures, "nbdfs_request_duration_seconds_sum", operation="read") == pytest.approx(40.005)
    bounds = [dict(labels)["le"] for name, labels in figures if name == "nbdfs_request_duration_seconds_bucket"]
    assert sorted(float(bound) for bound in bounds) == [*BOUNDS, float("inf")]


class Slow(Source):
    """Answers once it is let go."""

    def __init__(self) -> None:
        self.info = SourceInfo(4096, Caps.IMMEDIATE)
        self.go = trio.Event()

    async def pread_into(self, buffer: memoryview, offset: int) -> None:
        await self.go.wait()


async def test_a_batch_counts_as_the_requests_that_were_done_at_once(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    async with open_stack(str(tmp_path / "disk"), metered=True) as door:
        assert door.batches
        assert door.read_now(memoryview(bytearray(1024)), 512, [0, 4096]) == 2
        assert door.write_now(memoryview(bytes(1536)), 512, [0, 4096, 8192]) == 3
        assert door.parts[0].meter is not None
        read, write = (door.parts[0].meter.operations[name] for name in ("read", "write"))
        assert (read.requests, read.bytes, write.requests, write.bytes) == (2, 1024, 3, 1536)
        assert write.seconds > 0


async def test_requests_in_flight_and_cancelled_ones() -> None:
    slow = Slow()
    metered = Metered(slow)
    figures = metered.meter.operations["read"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, metered, 0, 10)
        with trio.CancelScope() as scope:
            nursery.start_soon(trio.testing.wait_all_tasks_blocked)
            scope.cancel()
            await read(metered, 0, 10)
        await trio.testing.wait_all_tasks_blocked()
        assert (figures.in_flight, figures.errors) == (1, {CANCELLED: 1})
        slow.go.set()
    assert (figures.in_flight, figures.bytes, figures.requests) == (0, 10, 2)


async def test_metering_changes_neither_facts_nor_fast_paths() -> None:
    async with open_stack("memory:1M") as plain, open_stack("memory:1M", metered=True) as metered:
        assert metered.info == plain.info
        assert metered.below.info == plain.below.info
        assert (metered.backing() is None) == (plain.backing() is None)
        data = memoryview(b"here" * (64 << 8))
        await metered.pwrite(data, 0)
        assert metered.view(0, len(data)) == data
        assert metered.parts[0].meter
        figures = metered.parts[0].meter.operations["read"]
        assert (figures.requests, figures.bytes) == (1, len(data))


async def test_nothing_is_metered_unless_asked_for() -> None:
    async with open_stack("offset,offset=4k::memory:1M") as source:
        at: Source = source
        while hasattr(at, "below"):
            at = at.below
            assert not isinstance(at, Metered)
        assert [part.meter for part in source.parts] == [None, None]


async def test_a_cache_tells_hits_misses_and_what_it_holds(tmp_path: Path) -> None:
    block = 4 << 20  # too large for neighbours to be fetched along
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(40 * block)
    async with opened(f"cache,block=4M,size=64M::delay,read=1ms::{image}") as export:
        await read(export.source, 0, 2 * block)
        await read(export.source, block, 2 * block)
        figures = parsed([export])
        assert value(figures, "nbdfs_source_hits_total", layer="cache") == 1
        assert value(figures, "nbdfs_source_misses_total", layer="cache") == 3
        assert value(figures, "nbdfs_source_resident_bytes", layer="cache") == 3 * block
        assert value(figures, "nbdfs_source_evictions_total", layer="cache") == 0
        for at in range(16, 32, 4):
            await read(export.source, at * block, 4 * block)
        figures = parsed([export])
    assert value(figures, "nbdfs_source_evictions_total", layer="cache") >= 3


async def test_a_short_last_block_counts_with_its_own_length(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes((1 << 20) + 100))
    async with opened(f"cache,block=4k,size=64k::delay,read=1ms::{image}") as export:
        await read(export.source, (1 << 20) - 10, 110)
        assert export.source.parts[0].statistics()["resident_bytes"] == 4096 + 100


async def test_state_is_one_of_a_set_and_that_of_the_part_in_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened("offset,offset=4k::pattern:1M") as export:
        bottom = export.source.parts[1].sources[0]
        monkeypatch.setattr(bottom, "health", lambda: Health.RECONNECTING)
        figures = parsed([export])
    states = {state: value(figures, "nbdfs_export_state", export="disk", state=state) for state in Health}
    assert states == {Health.OK: 0, Health.STALLED: 0, Health.RECONNECTING: 1, Health.FAILED: 0}


async def test_the_process_tells_what_all_programs_tell() -> None:
    figures = parsed([])
    assert value(figures, "process_resident_memory_bytes") > 1 << 20
    assert value(figures, "process_open_fds") >= 3
    assert value(figures, "process_start_time_seconds") > 1e9
    assert value(figures, "nbdfs_build_info") == 1


async def test_a_secret_in_a_spec_is_not_told(tmp_path: Path) -> None:
    from nbdfs.stack import plan

    planned = plan("luks,passphrase=hunter2::memory:1M")
    async with open_stack("memory:1M", metered=True) as source:
        text = "".join(line for family in families([Export("x", source, str(planned))]) for line in family.lines())
    assert "luks" in text and "hunter2" not in text


def test_labels_survive_whatever_is_in_them() -> None:
    odd = 'a "quoted" back\\slash\nand a line'
    lines = Family("odd", "gauge", "back\\slash\nand a line", [Sample({"name": odd}, 1.5)]).lines()
    ((key, figure),) = parsed_text("".join(f"{line}\n" for line in lines)).items()
    assert (dict(key[1])["name"], figure) == (odd, 1.5)
    (_, _, sample) = Family("odd", "gauge", "", [Sample({"name": "\udcff"}, 1)]).lines()
    assert sample.encode()


# ---- the server


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("localhost:9100", Tcp("localhost", 9100)),
        ("[::1]:0", Tcp("::1", 0)),
        ("0.0.0.0:1", Tcp("0.0.0.0", 1)),
        ("unix:/run/x", Unix("/run/x")),
    ],
)
def test_addresses(text: str, address: object) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["", "9100", "localhost", ":9100", "::1:9100", "localhost:99999", "h:x", "unix:", "/run/x"]
)
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        parse_address(text)


@asynccontextmanager
async def scraped(tmp_path: Path) -> AsyncIterator[str]:
    """The path of the socket of a server with one export."""
    path = str(tmp_path / "metrics")
    async with opened("pattern:1M") as export, serving_metrics(Unix(path), [export]):
        yield path


async def asked(path: str, request: bytes) -> tuple[int, dict[str, str], str]:
    """Status, headers and body of the answer, which ends with the connection."""
    async with await trio.open_unix_socket(path) as stream:
        await stream.send_all(request)
        data = b""
        with trio.fail_after(30):
            async for chunk in stream:
                data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    assert len(body) == int(headers["content-length"]) or request.startswith(b"HEAD")
    return int(first.split()[1]), headers, body.decode()


async def test_a_scrape(tmp_path: Path) -> None:
    async with scraped(tmp_path) as path:
        status, headers, body = await asked(path, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert status == 200
        assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert value(parsed_text(body), "nbdfs_export_size_bytes", export="disk") == 1 << 20
        assert (await asked(path, b"GET /metrics?x=1 HTTP/1.0\r\n\r\n"))[0] == 200
        assert (await asked(path, b"GET HTTP://x/metrics?a HTTP/1.1\r\nHost: x\r\n\r\n"))[0] == 200
    assert not Path(path).exists()


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (b"GET http://x/http://x/metrics HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"GET /other HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", 405),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 this is TLS\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\n\r\n", 400),  # without Host
        (b"GET /metrics\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nLong: " + b"x" * 100_000, 431),
    ],
)
async def test_requests_that_are_no_scrape(tmp_path: Path, request_: bytes, status: int) -> None:
    async with scraped(tmp_path) as path:
        answered, _, body = await asked(path, request_)
        assert answered == status
        assert "nbdfs_" not in body
        assert (await asked(path, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"))[0] == 200


async def test_clients_that_say_nothing_are_dropped_and_keep_nobody_out(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with scraped(tmp_path) as path:
        silent = [await trio.open_unix_socket(path) for _ in range(40)]
        await silent[0].send_all(b"GET /met")
        assert (await asked(path, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"))[0] == 200
        for stream in silent:
            assert await stream.receive_some() == b""
            await stream.aclose()


async def test_an_address_in_use(tmp_path: Path) -> None:
    async with scraped(tmp_path) as path:
        with pytest.raises(UserError, match="another program listens there"):
            async with serving_metrics(Unix(path), []):
                pass


async def test_a_public_address_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    async with serving_metrics(Tcp("0.0.0.0", 0), []) as urls:
        assert len(urls) == 1
    assert "anybody who reaches it" in caplog.text


async def test_a_scrape_lets_others_run_and_they_may_change_what_it_tells(tmp_path: Path) -> None:
    async with opened("error,errno=EIO,rate=100%::memory:1M") as export:
        meter = export.source.parts[0].meter
        assert meter
        errors = meter.operations["read"].errors
        with pytest.raises(OSError):
            await read(export.source, 0, 512)
        errors.update(f"OLD{number}" for number in range(600))  # more lines than are made at once
        exports = [export] * 20
        path = str(tmp_path / "metrics")
        async with serving_metrics(Unix(path), exports), trio.open_nursery() as nursery:

            async def go_on() -> None:
                for number in range(10_000):
                    errors[f"NEW{number}"] += 1
                    if number % 100 == 0 and len(exports) < 60:
                        exports.append(export)
                    await trio.lowlevel.checkpoint()

            nursery.start_soon(go_on)
            status, _, body = await asked(path, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            nursery.cancel_scope.cancel()
    assert status == 200
    assert body.count("nbdfs_request_duration_seconds_count") >= 20
    assert errors["NEW0"]
