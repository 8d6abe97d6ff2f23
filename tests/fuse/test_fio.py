"""fio writes, reads back and verifies through real mounts."""

from __future__ import annotations

import pytest

from tests.mounts import Mounter

WORK = {
    "random direct": "--rw=randwrite --bs=4k --direct=1 --ioengine=psync",
    "random direct deep": "--rw=randwrite --bsrange=4k-64k --direct=1 --ioengine=io_uring --iodepth=16",
    "sequential direct": "--rw=write --bs=1M --direct=1 --ioengine=psync",
    "random buffered": "--rw=randwrite --bsrange=700-9k --bs_unaligned=1 --direct=0 --ioengine=psync --fsync=64",
    "sequential buffered": "--rw=write --bs=128k --direct=0 --ioengine=psync",
    "mmap": "--rw=randwrite --bs=4k --ioengine=mmap",
    "parallel jobs": "--rw=randrw --bs=4k --direct=1 --ioengine=psync --numjobs=4 --offset_increment=8M --size=8M",
}


@pytest.mark.parametrize("work", WORK)
def test_fio_verifies_what_it_wrote(mount: Mounter, work: str) -> None:
    size = 32 << 20
    file = mount(f"memory:{size}").file
    words = [f"--filename={file.name}", "--name=verify", f"--size={size}", *WORK[work].split(), "--verify=crc32c",
             "--do_verify=1", "--verify_fatal=1", "--group_reporting", "--allow_file_create=0"]  # fmt: skip
    done = mount.run("fio", *words, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_fio_verifies_a_file_source(mount: Mounter) -> None:
    size = 16 << 20
    image = mount.folder / "image"
    mount.do(lambda: image.write_bytes(bytes(size)))
    mounted = mount(str(image))
    words = ["--name=verify", f"--size={size}", "--rw=randwrite", "--bs=4k", "--verify=sha256", "--verify_fatal=1",
             "--verify_state_save=0"]  # fmt: skip
    mount.run("fio", f"--filename={mounted.file.name}", *words, "--do_verify=0", "--direct=1", "--end_fsync=1")
    mounted.umount() if not mount.prefix else mounted.stop()
    done = mount.run("fio", "--filename=image", *words, "--do_verify=1", "--verify_only=1", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
