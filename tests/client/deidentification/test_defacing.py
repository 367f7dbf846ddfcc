"""No face gets through: broken maskers, disagreement and odd heads are withheld; of what passes, only brain is left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import nibabel
import numpy as np
import pytest
from pydicom.dataset import FileDataset
from scipy import ndimage

from client import dataset
from client.deidentification import defacing, manifest
from client.deidentification.manifest import Reason, Withheld
from client.readers import bias, masks, template, volumes
from client.readers.ingest import ingest
from client.readers.template import Fit
from client.readers.volumes import Scan
from client.verification import verify
from shared.config.site import Site
from shared.errors import DataError
from simulations.cohorts.phantom_heads import Head, head

Write = Callable[..., list[Path]]


@pytest.fixture(scope="module")
def small() -> Head:
    """A head at 4 mm: quick, and everything in it is known."""
    return head(np.random.default_rng(1), step_mm=4.0)


@pytest.fixture(scope="module", params=[(1.0, 1.0, 1.0, 8.0), (0.92, 0.9, 0.94, -6.0)], ids=["large", "small"])
def whole(request: pytest.FixtureRequest) -> Head:
    *size, nod_degrees = request.param
    return head(np.random.default_rng(2), step_mm=2.0, size=tuple(size), nod_degrees=nod_degrees)


def known(made: Head, **changes: Any) -> Fit:
    """A second opinion that is right, unless changed."""
    upper = np.zeros_like(made.brain)
    upper[:, :, np.nonzero(made.brain)[2].mean().astype(int) :] = True
    return replace(Fit(made.brain, made.brain & upper, made.face, 1.3, 1.0), **changes)


def unshaded(volume: np.ndarray, brain: np.ndarray, *_: Any) -> np.ndarray:
    return np.where(brain, volume, 0)


def remove(made: Head, mask: np.ndarray, fit: Fit | None = None) -> Scan:
    scan = Scan(made.volume_RAS, made.spacing_mm)
    return defacing.remove(scan, masker=lambda _: mask, second=lambda *_: fit or known(made), correct=unshaded)


def refusal(made: Head, mask: np.ndarray, fit: Fit | None = None) -> Withheld:
    with pytest.raises(Withheld) as caught:
        remove(made, mask, fit)
    return caught.value


def with_thread_to_the_face(made: Head) -> np.ndarray:
    """The brain, and one line of voxels from its front through the skin."""
    mask = made.brain.copy()
    r, a, s = (int(value) for value in np.argwhere(made.brain)[np.argmax(np.nonzero(made.brain)[1])])
    mask[r, a:, s] = made.volume_RAS[r, a:, s] > 200
    mask[r, a : a + 5, s] = True
    return mask


@pytest.mark.parametrize(("broken", "reason"), [
    (lambda h: h.volume_RAS > 100, Reason.BRAIN_VOLUME),
    (lambda h: np.ones_like(h.brain), Reason.BRAIN_VOLUME),
    (lambda h: np.zeros_like(h.brain), Reason.NO_BRAIN),
    (lambda h: np.roll(h.brain, 5, axis=1), Reason.MASKS_DIFFER),
    (lambda h: np.roll(h.brain, -8, axis=2), Reason.MASKS_DIFFER),
    (lambda h: ndimage.binary_erosion(h.brain, iterations=4), Reason.MASKS_DIFFER),
    (lambda h: h.brain & (np.arange(h.brain.shape[0]) % 24 > 0)[:, None, None], Reason.BRAIN_PIECES),
    (with_thread_to_the_face, Reason.FACE_LEFT),
    (lambda h: h.brain[1:], Reason.NO_BRAIN),
    (lambda h: h.brain.astype(np.float32), Reason.NO_BRAIN),
], ids=["head", "everything", "empty", "forward", "down", "shrunk", "sliced", "thread", "shape", "kind"])  # fmt: skip
def test_v04_a_broken_masker_is_refused(small: Head, broken: Callable[[Head], np.ndarray], reason: Reason) -> None:
    assert refusal(small, broken(small)).reason is reason


def test_a_masker_that_stops_is_a_verdict_without_its_words(small: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "_network", lambda: pytest.fail("JANE SMITH"))
    with pytest.raises(Withheld) as caught:
        defacing.remove(Scan(small.volume_RAS, small.spacing_mm), second=lambda *_: known(small))
    assert caught.value.reason is Reason.NO_BRAIN and "JANE" not in str(caught.value)


@pytest.mark.parametrize(("change", "reason"), [
    (lambda h: {"brain": np.roll(h.brain, 4, axis=1)}, Reason.MASKS_DIFFER),
    (lambda h: {"brain": ndimage.binary_dilation(h.brain, iterations=3)}, Reason.MASKS_DIFFER),
    (lambda h: {"brain": np.zeros_like(h.brain)}, Reason.MASKS_DIFFER),
    (lambda h: {"contrast": 1.0}, Reason.NOT_T1),
    (lambda h: {"contrast": float("nan")}, Reason.NOT_T1),
    (lambda h: {"covered": 0.79}, Reason.COVERAGE),
])  # fmt: skip
def test_v03_a_second_opinion_that_disagrees_withholds_the_series(
    small: Head, change: Callable[[Head], dict[str, Any]], reason: Reason
) -> None:
    assert refusal(small, small.brain, known(small, **change(small))).reason is reason


def test_a_brain_low_in_the_volume_is_withheld(small: Head) -> None:
    def high(array: np.ndarray) -> np.ndarray:
        return np.pad(array[:, :, 20:], ((0, 0), (0, 0), (0, 30)))

    made = Head(high(small.volume_RAS), small.spacing_mm, high(small.brain), high(small.face))
    assert refusal(made, made.brain).reason is Reason.BRAIN_LOW


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_withheld(small: Head, value: float) -> None:
    volume = small.volume_RAS.copy()
    volume[0, 0, 0] = value
    assert refusal(replace(small, volume_RAS=volume), small.brain).reason is Reason.PIXEL_FORMAT


def test_v02_of_what_passes_everything_outside_the_mask_is_exactly_zero(small: Head) -> None:
    scan = remove(small, small.brain)
    assert scan.brain is not None and scan.cerebrum is not None
    assert not scan.volume_RAS[~scan.brain].any() and scan.volume_RAS[scan.brain].mean() > 100
    assert scan.brain.sum() == small.brain.sum()
    size = 96
    pictures = volumes.axial(
        scan.volume_RAS, scan.spacing_mm, size=size, count=500, brain=scan.brain, cerebrum=scan.cerebrum
    )
    allowed = volumes.axial(
        scan.brain * 1e3 + 1,
        scan.spacing_mm,
        size=size,
        count=500,
        brain=np.ones_like(scan.brain),
        cerebrum=scan.cerebrum,
    )
    assert not pictures[allowed == 0].any() and (allowed == 0).mean() > 0.3 and pictures.max() == 255


def test_v02_a_value_left_outside_the_mask_is_noticed(small: Head) -> None:
    scan = Scan(small.volume_RAS, small.spacing_mm)
    with pytest.raises(Withheld) as caught:
        defacing.remove(scan, lambda _: small.brain, lambda *_: known(small), correct=lambda volume, *_: volume)
    assert caught.value.reason is Reason.OUTSIDE_MASK


def test_v07_levels_without_cerebrum_make_no_picture(small: Head) -> None:
    scan = remove(small, small.brain)
    assert scan.brain is not None and scan.cerebrum is not None
    height = np.broadcast_to(np.arange(scan.brain.shape[2], dtype=np.float32), scan.brain.shape) * scan.brain
    pictures = volumes.axial(height, scan.spacing_mm, size=64, count=500, brain=scan.brain, cerebrum=scan.cerebrum)
    lowest = int(np.flatnonzero(scan.cerebrum.any(axis=(0, 1)))[0])
    assert lowest > 8 and len(pictures) <= scan.brain.shape[2] - lowest
    every = volumes.axial(height, scan.spacing_mm, size=64, count=500, brain=scan.brain)
    assert len(every) > len(pictures) and pictures[0].max() > every[0].max()


def test_pictures_show_a_field_of_the_same_millimetres_whatever_was_in_view(small: Head) -> None:
    scan = remove(small, small.brain)
    cropped = Head(*(array[8:-8, 4:] if isinstance(array, np.ndarray) else array for array in
                     (small.volume_RAS, small.spacing_mm, small.brain, small.face)))  # fmt: skip
    again = remove(cropped, cropped.brain)
    assert scan.volume_RAS.shape == again.volume_RAS.shape and scan.volume_RAS.shape[:2] == (55, 55)


def test_a_field_smaller_than_any_brain_is_withheld_before_anything_runs() -> None:
    def never(*_: object) -> NoReturn:
        raise AssertionError

    with pytest.raises(Withheld) as caught:
        defacing.remove(Scan(np.ones((10, 10, 10), np.float32), (1, 1, 1)), masker=never, second=never, correct=never)
    assert caught.value.reason is Reason.COVERAGE


def test_a_brain_that_was_stripped_before_needs_no_masker(small: Head) -> None:
    def never(_: np.ndarray) -> np.ndarray:
        raise AssertionError

    stripped = np.where(small.brain, small.volume_RAS, 0)
    scan = defacing.remove(
        Scan(stripped, small.spacing_mm), masker=never, second=lambda *_: known(small), correct=unshaded
    )
    assert scan.evidence["stripped_before"] == 1 and scan.brain is not None
    assert scan.brain.sum() == small.brain.sum()


@pytest.mark.parametrize("left", ["head on black", "face cut off", "one eye"])
def test_zeros_around_more_than_a_brain_are_not_taken_for_stripped(small: Head, left: str) -> None:
    keep = small.volume_RAS > 100
    if left == "face cut off":
        keep &= ~small.face
    if left == "one eye":
        keep = small.brain | (small.face & (np.arange(keep.shape[0]) < keep.shape[0] // 3)[:, None, None])
    asked = []

    def masker(volume: np.ndarray) -> np.ndarray:
        asked.append(volume.shape)
        return small.brain

    volume = np.where(keep, small.volume_RAS, 0)
    scan = defacing.remove(
        Scan(volume, small.spacing_mm), masker=masker, second=lambda *_: known(small), correct=unshaded
    )
    assert len(asked) == 1 and scan.brain is not None and scan.brain.sum() == small.brain.sum()


def test_shading_is_taken_out_of_the_brain_alone(small: Head) -> None:
    slope = np.linspace(0.7, 1.3, small.brain.shape[1])[None, :, None]
    flat = np.where(small.brain, 500 + small.volume_RAS / 100, 7).astype(np.float32)
    corrected = bias.correct(flat * slope, small.brain, small.spacing_mm)

    def spread(volume: np.ndarray) -> float:
        return float(volume[small.brain].std() / volume[small.brain].mean())

    assert spread(corrected) < 0.4 * spread(flat * slope) and not corrected[~small.brain].any()


# From folders: what the hospital meets


def run(folder: Path, kind: str = "dicom", **site: Any) -> Any:
    settings = Site(name="a", data=folder / "data", format=kind, text_check="none", **site)
    return ingest(settings, classes=["x"], image_size=64, slices_per_patient=12, work=folder / "work")


@pytest.fixture
def stubbed(small: Head, monkeypatch: pytest.MonkeyPatch) -> None:
    """The door with a masker and a second opinion that know the small head."""
    step = partial(defacing.remove, masker=lambda _: small.brain, second=lambda *_: known(small), correct=unshaded)
    monkeypatch.setattr(defacing, "remove", step)


def write_head(write_series: Write, folder: Path, made: Head, **attributes: Any) -> None:
    def change(index: int, ds: FileDataset) -> None:
        ds.PixelSpacing, ds.SliceThickness, ds.SpacingBetweenSlices = ["4", "4"], "4", "4"
        ds.ImagePositionPatient = [0, 0, 4.0 * index]

    write_series(folder, made.volume_RAS, change, **attributes)


@pytest.mark.usefixtures("stubbed")
def test_a_head_goes_in_and_a_brain_comes_out(tmp_path: Path, write_series: Write, small: Head) -> None:
    write_head(write_series, tmp_path / "data", small)
    report = run(tmp_path)
    assert (report.patients, report.slices, report.passed) == (1, 12, small.brain.shape[2])
    (patient,) = dataset.load(tmp_path / "work" / "cohort")
    assert not patient.x_SHW[:, :5].any() and not patient.x_SHW[:, :, :5].any() and patient.x_SHW.mean() > 20
    loaded = manifest.load(tmp_path / "work" / "manifest.jsonl")
    for entry in loaded.entries:
        assert entry.face is not None and entry.face["in_face"] == 0
        assert len(str(entry.face["mask_sha256"])) == len(str(entry.face["second_sha256"])) == 64
    assert len(loaded.header["models"]) == 2
    assert not verify.verify_folder(tmp_path / "work").findings
    assert [option["CodeValue"] for option in loaded.header["options"]] == ["113100", "113102"]


@pytest.mark.usefixtures("stubbed")
def test_nifti_takes_the_same_way(tmp_path: Path, small: Head) -> None:
    (tmp_path / "data" / "p1").mkdir(parents=True)
    nibabel.save(
        nibabel.Nifti1Image(small.volume_RAS, np.diag([*small.spacing_mm, 1])), tmp_path / "data" / "p1" / "t1.nii.gz"
    )
    assert run(tmp_path, "nifti").slices == 12
    (entry,) = manifest.read(tmp_path / "work" / "manifest.jsonl")
    assert entry.face is not None and entry.face["dice"] == 1


def test_a_series_in_doubt_is_withheld_with_its_measures(
    tmp_path: Path, write_series: Write, small: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_head = partial(defacing.remove, masker=lambda volume: volume > 100, second=lambda *_: known(small))
    monkeypatch.setattr(defacing, "remove", whole_head)
    write_head(write_series, tmp_path / "data", small)
    with pytest.raises(DataError, match="brain-volume"):
        run(tmp_path)
    entries = manifest.read(tmp_path / "work" / "manifest.jsonl")
    assert all(entry.face is not None and float(entry.face["volume_ml"]) > 2100 for entry in entries)
    assert not list((tmp_path / "work" / "cohort").glob("*.npz"))


@pytest.mark.parametrize("attributes", [
    {"ScanningSequence": ["SE", "EP"], "EchoTime": "80"}, {"ScanningSequence": "GR", "InversionTime": None},
    {"InversionTime": "2500"},
])  # fmt: skip
def test_only_t1_weighted_series_reach_the_masker(
    tmp_path: Path, write_series: Write, small: Head, monkeypatch: pytest.MonkeyPatch, attributes: dict[str, Any]
) -> None:
    monkeypatch.setattr(defacing, "remove", lambda _: pytest.fail("asked"))
    write_head(write_series, tmp_path / "data", small, **attributes)
    with pytest.raises(DataError, match=f"not-t1 {small.brain.shape[2]}"):
        run(tmp_path)


def test_a_volume_too_small_for_a_head_is_withheld_at_once(tmp_path: Path, write_series: Write) -> None:
    write_series(tmp_path / "data")
    with pytest.raises(DataError, match="coverage 16"):
        run(tmp_path)
    assert run(tmp_path, face_removal="none").patients == 1
    header = manifest.load(tmp_path / "work" / "manifest.jsonl").header
    assert [option["CodeValue"] for option in header["options"]] == ["113100"] and not header["models"]


def test_pictures_without_a_volume_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(DataError, match="face_removal: none"):
        run(tmp_path, "images")
    assert not (tmp_path / "work").exists()


# With the networks and the registration themselves


@pytest.fixture(scope="module")
def fitted(whole: Head) -> Fit:
    return template.fit(whole.volume_RAS, whole.spacing_mm)


def surface_mm(volume_RAS: np.ndarray, step_mm: float) -> np.ndarray:
    """How far forward something reaches, seen from the front: (right, superior), mm; what a face would be drawn from."""
    something = ndimage.binary_opening(volume_RAS > 0.08 * volume_RAS.max())
    forward = volume_RAS.shape[1] - 1 - np.argmax(something[:, ::-1], axis=1)
    return np.where(something.any(axis=1), forward, 0) * step_mm


def test_v01_the_networks_leave_no_voxel_of_a_face(whole: Head, fitted: Fit) -> None:
    scan = Scan(whole.volume_RAS, whole.spacing_mm)
    found = masks.deepbet(whole.volume_RAS)
    stripped = defacing.remove(scan, masker=lambda _: found, second=lambda *_: fitted)
    brain, _ = masks.solid(found)
    assert stripped.brain is not None and stripped.brain.sum() == brain.sum()
    assert not (brain & whole.face).any() and whole.face.sum() > 50_000
    assert 2 * (brain & whole.brain).sum() / (brain.sum() + whole.brain.sum()) > 0.95
    assert 0.9 < float(stripped.evidence["dice"]) < 1 and stripped.evidence["stripped_before"] == 0
    # the nose stands out of the head, and nothing stands out of the brain
    before = surface_mm(whole.volume_RAS, 2.0)
    after = surface_mm(np.where(brain, whole.volume_RAS, 0), 2.0)
    tip = np.unravel_index(np.argmax(before), before.shape)
    front_of_brain = 2.0 * np.nonzero(whole.brain)[1].max()
    assert before[tip] > front_of_brain + 15 and after[tip] < front_of_brain - 40
    assert after.max() <= front_of_brain + 8


def test_the_template_knows_the_brain_and_the_face(whole: Head, fitted: Fit) -> None:
    dice = 2 * (fitted.brain & whole.brain).sum() / (fitted.brain.sum() + whole.brain.sum())
    assert dice > 0.93 and fitted.covered == 1 and 1.1 < fitted.contrast < 1.6
    assert not (fitted.face & whole.brain).any() and (fitted.face & whole.face).sum() > 0.6 * whole.face.sum()
    assert not (fitted.cerebrum & ~fitted.brain).any()


def test_v05_a_head_upside_down_is_withheld(small: Head) -> None:
    def turned(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array[:, :, ::-1])

    made = Head(turned(small.volume_RAS), small.spacing_mm, turned(small.brain), turned(small.face))
    fit = template.fit(made.volume_RAS, made.spacing_mm)
    assert refusal(made, made.brain, fit).reason in (Reason.MASKS_DIFFER, Reason.NOT_T1, Reason.COVERAGE)


@pytest.mark.parametrize("levels", [slice(0, 42), slice(52, None)], ids=["vertex cut off", "base cut off"])
def test_v05_half_a_brain_in_view_is_withheld(small: Head, levels: slice) -> None:
    made = Head(small.volume_RAS[:, :, levels], small.spacing_mm, small.brain[:, :, levels], small.face[:, :, levels])
    fit = template.fit(made.volume_RAS, made.spacing_mm)
    assert refusal(made, made.brain, fit).reason in (Reason.COVERAGE, Reason.BRAIN_VOLUME, Reason.MASKS_DIFFER)


def test_a_stripped_brain_is_known_as_such_by_the_template(small: Head) -> None:
    volume = np.where(small.brain, small.volume_RAS, 0)
    scan = defacing.remove(Scan(volume, small.spacing_mm), masker=lambda _: pytest.fail("asked"), correct=unshaded)
    assert scan.evidence["stripped_before"] == 1 and float(scan.evidence["dice"]) > 0.93
