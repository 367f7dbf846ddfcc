"""Real scanners flow through the whole federation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.real_data
def test_five_vendors_train_one_model_together(tmp_path: Path) -> None:
    if not (ROOT / "../shared/data/dicom").is_dir():
        pytest.skip("the real images are not beside this checkout")
    command = [str(Path(sys.executable).parent / "fedsynth"), "simulate", "configs/dicom_sites.yaml", "--rounds", "1"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], capture_output=True, text=True, timeout=1500, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["sites_contributed"] == summary["sites_total"] == 5
    assert set(summary["epsilon_per_patient"]) == {"canon", "ge", "philips", "siemens", "uih"}
