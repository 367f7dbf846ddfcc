"""summary.json keeps its contract."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from server.summary import read_summary, write_summary
from shared.errors import DataError

SUMMARY: dict[str, Any] = {
    "name": "demo",
    "sites_total": 3,
    "sites_contributed": 2,
    "rounds": 2,
    "best_round": 2,
    "delta": 1e-5,
    "epsilon_per_patient": {"north": 7.9, "south": None},
    "noise_multiplier": 2.0,
    "trainable_parameters": 420,
    "nsr": 0.8,
    "metrics": {"FD-efflite0": {"0": {"value": 1.0, "floor": 0.5, "low": 0.9, "high": 1.1}}},
    "bytes_per_round": 1024.0,
    "seconds": 61.5,
    "versions": {"fedsynth": "0.1.0"},
}


def test_what_is_written_is_read_back_and_nothing_else_lies_about(tmp_path: Path) -> None:
    write_summary(tmp_path, SUMMARY | {"note": "a field that a later version adds"})
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
    raw = json.loads((tmp_path / "summary.json").read_text())
    assert SUMMARY.items() <= raw.items()
    assert raw["unit_of_privacy"] == "patient"
    assert raw["note"]
    assert read_summary(tmp_path).metrics["FD-efflite0"]["0"].value == 1.0


@pytest.mark.parametrize("missing", ["sites_contributed", "epsilon_per_patient", "delta"])
def test_a_summary_without_its_contract_is_not_written(missing: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=missing):
        write_summary(tmp_path, {key: value for key, value in SUMMARY.items() if key != missing})
    assert not list(tmp_path.iterdir())


def test_an_absent_or_damaged_summary_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has the run finished"):
        read_summary(tmp_path)
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(DataError, match="not a summary"):
        read_summary(tmp_path)
