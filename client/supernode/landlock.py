"""Landlock (Linux 5.13 and newer): this process and all that it starts may open what is listed, whoever's files they are.

Guarantee     opening, listing, making, removing and executing files fails outside the list, and so do the memory, environment and
              open files of every process outside, and tracing it
Cannot        hide names: a file that somebody can guess can be asked for its size and date, and its owner can change its mode. The
              command lines of other processes are read as by any user. Sockets in the file system can be reached

| kernel                | also                                                                    |
|-----------------------|-------------------------------------------------------------------------|
| 5.13 (interface 1)    | the guarantee above                                                     |
| 5.19 (2), 6.2 (3)     | moving between folders; cutting a file that is only read                |
| 6.12 (6)              | no signal to a process outside, no abstract socket of one               |

mounts.py is stronger, where a user may make namespaces. A rule holds for the file that was there: a folder that is replaced by
another is shut until the app's processes start anew. Left out: ports.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from pathlib import Path

CREATE, ADD, RESTRICT = 444, 445, 446  # numbers of the system calls, the same on every processor
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
TRUNCATE, IOCTL_DEV = 1 << 14, 1 << 15
RIGHTS = (13, 14, 15, 15, 16)  # how many rights of files interface 1, 2, ... knows; the last: every newer one too
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
SCOPES = 0b11  # signals and abstract sockets
READ = EXECUTE | READ_FILE | READ_DIR


def interface() -> int:
    """Version of the kernel's interface; 0: there is none."""
    return max(0, int(_libc().syscall(CREATE, None, ctypes.c_size_t(0), 1)))


def restrict(read: Iterable[Path], write: Iterable[Path], use: Iterable[Path]) -> None:
    """Shut this process in, for good. It must have given up the right to gain rights. OSError where the kernel does not let it."""
    version = interface()
    if version < 1:
        raise OSError("this kernel has no Landlock")
    known = (1 << RIGHTS[min(version, len(RIGHTS)) - 1]) - 1
    attributes = struct.pack("=Q", known) if version < 6 else struct.pack("=QQQ", known, 0, SCOPES)
    rules = _call(CREATE, attributes, ctypes.c_size_t(len(attributes)), 0)
    for paths, rights in (
        (read, READ),
        (write, known & ~EXECUTE),
        (use, READ_FILE | READ_DIR | WRITE_FILE | IOCTL_DEV),
    ):
        for path in paths:
            _allow(rules, path, rights & known)
    _call(RESTRICT, rules, 0)
    os.close(rules)


def _allow(rules: int, path: Path, rights: int) -> None:
    handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(handle).st_mode):
            rights &= OF_FILES
        _call(ADD, rules, 1, struct.pack("=Qi", rights, handle), 0)
    finally:
        os.close(handle)


def _call(*words: object) -> int:
    done = _libc().syscall(*words)
    if done < 0:
        raise OSError(ctypes.get_errno(), f"Landlock: {os.strerror(ctypes.get_errno())}")
    return int(done)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
