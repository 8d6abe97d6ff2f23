"""The torrent source in swarms on loopback whose seeders are libtorrent's."""

from __future__ import annotations

import errno
import itertools
import os
import random
import socket
import threading
from pathlib import Path
from typing import Any

import libtorrent
import pytest
import trio
import trio.testing

from nbdfs.backends.torrent import opening, session, sockets
from nbdfs.backends.torrent.cache import Cache
from nbdfs.backends.torrent.membership import Membership
from nbdfs.backends.torrent.session import Session
from nbdfs.errors import UserError
from nbdfs.registry import OpenContext, find
from nbdfs.source import HOLE, RESIDENT, Health, Source, read
from nbdfs.stack import open_stack
from tests.torrents import ALONE, PIECE, VERSIONS, Tracker, make_torrent, noise, seeding, write_files

SECONDS = 60.0
LEAVING = 5.0  # seconds that it may take
SIZE = 20 * PIECE + 777
FILES = {
    "many/readme": noise(100, 2),
    "many/sub/disk.img": noise(SIZE, 3),
    "many/sub/empty": b"",
    "many/whole-piece": noise(PIECE, 4),
    "many/tail": noise(3 * PIECE + 1, 5),
}


async def resident(source: Source) -> int:
    """The bytes that are here."""
    extents = await source.extents(0, source.info.size, context=RESIDENT)
    return sum(extent.length for extent in extents if not extent.flags & HOLE)


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_file_reads_as_it_was_shared(tmp_path: Path, tracker: Tracker, version: str) -> None:
    content = noise(SIZE)
    write_files(tmp_path, {"disk.img": content})
    torrent = make_torrent(tmp_path, "disk.img", version=version, tracker=tracker.url)
    with seeding(torrent, tmp_path):
        async with open_stack(f"torrent,{ALONE}:{torrent}") as source:
            assert source.info.size == SIZE
            assert await read(source, 5 * PIECE - 3, 10) == content[5 * PIECE - 3 : 5 * PIECE + 7]
            assert await resident(source) <= 2 * PIECE
            assert await read(source, 0, SIZE) == content
            assert await resident(source) == SIZE


@pytest.mark.parametrize("version", VERSIONS)
async def test_all_files_of_a_torrent_as_a_tree(tmp_path: Path, tracker: Tracker, version: str) -> None:
    write_files(tmp_path, FILES)
    torrent = make_torrent(tmp_path, "many", version=version, tracker=tracker.url)
    driver = find("torrent")
    options = driver.parse_options([("listen", "127.0.0.1"), ("dht", "no"), ("lsd", "no")])
    with seeding(torrent, tmp_path):
        async with driver.open_tree(str(torrent), options, OpenContext(True, open_stack)) as tree:  # type: ignore
            assert {f"many/{path}" for path in tree} == set(FILES)
            for path, source in tree.items():
                assert await read(source, 0, source.info.size) == FILES[f"many/{path}"], path


async def test_files_that_are_prefetched_must_find_room_together(tmp_path: Path) -> None:
    write_files(tmp_path, FILES)
    torrent = make_torrent(tmp_path, "many")
    words = {
        "listen": "127.0.0.1",
        "dht": "no",
        "lsd": "no",
        "prefetch": str(20 * PIECE),
        "cache-size": str(20 * PIECE),
    }
    driver = find("torrent")
    with pytest.raises(UserError, match="more than cache-size= holds"):
        async with driver.open_tree(  # type: ignore
            str(torrent), driver.parse_options(list(words.items())), OpenContext(True, open_stack)
        ):
            pass


@pytest.mark.parametrize("version", VERSIONS)
async def test_magnet_links_get_their_metadata_from_peers(tmp_path: Path, version: str) -> None:
    write_files(tmp_path, FILES)
    torrent = make_torrent(tmp_path, "many", version=version)
    with seeding(torrent, tmp_path) as seeder:
        async with open_stack(f"torrent,{ALONE},timeout=60,file=sub/disk.img:{seeder.link()}") as source:
            assert await read(source, 0, SIZE) == FILES["many/sub/disk.img"]


async def test_a_magnet_link_of_nobody_is_told_in_one_line() -> None:
    link = "magnet:?xt=urn:btih:722fe65b2aa26d14f35b4ad627d20236e481d924"
    with trio.fail_after(SECONDS / 2), pytest.raises(UserError, match=r"no peer gave the metadata .* within 0.5 s"):
        async with open_stack(f"torrent,{ALONE},timeout=0.5:{link}"):
            pass


async def test_nothing_is_fetched_before_it_is_read_and_random_reads_fetch_their_own_pieces(
    tmp_path: Path, tracker: Tracker
) -> None:
    write_files(tmp_path, {"disk.img": noise(300 * PIECE)})
    torrent = make_torrent(tmp_path, "disk.img", tracker=tracker.url)
    with seeding(torrent, tmp_path) as seeder:
        async with open_stack(f"torrent,{ALONE}:{torrent}") as source:
            while seeder.handle.status().num_peers == 0:
                await trio.sleep(0.05)
            await trio.sleep(0.3)
            assert await resident(source) == 0
            for piece in (250, 20, 170, 299):
                await read(source, piece * PIECE + 5, 100)
            assert await resident(source) == 4 * PIECE
            await source.cache(100 * PIECE, 2 * PIECE)
            assert await resident(source) == 6 * PIECE
            assert seeder.handle.status().num_peers == 1


async def test_a_sequential_reader_finds_the_pieces_ahead(tmp_path: Path, tracker: Tracker) -> None:
    write_files(tmp_path, {"disk.img": noise(400 * PIECE)})
    torrent = make_torrent(tmp_path, "disk.img", tracker=tracker.url)
    with seeding(torrent, tmp_path):
        async with open_stack(f"torrent,{ALONE}:{torrent}") as source:
            for piece in range(4):
                await read(source, piece * PIECE, PIECE)
            with trio.fail_after(SECONDS):
                while await resident(source) < 390 * PIECE:  # the first window is 64 pieces
                    await trio.sleep(0.02)


@pytest.mark.parametrize(
    ("wanted", "fetched"), [("all", SIZE), (f"{4 * PIECE}", 4 * PIECE), ("all,cache-size=1M", SIZE)]
)
async def test_prefetch(tmp_path: Path, tracker: Tracker, wanted: str, fetched: int) -> None:
    write_files(tmp_path, {"disk.img": noise(SIZE)})
    torrent = make_torrent(tmp_path, "disk.img", tracker=tracker.url)
    with seeding(torrent, tmp_path):
        async with open_stack(f"torrent,{ALONE},prefetch={wanted}:{torrent}") as source:
            with trio.fail_after(SECONDS):
                while await resident(source) < fetched:
                    await trio.sleep(0.02)
            await trio.sleep(0.2)
            assert await resident(source) == fetched


async def test_a_read_overtakes_what_is_fetched_in_the_background(tmp_path: Path, tracker: Tracker) -> None:
    size = 128 * PIECE
    content = noise(size)
    write_files(tmp_path, {"disk.img": content})
    torrent = make_torrent(tmp_path, "disk.img", tracker=tracker.url)
    with seeding(torrent, tmp_path, upload_limit=size // 4):
        async with open_stack(f"torrent,{ALONE},prefetch=all:{torrent}") as source:
            with trio.fail_after(SECONDS):
                while not await resident(source):
                    await trio.sleep(0.02)
                assert await read(source, size - PIECE, PIECE) == content[-PIECE:]
            assert await resident(source) < size * 3 // 4


async def test_a_read_that_nobody_can_answer_fails_alone_and_the_torrent_heals(
    tmp_path: Path, tracker: Tracker
) -> None:
    content = noise(SIZE)
    write_files(tmp_path, {"disk.img": content})
    torrent = make_torrent(tmp_path, "disk.img", tracker=tracker.url)
    async with open_stack(f"torrent,{ALONE},timeout=0.7:{torrent}") as source:
        with pytest.raises(OSError, match=r"did not come within 0.7 s from 0 peers") as caught:
            await read(source, 0, 10)
        assert caught.value.errno == errno.EIO
    async with open_stack(f"torrent,{ALONE},timeout=60:{torrent}") as source:
        got: list[bytearray] = []

        async def reader() -> None:
            got.append(await read(source, 0, 10))

        assert source.health() is Health.OK
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader)
            with trio.fail_after(SECONDS):
                while source.health() is not Health.STALLED:
                    await trio.sleep(0.05)
            with seeding(torrent, tmp_path):
                with trio.fail_after(SECONDS):
                    while not got:
                        await trio.sleep(0.05)
        assert got == [content[:10]]


async def test_peers_lost_and_found(tmp_path: Path, tracker: Tracker) -> None:
    content = noise(SIZE)
    write_files(tmp_path, {"disk.img": content})
    torrent = make_torrent(tmp_path, "disk.img", tracker=tracker.url)
    async with open_stack(f"torrent,{ALONE},timeout=60:{torrent}") as source:
        with seeding(torrent, tmp_path):
            assert await read(source, 3 * PIECE, 10) == content[3 * PIECE : 3 * PIECE + 10]
        assert await read(source, 3 * PIECE, 10) == content[3 * PIECE : 3 * PIECE + 10]
        with seeding(torrent, tmp_path):
            assert await read(source, 9 * PIECE, PIECE) == content[9 * PIECE : 10 * PIECE]


async def test_a_torrent_that_stays_alone_though_it_knows_of_a_peer_joins_anew(
    tmp_path: Path, tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined = 0
    join = Membership.join

    def counting(membership: Membership, *arguments: Any) -> None:
        nonlocal joined
        joined += 1
        join(membership, *arguments)

    monkeypatch.setattr(Membership, "join", counting)
    content = noise(SIZE)
    write_files(tmp_path, {"disk.img": content})
    torrent = make_torrent(tmp_path, "disk.img", tracker=tracker.url)
    got: list[bytearray] = []

    async def reader(source: Source) -> None:
        got.append(await read(source, 0, 10))

    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # and does not listen
        tracker.peers[deaf.getsockname()[1]] = None
        async with open_stack(f"torrent,{ALONE},timeout=100:{torrent}") as source, trio.open_nursery() as nursery:
            nursery.start_soon(reader, source)
            with trio.fail_after(SECONDS):
                while joined < 2:
                    await trio.sleep(0.05)
            with seeding(torrent, tmp_path), trio.fail_after(SECONDS):
                while not got:
                    await trio.sleep(0.05)
                assert not tracker.left
    assert got == [content[:10]]


async def test_a_cancelled_read_wants_its_piece_no_more(tmp_path: Path, tracker: Tracker) -> None:
    piece = 1 << 20  # far more than is asked for at a time
    write_files(tmp_path, {"disk.img": noise(4 * piece)})
    torrent = make_torrent(tmp_path, "disk.img", tracker=tracker.url, piece=piece)
    with seeding(torrent, tmp_path, upload_limit=64 << 10) as seeder:
        async with open_stack(f"torrent,{ALONE}:{torrent}") as source:
            with trio.move_on_after(SECONDS) as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(read, source, 3 * piece, 10)
                    while not seeder.sent:
                        await trio.sleep(0.02)
                    scope.cancel()
            seeder.handle.set_upload_limit(0)
            await read(source, piece, 10)
            await trio.sleep(0.5)
            assert await resident(source) == piece


async def test_a_kept_cache_is_used_again_and_verified(tmp_path: Path, tracker: Tracker) -> None:
    content = noise(SIZE)
    write_files(tmp_path, {"disk.img": content})
    torrent = make_torrent(tmp_path, "disk.img", tracker=tracker.url)
    cache = tmp_path / "cache"
    spec = f"torrent,{ALONE},cache={cache}:{torrent}"
    with seeding(torrent, tmp_path):
        async with open_stack(spec) as source:
            assert await read(source, 0, 4 * PIECE) == content[: 4 * PIECE]
    (data,) = cache.glob("*/0")
    assert data.parent.stat().st_mode & 0o077 == 0
    with open(data, "r+b") as file:
        file.seek(2 * PIECE)
        file.write(b"damage")
    async with open_stack(spec) as source:
        assert await read(source, 0, 2 * PIECE) == content[: 2 * PIECE]
        assert await read(source, 3 * PIECE, PIECE) == content[3 * PIECE : 4 * PIECE]
        with pytest.raises(UserError, match="in use"):
            async with open_stack(spec):
                pass
    async with open_stack(spec.replace(ALONE, f"{ALONE},timeout=1")) as source:
        with pytest.raises(OSError, match="did not come"):
            await read(source, 2 * PIECE, 10)


@pytest.mark.parametrize("version", VERSIONS)
async def test_what_is_kept_of_a_magnet_link_is_read_when_nobody_is_there(tmp_path: Path, version: str) -> None:
    content = noise(SIZE)
    write_files(tmp_path, {"disk.img": content})
    torrent = make_torrent(tmp_path, "disk.img", version=version)
    with seeding(torrent, tmp_path) as seeder:
        link = seeder.link()
        async with open_stack(f"torrent,{ALONE},cache={tmp_path}/cache:{link}") as source:
            assert await read(source, 7 * PIECE, 3 * PIECE) == content[7 * PIECE : 10 * PIECE]
    async with open_stack(f"torrent,{ALONE},timeout=1,cache={tmp_path}/cache:{link}") as source:
        assert await read(source, 7 * PIECE, 3 * PIECE) == content[7 * PIECE : 10 * PIECE]
        with pytest.raises(OSError, match="did not come"):
            await read(source, 19 * PIECE, 1)


async def test_a_file_that_no_earlier_run_read_comes_into_a_kept_cache(tmp_path: Path, tracker: Tracker) -> None:
    write_files(tmp_path, FILES)
    torrent = make_torrent(tmp_path, "many", tracker=tracker.url)
    with seeding(torrent, tmp_path):
        for name in "whole-piece", "sub/disk.img":
            content = FILES[f"many/{name}"]
            async with open_stack(f"torrent,{ALONE},file={name},cache={tmp_path}/cache:{torrent}") as source:
                assert await read(source, 0, len(content)) == content


async def test_a_temporary_cache_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    write_files(tmp_path, {"disk.img": noise(SIZE)})
    torrent = make_torrent(tmp_path, "disk.img")
    async with open_stack(f"torrent,{ALONE}:{torrent}"):
        assert list((tmp_path / "temporary").iterdir())
    assert not list((tmp_path / "temporary").iterdir())


async def test_a_small_cache_drops_what_is_unused_and_reads_stay_right(tmp_path: Path, tracker: Tracker) -> None:
    content = noise(150 * PIECE)
    write_files(tmp_path, {"disk.img": content})
    torrent = make_torrent(tmp_path, "disk.img", tracker=tracker.url)
    cache, room = tmp_path / "cache", 32 * PIECE
    with seeding(torrent, tmp_path):
        async with open_stack(f"torrent,{ALONE},cache={cache},cache-size={room}:{torrent}") as source:
            with trio.fail_after(SECONDS):
                for piece in range(0, 150, 5):
                    at = piece * PIECE
                    assert await read(source, at, 5 * PIECE) == content[at : at + 5 * PIECE]
                await read(source, 0, 1)
                while await resident(source) > room:
                    await trio.sleep(0.05)
            (data,) = cache.glob("*/0")
            assert os.stat(data).st_blocks * 512 <= 2 * room


async def test_readers_that_pause_leave_a_small_cache_small(tmp_path: Path, tracker: Tracker) -> None:
    write_files(tmp_path, {"disk.img": noise(8 * 200 * PIECE)})
    torrent = make_torrent(tmp_path, "disk.img", tracker=tracker.url)
    room = 32 * PIECE
    with seeding(torrent, tmp_path), trio.fail_after(SECONDS):
        async with open_stack(f"torrent,{ALONE},cache-size={room}:{torrent}") as source:
            for reader in range(8):  # each far from the others, with pieces ahead of it when it stops
                for piece in range(3):
                    await read(source, (200 * reader + piece) * PIECE, PIECE)
            while await resident(source) > room:
                await trio.sleep(0.05)


async def test_a_file_system_that_gives_no_space_back_spoils_no_reads(
    tmp_path: Path, tracker: Tracker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(cache: Cache, parts: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(Cache, "drop", refuse)
    content = noise(60 * PIECE)
    write_files(tmp_path, {"disk.img": content})
    torrent = make_torrent(tmp_path, "disk.img", tracker=tracker.url)
    with seeding(torrent, tmp_path), trio.fail_after(SECONDS):
        async with open_stack(f"torrent,{ALONE},cache-size={16 * PIECE}:{torrent}") as source:
            for at in [*range(0, len(content), 4 * PIECE), 0]:
                assert await read(source, at, 4 * PIECE) == content[at : at + 4 * PIECE]
    assert "dropped pieces still take space: Operation not supported" in caplog.text


async def test_what_was_prefetched_and_had_to_make_room_is_not_fetched_again(
    tmp_path: Path, tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: list[list[int]] = []  # of each time that the torrent joined: the pieces that were fetched unasked
    join = Membership.join

    def noting(membership: Membership, params: Any, priorities: list[int]) -> None:
        here = list(params.have_pieces) or [False] * len(priorities)
        wanted.append([piece for piece, priority in enumerate(priorities) if priority and not here[piece]])
        join(membership, params, priorities)

    monkeypatch.setattr(Membership, "join", noting)
    write_files(tmp_path, {"disk.img": noise(40 * PIECE)})
    torrent = make_torrent(tmp_path, "disk.img", tracker=tracker.url)
    room = 16 * PIECE
    with seeding(torrent, tmp_path), trio.fail_after(SECONDS):
        async with open_stack(f"torrent,{ALONE},prefetch={room},cache-size={room}:{torrent}") as source:
            while await resident(source) < room:
                await trio.sleep(0.02)
            for piece in range(30, 33):
                await read(source, piece * PIECE, PIECE)
            while len(wanted) < 2:
                await trio.sleep(0.02)
    assert wanted[1] == []


async def test_readers_at_once_each_wait_for_their_own(tmp_path: Path, tracker: Tracker) -> None:
    content = noise(200 * PIECE)
    write_files(tmp_path, {"disk.img": content})
    torrent = make_torrent(tmp_path, "disk.img", version="hybrid", tracker=tracker.url)
    chance = random.Random(5)

    async def reader(source: Source, offsets: list[int]) -> None:
        for offset in offsets:
            assert await read(source, offset, 5000) == content[offset : offset + 5000]

    with seeding(torrent, tmp_path):
        async with open_stack(f"torrent,{ALONE}:{torrent}") as source:
            with trio.fail_after(SECONDS):
                async with trio.open_nursery() as nursery:
                    for _ in range(6):
                        offsets = [chance.randrange(len(content) - 5000) for _ in range(8)]
                        nursery.start_soon(reader, source, offsets)


@pytest.mark.parametrize("tracker_url", ["http://127.0.0.1:9/announce", "udp://127.0.0.1:9/announce"])
async def test_a_dead_tracker_is_no_obstacle_to_opening(tmp_path: Path, tracker_url: str) -> None:
    write_files(tmp_path, {"disk.img": noise(SIZE)})
    torrent = make_torrent(tmp_path, "disk.img", tracker=tracker_url)
    async with open_stack(f"torrent,{ALONE},timeout=0.3:{torrent}") as source:
        with pytest.raises(OSError, match="did not come"):
            await read(source, 0, 1)


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_peer_that_sends_garbage_never_reaches_a_reader(tmp_path: Path, tracker: Tracker, version: str) -> None:
    content = noise(SIZE)
    write_files(tmp_path, {"disk.img": content})
    torrent = make_torrent(tmp_path, "disk.img", version=version, tracker=tracker.url)
    (tmp_path / "liar").mkdir()
    (tmp_path / "liar" / "disk.img").write_bytes(noise(SIZE, 99))
    with seeding(torrent, tmp_path / "liar", disable_hash_checks=True) as liar:
        async with open_stack(f"torrent,{ALONE},timeout=1:{torrent}") as source:
            with pytest.raises(OSError, match="did not come"):
                await read(source, 0, 10)
            assert await resident(source) == 0
        assert liar.sent
        with seeding(torrent, tmp_path):
            async with open_stack(f"torrent,{ALONE},timeout=60:{torrent}") as source:
                assert await read(source, 0, 5 * PIECE) == content[: 5 * PIECE]


async def test_a_tracker_that_does_not_answer_keeps_nobody_from_leaving(tmp_path: Path) -> None:
    write_files(tmp_path, {"disk.img": noise(SIZE)})
    with socket.create_server(("127.0.0.1", 0)) as mute:
        torrent = make_torrent(tmp_path, "disk.img", tracker=f"http://127.0.0.1:{mute.getsockname()[1]}/announce")
        with trio.fail_after(SECONDS):
            async with open_stack(f"torrent,{ALONE}:{torrent}"):
                await trio.lowlevel.wait_readable(mute)
                start = trio.current_time()
        assert trio.current_time() - start < LEAVING


async def test_a_session_that_has_nothing_to_tell_is_not_looked_at() -> None:
    ours = Session({"alert_mask": 0, "listen_interfaces": "127.0.0.1:0", "enable_dht": False, "enable_lsd": False})
    looks = 0

    class Looks(trio.abc.Instrument):
        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            nonlocal looks
            looks += task.name.endswith("Session.run")

    async with trio.open_nursery() as nursery:
        trio.lowlevel.add_instrument(instrument := Looks())
        nursery.start_soon(ours.run)
        await trio.sleep(0.5)
        trio.lowlevel.remove_instrument(instrument)
        nursery.cancel_scope.cancel()
    await ours.aclose()
    assert 1 <= looks <= 3


async def test_each_of_those_who_wait_for_the_same_alert_gets_the_one_that_fits() -> None:
    ours = Session({"alert_mask": 0, "listen_interfaces": "127.0.0.1:0", "enable_dht": False, "enable_lsd": False})
    told: list[int] = []

    async def wait(number: int) -> None:
        """Wait for the alert of that number from now on."""
        seen = itertools.count(1)
        stats = libtorrent.session_stats_alert
        if await ours.wait_for(stats, lambda: None, SECONDS, lambda alert: next(seen) == number):
            told.append(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.run)
        async with trio.open_nursery() as waiting:
            for number in 1, 2:
                waiting.start_soon(wait, number)
                await trio.testing.wait_all_tasks_blocked()
            for number in 1, 2:
                ours.session.post_session_stats()
                while len(waiting.child_tasks) > 2 - number:
                    await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    await ours.aclose()
    assert told == [1, 2]


@pytest.mark.parametrize(("owner", "work"), [(Cache, "save"), (Cache, "close"), (opening, "load")])
async def test_long_work_with_files_is_done_beside_the_event_loop(
    tmp_path: Path, tracker: Tracker, monkeypatch: pytest.MonkeyPatch, owner: Any, work: str
) -> None:
    threads: list[int] = []
    original = getattr(owner, work)

    def noting(*arguments: Any) -> Any:
        threads.append(threading.get_ident())
        return original(*arguments)

    monkeypatch.setattr(owner, work, noting)
    write_files(tmp_path, {"disk.img": noise(SIZE)})
    torrent = make_torrent(tmp_path, "disk.img", tracker=tracker.url)
    with seeding(torrent, tmp_path):
        async with open_stack(f"torrent,{ALONE},cache={tmp_path}/cache:{torrent}") as source:
            await read(source, 0, 1)
    assert threads
    assert threading.get_ident() not in threads


async def test_alerts_that_are_lost_are_made_up_for(
    tmp_path: Path, tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(session._FIXED, "alert_queue_size", 2)  # type: ignore[arg-type]
    content = noise(100 * PIECE)
    write_files(tmp_path, {"disk.img": content})
    torrent = make_torrent(tmp_path, "disk.img", tracker=tracker.url)
    with seeding(torrent, tmp_path):
        async with open_stack(f"torrent,{ALONE}:{torrent}") as source:
            with trio.fail_after(SECONDS / 2):
                assert await read(source, 0, len(content)) == content


async def test_connections_send_at_once(tmp_path: Path, tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    hastened: list[None] = []
    monkeypatch.setattr(sockets, "hasten", lambda: hastened.append(None))
    write_files(tmp_path, {"disk.img": noise(SIZE)})
    torrent = make_torrent(tmp_path, "disk.img", tracker=tracker.url)
    async with open_stack(f"torrent,{ALONE}:{torrent}") as source:
        while not tracker.peers:
            await trio.sleep(0.02)
        hastened.clear()  # of sockets that listen
        with seeding(torrent, tmp_path):
            await read(source, 0, 1)
        assert hastened


async def test_what_is_not_here_is_data_to_everybody_but_who_asks_what_is_here(tmp_path: Path) -> None:
    write_files(tmp_path, {"disk.img": noise(SIZE)})
    async with open_stack(f"torrent,{ALONE}:{make_torrent(tmp_path, 'disk.img')}") as source:
        (extent,) = await source.extents(0, SIZE)
        assert (extent.offset, extent.length, extent.flags) == (0, SIZE, 0)
        assert await resident(source) == 0


@pytest.mark.long
async def test_trackers_are_asked_again_while_somebody_waits(tmp_path: Path, tracker: Tracker) -> None:
    tracker.interval = 3600
    content = noise(SIZE)
    write_files(tmp_path, {"disk.img": content})
    torrent = make_torrent(tmp_path, "disk.img", version="hybrid", tracker=tracker.url)
    async with open_stack(f"torrent,{ALONE}:{torrent}") as source, trio.open_nursery() as nursery:

        @nursery.start_soon
        async def reader() -> None:
            assert await read(source, 0, 10) == content[:10]

        await trio.sleep(3)
        with seeding(torrent, tmp_path), trio.fail_after(SECONDS):  # which waits for connections
            while nursery.child_tasks:
                await trio.sleep(0.1)
