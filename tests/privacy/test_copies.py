"""Copies are found through noise, mirroring and brightness; patients who are merely alike are not called copies."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from privacy import copies
from privacy.copies import Group
from shared.errors import PrivacyError

SIZE, SLICES = 32, 3


def images(count: int, seed: int) -> np.ndarray:
    """Smooth blobs inside a disc: as alike as brains are, and no two the same; (count * SLICES, 32, 32) uint8."""
    rng = np.random.default_rng(seed)
    axis = np.linspace(-1, 1, SIZE)
    disc = (axis[:, None] ** 2 + axis[None] ** 2) < 0.8
    texture = gaussian_filter(rng.normal(size=(count * SLICES, SIZE, SIZE)), (0, 1.5, 1.5))
    return np.clip(disc * (120 + 300 * texture), 0, 255).astype(np.uint8)


def group(x_NHW: np.ndarray) -> Group:
    return Group(copies.pixels(x_NHW), np.arange(len(x_NHW)) // SLICES)


def nearness(drawn: np.ndarray, train: np.ndarray, heldout: np.ndarray) -> copies.Nearness:
    mirrored = copies.pixels(np.ascontiguousarray(drawn[:, :, ::-1]))
    return copies.nearness(copies.pixels(drawn), group(train), group(heldout), mirrored_Sd=mirrored)


def noisy(x: np.ndarray) -> np.ndarray:
    return np.clip(x + np.random.default_rng(9).normal(0, 4, x.shape), 0, 255).astype(np.uint8)


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as it is": lambda x: x,
    "noise": noisy,
    "mirrored": lambda x: np.ascontiguousarray(x[:, :, ::-1]),
    "mirrored, noise": lambda x: noisy(x[:, :, ::-1]),
    "darker": lambda x: (x * 0.6 + 10).astype(np.uint8),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_copy_is_found_with_the_pair_that_shows_it(change: Callable[[np.ndarray], np.ndarray]) -> None:
    train = images(20, 0)
    drawn = np.concatenate([images(5, 1), change(train[[7, 40]])])
    found = copies.find(drawn, train)
    assert (found.images, found.copies) == (17, 2)
    assert {(p.synthetic, p.train) for p in found.worst[:2]} == {(15, 7), (16, 40)}
    assert all(p.copy for p in found.worst[:2])
    assert not any(p.copy for p in found.worst[2:])


def test_patients_who_were_never_trained_on_are_no_copies_and_as_near_as_others() -> None:
    train, heldout, drawn = images(20, 0), images(20, 1), images(20, 2)
    assert copies.find(drawn, train).copies == 0
    near = nearness(drawn, train, heldout)
    assert near.low <= 0.5 <= near.high
    assert near.near_train < 0.1


def test_a_model_that_copies_is_closer_to_its_training_patients() -> None:
    train, heldout = images(20, 0), images(20, 1)
    near = nearness(CHANGES["mirrored, noise"](train[::2]), train, heldout)
    assert near.closer_share == 1.0
    assert near.low > 0.53
    assert near.near_train > 0.9
    assert near.near_heldout < 0.1


def test_the_share_is_fair_when_there_are_more_training_patients() -> None:
    near = nearness(images(30, 2), images(40, 0), images(10, 1))
    assert near.patients == 10
    assert near.low <= 0.5 <= near.high
    assert abs(near.closer_share - 0.5) < 0.15


def test_the_interval_covers_a_half_when_nothing_is_copied() -> None:
    rng, covered = np.random.default_rng(4), 0
    for seed in range(40):
        x = rng.normal(size=(3, 60, 8))
        groups = [Group(a, np.arange(60) // 3) for a in x[1:]]
        near = copies.nearness(x[0], *groups, bootstrap=100, seed=seed)
        covered += near.low <= 0.5 <= near.high
    assert covered >= 34


def test_an_image_as_near_to_both_counts_half() -> None:
    x = images(4, 0)
    assert nearness(images(4, 1), x, x).closer_share == 0.5


def test_distances_are_to_the_nearest_image_of_each_patient_in_any_order() -> None:
    features = np.array([[0.0, 0.0], [5.0, 0.0], [1.0, 0.0], [0.0, 3.0]])
    found = copies.distances([np.array([[0.0, 1.0]])], Group(features, np.array([1, 0, 0, 1])))
    assert found == pytest.approx(np.array([[2**0.5, 1.0]]))


@pytest.mark.parametrize("size", [16, 64, 100, 31])
def test_pixels_have_unit_norm_at_any_size_and_a_blank_image_is_zero(size: int) -> None:
    x = np.random.default_rng(0).integers(0, 255, (3, size, size), dtype=np.uint8)
    x[2] = 7
    assert np.linalg.norm(copies.pixels(x), axis=1) == pytest.approx([1, 1, 0])


def test_ssim_is_one_for_the_same_image_and_does_not_count_the_background() -> None:
    x = images(1, 0)[0]
    other = x.copy()
    other[10:20, 10:20] = 255 - other[10:20, 10:20]
    assert copies.ssim(x, x) == pytest.approx(1.0)
    assert copies.ssim(x, other) < 0.8
    blank = np.zeros_like(x)
    assert copies.ssim(blank, blank) == 1.0


def test_what_cannot_be_compared_is_refused() -> None:
    x = images(2, 0)
    with pytest.raises(PrivacyError, match="uint8"):
        copies.pixels(x.astype(float))  # type: ignore[arg-type]
    with pytest.raises(PrivacyError, match="2 at least"):
        nearness(x, x[:SLICES], x)
    with pytest.raises(PrivacyError, match="training images"):
        copies.find(x, x[:, :16, :16])
    with pytest.raises(PrivacyError, match="give one each"):
        copies.distances([np.zeros((1, 2))], Group(np.zeros((3, 2)), np.zeros(2, int)))


def test_real_patients_are_no_copies_of_each_other_and_a_noisy_mirrored_one_is(
    real_data: Callable[[str], Path],
) -> None:
    folder = real_data("slices_dementia")
    patients = sorted(p for kind in folder.iterdir() if kind.is_dir() for p in kind.iterdir() if p.is_dir())[:30]
    files = [file for p in patients for file in sorted(p.glob("*.jpg"))[::6]]
    x = np.zeros((len(files), 64, 64), np.uint8)
    for row, file in zip(x, files, strict=True):
        with Image.open(file) as picture:
            row[:] = np.asarray(picture.convert("L").resize((64, 64)))
    each = len(x) // len(patients)
    train, heldout = x[: 15 * each], x[15 * each :]
    assert copies.find(heldout, train).copies == 0
    assert copies.find(CHANGES["mirrored, noise"](train[:5]), train).copies == 5
