"""A release is refused for cause, written whole, marked everywhere, and can be checked by whoever receives it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import yaml
from PIL import Image

from server.release import release
from server.release.cards import privacy_statement, shown
from server.release.release import ReleaseStatement
from shared.config.experiment import Release
from shared.crypto import signing
from shared.errors import DataError, ReleaseRefused

SETTINGS = Release(images_per_class=3)
STATEMENT = ReleaseStatement(
    epsilon_per_patient={"north": 7.421, "south": 7.987},
    delta=1e-5,
    sites_total=2,
    sites_contributed=2,
    rounds=3,
    trainable="appearance",
    noise_multiplier=2.1,
    sampling_rate=0.5,
    steps=12,
    max_grad_norm=1.0,
    accountant="PLD, dp-accounting 0.6",
    model_sha256="ab" * 32,
    experiment="demo",
    base="phantoms-64",
    metrics={"FD-efflite0": {"value": 90.0, "floor": 20.0, "low": 85.0, "high": 95.0}},
)


def images() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.integers(0, 256, (3, 16, 16), dtype=np.uint8) for name in ("healthy", "Very_Mild")}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "release"
    key = signing.load_or_make(folder.parent / "key.pem")
    release.write(folder, images(), STATEMENT, SETTINGS, seed=1, key=key)
    (folder.parent / "public.pem").write_text(signing.public_pem(key.public_key()))
    return folder


def test_a_run_within_its_conditions_is_admitted() -> None:
    release.check(STATEMENT, SETTINGS)
    release.check(replace(STATEMENT, sites_total=3), Release(minimum_sites=2))


@pytest.mark.parametrize(
    ("change", "settings", "reason"),
    [
        ({"epsilon_per_patient": {"north": 1.0, "south": 8.001}}, {}, "8.01 at south, above the cap of 8"),
        ({}, {"epsilon_cap": 7.5}, "7.99 at south, above the cap of 7.5"),
        ({"epsilon_per_patient": {"north": 1.0, "south": None}}, {}, "without differential privacy at south"),
        ({"epsilon_per_patient": {"north": math.inf, "south": 1.0}}, {}, "without differential privacy at north"),
        ({"epsilon_per_patient": {"north": math.nan, "south": 1.0}}, {}, "without differential privacy at north"),
        ({"epsilon_per_patient": {}}, {}, "without differential privacy"),
        ({"noise_multiplier": None}, {}, "without differential privacy"),
        ({"noise_multiplier": 0.0}, {}, "without differential privacy"),
        ({"sites_contributed": 1}, {}, "1 of 2 sites contributed to every round and the experiment requires 2"),
        ({"sites_total": 4}, {"minimum_sites": 3}, "2 of 4 sites contributed .* requires 3"),
        ({"epsilon_per_patient": {"north": 1.0}}, {}, "an epsilon is known for only 1"),
    ],
)
def test_a_release_is_refused_for_cause(
    change: dict[str, Any], settings: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    statement, conditions = replace(STATEMENT, **change), Release(**settings)
    with pytest.raises(ReleaseRefused, match=reason):
        release.check(statement, conditions)
    with pytest.raises(ReleaseRefused):
        release.write(tmp_path / "release", images(), statement, conditions)
    assert not list(tmp_path.iterdir()), "a refused release leaves nothing behind"


def test_every_file_is_there_and_the_sums_verify(bundle: Path) -> None:
    top = {path.name for path in bundle.iterdir()}
    cards = {"DATA_CARD.md", "README.md", "MODEL_CARD.md"}
    assert top == {"images", "dicom", "images.npz", "metadata.jsonl", "SHA256SUMS", "SIGNATURE.json"} | cards
    done = subprocess.run(["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=bundle, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout
    files = [path for path in bundle.rglob("*") if path.is_file()]
    assert len(done.stdout.splitlines()) == len(files) - 2


def test_one_flipped_byte_is_found(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    target = next((copy / "dicom").rglob("*.dcm"))
    data = bytearray(target.read_bytes())
    data[-1] ^= 1
    target.write_bytes(data)
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=copy, capture_output=True, check=False)
    assert done.returncode == 1


def test_every_format_holds_the_same_pixels(bundle: Path) -> None:
    with np.load(bundle / "images.npz", allow_pickle=False) as arrays:
        x_NHW, label_N, classes = arrays["x_NHW"], arrays["label_N"], arrays["classes"]
    lines = [json.loads(line) for line in (bundle / "metadata.jsonl").read_text().splitlines()]
    assert classes.tolist() == ["healthy", "Very_Mild"]
    assert len(lines) == len(x_NHW) == 6
    for x_HW, label, line in zip(x_NHW, label_N, lines, strict=True):
        assert classes[label] == line["label"]
        assert line["synthetic"] is True
        with Image.open(bundle / line["file_name"]) as png:
            np.testing.assert_array_equal(np.asarray(png), x_HW)
        np.testing.assert_array_equal(pydicom.dcmread(bundle / line["dicom"]).pixel_array, x_HW)


def test_a_png_says_that_it_is_synthetic(bundle: Path) -> None:
    data = next((bundle / "images").rglob("*.png")).read_bytes()
    assert b"tEXtSynthetic\0YES" in data
    assert b"trainedAlgorithmicMedia" in data


def test_a_dicom_says_that_it_is_synthetic_in_every_place(bundle: Path) -> None:
    seen: set[str] = set()
    for path in (bundle / "dicom").rglob("*.dcm"):
        d = pydicom.dcmread(path)
        assert d[0x0008, 0x001C].value == "YES"
        assert list(d.ImageType) == ["DERIVED", "SECONDARY", "OTHER", "SYNTHETIC"]
        equipment = d.ContributingEquipmentSequence[0]
        purpose = equipment.PurposeOfReferenceCodeSequence[0]
        assert (purpose.CodeValue, purpose.CodingSchemeDesignator) == ("109100", "DCM")
        assert purpose.CodeMeaning == "Synthesizing Equipment"
        assert equipment.SoftwareVersions == STATEMENT.model_sha256
        assert "(ε 7.99, δ 1e-5)" in d.DerivationDescription
        assert d.DeidentificationMethod == "synthetic; DP (ε 7.99, δ 1e-5) per patient"
        assert str(d.PatientName).startswith("SYNTHETIC^")
        assert d.PatientID.startswith("SYN-")
        assert (d.PatientIdentityRemoved, d.BurnedInAnnotation, d.RecognizableVisualFeatures) == ("YES", "NO", "NO")
        assert (d.LongitudinalTemporalInformationModified, d.LossyImageCompression) == ("REMOVED", "00")
        assert not d.PatientBirthDate
        assert "SourceImageSequence" not in d
        uids = [d.StudyInstanceUID, d.SeriesInstanceUID, d.SOPInstanceUID, d.FrameOfReferenceUID, d.PatientID]
        assert all(uid.startswith("2.25.") and len(uid) <= 64 for uid in uids[:4])
        assert seen.isdisjoint(uids)
        seen.update(uids)


@pytest.mark.debian("dicom3tools")
def test_dciodvfy_finds_no_error(bundle: Path) -> None:
    if not shutil.which("dciodvfy"):
        assert not os.environ.get("CI"), "CI must have dicom3tools"
        pytest.skip("dciodvfy is absent; apt-get install dicom3tools")
    for path in (bundle / "dicom").rglob("*.dcm"):
        done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
        said = (done.stdout + done.stderr).splitlines()
        assert "MRImage" in said
        # Debian's dictionary is older than Synthetic Data (0008,001C), which entered the standard later
        errors = [line for line in said if line.startswith("Error") and "(0x0008,0x001c)" not in line]
        assert not errors


def test_the_cards_carry_the_statement_and_front_matter_that_hubs_read(bundle: Path) -> None:
    for name in ("DATA_CARD.md", "MODEL_CARD.md"):
        _, front, body = (bundle / name).read_text(encoding="utf-8").split("---\n", 2)
        assert "synthetic" in yaml.safe_load(front)["tags"]
        for words in (
            "2 of 2 sites contributed",
            "Add or remove all data of one patient at one site",
            "north 7.43, south 7.99",
            "e^7.99 (about 3,000)",
            "sum of those sites' epsilons",
            "public base (phantoms-64)",
            "held-out cohort",
            "Not measured for it",
            "| FD-efflite0 | 90 | 85 to 95 | 20 |",
        ):
            assert words in body, words


def test_printed_epsilon_is_never_smaller_than_the_real_one() -> None:
    assert shown(7.991) == "8.00"
    assert shown(8.0) == "8.00"
    assert shown(None) == shown(math.inf) == "none"
    assert "no guarantee" in privacy_statement(replace(STATEMENT, noise_multiplier=None))["Guarantee"]


def test_a_seed_gives_the_same_bytes_and_none_gives_fresh_identifiers(bundle: Path, tmp_path: Path) -> None:
    def digest(folder: Path) -> str:
        return hashlib.sha256((folder / "SHA256SUMS").read_bytes()).hexdigest()

    release.write(tmp_path / "again", images(), STATEMENT, SETTINGS, seed=1)
    release.write(tmp_path / "fresh", images(), STATEMENT, SETTINGS)
    assert digest(tmp_path / "again") == digest(bundle)
    assert digest(tmp_path / "fresh") != digest(bundle)
    uid = pydicom.dcmread(tmp_path / "fresh/dicom/healthy/00001.dcm").SOPInstanceUID
    assert uid != pydicom.dcmread(bundle / "dicom/healthy/00001.dcm").SOPInstanceUID


def test_an_earlier_release_is_replaced_and_anything_else_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "release"
    release.write(folder, images(), STATEMENT, SETTINGS, seed=1)
    release.write(folder, {"healthy": images()["healthy"]}, STATEMENT, SETTINGS, seed=2)
    assert [path.name for path in (folder / "images").iterdir()] == ["healthy"]
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter1.txt").write_text("important")
    with pytest.raises(DataError, match="not a release"):
        release.write(other, images(), STATEMENT, SETTINGS)
    assert (other / "chapter1.txt").read_text() == "important"


def test_a_failure_half_way_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> str:
        raise OSError("no space left on device")

    monkeypatch.setattr(release.cards, "model_card", broken)
    with pytest.raises(OSError, match="no space"):
        release.write(tmp_path / "release", images(), STATEMENT, SETTINGS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({}, "no image"),
        ({"healthy": np.zeros((0, 16, 16), np.uint8)}, "no image"),
        ({"../escape": np.zeros((1, 16, 16), np.uint8)}, "cannot name a folder"),
        ({"healthy": np.zeros((1, 16, 16), np.float32)}, "must be"),
        ({"a": np.zeros((1, 16, 16), np.uint8), "b": np.zeros((1, 32, 32), np.uint8)}, "differ in size"),
    ],
)
def test_images_that_cannot_be_released_are_a_clear_error(
    given: dict[str, np.ndarray], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=reason):
        release.write(tmp_path / "release", given, STATEMENT, SETTINGS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("by", ["imagefolder", "card"])
def test_the_hubs_library_loads_the_release_with_classes_and_provenance(bundle: Path, tmp_path: Path, by: str) -> None:
    script = (
        "import sys, datasets; f = sys.argv[1]\n"
        "d = datasets.load_dataset('imagefolder', data_dir=f, split='train') if sys.argv[2] == 'imagefolder' "
        "else datasets.load_dataset(f, split='train')\n"
        "r = d[5]; print(len(d), r['label'], r['image'].size, r['synthetic'], r['epsilon_per_patient'], sorted(set(d['label'])))"
    )
    home = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script, str(bundle), by],
        env=os.environ | home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "6 Very_Mild (16, 16) True 7.99 ['Very_Mild', 'healthy']"
