"""A journal says what happened, and a verifier says whether it still says so: offline, with the record named."""

from __future__ import annotations

import json
import os
import random
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from typer.testing import CliRunner

from shared.crypto import signing
from shared.errors import DataError, LedgerError, SignatureError
from shared.journal import chain, cli, journal, verifier


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A journal of six records: the header and five entries."""
    for number in range(1, 6):
        journal.write(tmp_path, "asked", round=number, experiment="demo")
    return tmp_path


def test_a_whole_journal_is_whole_and_names_its_key(folder: Path) -> None:
    found = verifier.verify_journal(folder)
    assert (found.state, found.records, found.signed, found.record, found.torn) == ("whole", 6, 6, None, 0)
    public = signing.load_public(folder / journal.PUBLIC)
    assert found.key == signing.fingerprint(public)
    assert verifier.verify_journal(folder, public=public).state == "whole"
    assert [e["round"] for e in journal.read(folder)] == [1, 2, 3, 4, 5]
    assert {path.name: path.stat().st_mode & 0o077 for path in folder.iterdir()}[journal.KEY] == 0


def test_a_flipped_byte_names_the_record_and_stops_the_journal(folder: Path) -> None:
    path = folder / journal.FILE
    good = path.read_bytes()
    starts = [0, *(i + 1 for i, byte in enumerate(good) if byte == 0x0A)]
    rng = random.Random(0)
    for position in [0, len(good) - 2, *rng.sample(range(len(good) - 1), 60)]:  # the last newline is a test of its own
        path.write_bytes(good[:position] + bytes([good[position] ^ (1 << rng.randrange(8))]) + good[position + 1 :])
        found = verifier.verify_journal(path)
        assert (found.state, found.record) == ("altered", sum(start <= position for start in starts) - 1)
        assert f"record {found.record} is damaged" in found.said
        with pytest.raises(LedgerError, match="damaged"):
            journal.write(folder, "asked", round=9)


def test_a_cut_tail_is_told_apart_from_a_flipped_byte(folder: Path) -> None:
    path = folder / journal.FILE
    good = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(good) if byte == 0x0A]
    for cut in [*range(len(good) - 2, len(good) - 200, -7), *ends[:-1], 0]:
        path.write_bytes(good[:cut])
        found = verifier.verify_journal(path)
        assert (found.state, found.record) == ("cut", sum(end <= cut for end in ends)), cut
        for use in (lambda: journal.write(folder, "asked", round=9), lambda: journal.read(folder)):
            with pytest.raises(LedgerError, match="of the 6 records that were signed"):
                use()
    path.unlink()
    assert verifier.verify_journal(folder).state == "cut"
    with pytest.raises(LedgerError, match="missing"):
        journal.write(folder, "asked", round=9)
    path.write_bytes(good)
    journal.write(folder, "asked", round=6)
    assert verifier.verify_journal(folder).records == 7


def test_what_was_written_after_the_checkpoint_is_named_as_not_signed_and_a_crash_as_a_crash(folder: Path) -> None:
    """Killed between entry and checkpoint, and in the middle of an entry."""
    before = (folder / journal.CHECKPOINT).read_bytes()
    journal.write(folder, "asked", round=6)
    (folder / journal.CHECKPOINT).write_bytes(before)
    path = folder / journal.FILE
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"hash":"00')
    found = verifier.verify_journal(folder)
    assert (found.state, found.records, found.signed, found.torn) == ("whole", 7, 6, 11)
    assert "1 since then not yet" in found.said and "a crash cut off" in found.said
    journal.write(folder, "asked", round=7)
    found = verifier.verify_journal(folder)
    assert (found.state, found.records, found.signed, found.torn) == ("whole", 8, 8, 0)


def test_a_journal_written_anew_with_good_hashes_does_not_pass(folder: Path) -> None:
    path = folder / journal.FILE
    records = [json.loads(line) for line in path.read_bytes().splitlines()]
    records[3]["round"] = 99
    text, last = b"", None
    for record in records:
        body = {k: v for k, v in record.items() if k not in ("index", "previous", "hash")}
        text += chain.line(body, last)
        last = json.loads(text.splitlines()[-1])
    path.write_bytes(text)
    found = verifier.verify_journal(path)
    assert (found.state, found.record) == ("altered", None)
    assert "written anew" in found.said
    with pytest.raises(LedgerError, match="written anew"):
        journal.write(folder, "asked", round=9)


def test_whoever_has_the_key_is_found_out_by_a_checkpoint_kept_elsewhere(folder: Path, tmp_path: Path) -> None:
    """An older journal put back with its older checkpoint, then written on: only the copy can tell."""
    older = tmp_path / "older"
    older.mkdir()
    for path in folder.glob("journal.*"):
        shutil.copy2(path, older)
    journal.write(folder, "refused", reason="what somebody would rather not have written")
    copy = tmp_path / "copy"
    shutil.copy2(folder / journal.CHECKPOINT, copy)
    for path in older.iterdir():
        shutil.copy2(path, folder)
    assert verifier.verify_journal(folder).state == "whole"
    assert verifier.verify_journal(folder, copy).state == "cut"
    journal.write(folder, "asked", round=6)
    assert verifier.verify_journal(folder, copy).state == "altered"
    missing = verifier.verify_journal(folder, tmp_path / "nowhere")
    assert missing.state == "unsigned" and "no such file" in missing.said


def test_a_checkpoint_that_is_missing_changed_or_of_another_key_is_no_checkpoint(folder: Path, tmp_path: Path) -> None:
    path = folder / journal.CHECKPOINT
    good = path.read_bytes()
    other = signing.load_or_make(tmp_path / "other.pem").public_key()
    assert verifier.verify_journal(folder, public=other).state == "unsigned"
    for damage in (lambda: path.write_bytes(good.replace(b"6", b"7", 1)), path.unlink):
        damage()
        assert verifier.verify_journal(folder).state == "unsigned"
        with pytest.raises((LedgerError, SignatureError)):
            journal.write(folder, "asked", round=9)
        with pytest.raises((LedgerError, SignatureError)):
            journal.read(folder)
    path.write_bytes(good)
    (folder / journal.KEY).unlink()
    with pytest.raises(LedgerError, match="put that one back"):
        journal.write(folder, "asked", round=9)


def test_a_journal_of_an_older_version_goes_on_and_is_signed_from_then_on(tmp_path: Path) -> None:
    header = chain.line({"kind": "header", "name": "fedsynth journal", "version": 1}, None)
    body = chain.line({"kind": "asked", "time": "2026-01-01", "round": 1}, json.loads(header))
    (tmp_path / journal.FILE).write_bytes(header + body)
    assert [e["round"] for e in journal.read(tmp_path)] == [1]
    assert verifier.verify_journal(tmp_path).state == "unsigned"
    journal.write(tmp_path, "asked", round=2)
    assert verifier.verify_journal(tmp_path).state == "whole"


@pytest.mark.parametrize("left", [b"", b'{"hash":"0'])
def test_killed_while_the_first_entry_was_written_it_begins_again(folder: Path, tmp_path: Path, left: bytes) -> None:
    new = tmp_path / "new"
    new.mkdir()
    journal.write(new, "asked", round=1)
    header = chain.read((new / journal.FILE).read_bytes().splitlines(keepends=True)[0], "").records
    journal._sign(new, signing.load(new / journal.KEY), header)
    (new / journal.FILE).write_bytes(left)
    journal.write(new, "asked", round=2)
    assert (verifier.verify_journal(new).state, verifier.verify_journal(new).records) == ("whole", 2)


def test_only_entries_that_are_listed_can_be_written_so_that_nothing_else_slips_in(tmp_path: Path) -> None:
    for kind, fields in (("asked", {"patient": "x"}), ("gossip", {}), ("sent", {"file": "x"})):
        with pytest.raises(ValueError, match="no entry"):
            journal.write(tmp_path, kind, **fields)
    assert not (tmp_path / journal.FILE).exists()
    journal.write(tmp_path, "refused", reason="x" * 10_000)
    journal.write(tmp_path, "asked", epsilon=float("inf"))
    assert [(len(e.get("reason", "")), e.get("epsilon")) for e in journal.read(tmp_path)] == [(500, None), (0, None)]


def _append(folder: Path, number: int) -> None:
    for _ in range(5):
        journal.write(folder, "asked", round=number)


def test_processes_that_write_together_lose_nothing(tmp_path: Path) -> None:
    with ProcessPoolExecutor(3) as pool:
        list(pool.map(_append, [tmp_path] * 4, range(4)))
    found = verifier.verify_journal(tmp_path)
    assert (found.state, found.records, found.signed) == ("whole", 21, 21)


def test_a_full_disk_is_said_and_nothing_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LedgerError, match="No space left on device; nothing goes on"):
        journal.write(folder, "asked", round=6)


def test_the_command_tells_a_script_what_it_found(folder: Path) -> None:
    def run(*words: object) -> tuple[int, str]:
        done = CliRunner().invoke(cli.app, [str(word) for word in words])
        return done.exit_code, done.stdout

    code, text = run("verify", folder, "--json")
    assert code == 0 and json.loads(text)["records"] == 6
    assert run("verify", folder / journal.FILE, "--public-key", folder / journal.PUBLIC)[0] == 0
    assert "comparing the public key" in run("verify", folder)[1]
    good = (folder / journal.FILE).read_bytes()
    (folder / journal.FILE).write_bytes(good.replace(b'"round":3', b'"round":4'))
    code, text = run("verify", folder, "--json")
    assert (code, json.loads(text)["record"]) == (4, 3)
    (folder / journal.FILE).write_bytes(good[:-1000])
    assert run("verify", folder)[0] == 5
    (folder / journal.CHECKPOINT).unlink()
    assert run("verify", folder)[0] == 6
    with pytest.raises(DataError, match=r"no journal\.jsonl"):
        verifier.find(folder / "elsewhere")


def test_a_reason_from_elsewhere_moves_no_cursor(tmp_path: Path) -> None:
    journal.write(tmp_path, "refused", reason="\x1b[2Jgone\n2026  released")
    shown = CliRunner().invoke(cli.app, ["show", str(tmp_path)]).stdout
    assert "\x1b" not in shown and len(shown.splitlines()) == 1
    assert json.loads(CliRunner().invoke(cli.app, ["show", str(tmp_path), "--json"]).stdout)[0]["kind"] == "refused"


def test_one_experiment_has_one_configuration_hash_on_both_sides() -> None:
    from shared.config.experiment import Experiment
    from shared.config.loading import validate

    here = Experiment(name="demo")
    there = validate(json.loads(here.model_dump_json()), Experiment, source="a message")
    assert journal.configuration(here) == journal.configuration(there)
    assert journal.configuration(here) == journal.configuration(json.loads(here.model_dump_json()))
    assert journal.configuration(here) != journal.configuration(here.model_copy(update={"seed": 1}))
