"""The app bundle: the sources that run at a hospital, as one file whose SHA-256 a hospital can approve.

The bundle is a function of the installed sources and the version alone: sorted names, one date, nothing compressed (zlib
differs between machines). So a coordinator and a hospital that installed the same version build the same bytes, and the
hospital approves what it has itself, not what it was sent.

Format: Flower's app bundle, a zip with pyproject.toml and .info/CONTENT, at most 10 MB. One set of files has one packing
(`pack`): an archive that two unpackers could read in two ways is known by not being that one (bundle_check.py).

Left out: what may be in a bundle (bundle_check.py) and what a reviewer is shown (bundle_diff.py); weights, dependencies and the
interpreter, which are the hospital's own installation.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from importlib.metadata import version
from pathlib import Path

from shared.errors import FederationError

ROOMS = ("client", "privacy", "server", "shared")
LIMIT = 10 * 1024 * 1024
APP = "fedsynth/fedsynth"  # publisher and name, as in PROJECT
UNPACKED = 64 * 1024 * 1024
CONTENT = ".info/CONTENT"  # Flower's list of the files
ROOT = Path(__file__).parents[2]

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
    bundle = pack(files)
    if len(bundle) > LIMIT:
        raise FederationError(f"the bundle has {len(bundle)} bytes, at most {LIMIT} may travel")
    return bundle


def pack(files: dict[str, bytes]) -> bytes:
    """The one archive of these files: their names sorted, Flower's list of their hashes last."""
    listing = [f"{name},{hashlib.sha256(data).hexdigest()},{len(data) * 8}" for name, data in sorted(files.items())]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, data in [*sorted(files.items()), (CONTENT, "\n".join(listing).encode())]:
            entry = zipfile.ZipInfo(name, (2024, 10, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o600 << 16
            archive.writestr(entry, data)
    return out.getvalue()


def sha256(bundle: bytes) -> str:
    return hashlib.sha256(bundle).hexdigest()


def contents(bundle: bytes) -> dict[str, bytes]:
    """The files of a bundle, unpacked in memory, at most 64 MB. FederationError when it is no zip or hides something.

    Read names and bytes only; nothing of it is imported or written under its own name.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
            entries = archive.infolist()
            if sum(e.file_size for e in entries) > UNPACKED:
                raise FederationError("the bundle would unpack to more than 64 MB; it is not one of ours")
            names = [e.filename for e in entries]
            if len(set(names)) != len(names) or any(n.startswith("/") or ".." in n.split("/") for n in names):
                raise FederationError("the bundle names a file twice or outside its folder; it is not one of ours")
            return {e.filename: archive.read(e) for e in entries if e.filename != CONTENT}
    except FederationError:
        raise
    except Exception as error:
        # zipfile, zlib and struct each have their own errors for bytes that a stranger chose
        raise FederationError("the bundle is not a whole zip file") from error
