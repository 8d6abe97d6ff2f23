"""What the host may lack: the kernel's NBD client and AF_VSOCK, in the test guest."""

from __future__ import annotations

import pytest

from tests.guests import Guest

pytestmark = [pytest.mark.guest, pytest.mark.root, pytest.mark.timeout(1200), pytest.mark.flaky(reruns=0)]

KERNEL = """
modprobe nbd
nbd-client -unix /run/kernel.sock /dev/nbd0 -C 2 2>&1
[ "$(blockdev --getsize64 /dev/nbd0)" = $((64 << 20)) ]
mkfs.ext4 -q /dev/nbd0
mkdir /mnt/disk
mount /dev/nbd0 /mnt/disk
head -c 20M /dev/urandom >/mnt/disk/file
sum=$(sha256sum </mnt/disk/file)
umount /mnt/disk
e2fsck -fn /dev/nbd0
mount /dev/nbd0 /mnt/disk
echo 3 >/proc/sys/vm/drop_caches
[ "$(sha256sum </mnt/disk/file)" = "$sum" ]
fstrim /mnt/disk
umount /mnt/disk
nbd-client -d /dev/nbd0
"""


@pytest.mark.parametrize("how, script", [
    ("-U /run/kernel.sock memory:64M", KERNEL),
    ("--vsock memory:1M", "[ $(nbdfs info --size nbd+vsock://1) = 1048576 ]"),
], ids=["the kernel's client", "vsock"])  # fmt: skip
def test_guest_reads_and_writes(installed: Guest, how: str, script: str) -> None:
    installed.run("modprobe -a nbd vsock_loopback")
    installed.run(f"nbdfs serve -b -P /run/served.pid {how}")
    installed.run(script)
    installed.run("kill $(cat /run/served.pid)")
    installed.until("! [ -e /run/served.pid ]")
