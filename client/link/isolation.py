"""Run the app's processes without a network: a Linux network namespace of their own, with one door to the node.

Inside there is a loopback interface and nothing else. What connects to its one port is carried to a Unix socket of the node,
which lies in a folder of mode 0700; so the app can reach the node that started it, and no other address, name server or
abstract socket. Works without root where the kernel lets users make namespaces.

Not taken away: the file system. The app may read what the service may read, and could use a Unix socket in a file that the
service may open (a container engine's, for one): do not run the node under a user who may.

`python -m client.link.isolation SOCKET PORT PROGRAM...` is the inner side; it ends with PROGRAM, and PROGRAM with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38


def available() -> bool:
    """Whether this machine lets the service make a network namespace."""
    program = [sys.executable, "-P", "-c", f"from {__name__} import enter; enter()"]
    return subprocess.run(program, capture_output=True, check=False, timeout=60).returncode == 0  # noqa: S603


def command(address: Path, port: int, program: list[str]) -> list[str]:
    """The command that runs `program` inside, with the Unix socket `address` at 127.0.0.1:`port`."""
    return [sys.executable, "-P", "-m", "client.link.isolation", str(address), str(port), *program]


def enter() -> None:
    """Move this process, which must have one thread, into a network namespace with a loopback interface and nothing else.

    A container may forbid that. Where it has no network itself, the process stays; else OSError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
        if not alone():
            raise OSError(ctypes.get_errno(), "no namespace")
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        return
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        flags = _flags(probe, "lo")
        fcntl.ioctl(probe, SIOCSIFFLAGS, struct.pack("16sH14s", b"lo", flags | IFF_UP, b""))
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def end_with_parent() -> None:
    """The system kills this process when the one that started it ends, however that ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def alone() -> bool:
    """Whether no interface but the loopback is up; raising one would need a right that containers drop."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        return not any(_flags(probe, name) & IFF_UP for _, name in socket.if_nameindex() if name != "lo")


def _flags(probe: socket.socket, name: str) -> int:
    found = fcntl.ioctl(probe, SIOCGIFFLAGS, struct.pack("16sH14s", name.encode(), 0, b""))
    return int(struct.unpack("16sH14s", found)[1])


def main(arguments: list[str]) -> int:
    """The inner side."""
    address, port, program = arguments[0], int(arguments[1]), arguments[2:]
    end_with_parent()
    enter()
    listener = socket.create_server(("127.0.0.1", port))
    threading.Thread(target=_carry, args=(listener, address), daemon=True).start()
    child = subprocess.Popen(program)  # noqa: S603 - the node's own command
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: child.terminate())
    return child.wait()


def _carry(listener: socket.socket, address: str) -> None:
    while True:
        inner, _ = listener.accept()
        outer = socket.socket(socket.AF_UNIX)
        try:
            outer.connect(address)
        except OSError:
            inner.close()
            continue
        for one, other in ((inner, outer), (outer, inner)):
            threading.Thread(target=_pump, args=(one, other), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
