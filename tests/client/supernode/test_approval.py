"""Code runs at a hospital when enough of its own people have signed it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from client.cli import app
from client.supernode import approval, journal
from shared.config.loading import read
from shared.config.policy import Policy
from shared.config.site import Site
from shared.crypto import bundle, signing
from shared.errors import ConfigError, LedgerError, PolicyError


def code(line: str) -> bytes:
    files = {f"{room}/__init__.py": line.encode() for room in bundle.ROOMS}
    return bundle.pack(files | {"pyproject.toml": bundle.PROJECT.format(version="1").encode()})


CODE, OTHER = code("noise = 1\n"), code("noise = 0\n")


def site(tmp_path: Path, **policy: object) -> Site:
    return Site(name="north", data=tmp_path, face_removal="none", policy=Policy.model_validate(policy))


def officer(path: Path) -> tuple[Path, str]:
    return path, signing.fingerprint(signing.load_or_make(path).public_key())


def test_nothing_is_approved_at_first(tmp_path: Path) -> None:
    assert approval.missing(site(tmp_path), tmp_path, bundle.sha256(CODE)) == 1


def test_the_nodes_own_key_approves_one_hash_and_no_other(tmp_path: Path) -> None:
    digest = approval.approve(site(tmp_path), tmp_path, CODE)
    assert approval.missing(site(tmp_path), tmp_path, digest) == 0
    assert approval.missing(site(tmp_path), tmp_path, bundle.sha256(OTHER)) == 1
    assert approval.last(site(tmp_path), tmp_path) == CODE


def test_pain12_two_of_three_officers(tmp_path: Path) -> None:
    keys = [officer(tmp_path / f"officer{i}.key") for i in range(3)]
    strict = site(tmp_path, signatures=2, signers=[name for _, name in keys])
    digest = approval.approve(strict, tmp_path, CODE, keys[0][0])
    approval.approve(strict, tmp_path, CODE, keys[0][0])  # the same officer twice is one
    assert approval.missing(strict, tmp_path, digest) == 1
    approval.approve(strict, tmp_path, CODE, keys[2][0])
    assert approval.missing(strict, tmp_path, digest) == 0
    assert approval.withdraw(tmp_path, digest) == 2
    assert approval.missing(strict, tmp_path, digest) == 2


def test_a_stranger_cannot_sign_and_the_nodes_key_is_one(tmp_path: Path) -> None:
    strict = site(tmp_path, signers=[officer(tmp_path / "officer.key")[1]])
    for key in (officer(tmp_path / "stranger.key")[0], None):
        with pytest.raises(PolicyError, match=r"not among `policy\.signers`"):
            approval.approve(strict, tmp_path, CODE, key)
    assert approval.last(strict, tmp_path) is None


@pytest.mark.parametrize("spoil", ["site", "digest", "byte", "name"])
def test_a_statement_that_does_not_hold_counts_for_nothing(tmp_path: Path, spoil: str) -> None:
    digest = approval.approve(site(tmp_path), tmp_path, CODE)
    path = next((tmp_path / "node" / "approvals").glob("*.json"))
    key = signing.load(tmp_path / "node" / approval.OWN_KEY)
    body, _ = signing.unseal(path.read_bytes())
    if spoil == "site":
        path.write_bytes(signing.seal(key, body | {"site": "south"}))
    elif spoil == "digest":
        path.write_bytes(signing.seal(key, body | {"bundle": bundle.sha256(OTHER)}))
    elif spoil == "byte":
        path.write_bytes(path.read_bytes().replace(b"north", b"sorth"))
    else:  # an approval of one bundle under the name of another
        digest = bundle.sha256(OTHER)
        path.rename(path.with_name(path.name.replace(bundle.sha256(CODE), digest)))
    assert approval.missing(site(tmp_path), tmp_path, digest) == 1


def test_more_signatures_than_signers_is_a_mistake_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "north.yaml").write_text(f"name: north\ndata: {tmp_path}\npolicy: {{signatures: 2}}\n")
    with pytest.raises(ConfigError, match="2 signatures cannot come from"):
        read(tmp_path / "north.yaml", Site)


def test_the_command_shows_what_changed_and_asks(tmp_path: Path) -> None:
    (tmp_path / "north.yaml").write_text(f"name: north\ndata: {tmp_path}\nface_removal: none\n")
    words = ["approve", str(tmp_path / "north.yaml"), "--work", str(tmp_path)]
    run = CliRunner().invoke
    declined = run(app, words, input="n\n")
    assert declined.exit_code != 0
    assert "+ client/app.py" in declined.output
    assert "every byte is that of the sources installed on this machine" in declined.output
    digest = bundle.sha256(bundle.build())
    assert approval.missing(site(tmp_path), tmp_path, digest) == 1
    assert "it may run" in run(app, words, input="y\n", catch_exceptions=False).output
    assert approval.missing(site(tmp_path), tmp_path, digest) == 0
    assert "nothing changed" in run(app, [*words, "--yes"], catch_exceptions=False).output


def test_a_first_bundle_from_elsewhere_is_compared_with_the_sources_installed_here(tmp_path: Path) -> None:
    (tmp_path / "north.yaml").write_text(f"name: north\ndata: {tmp_path}\nface_removal: none\n")
    files = bundle.contents(bundle.build())
    files["privacy/noise.py"] += b"STD = 0.0\n"
    (tmp_path / "sent.bundle").write_bytes(bundle.pack(files))
    words = ["approve", str(tmp_path / "north.yaml"), "--work", str(tmp_path), "--diff"]
    done = CliRunner().invoke(app, [*words, "--bundle", str(tmp_path / "sent.bundle")], input="n\n")
    assert "NOT that of the sources installed" in done.output
    changed = [line for line in done.output.split("\n") if line.startswith(("+", "-"))]
    assert "  ~ privacy/noise.py" in done.output.split("\n") and changed == ["+ STD = 0.0"]


def test_refused_bundles_are_kept_but_not_without_end(tmp_path: Path) -> None:
    for i in range(5):
        approval.quarantine(tmp_path, bundle.sha256(bytes([i])), bytes([i]))
    assert len(list((tmp_path / "node" / "refused").iterdir())) == 3


def test_the_journal_shows_a_changed_line_and_survives_a_torn_one(tmp_path: Path) -> None:
    journal.write(tmp_path, "asked", round=1)
    path = tmp_path / "node" / journal.FILE
    with path.open("ab") as file:
        file.write(b'{"half')
    journal.write(tmp_path, "sent", round=1)
    assert [e["kind"] for e in journal.read(tmp_path)] == ["asked", "sent"]
    path.write_bytes(path.read_bytes().replace(b'"asked"', b'"askex"'))
    with pytest.raises(LedgerError, match="damaged"):
        journal.read(tmp_path)
