"""The app bundle: the sources that run at a hospital, as one file whose SHA-256 a hospital can approve.

The bundle is a function of the installed sources and the version alone: sorted names, one date, nothing compressed (zlib
differs between machines). So a coordinator and a hospital that installed the same version build the same bytes, and the
hospital approves what it has itself, not what it was sent.

Format: Flower's app bundle, a zip with pyproject.toml and .info/CONTENT, at most 10 MB.

Left out: weights, dependencies and the interpreter. They are not in a bundle; they are the hospital's own installation.
"""

from __future__ import annotations

import difflib
import hashlib
import io
import zipfile
from importlib.metadata import version
from pathlib import Path

from shared.errors import FederationError

ROOMS = ("client", "privacy", "server", "shared")
LIMIT = 10 * 1024 * 1024
ROOT = Path(__file__).parent.parent

PROJECT = """\
[project]
name = "fedsynth"
version = "{version}"
description = "The app of a federation"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedsynth"

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"

[tool.flwr.app.config]
experiment = ""
out = ""
"""


def build(root: Path = ROOT) -> bytes:
    """The bundle of the sources under `root`. FederationError when it is over 10 MB or a room is missing."""
    files = {"pyproject.toml": PROJECT.format(version=version("fedsynth")).encode()}
    for room in ROOMS:
        sources = sorted((root / room).rglob("*.py"))
        if not sources:
            raise FederationError(f"{root / room} holds no sources; install fedsynth again")
        files |= {path.relative_to(root).as_posix(): path.read_bytes() for path in sources}
    listing = [f"{name},{hashlib.sha256(data).hexdigest()},{len(data) * 8}" for name, data in sorted(files.items())]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, data in [*sorted(files.items()), (".info/CONTENT", "\n".join(listing).encode())]:
            entry = zipfile.ZipInfo(name, (2024, 10, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o600 << 16
            archive.writestr(entry, data)
    bundle = out.getvalue()
    if len(bundle) > LIMIT:
        raise FederationError(f"the bundle has {len(bundle)} bytes, at most {LIMIT} may travel")
    return bundle


def sha256(bundle: bytes) -> str:
    return hashlib.sha256(bundle).hexdigest()


def contents(bundle: bytes) -> dict[str, bytes]:
    """The files of a bundle, unpacked in memory, at most 64 MB. FederationError when it is no zip or hides something.

    Read names and bytes only; nothing of it is imported or written under its own name.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
            entries = archive.infolist()
            if sum(e.file_size for e in entries) > 64 * 1024 * 1024:
                raise FederationError("the bundle would unpack to more than 64 MB; it is not one of ours")
            names = [e.filename for e in entries]
            if len(set(names)) != len(names) or any(n.startswith("/") or ".." in n.split("/") for n in names):
                raise FederationError("the bundle names a file twice or outside its folder; it is not one of ours")
            return {e.filename: archive.read(e) for e in entries if not e.is_dir() and e.filename != ".info/CONTENT"}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError) as error:
        raise FederationError("the bundle is not a whole zip file") from error


def changes(before: bytes | None, after: bytes) -> tuple[list[str], str]:
    """What a reviewer reads: one line for each added (+), removed (-) or changed (~) file, and a unified diff."""
    old, new = contents(before) if before else {}, contents(after)
    listing: list[str] = []
    text: list[str] = []
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) == new.get(name):
            continue
        sign = "+" if name not in old else "-" if name not in new else "~"
        listing.append(f"{sign} {name}")
        left, right = (files.get(name, b"").decode("utf-8", "replace").splitlines() for files in (old, new))
        text += difflib.unified_diff(left, right, f"approved/{name}", f"new/{name}", lineterm="")
    return listing, "\n".join(text)
