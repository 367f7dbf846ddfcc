"""The threat model names files and tests that exist: a promise without its test would show here."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")


def test_every_test_that_the_threat_model_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", TEXT))
    known = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    assert len(named) > 20
    assert sorted(named - known) == []


def test_every_file_and_module_that_the_threat_model_names_exists() -> None:
    named = re.findall(r"`([a-z]+/[a-z_]+\.py|[a-z_]+\.txt)`", TEXT)
    assert len(named) > 15
    assert [name for name in named if not (ROOT / name).exists()] == []
    for module in re.findall(r"python -m ([a-z_.]+)", TEXT):
        assert (ROOT / (module.replace(".", "/") + ".py")).exists()


def test_every_row_of_assets_has_its_code_and_its_test() -> None:
    section = TEXT.split("## Assets and adversaries")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")][2:]
    assert len(rows) > 10
    for asset, adversary, stops, where, test in rows:
        assert all(cell.strip() for cell in (asset, adversary, stops))
        assert "`" in where
        assert "`test_" in test
