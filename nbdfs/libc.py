"""System calls that the standard library does not have."""

from __future__ import annotations

import ctypes
import os
import signal

_libc = ctypes.CDLL(None, use_errno=True)

MS_REMOUNT = 32
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8
PR_SET_PDEATHSIG = 1
FALLOC_FL_KEEP_SIZE = 1
FALLOC_FL_PUNCH_HOLE = 2
FALLOC_FL_ZERO_RANGE = 16
_MLOCK_ONFAULT = 1


def _checked(result: int, path: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)


def mount(source: str, target: str, fstype: str, flags: int, data: str) -> None:
    """mount(2)."""
    words = (os.fsencode(source), os.fsencode(target), fstype.encode(), ctypes.c_ulong(flags), os.fsencode(data))
    _checked(_libc.mount(*words), target)


def remount(target: str, flags: int) -> None:
    """mount(2) with MS_REMOUNT: give a mount other flags."""
    mount("", target, "", flags | MS_REMOUNT, "")


def umount(target: str, *, detach: bool = False) -> None:
    """umount2(2), never through a symbolic link; `detach` is the lazy kind."""
    flags = UMOUNT_NOFOLLOW | (MNT_DETACH if detach else 0)
    _checked(_libc.umount2(os.fsencode(target), ctypes.c_int(flags)), target)


def sync_file_range(descriptor: int, offset: int, length: int) -> None:
    """sync_file_range(2): write dirty pages of the range back and wait; no flush of the device below."""
    whole = 1 | 2 | 4  # WAIT_BEFORE, WRITE, WAIT_AFTER
    result = _libc.sync_file_range(descriptor, ctypes.c_int64(offset), ctypes.c_int64(length), ctypes.c_uint(whole))
    _checked(result, "")


def start_writeback(descriptor: int, offset: int, length: int) -> None:
    """sync_file_range(2): have the kernel begin to write dirty pages of the range back; waits for nothing."""
    result = _libc.sync_file_range(descriptor, ctypes.c_int64(offset), ctypes.c_int64(length), ctypes.c_uint(2))
    _checked(result, "")


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """prctl(2): have the calling process sent a signal when the thread that started it ends.  Survives execve(2)."""
    _checked(_libc.prctl(ctypes.c_int(PR_SET_PDEATHSIG), ctypes.c_ulong(number), 0, 0, 0), "")


def fallocate(descriptor: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2), with any mode."""
    _checked(_libc.fallocate(descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(length)), "")


def punch_hole(descriptor: int, offset: int, length: int) -> None:
    """fallocate(2): the range reads as zero and takes no space; the size of the file stays."""
    fallocate(descriptor, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, offset, length)


def filesystem_type(descriptor: int) -> int:
    """statfs(2): the magic number of the file system that a descriptor is on."""
    answer = (ctypes.c_long * 64)()  # struct statfs, which begins with f_type
    _checked(_libc.fstatfs(descriptor, answer), "")
    return answer[0]


def mincore(address: int, length: int, vector: ctypes.Array[ctypes.c_char]) -> None:
    """mincore(2): bit 0 of each byte of `vector` says whether that page of the mapping is in memory."""
    _checked(_libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(length), vector), "")


def mlock_on_fault(address: int, length: int) -> None:
    """mlock2(2): every page is kept in memory from its first use on."""
    _checked(_libc.mlock2(ctypes.c_void_p(address), ctypes.c_size_t(length), ctypes.c_uint(_MLOCK_ONFAULT)), "")
