"""What a doctor looks at on either side: one record for what was found, and the machine itself. Nothing is changed or sent.

Left out: whether the machine is fast enough; an experiment's settings decide that.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import stat
import sys
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import typer
from packaging.requirements import Requirement

State = Literal["good", "warning", "bad"]
PACKAGES = ("fedsynth", "torch", "flwr", "opacus", "diffusers", "cryptography")
FREE_GB = 5.0
MEMORY_GB = 4.0
SHARED_MB = 128  # twice the 64 MiB that a container has unless it is given more
BUILT = datetime(2026, 1, 1, tzinfo=UTC)  # a clock before this is wrong
UNSYNCHRONISED = 0x40  # STA_UNSYNC of adjtimex(2)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `state`: "good", "warning" (it works today) or "bad"; `mend`: what to do, empty when good."""

    what: str
    state: State
    text: str
    mend: str = ""


def machine(place: Path, packages: tuple[str, ...] = PACKAGES) -> Iterator[Finding]:
    """Disk, memory, graphics card, shared memory, clock and versions. `place`: where files are or will be written."""
    place = place.resolve()
    yield disk(next(path for path in (place, *place.parents) if path.exists()))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    yield _told("memory", memory >= MEMORY_GB, f"{memory:.0f} GB, {os.cpu_count()} processors",
                f"give the machine {MEMORY_GB:g} GB")  # fmt: skip
    yield gpu()
    yield shared_memory()
    yield clock()
    yield versions(packages)


def disk(place: Path) -> Finding:
    free = shutil.disk_usage(place).free / 1e9
    return _told("disk", free >= FREE_GB, f"{free:.0f} GB free at {place}",
                 f"free {FREE_GB:g} GB: a full disk stops ledger and journal, and with them everything")  # fmt: skip


def gpu() -> Finding:
    """Asked to add one and one: a card that is listed and does not work is found too."""
    import torch  # noqa: PLC0415 - a second or more, and no other check needs it

    cards = sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*"))
    if not torch.cuda.is_available():
        if cards:
            return Finding("GPU", "warning", f"{len(cards)} in /dev, and torch cannot use it",
                           "look at the driver (`nvidia-smi`), the container's access, and for a torch with CUDA")  # fmt: skip
        return Finding("GPU", "warning", "none found", "training runs on processors; for 64 x 64 that is enough")
    try:
        name, free = torch.cuda.get_device_name(0), torch.cuda.mem_get_info(0)[0] / 1e9
        float(torch.ones(2, device="cuda").sum())
    except RuntimeError:
        return Finding("GPU", "bad", "it is listed and does not work", "restart the container; look at `nvidia-smi`")
    return Finding("GPU", "good", f"{name}, {free:.0f} GB free")


def shared_memory() -> Finding:
    place = Path("/dev/shm")  # noqa: S108  (looked at, never written)
    size = shutil.disk_usage(place).total / 1e6 if place.is_dir() else 0
    return _told("shared memory", size >= SHARED_MB, f"{size:,.0f} MB", "start the container with --shm-size=1g")


def clock() -> Finding:
    now = datetime.now(UTC)
    said = now.isoformat(timespec="minutes")
    if not BUILT < now < BUILT.replace(year=BUILT.year + 20):
        return Finding("clock", "bad", said, "set the clock: certificates, ledgers and journals need it")
    if kept() is False:
        return Finding("clock", "warning", f"{said}, and nothing keeps it in step",
                       "run chrony or systemd-timesyncd; 300 s off, requests between the sides are refused")  # fmt: skip
    return Finding("clock", "good", said)


def kept() -> bool | None:
    """Whether the kernel says that its clock is kept in step (adjtimex(2), changes nothing); none where it cannot be asked."""
    asked = (ctypes.c_long * 64)()  # struct timex and room to spare; `modes` 0: only read
    try:
        if ctypes.CDLL(None).adjtimex(asked) < 0:
            return None
    except (OSError, AttributeError):
        return None
    return not ctypes.cast(ctypes.addressof(asked) + 5 * ctypes.sizeof(ctypes.c_long),
                           ctypes.POINTER(ctypes.c_int))[0] & UNSYNCHRONISED  # fmt: skip


def versions(packages: tuple[str, ...] = PACKAGES) -> Finding:
    """What is installed, and whether it is what this version of fedsynth asks for."""
    said = f"Python {sys.version.split()[0]}, " + ", ".join(f"{name} {_version(name)}" for name in packages)
    wrong = []
    for line in requires("fedsynth") or []:
        wanted = Requirement(line)
        found = _version(wanted.name)
        needed = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
        if needed and (found == "missing" or not wanted.specifier.contains(found, prereleases=True)):
            wrong.append(f"{wanted.name} {found}, not {wanted.specifier or 'there'}")
    if wrong:
        return Finding("versions", "bad", f"{said}; {'; '.join(wrong)}", "install again, with constraints.txt")
    return Finding("versions", "good", said)


def proxy(host: str) -> Finding:
    """Which proxy a connection to `host` takes. Its password is not said."""
    found = urllib.request.getproxies()
    if not any(found.get(name) for name in ("https", "all", "http")):
        return Finding("proxy", "good", "none in the environment")
    if urllib.request.proxy_bypass(host):
        return Finding("proxy", "good", f"not for {host} (NO_PROXY)")
    used = found.get("https") or found.get("all")
    if not used:
        return Finding("proxy", "warning", "HTTP_PROXY is set, which https does not use, and HTTPS_PROXY is not",
                       "set HTTPS_PROXY if connections must go through the proxy")  # fmt: skip
    parts = urlsplit(used if "://" in used else f"//{used}")
    return Finding(
        "proxy", "good", f"through {parts.hostname}:{parts.port or 'its usual port'}; it must let TLS through unopened"
    )


def modes(folder: Path, secrets: tuple[str, ...]) -> Finding:
    """Whether a folder and the keys in it are for their owner alone."""
    wide = [path for path in (folder, *(folder / name for name in secrets)) if path.exists() and
            (stat.S_IMODE(path.stat().st_mode) & 0o077 or path.stat().st_uid != os.geteuid())]  # fmt: skip
    if wide:
        names = ", ".join(f"{path} ({stat.S_IMODE(path.stat().st_mode):o})" for path in wide)
        return Finding("file modes", "bad", f"open to others, or another user's: {names}",
                       "if nobody else has used them, chmod 700 folders and 600 files; otherwise make new keys")  # fmt: skip
    return Finding("file modes", "good", f"{folder} and its keys are for this user alone")


def report(findings: Iterable[Finding], *, as_json: bool) -> None:
    """Print them as a table or JSON. Ends the command with exit code 1 when something is bad."""
    findings = list(findings)
    if as_json:
        typer.echo(json.dumps([asdict(found) for found in findings]))
    else:
        for f in findings:
            typer.echo(f"{f.state:8} {f.what:14} {f.text}{'; ' if f.text and f.mend else ''}{f.mend}".rstrip())
    if any(found.state == "bad" for found in findings):
        raise typer.Exit(1)


def _told(what: str, good: bool, text: str, mend: str) -> Finding:
    return Finding(what, "good" if good else "warning", text, "" if good else mend)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
