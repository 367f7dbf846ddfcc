"""Run the app's processes shut in: no network but one door to their node, and no files but those on a list.

    node       Flower's SuperNode, outside
    carrier    this module: carries what the app says to the node's socket, and what it prints to the node's log
    first      of a PID namespace, where there is one: collects what ends, and all inside ends with it
    program    SuperExec, the nursery and the apps (prefork.py)

**Network** (`Enclosure.door`): a network namespace, with a loopback interface and nothing else. What connects to its one port is
carried to a Unix socket of the node in a folder of mode 0700. No other address, name server or abstract socket can be reached.

**Files** (`Enclosure.files`): "namespaces", a root of its own (mounts.py), processes and shared memory of its own; "landlock", the
same list kept by the kernel (landlock.py); "host", what the user of the service may open. Which one is chosen outside (`files`),
and where it cannot be had nothing starts: it never falls back by itself.

In each case: a session of its own, so that a signal to its group strikes nobody outside; no right to gain rights and none held;
nothing open but pipes; no core dumps; the variables of view.py alone.

Works without root where the kernel lets users make namespaces, or has Landlock. Left out: sockets of virtual machines (AF_VSOCK),
which namespaces do not hold.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import resource
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from client.supernode import landlock, lifetimes, mounts, view

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = (
    0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
)  # fmt: skip
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1
PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 4, 24, 38
CAPABILITIES = struct.pack("=Ii", 0x20080522, 0)  # version 3 of the header, for this process
PROBE = """
import sys
import client.supernode.isolation
try:
    open(sys.argv[1])
except OSError:
    sys.exit(0)
sys.exit("the app would see everything")
"""


@dataclass(frozen=True)
class Enclosure:
    """How an app's processes are shut in.

    files     "namespaces", "landlock" or "host"
    scratch   an empty folder in a private one, which with Landlock is the one that they may write into
    seen      what they may read of the hospital
    door      the node's socket, found inside at 127.0.0.1:`port`; none: they have the machine's network
    """

    files: str
    scratch: str
    seen: tuple[str, ...] = ()
    door: str | None = None
    port: int = 0


def available() -> bool:
    """Whether this machine lets the service make a network namespace."""
    program = [sys.executable, "-P", "-c", f"from {__name__} import enter; enter(network=True)"]
    done = subprocess.run(program, capture_output=True, check=False, timeout=60, env=view.environment())  # noqa: S603
    return done.returncode == 0


def files() -> str:
    """What keeps an app from files on this machine: "namespaces", "landlock", or "" for nothing. Found out by trying."""
    for how in ("namespaces", "landlock"):
        with tempfile.TemporaryDirectory() as place, tempfile.NamedTemporaryFile() as other:
            (Path(place) / "app").mkdir()
            words = command(Enclosure(how, f"{place}/app"), [sys.executable, "-P", "-c", PROBE, other.name])
            done = subprocess.run(words, capture_output=True, check=False, timeout=60, env=view.environment())  # noqa: S603
        if done.returncode == 0:
            return how
    return ""


def command(enclosure: Enclosure, program: Sequence[str]) -> list[str]:
    """The command that runs `program` inside."""
    return [sys.executable, "-P", "-m", "client.supernode.isolation", json.dumps(asdict(enclosure)), *program]


def enter(*, network: bool) -> None:
    """Move this process, which must have one thread, into a user namespace, in which it has every right and outside none; with
    `network`, into a network namespace too, with a loopback interface and nothing else.

    A container may forbid that. Where it has no network itself, the process stays as it is; else OSError.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(CLONE_NEWUSER | (CLONE_NEWNET if network else 0)) != 0:
        if not network or not alone():
            raise OSError(ctypes.get_errno(), "no namespace")
        return
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    if network:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            flags = _flags(probe, "lo")
            fcntl.ioctl(probe, SIOCSIFFLAGS, struct.pack("16sH14s", b"lo", flags | IFF_UP, b""))


def alone() -> bool:
    """Whether no interface but the loopback is up; raising one would need a right that containers drop."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        return not any(_flags(probe, name) & IFF_UP for _, name in socket.if_nameindex() if name != "lo")


def _flags(probe: socket.socket, name: str) -> int:
    found = fcntl.ioctl(probe, SIOCGIFFLAGS, struct.pack("16sH14s", name.encode(), 0, b""))
    return int(struct.unpack("16sH14s", found)[1])


def main(arguments: list[str]) -> int:
    """The carrier; its exit code is the program's."""
    enclosure, program = Enclosure(**json.loads(arguments[0])), arguments[1:]
    lifetimes.end_with_parent()
    lifetimes.adopt()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if enclosure.door is not None or enclosure.files == "namespaces":
        enter(network=enclosure.door is not None)
    listener = socket.create_server(("127.0.0.1", enclosure.port)) if enclosure.door is not None else None
    pipes = [(os.pipe(), sink) for sink in (1, 2)]
    inner = os.fork()
    if inner == 0:
        _inside(enclosure, program, [writing for (_, writing), _ in pipes])
    printing = []
    for (reading, writing), sink in pipes:
        os.close(writing)
        printing.append(threading.Thread(target=_print, args=(reading, sink), daemon=True))
    if listener is not None:
        threading.Thread(target=_carry, args=(listener, enclosure.door), daemon=True).start()
    for thread in printing:
        thread.start()
    code = lifetimes.follow(inner)
    lifetimes.end_children()  # without a PID namespace an app can leave something behind
    for thread in printing:
        thread.join(1.0)
    return code


def _inside(enclosure: Enclosure, program: list[str], printed: list[int]) -> None:
    """Shut this process in, start the program and end with it."""
    code = 1
    try:
        lifetimes.end_with_parent()
        os.setsid()
        for number, pipe in enumerate(printed, 1):
            os.dup2(pipe, number)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        if enclosure.files == "namespaces":  # after a fork: a process that has made a PID namespace can start no thread
            if ctypes.CDLL(None).unshare(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC) != 0:
                raise OSError("no namespaces of mounts and processes")
            if (first := os.fork()) != 0:
                os._exit(lifetimes.follow(first))
            lifetimes.end_with_parent()
        _shut(enclosure)
        if (child := os.fork()) == 0:
            lifetimes.end_with_parent()
            os.execve(program[0], program, os.environ | view.places(Path(enclosure.scratch)))  # noqa: S606 - the node's own
        code = lifetimes.follow(child)
    except OSError as error:
        print(f"the app cannot be shut in ({enclosure.files}): {error}", file=sys.stderr, flush=True)  # noqa: T201 - no log here
    finally:
        os._exit(code)


def _shut(enclosure: Enclosure) -> None:
    """Take away what this process may open, then every right to undo it."""
    libc = ctypes.CDLL(None, use_errno=True)
    scratch = Path(enclosure.scratch)
    seen = [Path(place) for place in enclosure.seen]
    if enclosure.files == "namespaces":
        mounts.enter(view.shown(seen), view.devices(), scratch)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    if enclosure.files == "landlock":
        read = [*view.shown(seen), Path("/proc")]
        if "PYTHONPATH" in os.environ:
            read.append(view.packages(scratch.parent / "code"))
            os.environ["PYTHONPATH"] = str(read[-1])
        landlock.restrict(read, [scratch], view.devices())
        os.chdir(scratch)
    for number in range(64):  # those that the kernel does not know are refused, which is all the same
        libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)
    if libc.capset(CAPABILITIES, bytes(24)) != 0:
        raise OSError(ctypes.get_errno(), "rights cannot be dropped")


def _print(reading: int, sink: int) -> None:
    """What the app says, to the node's own output; the app holds a pipe, and cannot open the log."""
    while data := os.read(reading, 65536):
        with contextlib.suppress(OSError):
            os.write(sink, data)


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
