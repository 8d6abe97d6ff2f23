"""The mount table: mount, unmount, and what is mounted where.

With CAP_SYS_ADMIN we call mount(2); without, fusermount3 mounts for us and hands the descriptor over.
"""

from __future__ import annotations

import array
import errno
import logging
import os
import re
import shutil
import socket
import stat
import subprocess
import threading
from collections.abc import Iterator

from nbdfs import libc
from nbdfs.errors import UserError
from nbdfs.fuse.keeper import Keeper
from nbdfs.fuse.options import MountOptions
from nbdfs.records import Record

log = logging.getLogger(__name__)

_DEVICE = "/dev/fuse"
_FUSERMOUNT = "fusermount3"
_BEYOND_FUSERMOUNT = ("nodiratime", "strictatime")
_SECONDS = 20.0  # that fusermount3 may take


class Mount(Record):
    """A line of /proc/self/mountinfo."""

    target: str
    device: str  # MAJOR:MINOR
    fstype: str
    source: str

    @property
    def is_fuse(self) -> bool:
        """Whether it may be one of ours, whose subtype the user can choose."""
        return self.fstype == "fuse" or self.fstype.startswith("fuse.")


def find_mount(target: str) -> Mount | None:
    """The mount on top of an absolute path, if it is a mount point.  An automount that waits there is none yet."""
    mounts = [mount for mount in _table() if mount.target == target and mount.fstype != "autofs"]
    return mounts[-1] if mounts else None  # the last one is on top


def places(device: str) -> list[str]:
    """Where the file system with this number is mounted."""
    return [mount.target for mount in _table() if mount.device == device]


def _table() -> Iterator[Mount]:
    # A name can have a carriage return, which ends no line.
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape", newline="\n") as table:
        for line in table:
            fields, _, rest = line.partition(" - ")
            words = fields.split(" ")
            fstype, source, *_ = rest.split(" ")
            yield Mount(_unescaped(words[4]), words[2], fstype, _unescaped(source))


def ask(target: str, seconds: float) -> None:
    """Have what is mounted at a path answer.

    Raises OSError: ENOTCONN if its process is gone, ETIMEDOUT if it is silent.
    A thread asks, which is left behind if there is no answer: until then nothing but SIGKILL would end the wait.
    """
    failures: list[OSError] = []

    def run() -> None:
        try:
            os.statvfs(target)  # unlike stat, never answered from what the kernel remembers
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), target)
    if failures:
        raise failures[0]


def privileged() -> bool:
    """Whether this process may mount by itself."""
    return os.geteuid() == 0 and _has_capability(21)  # CAP_SYS_ADMIN


def may_pass_through() -> bool:
    """Whether the kernel lets us register backing files: it asks for CAP_SYS_ADMIN outside of any user namespace."""
    with open("/proc/self/uid_map", encoding="ascii") as table:
        return privileged() and table.read().split() == ["0", "0", str((1 << 32) - 1)]


def mount(target: str, kind: int, options: MountOptions) -> Device:
    """Mount on `target`, whose root is of file type `kind`.  Raises UserError."""
    able = privileged()
    descriptor = _mount_ourselves(target, kind, options) if able else _mount_by_helper(target, options)
    return Device(descriptor, Keeper(target, privileged=able) if options.auto_unmount else None)


def unmount(target: str, *, lazy: bool = False) -> None:
    """Unmount; `lazy` takes it away while it is busy.  Raises OSError (EBUSY) or UserError."""
    if privileged():
        libc.umount(target, detach=lazy)
        return
    helper = _helper()
    words = [helper, "-u", *(["-z"] if lazy else []), "--", target]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(f"cannot unmount {target}: {helper} is not done after {_SECONDS:g} s") from None
    if done.returncode:
        if "busy" in done.stderr.lower():
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), target)
        raise UserError(f"cannot unmount {target}: {done.stderr.strip() or helper + ' failed'}")


class Device:
    """The descriptor of a mounted FUSE connection, and who unmounts should we be killed."""

    def __init__(self, descriptor: int, keeper: Keeper | None = None) -> None:
        self.descriptor = descriptor
        self._keeper = keeper
        os.set_blocking(descriptor, False)

    def close(self) -> None:
        if self._keeper:
            self._keeper.dismiss()
        os.close(self.descriptor)


def _mount_ourselves(target: str, kind: int, options: MountOptions) -> int:
    try:
        device = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(_no_device(error)) from error
    words = [f"fd={device}", f"rootmode={kind:o}", f"user_id={os.geteuid()}", f"group_id={os.getegid()}",
             "default_permissions"]  # fmt: skip
    if options.allow_other:
        words.append("allow_other")
    try:
        libc.mount(options.fsname, target, f"fuse.{options.subtype}", options.mount_flags, ",".join(words))
    except OSError as error:
        os.close(device)
        raise UserError(f"cannot mount on {target}: {error.strerror}") from error
    return device


def _mount_by_helper(target: str, options: MountOptions) -> int:
    helper = _helper()
    try:
        os.close(os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise UserError(_no_device(error)) from error
    if beyond := _beyond_helper(options):
        log.warning("%s is mounted without %s: %s gives that to no user", target, ", ".join(beyond), _FUSERMOUNT)
    words = [helper, "-o", _helper_options(options), "--", target]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        with theirs:
            process = subprocess.Popen(
                words,
                pass_fds=[theirs.fileno()],
                env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno()), "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        ours.settimeout(_SECONDS)
        descriptor = _receive_descriptor(ours)
        try:
            _, said = process.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            said = f"{helper} is not done after {_SECONDS:g} s"
    if descriptor is None:
        raise UserError(f"cannot mount on {target}: {said.strip() or helper + ' failed'}")
    return descriptor


def _beyond_helper(options: MountOptions) -> list[str]:
    """What is asked for and not had by way of fusermount3, which says nothing."""
    user = os.getuid() != 0
    asked = (
        (options.suid and user, "suid"),
        (options.dev and user, "dev"),
        (options.atime in _BEYOND_FUSERMOUNT, options.atime),
    )
    return [word for wanted, word in asked if wanted]


def _receive_descriptor(channel: socket.socket) -> int | None:
    try:
        _, messages, _, _ = channel.recvmsg(1, socket.CMSG_SPACE(4))
    except OSError:
        return None
    for level, kind, data in messages:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors = array.array("i")
            descriptors.frombytes(data[:4])
            os.set_inheritable(descriptors[0], False)
            return descriptors[0]
    return None


def _helper_options(options: MountOptions) -> str:
    chosen = (
        (True, "default_permissions"),
        (True, f"subtype={_escaped(options.subtype)}"),
        (True, f"fsname={_escaped(options.fsname)}"),
        (options.readonly, "ro"),
        (options.allow_other, "allow_other"),
        (options.suid, "suid"),
        (options.dev, "dev"),
        (not options.exec, "noexec"),
        (options.synchronous, "sync"),
        (options.atime == "noatime", "noatime"),
    )
    return ",".join(word for wanted, word in chosen if wanted)


def _helper() -> str:
    helper = shutil.which(_FUSERMOUNT)
    if not helper:
        raise UserError(f"mounting without root needs {_FUSERMOUNT}: install the package fuse3")
    return helper


def _no_device(error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return f"there is no {_DEVICE}: load the kernel's fuse module (modprobe fuse)"
    return f"cannot open {_DEVICE}: {error.strerror}; whoever mounts must be allowed to read and write it"


def _has_capability(number: int) -> bool:
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        line = next((line for line in status if line.startswith("CapEff:")), "CapEff: 0")
    return bool(int(line.split()[1], 16) >> number & 1)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace(",", "\\,")


def _unescaped(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def file_type(path: str) -> int:
    """S_IFREG, S_IFDIR, ... of what is at a path."""
    return stat.S_IFMT(os.stat(path).st_mode)
