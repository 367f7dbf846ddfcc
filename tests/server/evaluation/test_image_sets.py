"""Images of any two folders are read alike, whoever they belong to is kept together, and nobody is named."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileDataset

from server.evaluation import image_sets
from shared.errors import DataError

X = np.random.default_rng(0).integers(1, 256, (12, 20, 20), dtype=np.uint8)


def png(path: Path, x_HW: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(x_HW).save(path)
    return path


def load(source: Path, size: int = 20, patients: str = "auto") -> image_sets.Gallery:
    return image_sets.load(image_sets.survey(source, patients), size)


def test_every_form_gives_the_same_pixels_and_patients(
    tmp_path: Path, make_slice: Callable[..., FileDataset], save: Callable[[Dataset, Path], Path]
) -> None:
    for i, x_HW in enumerate(X):
        png(tmp_path / "png" / "ill" / f"p{i // 3}" / f"{i:02d}.png", x_HW)
        d = make_slice(i, x_HW, PatientID=f"p{i // 3}", WindowCenter=128, WindowWidth=256)
        save(d, tmp_path / "dicom" / f"IM{i:02d}")  # no suffix, as scanners write them
    (tmp_path / "npz").mkdir()
    np.savez(tmp_path / "npz" / "all.npz", x_NHW=X, patient_N=np.arange(12) // 3, label_N=np.zeros(12))
    (tmp_path / "patients").mkdir()
    for p in range(4):
        np.savez(tmp_path / "patients" / f"{p}.npz", x=X[3 * p : 3 * p + 3], label=np.int64(0))
    for form in ("png", "dicom", "npz", "npz/all.npz", "patients"):
        found = load(tmp_path / form)
        np.testing.assert_array_equal(found.x_NHW, X)
        assert found.patients_known
        assert found.patient_N.tolist() == (np.arange(12) // 3).tolist(), form


def test_a_release_is_read_by_its_list_and_each_image_once(tmp_path: Path) -> None:
    lines = []
    for i in range(4):
        png(tmp_path / "images" / "ill" / f"{i}.png", X[i])
        (tmp_path / "dicom").mkdir(exist_ok=True)
        (tmp_path / "dicom" / f"{i}.dcm").write_bytes(b"the same image again")
        lines.append(json.dumps({"file_name": f"images/ill/{i}.png", "label": "ill"}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    found = load(tmp_path)
    assert (len(found.x_NHW), found.classes, found.patients_known) == (4, ("ill",), False)
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "../secret.png"}))
    with pytest.raises(DataError, match="outside its folder"):
        image_sets.survey(tmp_path)


def test_whose_an_image_is_can_be_said(tmp_path: Path) -> None:
    for i in range(4):
        png(tmp_path / "data" / f"p{i // 2}" / f"{i}.png", X[i])
    assert not load(tmp_path / "data").patients_known  # one level of folders: classes or patients, nobody knows
    assert load(tmp_path / "data", patients="folder").patient_N.tolist() == [0, 0, 1, 1]
    assert load(tmp_path / "data", patients="image").patient_N.tolist() == [0, 1, 2, 3]
    table = tmp_path / "patients.csv"
    with table.open("w", newline="") as file:
        rows = [["file", "patient"], *([f"p{i // 2}/{i}.png", "a" if i < 3 else "b"] for i in range(4))]
        csv.writer(file).writerows(rows)
    assert load(tmp_path / "data", patients=str(table)).patient_N.tolist() == [0, 0, 0, 1]
    table.write_text("file,patient\np0/0.png,a\n")
    with pytest.raises(DataError, match="lacks 3 of 4 images"):
        image_sets.survey(tmp_path / "data", str(table))
    with pytest.raises(DataError, match="not a CSV"):
        image_sets.survey(tmp_path / "data", "nowhere.csv")


def test_a_damaged_file_is_counted_and_not_fatal(tmp_path: Path) -> None:
    png(tmp_path / "good.png", X[0])
    (tmp_path / "bad.png").write_bytes(b"no picture")
    found = load(tmp_path)
    assert (found.found, found.unreadable, len(found.x_NHW)) == (2, 1, 1)
    (tmp_path / "good.png").unlink()
    with pytest.raises(DataError, match="none of the images"):
        load(tmp_path)


def test_kinds_are_not_mixed_and_an_empty_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no PNG"):
        image_sets.survey(tmp_path)
    with pytest.raises(DataError, match="there is no"):
        image_sets.survey(tmp_path / "absent")
    png(tmp_path / "a.png", X[0])
    np.savez(tmp_path / "b.npz", x_NHW=X)
    with pytest.raises(DataError, match="PNG or JPEG and NPZ"):
        image_sets.survey(tmp_path)
    np.savez(tmp_path / "c.npz", y=X)
    with pytest.raises(DataError, match="neither"):
        image_sets.survey(tmp_path / "c.npz")


def test_a_limit_is_spread_over_patients(tmp_path: Path) -> None:
    patients = ["a"] * 20 + ["b"] * 3 + ["c"] * 3
    entries = [image_sets.Entry(tmp_path / str(i), "", p) for i, p in enumerate(patients)]
    chosen = image_sets.choose(entries, 9, seed=0)
    assert sorted(e.patient or "" for e in chosen) == sorted("abc" * 3)
    assert chosen == image_sets.choose(entries, 9, seed=0)
    assert chosen != image_sets.choose(entries, 9, seed=1)
    assert image_sets.choose(entries, 100, seed=0) == entries


def test_images_are_padded_to_a_square_and_deep_ones_are_windowed(tmp_path: Path) -> None:
    png(tmp_path / "wide" / "a.png", np.full((10, 20), 200, np.uint8))
    wide = load(tmp_path / "wide").x_NHW[0]
    assert wide[:5].max() == wide[15:].max() == 0
    assert (wide[5:15] == 200).all()
    ramp = np.linspace(1000, 3000, 400).reshape(20, 20).astype(np.uint16)
    png(tmp_path / "deep" / "a.png", ramp)
    deep = load(tmp_path / "deep").x_NHW[0]
    assert (deep.min(), deep.max()) == (0, 255)
    assert abs(float(deep.mean()) - 127.5) < 2


def test_person_07_the_same_pixels_score_alike_in_bytes_and_in_floats(tmp_path: Path) -> None:
    """Each picture has its own brightest pixel: a window of each would change them all."""
    dim = (X // np.arange(1, 13)[:, None, None]).astype(np.uint8)
    dim[0, 0, 0] = 255
    forms = {"bytes": dim, "unit": dim / 255, "signed": dim / 127.5 - 1, "floats": dim.astype(np.float32)}
    forms["wide"] = dim.astype(np.uint16) * 257
    for name, x_NHW in forms.items():
        np.savez(tmp_path / f"{name}.npz", x_NHW=x_NHW)
        np.testing.assert_array_equal(load(tmp_path / f"{name}.npz").x_NHW, dim, err_msg=name)
    for i, x_HW in enumerate(forms["wide"]):
        png(tmp_path / "png" / f"{i:02d}.png", x_HW)
    np.testing.assert_array_equal(load(tmp_path / "png").x_NHW, dim)


def test_person_07_drawn_images_of_no_numbers_are_left_out_and_not_black(tmp_path: Path) -> None:
    x_NHW = X / 255
    x_NHW[3, 5, 5], x_NHW[7] = np.nan, np.inf
    np.savez(tmp_path / "x.npz", x_NHW=x_NHW)
    found = load(tmp_path / "x.npz")
    assert (len(found.x_NHW), found.not_finite, found.unreadable) == (10, 2, 0)
    assert np.array_equal(found.x_NHW, np.delete(X, [3, 7], axis=0))


def test_person_07_black_and_flat_images_are_judged_and_counted(tmp_path: Path) -> None:
    """A model that draws black pictures is not helped by leaving them out."""
    x_NHW = X.copy()
    x_NHW[0], x_NHW[1] = 0, 90
    np.savez(tmp_path / "x.npz", x_NHW=x_NHW)
    found = load(tmp_path / "x.npz")
    assert (len(found.x_NHW), found.empty) == (12, 2)


def test_person_07_transparency_and_rotation_are_read_as_the_hospitals_do(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    (tmp_path / "x").mkdir()
    Image.fromarray(X[0][::-1, ::-1]).save(tmp_path / "x" / "a.png", exif=exif)
    white = Image.merge("LA", [Image.fromarray(np.full((20, 20), 255, np.uint8)), Image.fromarray(X[1])])
    white.save(tmp_path / "x" / "b.png")
    np.testing.assert_array_equal(load(tmp_path / "x").x_NHW, X[:2])
