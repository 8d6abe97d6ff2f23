"""A mount's life: coming up, in the background, under load when it ends, over awkward places."""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.mounts import SECONDS, Mounter, is_mounted, nbdfs, wait_until

SIZE = 16 << 20
BLOCK = 4096


def ended(pid: int) -> bool:
    """Whether a process is gone, but perhaps for its parent's last look."""
    with contextlib.suppress(FileNotFoundError):
        return "Z (zombie)" in Path(f"/proc/{pid}/status").read_text()
    return True


def test_stored_through_mmap_is_kept_when_it_ends(mount: Mounter) -> None:
    image = mount.folder / "image"
    mount.do(lambda: image.write_bytes(bytes(SIZE)))
    mounted = mount(str(image))

    def store() -> None:
        with mounted.file.open("r+b") as disk, mmap.mmap(disk.fileno(), SIZE) as memory:
            memory[5 * BLOCK : 6 * BLOCK] = b"m" * BLOCK
            subprocess.run(["kill", str(mounted.process.pid)], check=True)
            mounted.process.wait(SECONDS)

    with contextlib.suppress(OSError):  # the file is closed when its mount is gone
        mount.do(store)
    assert image.read_bytes()[5 * BLOCK : 6 * BLOCK] == b"m" * BLOCK


def test_background(mount: Mounter) -> None:
    file, pids, log = (mount.folder / name for name in ("disk", "pid", "log"))
    words = nbdfs("mount", "-b", "-v", "-P", str(pids), "--log-file", str(log), "memory:1M", str(file))
    mount.run(*words)
    assert is_mounted(file)  # the command returned, so the mount is up
    assert mount.do(lambda: file.stat().st_size) == 1 << 20
    assert f"memory:1M on {file}" in log.read_text()
    pid = int(pids.read_text())
    mount.run(*nbdfs("umount", str(file)))
    assert ended(pid)  # umount waits for the process
    assert not pids.exists()
    assert not file.exists()


def test_background_tells_that_it_did_not_come_up(mount: Mounter) -> None:
    done = mount.run(*nbdfs("mount", "-b", "./no/such/image", str(mount.folder / "disk")), check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert not (mount.folder / "disk").exists()


def test_umount_takes_away_all_that_a_killed_process_left(mount: Mounter) -> None:
    mounted = mount("memory:1M")
    mounted.process.kill()
    mounted.process.wait(SECONDS)
    mount.run(*nbdfs("umount", str(mounted.file)))
    assert not is_mounted(mounted.file)
    assert not mounted.file.exists() or not marks(mount.folder)


@pytest.mark.parametrize("words", [(), ("-o", "subtype=disk")])
def test_what_a_killed_process_left_is_replaced(mount: Mounter, words: tuple[str, ...]) -> None:
    mounted = mount("memory:1M", *words)
    mounted.process.kill()
    mounted.process.wait(SECONDS)
    assert mount("memory:2M", *words).stop() == 0
    assert not is_mounted(mounted.file)


def marks(folder: Path) -> bool:
    """Whether files there can have extended attributes, by which a placeholder is known."""
    try:
        os.setxattr(folder, "user.nbdfs.test", b"1")
    except OSError:
        return False
    return True


def test_existing_file_comes_back(mount: Mounter) -> None:
    covered = mount.folder / "covered"
    mount.do(lambda: covered.write_text("what was there"))
    mounted = mount("memory:1M", name="covered")
    assert mount.do(lambda: covered.stat().st_size) == 1 << 20
    assert mounted.stop() == 0
    assert covered.read_text() == "what was there"


def test_mounted_over_itself(mount: Mounter) -> None:
    image = mount.folder / "image"
    mount.do(lambda: image.write_bytes(b"x" * SIZE))
    mounted = mount(f"offset,offset=4096::{image}", name="image")
    assert mount.do(lambda: image.stat().st_size) == SIZE - 4096
    assert mounted.stop() == 0
    assert image.stat().st_size == SIZE


def test_run(mount: Mounter) -> None:
    done = mount.run(*nbdfs("run", "memory:1M", "--", "sh", "-c", "stat -c %s {}; echo {} >&2; exit 3"), check=False)
    assert (done.returncode, done.stdout) == (3, f"{1 << 20}\n")
    assert not Path(done.stderr.strip()).exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("echo {}; exec sleep 1000", 128 + signal.SIGTERM),
        ("trap 'exit 7' TERM; echo {}; while :; do sleep .1; done", 7),
    ],
)
def test_run_ends_its_command_with_it(mount: Mounter, script: str, status: int, number: signal.Signals) -> None:
    words = nbdfs("run", "memory:1M", "--", "sh", "-c", script)
    with subprocess.Popen([*mount.prefix, *words], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        file = Path(process.stdout.readline().strip())
        process.send_signal(number)
        assert process.wait(SECONDS) == status
    assert not is_mounted(file)
    assert not file.exists()


def test_a_mount_below_nohup_outlives_its_terminal(mount: Mounter) -> None:
    mounter = Mounter(mount.folder, [*mount.prefix, "nohup"], mount.options)
    mounted = mounter("memory:1M")
    try:
        mounted.process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert mounted.process.poll() is None
        assert mounted.stop() == 0
    finally:
        mounter.end_all()


def test_a_reader_of_the_log_that_stopped_holds_up_no_request(mount_data_plane: Mounter) -> None:
    mounted = mount_data_plane("log::pattern:64M", "-v")

    def read() -> None:
        with mounted.file.open("rb", buffering=0) as disk:
            os.posix_fadvise(disk.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            for number in range(SIZE // BLOCK):
                assert os.pread(disk.fileno(), BLOCK, 4 * number * BLOCK)

    reader = threading.Thread(target=mount_data_plane.do, args=(read,), daemon=True)
    reader.start()
    reader.join(SECONDS)
    assert not reader.is_alive()
    began = time.monotonic()
    assert mounted.stop() == 0
    assert time.monotonic() - began < SECONDS / 2


def test_idle_mount_takes_no_cpu(mount: Mounter) -> None:
    mounted = mount("memory:1G")
    mount.do(mounted.file.stat)

    def switches() -> int:
        status = Path(f"/proc/{mounted.process.pid}/status").read_text()
        return int(status.split("voluntary_ctxt_switches:")[1].split()[0])

    def slept() -> bool:
        before = switches()
        time.sleep(1)
        return switches() - before < 5

    wait_until(slept, "a second without work")


def test_empty_pool_of_huge_pages_is_found_out_at_the_start(mount_data_plane: Mounter) -> None:
    mounted = mount_data_plane("memory,hugepages:1T", ready=False)
    assert mounted.process.wait(SECONDS) == 1
    assert mounted.process.stderr
    assert len(mounted.process.stderr.read().splitlines()) == 1
    assert not mounted.file.exists()


def test_detached_by_somebody_while_a_request_waits(mount_data_plane: Mounter) -> None:
    mounted = mount_data_plane("delay,read=1h::memory:1M")
    with subprocess.Popen(["cat", str(mounted.file)], stdout=subprocess.DEVNULL) as reader:
        wait_until(lambda: os.getxattr(mounted.file, "user.nbdfs.reads") != b"0", "a read")
        reader.kill()
    subprocess.run(["umount", "-l", str(mounted.file)], check=True)
    assert mounted.process.wait(SECONDS) == 0


def test_stop_signals_that_come_twice_do_not_leave_the_placeholder_behind(mount: Mounter) -> None:
    """As make and timeout send them, to the process and to its group."""
    mounted = mount("memory:1M")
    while mounted.process.poll() is None:
        mounted.process.send_signal(signal.SIGTERM)
        time.sleep(0.001)
    assert mounted.process.returncode == 0
    assert not mounted.file.exists()


def test_a_folder_above_gets_another_name(mount: Mounter) -> None:
    above, renamed = mount.folder / "above", mount.folder / "renamed"
    mount.do(above.mkdir)
    image = mount.folder / "image"
    mount.do(lambda: image.write_bytes(bytes(SIZE)))
    mounted = mount(str(image), name="above/disk.img")
    mount.do(lambda: above.rename(renamed))

    def store() -> None:
        with (renamed / "disk.img").open("r+b") as disk:
            disk.write(b"stored")

    mount.do(store)
    assert mounted.stop() == 0
    assert not is_mounted(renamed / "disk.img")
    assert image.read_bytes().startswith(b"stored")


def test_names_with_anything_in_them(mount: Mounter) -> None:
    """Of other mounts too: the mount table leaves a carriage return as it is."""
    name = "carriage\rreturn, tab\t and \\040"
    mount("memory:1M", name=name)
    other = mount("memory:1M", name="other")
    for file in (mount.folder / name, other.file):
        mount.run(*nbdfs("umount", str(file)))
        assert not file.exists()


def test_the_working_directory_is_covered_once(mount: Mounter) -> None:
    folder = mount.folder / "here"
    mount.do(folder.mkdir)

    def inside(*words: str) -> subprocess.CompletedProcess[str]:
        return mount.run("sh", "-c", 'cd here && exec "$@"', "sh", *nbdfs(*words), check=False)

    assert inside("mount", "-b", "first=memory:1M", ".").returncode == 0
    try:
        again = inside("mount", "-b", "first=memory:1M", "./")
        assert again.returncode == 1
        assert "is already a mount" in again.stderr
        for place, name in ((".", "second"), ("../here", "third"), (str(folder), "fourth")):
            assert inside("add", place, f"{name}=memory:1M").returncode == 0
    finally:
        mount.run(*nbdfs("umount", "here"))


def test_lazy_umount_waits_for_no_user(mount: Mounter) -> None:
    mounted = mount("memory:1M")
    descriptor = mount.do(lambda: os.open(mounted.file, os.O_RDWR))
    try:
        busy = mount.run(*nbdfs("umount", str(mounted.file)), check=False)
        assert busy.returncode == 1
        assert "--lazy" in busy.stderr
        mount.run(*nbdfs("umount", "--lazy", str(mounted.file)))
        assert not is_mounted(mounted.file)
        assert mounted.process.poll() is None
        assert mount.do(lambda: os.pwrite(descriptor, b"still there", 0)) == 11
    finally:
        os.close(descriptor)
    assert mounted.process.wait(SECONDS) == 0


def test_a_suspended_process_holds_up_no_command_for_ever(mount_data_plane: Mounter) -> None:
    mount = mount_data_plane
    mounted = mount("memory:1M")
    mounted.process.send_signal(signal.SIGSTOP)
    try:
        for command in (nbdfs("mount", "memory:1M", str(mounted.file)), nbdfs("umount", str(mounted.file))):
            done = mount.run(*command, check=False)
            assert done.returncode == 1
            assert "--lazy" in done.stderr
        mount.run(*nbdfs("umount", "--lazy", str(mounted.file)))
        assert not is_mounted(mounted.file)
    finally:
        mounted.process.send_signal(signal.SIGCONT)
    assert mounted.process.wait(SECONDS) == 0
    assert not mounted.file.exists()
