"""The check-up says what is wrong with a site and what to do next, and never what a file is called."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from client import cli, doctor_data
from client.readers.ingest import ingest
from shared import checks
from shared.config.site import Site

Write = Callable[..., list[Path]]


@pytest.fixture
def site(tmp_path: Path, write_series: Write, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(checks, "kept", lambda: True)
    write_series(tmp_path / "data" / "QZJX")
    return Site(name="a", data=tmp_path / "data", face_removal="none", text_check="none")


def states(site: Site, work: Path | None = None) -> dict[str, str]:
    lines = doctor_data.examine(site, work)
    assert all(line.mend for line in lines if line.state != "good"), "whoever reads it must know what to do"
    assert "QZJX" not in str(lines)
    order = ("good", "warning", "bad")
    return {line.what: max((o.state for o in lines if o.what == line.what), key=order.index) for line in lines}


def test_a_ready_site_has_no_problem(site: Site, tmp_path: Path) -> None:
    ingest(site, classes=["x"], image_size=16, slices_per_patient=4, work=tmp_path / "work")
    found = states(site, tmp_path / "work")
    assert "bad" not in found.values()
    assert {found[about] for about in ("data", "headers", "key", "ledger", "cohort", "clock", "versions")} == {"good"}
    assert found["settings"] == "warning"  # faces and text stay


def test_settings_that_weaken_privacy_are_named(site: Site) -> None:
    strict = Site(name="a", data=site.data)
    assert states(strict)["settings"] == "good"
    assert states(site.model_copy(update={"epsilon_cap": None}))["settings"] == "bad"
    said = " ".join(
        line.text for line in doctor_data.examine(site.model_copy(update={"epsilon_cap": 50.0, "minimum_slices": 2}))
    )
    for name in ("epsilon_cap", "face_removal", "text_check", "minimum_slices"):
        assert name in said


def test_data_that_cannot_be_used_is_a_problem(site: Site, tmp_path: Path) -> None:
    assert states(site.model_copy(update={"data": tmp_path / "nowhere"}))["data"] == "bad"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "QZJX.dcm").write_text("x")
    assert states(site.model_copy(update={"data": tmp_path / "other"}))["headers"] == "bad"


@pytest.mark.parametrize(("about", "damage"), [
    ("key", lambda work: (work / "pseudonym.key").chmod(0o644)),
    ("key", lambda work: (work / "pseudonym.key").write_bytes(b"x")),
    ("ledger", lambda work: (work / "ledger.jsonl").write_text("{}\n")),
    ("cohort", lambda work: (work / "manifest.jsonl").write_bytes((work / "manifest.jsonl").read_bytes()[:-9])),
])  # fmt: skip
def test_damage_in_the_work_folder_is_a_problem(
    site: Site, tmp_path: Path, about: str, damage: Callable[[Path], object]
) -> None:
    ingest(site, classes=["x"], image_size=16, slices_per_patient=4, work=tmp_path / "work")
    damage(tmp_path / "work")
    assert states(site, tmp_path / "work")[about] == "bad"


def test_a_clock_that_is_wrong_is_a_problem(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "BUILT", checks.BUILT.replace(year=2090))
    assert states(site)["clock"] == "bad"


def test_the_command_prints_a_table_or_json_and_fails_on_a_problem(site: Site, tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(f"name: a\ndata: {site.data}\n")
    result = CliRunner().invoke(cli.app, ["doctor", str(path)], env={"COLUMNS": "200"})
    assert result.exit_code == 0 and "of 16 headers 16 may be used" in result.output
    path.write_text(f"name: a\ndata: {tmp_path / 'gone'}\nepsilon_cap: null\n")
    result = CliRunner().invoke(cli.app, ["doctor", str(path), "--json"])
    assert result.exit_code == 1
    assert {line["what"] for line in json.loads(result.output) if line["state"] == "bad"} == {"data", "settings"}
