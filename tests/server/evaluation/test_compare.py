"""`fedsynth evaluate` measures any two folders, says what it did, and tells a copy, a blur and a collapse from real images."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import typer
from PIL import Image
from scipy import ndimage
from typer.testing import CliRunner

from server.evaluation import tools
from server.evaluation.compare import compare
from shared.errors import ConfigError, DataError


def cohort(folder: Path, patients: int, seed: int, change: Callable[[np.ndarray], np.ndarray] | None = None) -> Path:
    """Smooth blobs, three images a patient, as class/patient/image.png."""
    rng = np.random.default_rng(seed)
    for p in range(patients):
        texture = ndimage.gaussian_filter(rng.normal(size=(32, 32)), 3)
        for i in range(3):
            own = texture + 0.5 * ndimage.gaussian_filter(rng.normal(size=(32, 32)), 3)
            x_HW = np.clip(120 + 60 * own / own.std(), 0, 255)
            path = folder / "any" / f"{seed}-{p}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((change(x_HW) if change else x_HW).astype(np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cohort(tmp_path_factory.mktemp("real"), 8, seed=1)


def test_other_patients_pass_and_grainy_ones_do_not(real: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def grain(x_HW: np.ndarray) -> np.ndarray:
        return np.clip(x_HW + rng.normal(0, 40, x_HW.shape), 0, 255)

    others = compare(real, cohort(tmp_path / "others", 8, seed=2), bootstrap=20)
    grainy = compare(real, cohort(tmp_path / "grainy", 8, seed=2, change=grain), bootstrap=20)
    fd, worse = others.figures["FD-efflite0"], grainy.figures["FD-efflite0"]
    assert fd.low < fd.floor
    assert worse.low > max(fd.high, worse.floor)
    assert grainy.figures["precision"].value < others.figures["precision"].value
    assert others.protocol["patients_known"] is True
    assert (others.protocol["heldout_patients"], others.protocol["pixels"]) == (8, 32)


def test_the_command_prints_json_and_writes_a_page_that_loads_nothing(real: Path, tmp_path: Path) -> None:
    drawn = cohort(tmp_path / "drawn", 3, seed=3)
    root = typer.Typer()
    root.callback()(lambda: None)
    root.add_typer(tools.app)
    arguments = ["evaluate", str(real), str(drawn), "--json", "--bootstrap", "20", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(root, [*arguments, "--cache", str(tmp_path / "cache")], catch_exceptions=False)
    assert done.exit_code == 0
    said = json.loads(done.stdout)
    assert said == json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert {"FD-efflite0", "coverage", "NN-PSNR to held-out"} <= set(said["figures"])
    for figure in said["figures"].values():
        assert figure["low"] <= figure["value"] <= figure["high"]
    page = (tmp_path / "out" / "evaluation.html").read_text()
    assert 'src="data:image/png;base64,' in page
    assert "http" not in page.replace("http-equiv", "")
    assert "1-0" not in done.stdout, "patients are not named"
    assert not [p.name for p in (tmp_path / "out").iterdir() if p.name.startswith(".")]


def test_unknown_patients_and_resizing_are_said(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, size in (("a", 32), ("b", 24)):
        (tmp_path / name).mkdir()
        for i in range(6):
            Image.fromarray(rng.integers(0, 256, (size, size), dtype=np.uint8)).save(tmp_path / name / f"{i}.png")
    found = compare(tmp_path / "a", tmp_path / "b", bootstrap=20, images=5)
    notes = " ".join(found.notes)
    for words in (
        "not known which real images",
        "resized from about 32 to 24",
        "5 of 6 real images",
        "5 real patients are few",
    ):
        assert words in notes
    assert found.protocol["pixels"] == 24
    with pytest.raises(DataError, match="at least 2"):
        lone = tmp_path / "lone"
        lone.mkdir()
        (tmp_path / "b" / "0.png").rename(lone / "0.png")
        compare(tmp_path / "a", lone, bootstrap=20)


def test_frd_comes_from_its_authors_package_or_not_at_all(
    real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = cohort(tmp_path / "drawn", 2, seed=3)
    monkeypatch.setitem(sys.modules, "frd_score", None)
    with pytest.raises(ConfigError, match="frd-score and pyradiomics"):
        compare(real, drawn, bootstrap=20, with_radiomics=True)
    calls: list[list[list[str]]] = []

    def compute_frd(paths: list[list[str]], frd_version: str) -> float:
        assert frd_version == "v1"
        assert all(Path(path).is_file() for side in paths for path in side)
        calls.append(paths)
        return float(len(calls))

    package = ModuleType("frd_score")
    package.compute_frd = compute_frd  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "frd_score", package)
    monkeypatch.setitem(sys.modules, "radiomics", ModuleType("radiomics"))
    assert compare(real, drawn, bootstrap=20, with_radiomics=True).extras == {"FRD": {"value": 1.0, "floor": 2.0}}
    assert [len(side) for side in calls[0]] == [24, 6]
    assert [len(side) for side in calls[1]] == [12, 12]


def test_labelled_sets_are_studied_by_class_and_unlike_labels_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from server.evaluation import study, utility
    from server.evaluation.compare_page import write_page

    monkeypatch.setattr(utility, "STEPS", 3)
    y, x = np.mgrid[-1:1:32j, -1:1:32j]

    def brains(folder: Path, seed: int, names: tuple[str, ...]) -> Path:
        rng = np.random.default_rng(seed)
        for label, name in enumerate(names):
            for p in range(3):
                for i in range(4):
                    r = np.hypot(y, x * rng.uniform(1, 1.1))
                    x_HW = np.select([r < 0.15 + 0.1 * label, r < 0.5, r < 0.8], [40, 200, 120], 0)
                    x_HW = x_HW + (x_HW > 0) * rng.integers(-9, 9, x_HW.shape)
                    path = folder / name / f"{seed}-{p}" / f"{i}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(x_HW.astype(np.uint8)).save(path)
        return folder

    real, drawn = brains(tmp_path / "real", 1, ("well", "ill")), brains(tmp_path / "drawn", 2, ("well", "ill"))
    found = compare(real, drawn, bootstrap=20, with_utility=True)
    assert set(found.studied["biomarkers"]["markers"]) == {"well", "ill"}
    assert set(found.to_dict()["utility"]["scores"]) == {"linear probe", "small CNN"}
    assert len(study.biomarker_rows(found.studied)) == 10
    assert len(study.utility_rows(found.studied)) == 4
    write_page(found, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    for words in (
        "Downstream utility",
        "ventricle-to-brain ratio",
        "24 synthetic images alone, tested on 6 real patients",
    ):
        assert words in page
    card = study.markdown(found.studied)
    assert "| linear probe | AUROC |" in card
    assert card.count("\n| ventricle-to-brain ratio |") == 2
    unlike = brains(tmp_path / "unlike", 3, ("a", "ill"))
    with pytest.raises(DataError, match="1 class name"):
        compare(real, unlike, bootstrap=20, with_utility=True)
