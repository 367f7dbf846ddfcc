"""Key files, fingerprints and the two papers of joining: request and kit. Nothing in a paper is secret.

    request   site -> coordinator   the node's public key, signed with the private key that stays at the site
    kit       coordinator -> site   where to connect, and the certificate authority to trust there

A paper is not trusted because it arrived: each side reads the other's fingerprint over the telephone. A fingerprint is
40 decimal digits of SHA-256 (about 2^132 values), eight groups of five.

Secrets are files of mode 0600 in folders of mode 0700, checked at every use; a wider mode is refused, not mended, because
somebody may have read the key already.

Left out: passphrases and hardware tokens. Whoever can read the service's files can act as the service.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
import os
import stat
import time
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import Field

from shared.config.loading import validate
from shared.config.record import Address, Record
from shared.config.site import SiteName
from shared.errors import FederationError
from shared.files import sync_folder, write_new

WARN_DAYS = 30


class Request(Record):
    """A site asks to join. `signature` (base64, ECDSA with SHA-384) is the node key's own, over all other fields."""

    kind: Literal["fedsynth-request"] = "fedsynth-request"
    version: Literal[1] = 1
    site: SiteName
    public_key: Annotated[str, Field(max_length=400)]
    made: datetime.datetime
    signature: Annotated[str, Field(max_length=400)] = ""


class Kit(Record):
    """What an approved site needs to connect. `address`: host:port; `ca`: PEM; `node`: fingerprint of the approved key."""

    kind: Literal["fedsynth-kit"] = "fedsynth-kit"
    version: Literal[1] = 1
    federation: SiteName
    site: SiteName
    address: Address
    ca: Annotated[str, Field(max_length=20_000)]
    node: Annotated[str, Field(max_length=60)]
    until: datetime.datetime


def fingerprint(public: bytes) -> str:
    """A public key or certificate (DER, or the bytes of an OpenSSH line) in a form to read over the telephone."""
    number = int.from_bytes(hashlib.sha256(public).digest()) % 10**40
    digits = f"{number:040d}"
    return " ".join(digits[i : i + 5] for i in range(0, 40, 5))


def same_fingerprint(heard: str, expected: str) -> bool:
    """Whether the digits are the same, however they were grouped."""
    return "".join(c for c in heard if c.isdigit()) == expected.replace(" ", "")


def private_folder(path: Path) -> Path:
    """Make a folder of mode 0700, or check the one that is there. FederationError when others may enter."""
    if not path.exists():
        path.mkdir(parents=True, mode=0o700)
        path.chmod(0o700)
        sync_folder(path.parent)
    _only_mine(path, "folder", "700")
    return path


def write_secret(path: Path, data: bytes) -> None:
    """Write a new file of mode 0600, durably. FederationError when it exists: a key is never overwritten."""
    private_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        write_new(temporary, data)
        os.link(temporary, path)  # unlike a rename, this fails where the name is taken
        sync_folder(path.parent)
    except FileExistsError as error:
        raise FederationError(f"{path} exists; a key is never overwritten, move it away first") from error
    finally:
        temporary.unlink(missing_ok=True)


def read_secret(path: Path) -> bytes:
    """Read a file that only its owner may read. FederationError when it is missing or open to others."""
    if not path.is_file():
        raise FederationError(f"there is no key {path}")
    _only_mine(path.parent, "folder", "700")
    _only_mine(path, "file", "600")
    return path.read_bytes()


def _only_mine(path: Path, what: str, mode: str) -> None:
    state = path.stat()
    if state.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise FederationError(
            f"the {what} {path} is open to other users (mode {stat.S_IMODE(state.st_mode):o}); if nobody else has used it, "
            f"`chmod {mode} {path}`, otherwise make new keys"
        )
    if state.st_uid != os.geteuid():
        raise FederationError(f"the {what} {path} belongs to another user; run as its owner")


def node_public_key(line: str) -> ec.EllipticCurvePublicKey:
    """Parse an OpenSSH line. FederationError unless it is ECDSA on P-384, the kind that Flower's nodes sign with."""
    try:
        key = serialization.load_ssh_public_key(line.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise FederationError("the node's public key cannot be read; ask the site for a new request") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise FederationError("the node's public key is not ECDSA on P-384; ask the site for a new request")
    return key


def node_fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    return fingerprint(key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo))


def certificate_fingerprint(pem: str) -> str:
    return fingerprint(load_certificate(pem).public_bytes(serialization.Encoding.DER))


def load_certificate(pem: str) -> x509.Certificate:
    """The one certificate of a PEM text; FederationError when it holds none, or several."""
    try:
        found = x509.load_pem_x509_certificates(pem.encode())
    except ValueError as error:
        raise FederationError("the certificate cannot be read; ask for it again") from error
    if len(found) != 1:
        raise FederationError(f"expected one certificate, found {len(found)}; ask for it again")
    return found[0]


def sign_request(site: str, key: ec.EllipticCurvePrivateKey) -> Request:
    """A request with the key's own signature: proof that the asker holds the private key."""
    line = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    unsigned = Request(site=site, public_key=line, made=now())
    signature = key.sign(_signed_bytes(unsigned), ec.ECDSA(hashes.SHA384()))
    return unsigned.model_copy(update={"signature": base64.b64encode(signature).decode()})


def check_request(request: Request) -> ec.EllipticCurvePublicKey:
    """The request's public key, once its signature is good."""
    key = node_public_key(request.public_key)
    try:
        key.verify(base64.b64decode(request.signature), _signed_bytes(request), ec.ECDSA(hashes.SHA384()))
    except (InvalidSignature, ValueError) as error:
        raise FederationError(
            f"the request of {request.site} was altered or is not its key's own; ask the site for a new one"
        ) from error
    return key


def _signed_bytes(request: Request) -> bytes:
    tree = request.model_dump(mode="json", exclude={"signature"})
    return json.dumps(tree, sort_keys=True, separators=(",", ":")).encode()


R = TypeVar("R", bound=Record)


def read_paper(path: Path, kind: type[R]) -> R:
    """Read a request or a kit; FederationError when it is missing or not JSON, ConfigError when a field is wrong."""
    try:
        tree: Any = json.loads(path.read_bytes()[:100_000])
    except OSError as error:
        raise FederationError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise FederationError(f"{path} is damaged; ask for it again") from error
    if not isinstance(tree, dict):
        raise FederationError(f"{path} is not what was expected; ask for it again")
    return validate(tree, kind, source=str(path))


def now() -> datetime.datetime:
    """The time in UTC, whole seconds."""
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def warning(what: str, until: datetime.datetime) -> str | None:
    """One line when something ends within 30 days or has ended, none before."""
    days = (until - now()).days
    if until <= now():
        return f"{what} expired on {until:%Y-%m-%d}"
    return f"{what} expires in {days} days, on {until:%Y-%m-%d}" if days < WARN_DAYS else None
