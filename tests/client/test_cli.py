"""The hospital's commands say what they did and what to do next."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client import cli
from client.deidentification import profile
from shared.errors import DataError
from shared.modalities.base import names

Write = Callable[..., list[Path]]


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(cli.app, list(arguments), env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def site(tmp_path: Path, write_series: Write) -> Path:
    write_series(tmp_path / "data")
    (tmp_path / "data" / "readme.txt").write_text("x")
    path = tmp_path / "site.yaml"
    path.write_text(f"name: north\ndata: {tmp_path / 'data'}\nface_removal: none\n")
    return path


def test_ingest_prints_totals_reasons_and_the_next_step(site: Path, tmp_path: Path) -> None:
    said = invoke("ingest", str(site), "--work", str(tmp_path / "work"), "--slices", "4", "--image-size", "16")
    assert "north: 1 patient, 4 slices" in said and "files: 16 passed, 0 quarantined, 1 refused" in said
    assert "1  not a DICOM file" in said and "Next:" in said and "pseudonym.key" in said


def test_ingest_prints_json_for_scripts(site: Path, tmp_path: Path) -> None:
    said = json.loads(invoke("ingest", str(site), "--work", str(tmp_path / "work"), "--json", "--classes", "a, b"))
    assert said == {
        "patients": 1,
        "slices": 16,
        "passed": 16,
        "quarantined": 0,
        "refused": 1,
        "reasons": {"not-dicom": 1},
        "people": {"identifiers": 1, "joined": 0, "alike": 0},
        "labels": {},
    }


def test_deidentify_writes_files_named_by_their_new_uids(site: Path, tmp_path: Path) -> None:
    said = invoke("deidentify", str(tmp_path / "data"), str(tmp_path / "out"), "--key", str(tmp_path / "key"))
    assert "files: 16 passed" in said
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(names) == 18 and names[-2:] == ["manifest.jsonl", "report.html"]
    assert all(name.startswith("2.25.") and name.endswith(".dcm") for name in names[:-2])


def test_deidentify_of_one_file_reads_only_that_file(site: Path, tmp_path: Path) -> None:
    one = tmp_path / "data" / "IM0003.dcm"
    assert "files: 1 passed" in invoke("deidentify", str(one), str(tmp_path / "out"), "--key", str(tmp_path / "key"))


def test_what_if_prints_every_rule_and_touches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = invoke("deidentify", "--what-if")
    for tag, _, _ in profile.describe():
        assert tag in said
    shown = {tag for modality in names() for tag, _, _ in profile.describe(modality)}
    assert len(shown) == len(profile.allowed() - profile.BASIC_PROFILE.keys())
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_done_is_one_line(site: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="IN OUT --key"):
        invoke("deidentify", str(tmp_path))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x").write_text("x")
    with pytest.raises(DataError, match="no file could be rebuilt"):
        invoke("deidentify", str(tmp_path / "bad"), str(tmp_path / "out"), "--key", str(tmp_path / "key"))


@pytest.mark.parametrize("command", ["ingest", "deidentify", "pacs"])
def test_help_shows_an_example(command: str) -> None:
    assert f"Example: fedsynth client {command}" in invoke(command, "--help")


def test_a_site_without_a_pacs_cannot_be_asked_for_one(site: Path) -> None:
    with pytest.raises(DataError, match="names no `pacs`"):
        invoke("pacs", str(site))
