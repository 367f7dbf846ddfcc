"""A statement for the privacy office: signed, offline, and tied to one record of one ledger."""

from __future__ import annotations

import json
import math
import secrets
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from privacy import filters, high_water, statement
from privacy.accounting import Event, epsilon
from privacy.cli import app
from privacy.ledger import Ledger, ReservedPlan, checked_records
from shared.crypto import signing
from shared.errors import FedsynthError, LedgerError, SignatureError

DELTA, STEP = 1e-5, Event(20.0, 1.0, 1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Two runs; bob is in both cohorts, which are counted apart."""
    path = tmp_path / "ledger.jsonl"
    for run, members in (("first", {"ann", "bob"}), ("second", {"bob", "cid"}), ("third", {"bob", "cid"})):
        book = Ledger(path, cohort="north", cap=8.0, delta=DELTA, separate_cohorts=True)
        book.draw(plan(), 1, run=run, members=members)
    return path


def plan(event: Event = STEP, name: str = "demo") -> ReservedPlan:
    return ReservedPlan(secrets.token_hex(32), name, ((event,), (event,)))


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["ledger", *map(str, words)])


def fails(kind: type[FedsynthError], *words: str | Path) -> str:
    result = run(*words)
    assert isinstance(result.exception, kind), result.exception
    assert "\n" not in str(result.exception)
    return str(result.exception)


@pytest.fixture
def exported(path: Path) -> Path:
    out = path.with_name("statement.json")
    done = run("export", path, "--key", path.with_name("office.pem"), "--out", out)
    assert done.exit_code == 0, done.exception
    key = signing.load(path.with_name("office.pem"))
    assert signing.fingerprint(key.public_key()) in done.stdout
    path.with_name("public.pem").write_text(signing.public_pem(key.public_key()))
    return out


def test_a_statement_says_what_was_spent_and_names_nobody(path: Path, exported: Path) -> None:
    said = json.loads(run("check-statement", exported, "--json").stdout)
    assert (said["cohort"], said["delta"], said["cap"], said["unit_of_privacy"]) == ("north", DELTA, 8.0, "patient")
    assert said["neighbouring_relation"] == "add or remove all data of one patient"
    assert said["epsilon"] == filters.epsilon(
        [[STEP] * 2] * 3, DELTA
    )  # bob, of whom three runs of two rounds are reserved
    assert said["spent"] == epsilon([STEP] * 6, DELTA)
    assert [(p["name"], p["rounds"], p["epsilon"]) for p in said["plans"]] == [
        ("demo", 2, epsilon([STEP] * 2, DELTA))
    ] * 3
    assert [p["drawn"] for p in said["plans"]] == [[{"round": 1, "run": run}] for run in ("first", "second", "third")]
    assert [p["events"] for p in said["plans"]] == [[{**STEP.to_dict(), "steps": 2}]] * 3
    assert (said["records"], said["last_hash"]) == (4, checked_records(path)[-1]["hash"])
    assert said["software"].startswith("fedsynth ")
    for name in ("ann", "bob", "cid", checked_records(path)[1]["members"]):
        assert name not in exported.read_text()
    assert stat.S_IMODE(path.with_name("office.pem").stat().st_mode) == 0o600


def test_a_statement_is_checked_without_the_ledger_with_it_and_with_the_key(path: Path, exported: Path) -> None:
    with_key = ("--public-key", path.with_name("public.pem"))
    for words in ((), with_key, ("--ledger", path), (*with_key, "--ledger", path)):
        done = run("check-statement", exported, *words)
        assert done.exit_code == 0, done.exception
        assert f"{filters.epsilon([[STEP] * 2] * 3, DELTA):.4f}" in done.stdout
        assert f"{epsilon([STEP] * 6, DELTA):.4f}" in done.stdout
        assert ("by comparing the public key" in done.stdout) == ("--public-key" not in words)


def test_one_flipped_byte_fails(exported: Path) -> None:
    good = exported.read_bytes()
    for position in range(0, len(good), 7):
        exported.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        fails(SignatureError, "check-statement", exported)


def test_a_ledger_that_grew_still_carries_its_statement_and_one_that_was_cut_or_changed_does_not(
    path: Path, exported: Path
) -> None:
    Ledger(path, cohort="north", cap=8.0, delta=DELTA).draw(plan(), 1, run="fourth")
    assert run("check-statement", exported, "--ledger", path).exit_code == 0
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]))  # a whole record cut from the end, and its mark set back as well
    high_water.keep(path, high_water.Kept(high_water.now([json.loads(line) for line in lines[:3]])))
    checked_records(path)
    assert "was cut" in fails(LedgerError, "check-statement", exported, "--ledger", path)
    path.write_bytes(b"".join(lines).replace(b'"steps":1', b'"steps":2', 1))
    assert "record 1 is damaged" in fails(LedgerError, "check-statement", exported, "--ledger", path)


@pytest.mark.parametrize(
    ("key", "value"), [("epsilon", 0.5), ("cap", 1.0), ("cohort", "south"), ("plans", []), ("spent", 0.5)]
)
def test_a_statement_that_is_signed_but_does_not_follow_from_the_ledger_is_found(
    path: Path, key: str, value: object
) -> None:
    signer = signing.load_or_make(path.with_name("office.pem"))
    said = statement.body(path, checked_records(path)) | {key: value}
    path.with_name("false.json").write_bytes(signing.seal(signer, said))
    assert run("check-statement", path.with_name("false.json")).exit_code == 0
    assert key in fails(LedgerError, "check-statement", path.with_name("false.json"), "--ledger", path)


def test_another_signer_another_document_and_a_readable_key_are_refused(path: Path, exported: Path) -> None:
    other = signing.load_or_make(path.with_name("other.pem"))
    path.with_name("other-public.pem").write_text(signing.public_pem(other.public_key()))
    words = ("--public-key", path.with_name("other-public.pem"))
    assert "signed by the key" in fails(SignatureError, "check-statement", exported, *words)
    path.with_name("note.json").write_bytes(signing.seal(other, {"kind": "note"}))
    assert "kind note" in fails(SignatureError, "check-statement", path.with_name("note.json"))
    path.with_name("part.json").write_bytes(signing.seal(other, {"kind": statement.KIND, "version": 1, "records": 1}))
    assert "lacks" in fails(SignatureError, "check-statement", path.with_name("part.json"))
    path.with_name("office.pem").chmod(0o644)
    before = exported.read_bytes()
    fails(SignatureError, "export", path, "--key", path.with_name("office.pem"), "--out", exported)
    assert exported.read_bytes() == before
    fails(SignatureError, "check-statement", path.with_name("none.json"))


def test_a_damaged_ledger_is_not_signed_for(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"steps":1', b'"steps":2', 1))
    out = path.with_name("statement.json")
    fails(LedgerError, "export", path, "--key", path.with_name("office.pem"), "--out", out)
    assert not out.exists()
    out.mkdir()
    Ledger(path.with_name("new.jsonl"), cohort="c", cap=1.0, delta=DELTA)
    words = ("export", path.with_name("new.jsonl"), "--key", path.with_name("office.pem"), "--out", out)
    assert "cannot write" in fails(LedgerError, *words)
    assert not list(path.parent.glob(".statement*"))


def test_a_rehearsal_without_noise_is_infinite_in_every_command(tmp_path: Path) -> None:
    path, out = tmp_path / "ledger.jsonl", tmp_path / "statement.json"
    Ledger(path, cohort="c", cap=math.inf, delta=DELTA).draw(plan(Event(0.0, 1.0, 1)), 1, run="r")
    assert run("export", path, "--key", tmp_path / "office.pem", "--out", out).exit_code == 0
    for words in (("show", path), ("verify", path), ("check-statement", out, "--ledger", path)):
        assert "infinite" in run(*words).stdout
    assert json.loads(run("verify", path, "--json").stdout)["epsilon"] is None


@pytest.mark.parametrize("epsilon_said", [1.0, 0.5])
def test_a_statement_of_the_older_version_is_still_checked(path: Path, epsilon_said: float) -> None:
    now = statement.body(path, checked_records(path))
    signer = signing.load_or_make(path.with_name("office.pem"))
    old = {key: now[key] for key in ("kind", "time", *statement.FOLLOWS)}
    old |= {"version": 1, "epsilon": now["spent"] * epsilon_said, "runs": [], "groups": []}
    path.with_name("old.json").write_bytes(signing.seal(signer, old))
    words = ("check-statement", path.with_name("old.json"), "--ledger", path)
    if epsilon_said == 1.0:
        assert run(*words).exit_code == 0
    else:
        assert "epsilon does not follow" in fails(LedgerError, *words)
