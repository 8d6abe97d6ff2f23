"""A machine that boots, works, reboots and powers off with our mounts and servers: systemd and mount(8) in a guest.

One guest for all tests, which run in the order of this file: each leaves the machine as the next one expects it.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.guests import Guest
from tests.interop.conftest import NEWER

pytestmark = [pytest.mark.guest, pytest.mark.root, pytest.mark.timeout(1200), pytest.mark.flaky(reruns=0)]

MIB = 1 << 20

CONFIG = """
[mount.disk]
source = "/var/lib/disk.img"
target = "/srv/disk.img"

[mount.vault]
source = "luks,passphrase=+/run/credentials/nbdfs@vault.service/key::/var/lib/vault.img"
target = "/srv/vault.img"

[mount.late]
source = "nbd,timeout=5::nbd://127.0.0.1:10810"
target = "/srv/late.img"

[mount.many]
target = "/srv/many"
readonly = true
[mount.many.files]
kept = "/var/lib/share.img"

[mount.forbidden]
source = "/dev/vda"
target = "/srv/forbidden.img"

[mount.locked]
source = "memory,mlock:32M"
target = "/srv/locked.img"

[serve.share]
source = "/var/lib/share.img"
readonly = true
"""

FSTAB = """
/var/lib/ext4.img /srv/ext4.img nbdfs nofail 0 0
/srv/ext4.img /mnt/ext4 ext4 loop,nofail 0 0
nbd://127.0.0.1:10811 /srv/remote.img nbdfs nofail,_netdev 0 0
/var/lib/gone.img /srv/gone.img nbdfs nofail 0 0
one=/var/lib/share.img /srv/auto nbdfs ro,noauto,nofail,x-systemd.automount,x-systemd.idle-timeout=3s 0 0
far=nbd://127.0.0.1:10812 /srv/far nbdfs noauto,_netdev,x-systemd.automount 0 0
"""

MOUNT_UNIT = """
[Mount]
What=/var/lib/share.img
Where=/srv/unit.img
Type=nbdfs
Options=ro

[Install]
WantedBy=multi-user.target
"""

KEY_OF_VAULT = """
[Service]
LoadCredential=key:/etc/vault.key
"""

# Numbers every block it writes, and notes the number elsewhere once the block is durable.
WRITER = """
import os, sys
disk, noted = os.open(sys.argv[1], os.O_WRONLY), os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT)
for number in range(1, 1 << 30):
    os.pwrite(disk, b"%15d\\n" % number * 256, number % 2048 * 4096)
    os.fsync(disk)
    os.pwrite(noted, b"%15d\\n" % number, 0)
    os.fsync(noted)
"""

# Blocks that were written again after the last note may have a higher number than the one looked for.
READER = """
import sys
disk, noted = open(sys.argv[1], "rb").read(16 << 20), int(open(sys.argv[2]).read())
for number in range(max(1, noted - 2047), noted + 1):
    block = disk[number % 2048 * 4096 :][:4096]
    assert block == block[:16] * 256, f"block {number} is torn: {block[:64]}"
    assert int(block[:16]) >= number, f"block {number} is lost: {block[:16]}"
print("all there")
"""

FILES = {
    "/etc/nbdfs.toml": CONFIG,
    "/root/fstab": FSTAB,
    "/etc/systemd/system/srv-unit.img.mount": MOUNT_UNIT,
    "/etc/systemd/system/nbdfs@vault.service.d/key.conf": KEY_OF_VAULT,
    "/root/writer.py": WRITER,
    "/root/reader.py": READER,
}


@pytest.fixture(scope="module")
def guest(installed: Guest) -> Guest:
    """The guest, booted with all that CONFIG and FSTAB ask for, after a reboot with a disk that has /root/data."""
    guest = installed
    guest.run("mkdir -p /etc/systemd/system/nbdfs@vault.service.d /srv/auto /srv/far /srv/many /mnt/ext4")
    for path, text in FILES.items():
        guest.write(path, text)
    guest.run(
        """
        cat /root/fstab >>/etc/fstab
        ln -s far/far /srv/far.img
        touch /srv/ext4.img /srv/remote.img /srv/gone.img /srv/unit.img
        truncate -s 16M /var/lib/disk.img
        head -c 1M /dev/urandom >/var/lib/share.img
        truncate -s 32M /var/lib/ext4.img
        mkfs.ext4 -q /var/lib/ext4.img
        (umask 077; head -c 20 /dev/urandom >/etc/vault.key)
        truncate -s 18M /var/lib/vault.img
        nbdfs luks format --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --passphrase +/etc/vault.key /var/lib/vault.img
        nbdfs copy /var/lib/share.img luks,passphrase=+/etc/vault.key::/var/lib/vault.img
        systemctl daemon-reload
        systemctl enable nbdfs@disk nbdfs@vault nbdfs@late srv-unit.img.mount nbdfs-serve@share.socket
        systemctl start nbdfs@disk
        head -c 3000000 /dev/urandom >/root/data
        dd if=/root/data of=/srv/disk.img bs=64k conv=notrunc status=none
        """,
        seconds=300,
    )
    guest.end("reboot")
    guest.boot()
    return guest


def is_mounted(path: str) -> str:
    """The shell condition that nbdfs is mounted there.  It does not look at the path, which autofs would notice."""
    return f"grep -q ' {path} .* fuse.nbdfs ' /proc/self/mountinfo"


def test_package_brings_a_command_that_works(installed: Guest) -> None:
    assert installed.run("nbdfs --version").startswith("nbdfs ")
    assert installed.run("nbdfs info --size memory:1M") == str(MIB)
    assert installed.run("dpkg --audit") == ""


def test_package_brings_units_without_faults(installed: Guest) -> None:
    units = "nbdfs@x.service nbdfs-serve@x.service nbdfs-serve@x.socket"
    assert installed.run(f"systemd-analyze verify --man=no {units} 2>&1") == ""


def test_remote_that_comes_up_late_is_mounted_by_its_service(guest: Guest) -> None:
    assert guest.attempt("systemctl is-active nbdfs@late")[1].strip() in ("activating", "inactive", "failed")
    guest.run("systemd-run -q -u late-server nbdkit -f -i 127.0.0.1 -p 10810 memory 1M")
    guest.until("systemctl is-active -q nbdfs@late")
    assert guest.run("stat -c %s /srv/late.img") == str(MIB)


def test_boot_mounts_what_is_in_fstab(guest: Guest) -> None:
    guest.run(is_mounted("/srv/ext4.img"))
    assert guest.run("stat -c %s /srv/ext4.img") == str(32 * MIB)


def test_boot_mounts_a_file_system_on_a_file_of_ours(guest: Guest) -> None:
    guest.run("findmnt -n -t ext4 /mnt/ext4 && touch /mnt/ext4/here")


def test_boot_starts_a_mount_unit_on_a_regular_file(guest: Guest) -> None:
    assert guest.run("systemctl is-active srv-unit.img.mount") == "active"
    guest.run("cmp /srv/unit.img /var/lib/share.img")


def test_boot_starts_a_service_that_mounts(guest: Guest) -> None:
    assert guest.run("systemctl is-active nbdfs@disk") == "active"
    guest.run(is_mounted("/srv/disk.img"))
    status = guest.run("systemctl show -p StatusText --value nbdfs@disk")
    assert status.startswith("sources: 1, requests: ")


def test_reboot_loses_nothing_of_a_live_mount(guest: Guest) -> None:
    guest.run("cmp -n 3000000 /root/data /srv/disk.img")


def test_one_mount_that_fails_at_boot_holds_up_no_other(guest: Guest) -> None:
    assert guest.attempt("systemctl is-active srv-gone.img.mount")[1].strip() == "failed"
    assert "/var/lib/gone.img" in guest.run("journalctl -b -o cat -u srv-gone.img.mount")
    assert guest.attempt("systemctl is-system-running")[1].strip() == "degraded"


def test_key_comes_from_a_credential(guest: Guest) -> None:
    assert guest.run("systemctl is-active nbdfs@vault") == "active"
    guest.run("cmp -n 1048576 /srv/vault.img /var/lib/share.img")


def test_service_reaches_only_the_devices_it_needs(guest: Guest) -> None:
    assert guest.attempt("systemctl start nbdfs@forbidden")[0] == 1
    guest.run("systemctl stop nbdfs@forbidden")
    assert "Operation not permitted" in guest.run("journalctl -o cat -u nbdfs@forbidden")


def test_service_cannot_gain_privileges(guest: Guest) -> None:
    status = guest.run("cat /proc/$(systemctl show -p MainPID --value nbdfs@disk)/status")
    assert re.search(r"NoNewPrivs:\s1\n", status)
    assert re.search(r"Seccomp:\s2\n", status)


def test_service_can_lock_memory(guest: Guest) -> None:
    guest.run("systemctl start nbdfs@locked")
    assert guest.run("stat -c %s /srv/locked.img") == str(32 * MIB)
    guest.run("systemctl stop nbdfs@locked")


def test_automount_of_fstab_comes_up_at_the_first_access(guest: Guest) -> None:
    assert guest.attempt(is_mounted("/srv/auto"))[0] == 1
    while_open = f"exec 3</srv/auto/one; cmp /dev/fd/3 /var/lib/share.img; {is_mounted('/srv/auto')}"
    guest.run(f"timeout 150 bash -ec {shlex.quote(while_open)}")


def test_automount_that_is_idle_is_ended_and_comes_back(guest: Guest) -> None:
    guest.until(f"! {is_mounted('/srv/auto')}")
    assert guest.run("systemctl show -p Result --value srv-auto.mount") == "success"
    assert guest.run("timeout 150 ls /srv/auto") == "one"


def test_automount_whose_server_is_not_there_fails_and_comes_up_later(guest: Guest) -> None:
    assert guest.attempt("timeout 150 ls /srv/far")[0] != 124
    guest.run("systemd-run -q -u far-server nbdkit -f -i 127.0.0.1 -p 10812 memory 1M")
    guest.until("timeout 150 ls /srv/far/far")
    assert guest.run("stat -L -c %s /srv/far.img") == str(MIB)


def test_remote_that_comes_up_late_can_be_mounted_by_hand(guest: Guest) -> None:
    assert guest.attempt("systemctl is-active srv-remote.img.mount")[1].strip() == "failed"
    guest.run("systemd-run -q -u remote-server nbdkit -f -i 127.0.0.1 -p 10811 memory 1M")
    guest.until("mount /srv/remote.img")
    assert guest.run("stat -c %s /srv/remote.img") == str(MIB)


def test_server_is_started_by_its_first_client(guest: Guest) -> None:
    assert guest.attempt("systemctl is-active nbdfs-serve@share")[1].strip() == "inactive"
    guest.run("nbdcopy 'nbd+unix:///?socket=/run/nbdfs-share.sock' - | cmp - /var/lib/share.img")
    assert guest.run("systemctl is-active nbdfs-serve@share") == "active"


def test_stopped_server_is_started_by_the_next_client(guest: Guest) -> None:
    guest.run("systemctl stop nbdfs-serve@share")
    assert guest.run("systemctl show -p Result --value nbdfs-serve@share") == "success"
    assert guest.run("nbdinfo --size 'nbd+unix:///?socket=/run/nbdfs-share.sock'") == str(MIB)


def test_stop_of_a_service_writes_all_back(guest: Guest) -> None:
    guest.run("tac /root/data >/root/other; dd if=/root/other of=/srv/disk.img bs=64k conv=notrunc status=none")
    guest.run("systemctl stop nbdfs@disk")
    guest.run("cmp -n 3000000 /root/other /var/lib/disk.img")
    assert guest.run("systemctl show -p Result --value nbdfs@disk") == "success"
    assert guest.attempt("test -e /srv/disk.img")[0] == 1  # the placeholder is gone, too


def test_stop_of_a_service_in_use_does_not_hang(guest: Guest) -> None:
    guest.run("systemctl start nbdfs@disk")
    guest.run("systemd-run -q -u user sh -c 'exec 3<>/srv/disk.img; head -c 4096 /root/data >&3; exec sleep 1000'")
    guest.until("cmp -n 4096 /root/data /srv/disk.img")
    guest.run("systemctl stop nbdfs@disk")
    guest.run("cmp -n 4096 /root/data /var/lib/disk.img")
    assert guest.run("systemctl show -p Result --value nbdfs@disk") == "success"
    guest.run("systemctl stop user; systemctl start nbdfs@disk")


def test_stop_of_a_mount_unit_waits_for_the_last_flush(guest: Guest) -> None:
    guest.run("systemctl stop srv-unit.img.mount")
    assert guest.attempt("pgrep -f /srv/unit.img")[0] == 1
    guest.run("systemctl start srv-unit.img.mount && cmp /srv/unit.img /var/lib/share.img")


def test_watchdog_replaces_a_service_that_is_stuck(guest: Guest) -> None:
    guest.run(
        """
        mkdir -p /run/systemd/system/nbdfs@disk.service.d
        printf '[Service]\\nWatchdogSec=10\\n' >/run/systemd/system/nbdfs@disk.service.d/watchdog.conf
        systemctl daemon-reload
        systemctl restart nbdfs@disk
        kill -STOP $(systemctl show -p MainPID --value nbdfs@disk)
        """
    )
    guest.until("[ $(systemctl show -p NRestarts --value nbdfs@disk) -ge 1 ] && systemctl is-active -q nbdfs@disk")
    guest.run("cmp -n 4096 /root/data /srv/disk.img")
    journal = guest.run("journalctl -b -o cat -u nbdfs@disk")
    assert "Watchdog timeout" in journal
    assert "Fatal Python error: Aborted" in journal  # and the stack that tells where it was
    guest.run("rm -r /run/systemd/system/nbdfs@disk.service.d; systemctl daemon-reload; systemctl restart nbdfs@disk")


def test_upgrade_leaves_live_mounts_alone(guest: Guest) -> None:
    show = "systemctl show -p MainPID --value nbdfs@disk"
    before = guest.run(show)
    guest.run("dpkg -i /mnt/share/newer.deb", seconds=300)
    assert guest.run("dpkg-query -W -f '${Version}' nbdfs") == NEWER
    assert guest.run(show) == before
    guest.run("cmp -n 4096 /root/data /srv/disk.img; cmp /srv/auto/one /var/lib/share.img")
    guest.run("systemctl restart nbdfs@disk; cmp -n 4096 /root/data /srv/disk.img")
    assert guest.run(show) != before


def test_reload_adds_files_and_leaves_open_ones_alone(guest: Guest) -> None:
    guest.run(
        """
        systemctl start nbdfs@many
        [ $(ls /srv/many) = kept ]
        exec 3</srv/many/kept
        sed -i '/^kept = /a added = "memory:1M"' /etc/nbdfs.toml
        systemctl reload nbdfs@many
        cmp /dev/fd/3 /var/lib/share.img
        """
    )
    assert guest.run("ls /srv/many").split() == ["added", "kept"]
    assert guest.run("systemctl is-active nbdfs@many") == "active"


def test_reload_with_a_mistake_fails_and_changes_nothing(guest: Guest) -> None:
    guest.run("cp /etc/nbdfs.toml /root/right.toml; echo '[mount.wrong]' >>/etc/nbdfs.toml")
    status = guest.attempt("systemctl reload nbdfs@many")[0]
    guest.run("mv /root/right.toml /etc/nbdfs.toml")
    assert status == 1
    assert guest.run("ls /srv/many").split() == ["added", "kept"]
    assert "mount.wrong" in guest.run("journalctl -b -o cat -u nbdfs@many")


@pytest.fixture(scope="module")
def last_words(guest: Guest) -> str:
    """What the console said during a shutdown, with two disks written to and a remote that does not answer any more."""
    guest.run(
        """
        systemctl disable -q nbdfs@late
        truncate -s 16M /mnt/ext4/load
        systemd-run -q -p After=nbdfs@disk.service python3 /root/writer.py /srv/disk.img /var/lib/noted-disk.img
        systemd-run -q -p RequiresMountsFor=/mnt/ext4 python3 /root/writer.py /mnt/ext4/load /var/lib/noted-load
        systemctl kill --signal=KILL late-server
        systemd-run -q -u stalled -p KillMode=none nbdkit -f -i 127.0.0.1 -p 10810 memory 1M
        """
    )
    guest.until("systemctl restart nbdfs@late")
    guest.run(
        """
        dd if=/root/data of=/srv/late.img bs=4096 count=8 conv=notrunc status=none
        kill -STOP $(systemctl show -p MainPID --value stalled)
        """
    )
    guest.until("[ -s /var/lib/noted-disk.img ] && [ -s /var/lib/noted-load ]")
    said = guest.end("poweroff")
    guest.boot()
    return said


def test_shutdown_under_load_is_orderly(last_words: str) -> None:
    assert "Power down" in last_words, last_words
    assert "Failed unmounting" not in last_words, last_words


def test_shutdown_waits_for_no_remote_that_does_not_answer(last_words: str) -> None:
    assert "imed out" not in last_words, last_words


@pytest.mark.parametrize("disk", ["/srv/disk.img", "/mnt/ext4/load"])
def test_what_was_synced_under_load_is_there_after_the_shutdown(guest: Guest, last_words: str, disk: str) -> None:
    assert guest.run(f"python3 /root/reader.py {disk} /var/lib/noted-{Path(disk).name}") == "all there"


def test_after_the_shutdown_all_is_mounted_again(guest: Guest, last_words: str) -> None:
    for path in "/srv/disk.img", "/srv/ext4.img", "/srv/unit.img", "/srv/vault.img":
        guest.run(is_mounted(path))
    guest.run("findmnt -n -t ext4 /mnt/ext4")


def test_removal_ends_mounts_and_leaves_nothing(guest: Guest) -> None:
    guest.run("umount /mnt/ext4; dpkg --purge nbdfs", seconds=300)
    assert guest.attempt("grep fuse.nbdfs /proc/self/mountinfo")[0] == 1
    assert guest.attempt("pgrep -af 'bin/(mount.)?nbdfs '")[0] == 1
    assert guest.attempt("ls /usr/lib/nbdfs /usr/bin/nbdfs /lib/systemd/system/nbdfs@.service")[0] == 2
    assert guest.run("dpkg --audit") == ""
