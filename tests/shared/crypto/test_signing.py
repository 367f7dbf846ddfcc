"""What a signature promises: not a byte of a signed document can change, and the key stays with its owner."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shared.crypto import signing
from shared.errors import SignatureError

BODY = {"cohort": "north", "epsilon": 7.25, "runs": [{"run": "Über", "steps": 4}], "cap": None}


def test_a_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "office.pem"
    first = signing.fingerprint(signing.load_or_make(path).public_key())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert signing.fingerprint(signing.load_or_make(path).public_key()) == first
    assert [p.name for p in tmp_path.iterdir()] == ["office.pem"]
    assert len(first) == 64


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o610])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "office.pem"
    signing.load_or_make(path)
    path.chmod(mode)
    with pytest.raises(SignatureError, match="chmod 600"):
        signing.load_or_make(path)


def test_a_link_a_folder_that_is_missing_and_another_kind_of_key_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "office.pem"
    signing.load_or_make(path)
    (tmp_path / "link.pem").symlink_to(path)
    (tmp_path / "dangling.pem").symlink_to(tmp_path / "nothing")
    encoding, kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    other = ec.generate_private_key(ec.SECP256R1()).private_bytes(encoding, kind, serialization.NoEncryption())
    locked = Ed25519PrivateKey.generate().private_bytes(encoding, kind, serialization.BestAvailableEncryption(b"x"))
    for name, data in (("ec.pem", other), ("locked.pem", locked), ("text.pem", b"hello")):
        (tmp_path / name).write_bytes(data)
        (tmp_path / name).chmod(0o600)
    for name in ("link.pem", "dangling.pem", "ec.pem", "locked.pem", "text.pem", "none/office.pem"):
        with pytest.raises(SignatureError) as error:
            signing.load_or_make(tmp_path / name)
        assert "\n" not in str(error.value)


def test_a_signature_fits_its_payload_and_its_key_alone() -> None:
    key, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    signature = signing.sign(key, b"payload")
    signing.check_signature(key.public_key(), b"payload", signature)
    for public, payload, claimed in (
        (other.public_key(), b"payload", signature),
        (key.public_key(), b"payloae", signature),
        (key.public_key(), b"payload", signature[:-2]),
        (key.public_key(), b"payload", signature.upper()),
        (key.public_key(), b"payload", f" {signature}"),
        (key.public_key(), b"payload", "no hex"),
    ):
        with pytest.raises(SignatureError):
            signing.check_signature(public, payload, claimed)


def test_a_sealed_document_comes_back_and_names_its_key() -> None:
    key = Ed25519PrivateKey.generate()
    body, public = signing.unseal(signing.seal(key, BODY), key.public_key())
    assert body == BODY
    assert signing.fingerprint(public) == signing.fingerprint(key.public_key())


def test_every_flipped_bit_and_every_missing_byte_is_found() -> None:
    good = signing.seal(Ed25519PrivateKey.generate(), BODY)
    for position in range(len(good)):
        for bit in range(8):
            spoiled = good[:position] + bytes([good[position] ^ (1 << bit)]) + good[position + 1 :]
            with pytest.raises(SignatureError):
                signing.unseal(spoiled)
        with pytest.raises(SignatureError):
            signing.unseal(good[:position])
    for added in (good + b"\n", b" " + good, good.replace(b",", b", ", 1), b"[]", b"", b"[" * 5000):
        with pytest.raises(SignatureError):
            signing.unseal(added)


def test_a_document_that_somebody_else_signed_again_is_found_by_who_knows_the_key() -> None:
    mine, forger = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    forged = signing.seal(forger, BODY | {"epsilon": 1.0})
    signing.unseal(forged)  # whole in itself: the key inside proves nothing
    with pytest.raises(SignatureError, match="signed by the key"):
        signing.unseal(forged, mine.public_key())


def test_public_keys_are_read_from_pem_files(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    (tmp_path / "public.pem").write_text(signing.public_pem(key.public_key()))
    assert signing.fingerprint(signing.load_public(tmp_path / "public.pem")) == signing.fingerprint(key.public_key())
    (tmp_path / "bad.pem").write_text("hello")
    for name in ("bad.pem", "none.pem"):
        with pytest.raises(SignatureError):
            signing.load_public(tmp_path / name)


def test_canonical_json_has_one_spelling_and_no_infinity() -> None:
    assert signing.canonical({"b": 1, "a": "é"}) == b'{"a":"\\u00e9","b":1}'
    assert json.loads(signing.canonical(BODY)) == BODY
    with pytest.raises(ValueError, match="not JSON compliant"):
        signing.canonical({"epsilon": float("inf")})


@pytest.mark.debian("openssl")
def test_openssl_accepts_the_key_and_the_signature(tmp_path: Path) -> None:
    if not shutil.which("openssl"):
        assert not os.environ.get("CI"), "CI must have openssl"
        pytest.skip("openssl is absent; apt-get install openssl")
    key = signing.load_or_make(tmp_path / "office.pem")
    (tmp_path / "public.pem").write_text(signing.public_pem(key.public_key()))
    (tmp_path / "payload").write_bytes(signing.canonical(BODY))
    (tmp_path / "signature").write_bytes(bytes.fromhex(signing.sign(key, signing.canonical(BODY))))
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "public.pem", "-rawin", "-in", "payload"]
    done = subprocess.run(
        [*command, "-sigfile", "signature"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
