"""A file system of this process's own: an empty one, into which is mounted what the app may see, read-only (view.py).

Guarantee     what is not listed has no name here. Nothing can be written but the scratch folder, /tmp and /dev/shm, which are in
              memory and gone with the app's processes. /proc shows these processes alone, and its settings are read-only
Needs         a mount namespace and a PID namespace, both of a user namespace of this process's own (isolation.py), and a /proc
              that nothing is mounted over, as in a container: else OSError

The old root is taken away, not covered. No further user namespace can be made inside, so no right comes back that was dropped.
What is shown is the folder that was there: where another takes its place, the app sees the old one until its processes start anew.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Iterable
from pathlib import Path

RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
KEPT = {
    "nosuid": NOSUID,
    "nodev": NODEV,
    "noexec": NOEXEC,
    "noatime": 1024,
    "nodiratime": 2048,
    "relatime": 1 << 21,
    "nosymfollow": 256,
}  # fmt: skip - what another user's mount has, and a change must repeat
DETACH = 2


def enter(read: Iterable[Path], use: Iterable[Path], scratch: Path) -> None:
    """Make it and move there; this process must be the first of its PID namespace, alone in its mount namespace.

    scratch   an empty folder that is there; the new root is built on it, and inside it is a folder to write into
    """
    root = scratch
    with contextlib.suppress(OSError):  # where /proc/sys cannot be written, the rights dropped later must do
        Path("/proc/sys/user/max_user_namespaces").write_text("0")
    _mount(None, Path("/"), REC | PRIVATE)
    _mount("tmpfs", root, NOSUID | NODEV, "tmpfs", "mode=755")
    # First what is written: something that is shown may lie within it
    written = [_place(root, path) for path in (Path("/tmp"), scratch, Path("/dev/shm"))]  # noqa: S108 - the new root's own
    for place, mode in zip(written, ("1777", "700", "1777"), strict=True):
        place.mkdir(parents=True, exist_ok=True)
        _mount("tmpfs", place, NOSUID | NODEV, "tmpfs", f"mode={mode}")
    processes = _place(root, Path("/proc"))
    processes.mkdir()
    _mount("proc", processes, RDONLY | NOSUID | NODEV | NOEXEC, "proc")
    for path in sorted([*read, *use], key=Path.is_symlink):  # links last: what they lead to may be shown by then
        _show(path, root)
    for name, number in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        (root / "dev" / name).symlink_to(f"/proc/self/fd{number}")
    devices = [_place(root, path) for path in use]  # what is read-only of them is their mode, not what they do
    for place, flags in _mounted(root):
        if place not in (*written, processes):
            _mount(None, place, REMOUNT | BIND | RDONLY | NOSUID | flags | (0 if place in devices else NODEV))
    os.chdir(root)
    _call("pivot_root", b".", b".")  # the old root now lies over the new one
    _call("umount2", b".", DETACH)
    os.chdir(scratch)


def _show(path: Path, root: Path) -> None:
    """Mount a file or folder at its own name below `root`; a link to what is shown too stays a link."""
    target = _place(root, path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() and _place(root, path.resolve()).exists():
        target.symlink_to(path.readlink())
        return
    if path.is_dir():
        target.mkdir(exist_ok=True)
    else:
        target.touch()
    _mount(str(path), target, BIND | REC)


def _place(root: Path, path: Path) -> Path:
    """Where a path of the new root lies as long as it is built."""
    return root / str(path).lstrip("/")


def _mounted(root: Path) -> list[tuple[Path, int]]:
    """Every mount at or below `root`, with the flags that it has already."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        _, _, _, _, name, options, *_ = line.split(" ")
        place = Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), name))
        if place.is_relative_to(root):
            found.append((place, sum(KEPT.get(option, 0) for option in options.split(","))))
    return found


def _mount(source: str | None, target: Path, flags: int, kind: str | None = None, options: str | None = None) -> None:
    words = [None if word is None else os.fsencode(word) for word in (source, target, kind)]
    _call("mount", *words, ctypes.c_ulong(flags), None if options is None else options.encode(), what=str(target))


def _call(name: str, *words: object, what: str = "") -> None:
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*words) != 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}", what)
