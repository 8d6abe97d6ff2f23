"""The table of specs the conformance suite runs on: every driver has at least one row.

A row prepares what its spec needs (a file, a server) and gives a `Subject`.  Add rows for every shape of a driver that
could behave differently: a size that is no multiple of anything, a read-only form, a layer over limits.
"""

from __future__ import annotations

import enum
import os
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from nbdfs.config.files import use_file
from nbdfs.source import read
from nbdfs.stack import open_stack
from tests import torrents
from tests.hostile_http import hostile_process


class Writes(enum.Enum):
    """What becomes of a write."""

    KEPT = "read back"
    FORGOTTEN = "reads stay as they were"
    SAME_ONLY = "accepted only where it changes nothing"
    REFUSED = "never accepted, though the device says it can be written"


@dataclass(frozen=True)
class Subject:
    """A spec that can be opened now, and the whole content it must show (a few MiB at most)."""

    spec: str
    content: bytes


Prepare = Callable[[Path], AbstractAsyncContextManager[Subject]]


@dataclass(frozen=True)
class Row:
    """One row.  `prepare` gets an empty folder."""

    driver: str
    name: str
    prepare: Prepare
    writes: Writes = Writes.KEPT

    def __str__(self) -> str:
        return f"{self.driver}-{self.name}"


def plain(spec: str, content: bytes) -> Prepare:
    """A spec that needs nothing prepared."""

    @asynccontextmanager
    async def prepare(folder: Path) -> AsyncIterator[Subject]:
        yield Subject(spec, content)

    return prepare


def over_file(spec: str, content: bytes, shown: slice = slice(None), grown: int = 0) -> Prepare:
    """A spec with `{}` for the path of a file that holds `content`, which shows that slice, zeroes behind it."""

    @asynccontextmanager
    async def prepare(folder: Path) -> AsyncIterator[Subject]:
        path = folder / "image"
        path.write_bytes(content)
        yield Subject(spec.format(path), content[shown].ljust(grown, b"\0"))

    return prepare


@asynccontextmanager
async def huge_pages(folder: Path) -> AsyncIterator[Subject]:
    """A disk of huge pages, which root adds to the pool for the while."""
    pool = Path("/proc/sys/vm/nr_hugepages")
    if not os.access(pool, os.W_OK):
        pytest.skip("only root may reserve huge pages")
    before = int(pool.read_text())
    pool.write_text(str(before + 2))
    try:
        yield Subject(f"memory,hugepages:{SIZE}", bytes(SIZE))
    finally:
        pool.write_text(str(before))


def itself(spec: str) -> Prepare:
    """A spec whose content is its own affair, but the same at each opening."""

    @asynccontextmanager
    async def prepare(folder: Path) -> AsyncIterator[Subject]:
        async with open_stack(spec, readonly=True) as door:
            content = await read(door, 0, door.info.size)
        yield Subject(spec, bytes(content))

    return prepare


def served(options: str, path: str) -> Prepare:
    """A file on a web server, with the options of `http`."""

    @asynccontextmanager
    async def prepare(folder: Path) -> AsyncIterator[Subject]:
        file = folder / "content"
        file.write_bytes(NOISE[:SHORT])
        async with hostile_process(file) as base:
            yield Subject(f"http,proxy=none{options}::{base}/{path}", NOISE[:SHORT])

    return prepare


def over_packed(spec: str, command: list[str], content: bytes) -> Prepare:
    """A spec with `{}` for the path of what a compressor makes of `content`."""

    @asynccontextmanager
    async def prepare(folder: Path) -> AsyncIterator[Subject]:
        path = folder / "image"
        path.write_bytes(subprocess.run(command, input=content, capture_output=True, check=True).stdout)
        yield Subject(spec.format(path), content)

    return prepare


def encrypted(*words: str, options: str = "") -> Prepare:
    """A volume that cryptsetup makes, with those words."""

    @asynccontextmanager
    async def prepare(folder: Path) -> AsyncIterator[Subject]:
        key, image = folder / "key", folder / "image"
        key.write_bytes(b"conformance")
        kind = words[words.index("--type") + 1]
        image.write_bytes(bytes((2 << 20 if kind == "luks1" else 16 << 20) + SIZE))
        kdf = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"]
        subprocess.run(["cryptsetup", "-q", "luksFormat", *words, *kdf, image, key], check=True)
        spec = f"luks,passphrase=+{key}{options}::{image}"
        async with open_stack(spec) as door:
            await door.pwrite(memoryview(NOISE), 0)
        yield Subject(spec, NOISE)

    return prepare


@asynccontextmanager
async def partitioned(folder: Path) -> AsyncIterator[Subject]:
    """The second partition of a disk, in the middle of it."""
    path = folder / "image"
    path.write_bytes(bytes(8 << 20))
    script = f"label: gpt\nstart=2048, size=2048\nstart=6144, size={SIZE // 512}, name=wanted\n"
    subprocess.run(["sfdisk", "-q", path], input=script, text=True, check=True)
    with path.open("r+b") as disk:
        disk.seek(6144 * 512)
        disk.write(NOISE)
    yield Subject(f"partition,label=wanted::{path}", NOISE)


@asynccontextmanager
async def configured(folder: Path) -> AsyncIterator[Subject]:
    """A stack of a configuration file that rests on another one."""
    (folder / "image").write_bytes(NOISE)
    (folder / "nbdfs.toml").write_text(f"""
        [stack.outer]
        layers = [{{name = "offset", offset = "{SHORT % 4096}"}}]
        leaf = "conf:inner"
        [stack.inner]
        leaf = {{name = "file", argument = "{folder}/image", lock = false}}
    """)
    use_file(str(folder / "nbdfs.toml"))
    try:
        yield Subject("conf:outer", NOISE[SHORT % 4096 :])
    finally:
        use_file("")


@asynccontextmanager
async def block_device(folder: Path) -> AsyncIterator[Subject]:
    """A loop device, which root can make."""
    if os.geteuid() != 0:
        pytest.skip("only root may make a loop device")
    image = folder / "image"
    image.write_bytes(NOISE)
    made = await trio.run_process(["losetup", "--find", "--show", str(image)], capture_stdout=True)
    device = made.stdout.decode().strip()
    try:
        yield Subject(device, NOISE)
    finally:
        with trio.CancelScope(shield=True):
            await trio.run_process(["losetup", "--detach", device])


@asynccontextmanager
async def seeded(folder: Path) -> AsyncIterator[Subject]:
    """A file of a torrent in a swarm of one seeder on loopback."""
    files = {"many/a": NOISE[:SHORT], "many/disk.img": NOISE}
    torrents.write_files(folder, files)
    with torrents.tracking() as tracker:
        torrent = torrents.make_torrent(folder, "many", version="hybrid", tracker=tracker.url)
        with torrents.seeding(torrent, folder):
            yield Subject(f"torrent,{torrents.ALONE},file=a:{torrent}", NOISE[:SHORT])


SIZE = 1 << 20
SHORT = 70_001
PATTERN = b"".join(offset.to_bytes(8, "big") for offset in range(0, SIZE, 8))
NOISE = bytes((index * 167 + (index >> 8) * 89 + (index >> 15)) & 0xFF for index in range(SIZE))
DATA = bytearray(SHORT)
DATA[:2048] = b"\x55\xaa" * 1024
DATA[40000:40004] = b"data"


def remote(options: str, *words: str) -> Prepare:
    """An image that nbdkit serves, with filters of its own."""

    @asynccontextmanager
    async def prepare(folder: Path) -> AsyncIterator[Subject]:
        image, socket, ready = folder / "image", folder / "socket", folder / "ready"
        image.write_bytes(NOISE)
        command = ["nbdkit", "-f", "-P", str(ready), "-U", str(socket), "file", str(image), *words]
        with subprocess.Popen(command) as process:
            try:
                with trio.fail_after(10):
                    while not ready.exists():
                        await trio.sleep(0.01)
                yield Subject(f"nbd{options}::nbd+unix:///?socket={socket}", NOISE)
            finally:
                process.terminate()

    return prepare


ROWS = [
    Row("nbd", "plain", remote("")),
    Row("nbd", "no-readahead", remote(",readahead=0,connections=1")),
    Row(
        "nbd",
        "limits",
        remote(
            "",
            "--filter=blocksize-policy",
            "blocksize-minimum=512",
            "blocksize-maximum=65536",
            "blocksize-error-policy=error",
        ),
    ),
    Row("null", "1M", plain(f"null:{SIZE}", bytes(SIZE)), Writes.FORGOTTEN),
    Row("null", "short", plain(f"null:{SHORT}", bytes(SHORT)), Writes.FORGOTTEN),
    Row("readahead", "null", plain(f"readahead::null:{SIZE}", bytes(SIZE)), Writes.FORGOTTEN),
    Row("file", "path", over_file("{}", NOISE)),
    Row("file", "short", over_file("{}", NOISE[:SHORT])),
    Row("file", "direct", over_file("file,direct:{}", NOISE)),
    Row("file", "no-discard", over_file("file,discard=no:{}", NOISE)),
    Row("file", "block-device", block_device),
    Row("file", "uri", over_file("file://{}", NOISE[:SHORT])),
    Row("pattern", "1M", plain(f"pattern:{SIZE}", PATTERN), Writes.SAME_ONLY),
    Row("pattern", "short", plain(f"pattern:{SHORT}", PATTERN[:SHORT]), Writes.SAME_ONLY),
    Row("memory", "1M", plain(f"memory:{SIZE}", bytes(SIZE))),
    Row("memory", "short", plain(f"memory:{SHORT}", bytes(SHORT))),
    Row("memory", "mlock", plain(f"memory,mlock:{SIZE}", bytes(SIZE))),
    Row("memory", "hugepages", huge_pages),
    Row("blocksize", "memory", plain(f"blocksize::memory:{SHORT}", bytes(SHORT))),
    Row("zero", "1M", plain(f"zero:{SIZE}", bytes(SIZE)), Writes.SAME_ONLY),
    Row("zero", "short", plain(f"zero:{SHORT}", bytes(SHORT)), Writes.SAME_ONLY),
    Row("ones", "1M", plain(f"ones:{SIZE}", b"\xff" * SIZE), Writes.SAME_ONLY),
    Row("ones", "other byte", plain(f"ones,byte=0x5a:{SHORT}", b"Z" * SHORT), Writes.SAME_ONLY),
    Row("full", "1M", plain(f"full:{SIZE}", bytes(SIZE)), Writes.REFUSED),
    Row("random", "1M", itself(f"random,seed=1:{SIZE}"), Writes.SAME_ONLY),
    Row("random", "short", itself(f"random,seed=2:{SHORT}"), Writes.SAME_ONLY),
    Row("sparse-random", "1M", itself(f"sparse-random,seed=1,percent=40:{SIZE}"), Writes.SAME_ONLY),
    Row("sparse-random", "noise", itself(f"sparse-random,seed=1,percent=70,random-content:{SHORT}"), Writes.SAME_ONLY),
    Row(
        "sparse-random",
        "large blocks",
        itself(f"sparse-random,seed=1,blocksize=8k,percent=50:{SIZE}"),
        Writes.SAME_ONLY,
    ),
    Row("sparse-random", "full", itself(f"sparse-random,seed=1,percent=100:{SHORT}"), Writes.SAME_ONLY),
    Row("sparse-random", "empty", plain(f"sparse-random,seed=1,percent=0:{SIZE}", bytes(SIZE)), Writes.SAME_ONLY),
    Row("data", "string", plain(f'data:(0x55 0xAA)*1K @40000 "data" @{SHORT}', bytes(DATA))),
    Row("data", "file", over_file("data:<{} @^1M", NOISE[:SHORT] + bytes(SIZE - SHORT))),
    Row("raw", "text", plain(f"raw,size={SHORT}:text", b"text" + bytes(SHORT - 4))),
    Row("base64", "text", plain(f"base64,size={SHORT}:dGV4dA==", b"text" + bytes(SHORT - 4))),
    Row("checkwrite", "file", over_file("checkwrite::data:<{}", NOISE[:SHORT]), Writes.SAME_ONLY),
    Row("checkwrite", "memory", plain(f"checkwrite::memory:{SIZE}", bytes(SIZE)), Writes.SAME_ONLY),
    Row("error", "none", plain(f"error,rate=50%,file=/no/such/file::memory:{SHORT}", bytes(SHORT))),
    Row("delay", "short", plain(f"delay,read=1ms,write=1ms,flush=1ms::memory:{SHORT}", bytes(SHORT))),
    Row("log", "messages", plain(f"log::memory:{SHORT}", bytes(SHORT))),
    Row("stats", "memory", plain(f"stats,file=/dev/null::memory:{SHORT}", bytes(SHORT))),
    Row("http", "ranges", served("", "plain")),
    Row("http", "writable", served(",writable", "writable")),
    Row("http", "download", served(",fallback=download", "no-range")),
    Row("torrent", "hybrid", seeded),
    Row("cow", "temporary", over_file("cow::{}", NOISE[:SHORT])),
    Row("cow", "memory", over_file("cow,memory,block=512::{}", NOISE)),
    Row("cow", "over memory", plain(f"cow,memory::memory:{SHORT}", bytes(SHORT))),
    Row("cache", "read", over_file("cache,block=4k::{}", NOISE[:SHORT])),
    Row("cache", "writethrough", over_file("cache,block=4k,size=64k,mode=writethrough::{}", NOISE)),
    Row("cache", "writeback", over_file("cache,block=4k,size=64k,mode=writeback::{}", NOISE[:SHORT])),
    Row("cache", "on disk", over_file("cache,cache={0}.cache,block=4k,size=128k,mode=writeback::{0}", NOISE)),
    Row("cache", "over memory", plain(f"cache::memory:{SHORT}", bytes(SHORT))),
    Row("luks", "luks1", encrypted("--type", "luks1")),
    Row("luks", "4k-sectors", encrypted("--type", "luks2", "--sector-size", "4096")),
    Row("luks", "discards", encrypted("--type", "luks2", options=",allow-discards")),
    Row("offset", "middle", over_file("offset,offset=513,size=65s::{}", NOISE[:SHORT], slice(513, 513 + 65 * 512))),
    Row("offset", "rest", over_file("offset,offset=4k::{}", NOISE[:SHORT], slice(4096, None))),
    Row("partition", "gpt", partitioned),
    Row("conf", "stack", configured),
    Row("readonly", "file", over_file("readonly::{}", NOISE[:SHORT])),
    Row("resize", "smaller", over_file("resize,size=50001::{}", NOISE[:SHORT], slice(50_001))),
    Row("resize", "larger", over_file("resize,round-up=64k::readonly::{}", NOISE[:SHORT], grown=131072)),
    Row("retry", "file", over_file("retry::{}", NOISE[:SHORT])),
    Row("rate", "fast", over_file("rate,rate=1G,iops=1000000::{}", NOISE[:SHORT])),
    Row("gzip", "file", over_packed("gzip::{}", ["gzip"], NOISE[:SHORT])),
    Row("xz", "blocks", over_packed("xz::{}", ["xz", "--block-size=10000", "-c"], NOISE[:SHORT])),
    Row("zstd", "file", over_packed("zstd::{}", ["zstd", "-c"], NOISE[:SHORT])),
    Row("blocksize", "null", plain(f"blocksize::null:{SIZE}", bytes(SIZE)), Writes.FORGOTTEN),
]
