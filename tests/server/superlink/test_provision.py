"""Who may join, proved with keys; what is secret stays where it was made."""

from __future__ import annotations

import base64
import datetime
import json
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import verification
from typer.testing import CliRunner

from client.cli import app as client_app
from client.supernode import node
from server.cli import app as server_app
from server.superlink import provision
from shared.config.site import Site
from shared.crypto import keys
from shared.errors import ConfigError, FederationError

FEDERATION = provision.FederationFile(name="brains", address="fed.example.org:9443")


def site(name: str, tmp_path: Path) -> Site:
    return Site(name=name, data=tmp_path, face_removal="none")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    list(provision.provision(FEDERATION, tmp_path / "brains"))
    return tmp_path / "brains"


def test_the_server_certificate_chains_to_the_authority_and_names_the_host(folder: Path) -> None:
    ca, server = (keys.load_certificate((folder / f"{n}.pem").read_text()) for n in ("ca", "server"))
    server.verify_directly_issued_by(ca)
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["fed.example.org"]
    assert server.not_valid_after_utc - keys.now() <= datetime.timedelta(days=366)
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_an_independent_verifier_accepts_the_chain_for_this_host_alone(folder: Path) -> None:
    ca, server = (keys.load_certificate((folder / f"{n}.pem").read_text()) for n in ("ca", "server"))
    trust = verification.PolicyBuilder().store(verification.Store([ca]))
    trust.build_server_verifier(x509.DNSName(FEDERATION.host)).verify(server, [])
    with pytest.raises(verification.VerificationError):
        trust.build_server_verifier(x509.DNSName("elsewhere.example.org")).verify(server, [])
    late = keys.now() + datetime.timedelta(days=provision.SERVER_DAYS + 1)
    with pytest.raises(verification.VerificationError):
        trust.time(late).build_server_verifier(x509.DNSName(FEDERATION.host)).verify(server, [])


def test_provisioning_again_changes_nothing(folder: Path) -> None:
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    assert list(provision.provision(FEDERATION, folder)) == []
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before


def test_a_server_certificate_near_its_end_is_renewed_with_the_same_authority_and_key(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {name: (folder / name).read_bytes() for name in ("ca.pem", "ca.key", "server.key")}
    old = (folder / "server.pem").read_bytes()
    later = keys.now() + datetime.timedelta(days=provision.SERVER_DAYS - 10)
    monkeypatch.setattr(keys, "now", lambda: later)
    assert any("the server's certificate expires in 10 days" in line for line in provision.warnings(folder))
    assert list(provision.provision(FEDERATION, folder))
    assert (folder / "server.pem").read_bytes() != old
    assert {name: (folder / name).read_bytes() for name in kept} == kept
    assert not any("server's certificate" in line for line in provision.warnings(folder))


def test_a_renewal_without_the_authoritys_key_says_what_is_missing(folder: Path) -> None:
    (folder / "ca.key").unlink()
    assert list(provision.provision(FEDERATION, folder)) == []
    moved = FEDERATION.model_copy(update={"address": "other.example.org:9443"})
    with pytest.raises(FederationError, match="put it back"):
        list(provision.provision(moved, folder))


def test_secrets_are_for_their_owner_alone(folder: Path, tmp_path: Path) -> None:
    node.request(site("north", tmp_path), tmp_path / "work")
    secrets = [folder / "ca.key", folder / "server.key", tmp_path / "work" / "node" / "node.key"]
    for path in secrets:
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700
    secrets[2].chmod(0o640)
    with pytest.raises(FederationError, match="open to other users"):
        node.private_key(tmp_path / "work")
    secrets[2].chmod(0o600)
    secrets[2].parent.chmod(0o750)
    with pytest.raises(FederationError, match="open to other users"):
        node.private_key(tmp_path / "work")


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    first = node.request(site("north", tmp_path), tmp_path)
    assert node.request(site("north", tmp_path), tmp_path).public_key == first.public_key
    with pytest.raises(FederationError, match="never overwritten"):
        keys.write_secret(tmp_path / "node" / "node.key", b"another")
    second = node.request(site("north", tmp_path), tmp_path, new_key=True)
    assert second.public_key != first.public_key
    aside = serialization.load_ssh_private_key((tmp_path / "node" / "node.key.1").read_bytes(), None)
    assert isinstance(aside, ec.EllipticCurvePrivateKey)
    assert keys.node_fingerprint(aside.public_key()) == keys.node_fingerprint(keys.check_request(first))
    assert not [p for p in (tmp_path / "node").iterdir() if p.suffix == ".tmp"]


def test_a_request_and_a_kit_hold_no_secret(folder: Path, tmp_path: Path) -> None:
    request = node.request(site("north", tmp_path), tmp_path)
    kit = provision.approve(FEDERATION, folder, request)
    private = node.private_key(tmp_path).private_numbers().private_value
    for text in (request.model_dump_json(), kit.model_dump_json(), *(p.read_text() for p in folder.rglob("*.json"))):
        assert "PRIVATE" not in text
        assert str(private) not in text and f"{private:x}" not in text
    secret = (tmp_path / "node" / "node.key").read_text().splitlines()[1:-1]
    assert not [line for line in secret[2:] if any(line in p.read_text() for p in folder.rglob("*.json"))]


@pytest.mark.parametrize("field", ["site", "made", "signature", "public_key"])
def test_an_altered_request_is_refused(folder: Path, tmp_path: Path, field: str) -> None:
    request = node.request(site("north", tmp_path), tmp_path)
    other = node.request(site("south", tmp_path), tmp_path / "other")
    altered = {
        "site": "south",
        "made": request.made + datetime.timedelta(seconds=1),
        "signature": base64.b64encode(b"0" * 70).decode(),
        "public_key": other.public_key,
    }
    with pytest.raises(FederationError, match="altered"):
        provision.approve(FEDERATION, folder, request.model_copy(update={field: altered[field]}))
    assert provision.members(folder) == []


@pytest.mark.parametrize("curve", [ec.SECP256R1(), None])
def test_a_key_of_another_kind_is_refused(curve: ec.EllipticCurve | None) -> None:
    from cryptography.hazmat.primitives.asymmetric import ed25519

    key = ec.generate_private_key(curve).public_key() if curve else ed25519.Ed25519PrivateKey.generate().public_key()
    line = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()
    with pytest.raises(FederationError, match="not ECDSA on P-384"):
        keys.node_public_key(line)


def test_a_name_and_a_key_belong_together(folder: Path, tmp_path: Path) -> None:
    north = node.request(site("north", tmp_path), tmp_path / "a")
    provision.approve(FEDERATION, folder, north)
    impostor = node.request(site("north", tmp_path), tmp_path / "b")
    with pytest.raises(FederationError, match="has another key"):
        provision.approve(FEDERATION, folder, impostor)
    renamed = node.request(site("south", tmp_path), tmp_path / "a")
    with pytest.raises(FederationError, match="belongs to the site north"):
        provision.approve(FEDERATION, folder, renamed)


def test_a_revoked_key_never_comes_back_but_the_site_may(folder: Path, tmp_path: Path) -> None:
    first = node.request(site("north", tmp_path), tmp_path)
    provision.approve(FEDERATION, folder, first)
    assert provision.revoke(folder, "north").revoked is not None
    assert not any(m.admitted for m in provision.members(folder))
    with pytest.raises(FederationError, match="was revoked"):
        provision.approve(FEDERATION, folder, first)
    with pytest.raises(FederationError, match="no admitted site"):
        provision.revoke(folder, "north")
    provision.approve(FEDERATION, folder, node.request(site("north", tmp_path), tmp_path, new_key=True))
    assert [m.admitted for m in provision.members(folder)].count(True) == 1


def test_an_approval_ends_and_warns_before(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = node.request(site("north", tmp_path), tmp_path)
    kit = provision.approve(FEDERATION, folder, request)
    node.join(kit, site("north", tmp_path), tmp_path)
    assert node.warnings(kit) == []
    soon = kit.until - datetime.timedelta(days=3)
    monkeypatch.setattr(keys, "now", lambda: soon)
    assert any("this node's approval expires in 3 days" in line for line in node.warnings(node.load_kit(tmp_path)))
    assert any("approval of north expires in 3 days" in line for line in provision.warnings(folder))
    after = kit.until + datetime.timedelta(seconds=1)
    monkeypatch.setattr(keys, "now", lambda: after)
    assert not provision.members(folder)[0].admitted
    assert any("approval of north expired" in line for line in provision.warnings(folder))


def test_a_kit_of_another_site_or_key_is_refused(folder: Path, tmp_path: Path) -> None:
    kit = provision.approve(FEDERATION, folder, node.request(site("north", tmp_path), tmp_path / "a"))
    with pytest.raises(FederationError, match="the kit is for north"):
        node.join(kit, site("south", tmp_path), tmp_path / "a")
    node.request(site("north", tmp_path), tmp_path / "b")
    with pytest.raises(FederationError, match="this node has"):
        node.join(kit, site("north", tmp_path), tmp_path / "b")


def test_a_fingerprint_is_forty_digits_and_any_grouping_is_the_same() -> None:
    print_ = keys.fingerprint(b"something")
    assert [len(group) for group in print_.split()] == [5] * 8
    assert keys.same_fingerprint(print_.replace(" ", "-"), print_)
    assert not keys.same_fingerprint(print_[:-1] + str((int(print_[-1]) + 1) % 10), print_)
    assert not keys.same_fingerprint("", print_)


def test_joining_through_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke
    Path("fed.yaml").write_text("name: brains\naddress: 127.0.0.1:9443\n")
    Path("north.yaml").write_text(f"name: north\ndata: {tmp_path}\nface_removal: none\n")
    told = run(server_app, ["provision", "fed.yaml"], catch_exceptions=False).output.strip().splitlines()[-1]
    authority = told.partition(":  ")[2]
    told = run(client_app, ["request", "north.yaml", "--work", "work"], catch_exceptions=False).output.strip()
    digits = told.partition(":  ")[2]
    wrong = "1" * 40
    refused = run(server_app, ["approve", "fed.yaml", "north.request.json", "--fingerprint", wrong])
    assert isinstance(refused.exception, FederationError)
    assert provision.members(tmp_path / "brains") == []
    run(server_app, ["approve", "fed.yaml", "north.request.json"], input=digits + "\n", catch_exceptions=False)
    kit = "brains/kits/north.kit.json"
    refused = run(client_app, ["join", "north.yaml", kit, "--work", "work", "--fingerprint", wrong])
    assert isinstance(refused.exception, FederationError)
    run(client_app, ["join", "north.yaml", kit, "--work", "work"], input=authority + "\n", catch_exceptions=False)
    listed = json.loads(run(server_app, ["sites", "fed.yaml", "--json"], catch_exceptions=False).output)
    assert [(m["site"], m["admitted"]) for m in listed] == [("north", True)]
    run(server_app, ["revoke", "fed.yaml", "north"], catch_exceptions=False)
    listed = json.loads(run(server_app, ["sites", "fed.yaml", "--json"], catch_exceptions=False).output)
    assert [m["admitted"] for m in listed] == [False]


def test_commands_before_provisioning_say_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "fed.yaml").write_text("name: brains\naddress: 127.0.0.1:9443\n")
    with pytest.raises(ConfigError, match="server provision"):
        provision.folder_of(tmp_path / "fed.yaml", FEDERATION)


def test_a_damaged_paper_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"kind": "fedsynth-kit", "version": 1')
    (tmp_path / "fed.yaml").write_text("name: brains\naddress: 127.0.0.1:9443\n")
    list(provision.provision(FEDERATION, tmp_path / "brains"))
    done = CliRunner().invoke(server_app, ["approve", str(tmp_path / "fed.yaml"), str(tmp_path / "x.json")])
    assert isinstance(done.exception, FederationError)
    assert "is damaged" in str(done.exception)
    assert "\n" not in str(done.exception)
