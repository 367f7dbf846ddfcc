"""The hospital's node: its key, its request to join, and the kit that says where to connect.

    WORK/node/node.key     ECDSA P-384 in OpenSSH form; made here, never leaves
    WORK/node/kit.json     the coordinator's address and certificate authority, kept once its fingerprint was compared

Left out: the connection itself (see serve.py).
"""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from shared.config.site import Site
from shared.crypto import keys
from shared.errors import FederationError
from shared.files import write_bytes
from shared.journal import journal

KEY, KIT = "node.key", "kit.json"


def folder(work: Path) -> Path:
    """WORK/node, of mode 0700."""
    return keys.private_folder(work / "node")


def request(site: Site, work: Path, *, new_key: bool = False) -> keys.Request:
    """The site's signed request; makes the node's key when there is none.

    new_key   put the key aside (node.key.1, .2, ...) and make another, after a revocation or a leak
    """
    path = folder(work) / KEY
    if new_key and path.exists():
        number = 1
        while (aside := path.with_name(f"{KEY}.{number}")).exists():
            number += 1
        path.rename(aside)
    if not path.exists():
        made = ec.generate_private_key(ec.SECP384R1())
        data = made.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
        keys.write_secret(path, data)
    return keys.sign_request(site.name, private_key(work))


def private_key(work: Path) -> ec.EllipticCurvePrivateKey:
    """The node's key. FederationError when it is missing, open to others, or of another kind."""
    path = folder(work) / KEY
    if not path.exists():
        raise FederationError(f"there is no {path}; make it with `fedsynth client request`")
    try:
        key = serialization.load_ssh_private_key(keys.read_secret(path), None)
    except ValueError as error:
        raise FederationError(f"{path} is damaged; make a new key with `fedsynth client request --new-key`") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise FederationError(f"{path} is not an ECDSA key; make one with `fedsynth client request --new-key`")
    return key


def join(kit: keys.Kit, site: Site, work: Path) -> None:
    """Keep a kit whose fingerprint was compared. FederationError when it is another site's or for another key."""
    if kit.site != site.name:
        raise FederationError(f"the kit is for {kit.site}, this is {site.name}; ask the coordinator for yours")
    mine = keys.node_fingerprint(private_key(work).public_key())
    if kit.node != mine:
        raise FederationError(
            f"the kit approves the key {kit.node}, this node has {mine}; send the present request again"
        )
    authority = keys.certificate_fingerprint(kit.ca)  # refuses what is not one certificate
    journal.write(folder(work), "joined", federation=kit.federation, server=kit.address, authority=authority)
    write_bytes(folder(work) / KIT, kit.model_dump_json(indent=2).encode())


def load_kit(work: Path) -> keys.Kit:
    """The kept kit. FederationError before `client join`."""
    path = folder(work) / KIT
    if not path.exists():
        raise FederationError("this node has no kit yet; run `fedsynth client join KIT` with the coordinator's file")
    return keys.read_paper(path, keys.Kit)


def warnings(kit: keys.Kit) -> list[str]:
    """What ends soon or has ended, for every log and for `doctor`."""
    certificate = keys.load_certificate(kit.ca)
    lines = [
        keys.warning("the coordinator's certificate authority", certificate.not_valid_after_utc),
        keys.warning("this node's approval", kit.until),
    ]
    return [line for line in lines if line]
