"""M04: the manifest is a chain; whatever is changed in it shows, and every input has exactly one verdict."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from client.deidentification import manifest, provenance
from client.deidentification.manifest import Entry, Reason
from client.modalities import mr
from shared.errors import DataError

ENTRIES = [Entry(f"{n:024x}", reason, file=f"{n:024x}") for n, reason in enumerate(Reason)]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    manifest.write(ENTRIES, tmp_path / "manifest.jsonl", provenance.header())
    return tmp_path / "manifest.jsonl"


def test_m04_a_manifest_reads_as_it_was_written(written: Path) -> None:
    found = manifest.load(written)
    assert found.entries == ENTRIES and found.header == provenance.header()
    assert written.stat().st_mode & 0o777 == 0o600
    assert found.last_hash == json.loads(written.read_bytes().splitlines()[-1])["hash"]


def test_m04_a_flipped_byte_names_the_record(written: Path) -> None:
    whole = written.read_bytes()
    starts = [0] + [n + 1 for n, byte in enumerate(whole[:-1]) if byte == 10]
    for place in range(0, len(whole) - 1, 37):
        if whole[place] == 10:
            continue
        written.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        record = max(number for number, start in enumerate(starts) if start <= place)
        with pytest.raises(DataError, match=rf"record {record} "):
            manifest.load(written)


@pytest.mark.parametrize(("change", "record"), [
    (lambda lines: lines[:5] + lines[6:], 5),
    (lambda lines: [*lines[:5], lines[6], lines[5], *lines[7:]], 5),
    (lambda lines: [*lines[:5], lines[5], lines[5], *lines[6:]], 6),
    (lambda lines: lines[1:], 0),
    (lambda lines: lines[:-1], len(ENTRIES)),
    (lambda lines: lines[:1], 0),
    (lambda lines: [*lines, lines[-1]], len(ENTRIES) + 2),
], ids=["removed", "reordered", "doubled", "without its header", "without its totals", "only a header", "longer"])  # fmt: skip
def test_m04_a_line_out_of_place_names_the_record(written: Path, change, record: int) -> None:  # type: ignore[no-untyped-def]
    lines = written.read_bytes().splitlines(keepends=True)
    written.write_bytes(b"".join(change(lines)))
    with pytest.raises(DataError, match=rf"record {record}\b"):
        manifest.load(written)


def test_m04_a_torn_end_is_damage(written: Path) -> None:
    whole = written.read_bytes()
    for content in (whole[:-1], whole[:-30], whole + b"{"):
        written.write_bytes(content)
        with pytest.raises(DataError):
            manifest.load(written)


def test_m04_counts_that_do_not_add_up_are_damage(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "verdicts", lambda entries: {"PASS": 7, "QUARANTINED": 0, "REFUSED": 0})
    manifest.write(ENTRIES, written)
    monkeypatch.undo()
    with pytest.raises(DataError, match="add up"):
        manifest.load(written)


def test_m04_two_verdicts_on_one_input_are_damage(written: Path) -> None:
    manifest.write([*ENTRIES, replace(ENTRIES[0], reason=Reason.MOSAIC)], written)
    with pytest.raises(DataError, match="two verdicts"):
        manifest.load(written)


def test_the_header_says_which_tables_made_it(monkeypatch: pytest.MonkeyPatch) -> None:
    header = provenance.header(models={"mask": "ab" * 32})
    assert header["software"].startswith("fedsynth ") and "2026d" in header["edition"]
    assert [option["CodeValue"] for option in header["options"]] == ["113100"] and header["models"] == {
        "mask": "ab" * 32
    }
    table = tuple(rule for rule in mr.SINGLE_FRAME if rule.keyword != "EchoTime")
    monkeypatch.setitem(mr.READER.tables, "1.2.840.10008.5.1.4.1.1.4", table)
    assert provenance.table_digest() != header["table_sha256"]
