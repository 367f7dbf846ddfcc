"""Keys and certificates of a federation, and who may join it.

    FOLDER/ca.key, ca.pem            certificate authority, ECDSA P-384, five years: longer than most studies, because a new
                                     one means a new kit and a telephone call for every site. Move ca.key to a safe place
                                     after provisioning; only a renewal needs it.
    FOLDER/server.key, server.pem    the server's certificate, one year: renewed here alone, no site notices
    FOLDER/sites/NAME.json           approved sites: public key, until when (two years), revoked or not
    FOLDER/kits/NAME.kit.json        what a site receives; not secret

Everything may be run again: what is there and valid stays, no key is ever overwritten. Private keys of sites are made at
the sites and never arrive here.

Flower knows no client certificates, so an approval is a line in this folder that `server serve` checks at every request.

Left out: revocation lists. There is one server; its certificate is revoked by making a new authority.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from server.superlink.federation import FederationFile
from shared.config.record import Record
from shared.config.site import SiteName
from shared.crypto import keys
from shared.errors import ConfigError, FederationError
from shared.files import write_bytes
from shared.journal import journal

CA_DAYS, SERVER_DAYS, SITE_DAYS = 5 * 365, 365, 2 * 365
CLOCK_SKEW = datetime.timedelta(hours=1)


class Member(Record):
    """An approved site. `revoked` is final for this key: the site may join again with a new one."""

    site: SiteName
    public_key: str
    fingerprint: str
    approved: datetime.datetime
    until: datetime.datetime
    revoked: datetime.datetime | None = None

    @property
    def admitted(self) -> bool:
        return self.revoked is None and keys.now() < self.until


def provision(federation: FederationFile, folder: Path) -> Iterator[str]:
    """Make what is missing; yields one line for each thing made. A server certificate near its end is made anew."""
    keys.private_folder(folder)
    for name in ("sites", "kits"):
        keys.private_folder(folder / name)
    if not (folder / "ca.pem").exists():
        ca_key = _key(folder / "ca.key")
        pem = _ca(federation, ca_key).public_bytes(serialization.Encoding.PEM)
        write_bytes(folder / "ca.pem", pem)
        authority = keys.certificate_fingerprint(pem.decode())
        journal.write(folder, "provisioned", made="certificate authority", authority=authority)
        yield f"certificate authority: {folder / 'ca.pem'}"
    ca = keys.load_certificate((folder / "ca.pem").read_text(encoding="utf-8"))
    if _server_is_good(federation, folder, ca):
        return
    if not (folder / "ca.key").exists():
        raise FederationError(f"a new server certificate needs {folder / 'ca.key'}; put it back for this command")
    server_key = _key(folder / "server.key")
    certificate = _server(federation, server_key.public_key(), ca, _key(folder / "ca.key"))
    write_bytes(folder / "server.pem", certificate.public_bytes(serialization.Encoding.PEM))
    journal.write(folder, "provisioned", made=f"server certificate for {federation.host}")
    yield f"server certificate for {federation.host}: {folder / 'server.pem'}"


def approve(federation: FederationFile, folder: Path, request: keys.Request) -> keys.Kit:
    """Admit the site of a checked request and write its kit. Approving the same key again extends its term.

    FederationError when the name is taken by another key that is still admitted, or the key was revoked or is another's.
    """
    key = keys.check_request(request)
    found = keys.node_fingerprint(key)
    for other in members(folder):
        if other.fingerprint == found and other.revoked is not None:
            raise FederationError(
                f"this key of {other.site} was revoked; the site makes a new one with `client request --new-key`"
            )
        if other.fingerprint == found and other.site != request.site:
            raise FederationError(f"this key belongs to the site {other.site}; each site has its own")
        if other.site == request.site and other.fingerprint != found and other.admitted:
            raise FederationError(
                f"{request.site} has another key ({other.fingerprint}); `server revoke` that one first"
            )
    moment = keys.now()
    line = " ".join(request.public_key.split()[:2])  # the comment of a key is free text
    member = Member(
        site=request.site,
        public_key=line,
        fingerprint=found,
        approved=moment,
        until=moment + datetime.timedelta(days=SITE_DAYS),
    )
    journal.write(folder, "site_approved", site=member.site, key=found, until=f"{member.until:%Y-%m-%d}")
    _write(folder, member)
    kit = keys.Kit(
        federation=federation.name,
        site=request.site,
        address=federation.address,
        ca=(folder / "ca.pem").read_text(encoding="utf-8"),
        node=found,
        until=member.until,
    )
    write_bytes(folder / "kits" / f"{request.site}.kit.json", kit.model_dump_json(indent=2).encode())
    return kit


def revoke(folder: Path, site: str) -> Member:
    """Shut a site out, at once where the server runs. FederationError when no such site is admitted."""
    for member in members(folder):
        if member.site == site and member.revoked is None:
            revoked = member.model_copy(update={"revoked": keys.now()})
            journal.write(folder, "site_revoked", site=site, key=member.fingerprint)
            _write(folder, revoked)
            (folder / "kits" / f"{site}.kit.json").unlink(missing_ok=True)
            return revoked
    known = ", ".join(sorted(m.site for m in members(folder) if m.revoked is None)) or "none"
    raise FederationError(f"no admitted site is called `{site}`; admitted: {known}")


def members(folder: Path) -> list[Member]:
    """All sites that were ever approved, also revoked ones, by name and date."""
    found = [keys.read_paper(path, Member) for path in sorted((folder / "sites").glob("*.json"))]
    return sorted(found, key=lambda m: (m.site, m.approved))


def warnings(folder: Path) -> list[str]:
    """What ends soon or has ended, for every log and for `doctor`."""
    lines = []
    for name, what in (("ca.pem", "the certificate authority"), ("server.pem", "the server's certificate")):
        if (folder / name).exists():
            certificate = keys.load_certificate((folder / name).read_text(encoding="utf-8"))
            lines.append(keys.warning(what, certificate.not_valid_after_utc))
    lines += [keys.warning(f"the approval of {m.site}", m.until) for m in members(folder) if m.revoked is None]
    return [line for line in lines if line]


def folder_of(path: Path, federation: FederationFile) -> Path:
    """The folder of a federation: beside its file, under its name. ConfigError before `server provision`."""
    folder = path.resolve().parent / federation.name
    if not (folder / "server.pem").exists():
        raise ConfigError(f"{folder} holds no federation; run `fedsynth server provision {path}` first")
    keys.private_folder(folder)
    return folder


def _write(folder: Path, member: Member) -> None:
    """One file a key: a site's next key stands beside the revoked one."""
    short = member.fingerprint.replace(" ", "")[:10]
    write_bytes(folder / "sites" / f"{member.site}.{short}.json", member.model_dump_json(indent=2).encode())


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The key in `path`, made when there is none."""
    if not path.exists():
        made = ec.generate_private_key(ec.SECP384R1())
        pem = made.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        keys.write_secret(path, pem)
    key = serialization.load_pem_private_key(keys.read_secret(path), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def _ca(federation: FederationFile, key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"fedsynth {federation.name}")])
    public = key.public_key()
    return (
        _certificate(name, name, public, CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, hashes.SHA384())
    )


def _server(
    federation: FederationFile,
    public: ec.EllipticCurvePublicKey,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"fedsynth {federation.name} server")])
    remaining = (ca.not_valid_after_utc - keys.now()).days
    if remaining < 1:
        raise FederationError("the certificate authority has expired; provision a new federation and send new kits")
    return (
        _certificate(name, ca.subject, public, min(SERVER_DAYS, remaining))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_alternative(federation.host)]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA384())
    )


def _certificate(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    moment = keys.now()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment - CLOCK_SKEW)
        .not_valid_after(moment + datetime.timedelta(days=days))
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _server_is_good(federation: FederationFile, folder: Path, ca: x509.Certificate) -> bool:
    """Whether the server's certificate is this authority's, for this host and key, and not within 30 days of its end."""
    path = folder / "server.pem"
    if not path.exists() or not (folder / "server.key").exists():
        return False
    certificate = keys.load_certificate(path.read_text(encoding="utf-8"))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    near = certificate.not_valid_after_utc - keys.now() < datetime.timedelta(days=keys.WARN_DAYS)
    return (
        certificate.issuer == ca.subject
        and _alternative(federation.host) in names
        and certificate.public_key() == _key(folder / "server.key").public_key()
        and not near
    )
