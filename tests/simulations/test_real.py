"""Real scanners flow through the whole federation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.mark.real_data
def test_five_vendors_train_one_model_together(tmp_path: Path) -> None:
    if not (ROOT / "../shared/data/dicom").is_dir():
        pytest.skip("the real images are not beside this checkout")
    # The search for text in whole heads takes minutes, and has tests of its own (client/deidentification/test_text.py)
    tree = yaml.safe_load((ROOT / "configs" / "dicom_sites.yaml").read_text())
    for site in tree["sites"]:
        site["data"] = str((ROOT / site["data"]).resolve())
        site["text_check"] = "none" if site["name"] in ("siemens", "uih") else "required"
    (tmp_path / "sites.yaml").write_text(yaml.safe_dump(tree))
    command = [str(Path(sys.executable).parent / "fedsynth"), "simulate", str(tmp_path / "sites.yaml"), "--rounds", "1"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, timeout=1500, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["sites_contributed"] == summary["sites_total"] == 5
    assert set(summary["epsilon_per_patient"]) == {"canon", "ge", "philips", "siemens", "uih"}
