"""One rule makes grey levels of samples, in whatever they come: the same pixels are the same grey."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shared import pictures

X = np.random.default_rng(0).integers(0, 256, (24, 20), dtype=np.uint8)
X[0, 0], X[0, 1] = 0, 255

FORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "bytes": lambda x: x,
    "bytes in 16 bits": lambda x: x.astype(np.uint16),
    "bytes in 32 bits": lambda x: x.astype(np.int32),
    "bytes over the whole of 16 bits": lambda x: x.astype(np.uint16) * 257,
    "0 to 1": lambda x: x / 255,
    "0 to 1 in single precision": lambda x: (x / 255).astype(np.float32),
    "-1 to 1": lambda x: x / 127.5 - 1,
    "-1 to 1 in half precision": lambda x: (x / 127.5 - 1).astype(np.float16),
    "0 to 255 as floats": lambda x: x.astype(np.float64),
}


def whole(x: np.ndarray) -> np.ndarray:
    met = pictures.Range()
    met.add(x)
    return np.rint(pictures.scaled(x, met.levels)).astype(np.uint8)


@pytest.mark.parametrize("form", FORMS)
def test_person_07_the_same_pixels_are_the_same_grey_in_every_type(form: str) -> None:
    assert np.abs(whole(FORMS[form](X)).astype(int) - X).max() <= ("half" in form)


def test_person_07_deep_samples_of_one_person_share_one_scale() -> None:
    """12 bits in 16: no black pictures, and a dark slice stays darker than a bright one."""
    bright, dark = (np.linspace(0, top, 400).reshape(20, 20).astype(np.uint16) for top in (3000, 1000))
    met = pictures.Range()
    met.add(bright)
    met.add(dark)
    assert pictures.scaled(bright, met.levels).max() == 255
    assert pictures.scaled(dark, met.levels).max() == pytest.approx(255 / 3, rel=0.05)


def test_person_07_slight_overshoot_of_a_generator_is_clipped_and_never_black() -> None:
    assert np.array_equal(whole(np.clip(X / 255, 0, 1) * 1.02), np.clip(np.rint(X * 1.02), 0, 255))
    assert whole((X / 127.5 - 1) * 1.1).mean() == pytest.approx(X.mean(), abs=3)


@pytest.mark.parametrize(("x", "problem"), [
    (X, None), (np.full((16, 16), 90), "flat"), (np.zeros((16, 16)), "black"), (np.full((16, 16), 9), "black"),
    (np.eye(64) * 255, None), (np.full((16, 16), 255), "flat"), (np.where(X == 255, 200, 3), None),
    (np.full((16, 16), np.nan), "not-finite"), (np.where(np.eye(16) > 0, np.inf, 9.0), "not-finite"),
])  # fmt: skip
def test_person_07_black_flat_and_no_numbers_are_named(x: np.ndarray, problem: str | None) -> None:
    assert pictures.problem(x) == problem


def test_person_07_what_is_transparent_is_black_whatever_colour_hides_there(tmp_path: Path) -> None:
    alpha = np.where(np.arange(20) < 10, 255, 0).astype(np.uint8) * np.ones((24, 1), np.uint8)
    white = np.where(alpha, X, 255).astype(np.uint8)
    for number, image in enumerate((
        Image.merge("LA", [Image.fromarray(white), Image.fromarray(alpha)]),
        Image.merge("RGBA", [Image.fromarray(white)] * 3 + [Image.fromarray(alpha)]),
    )):  # fmt: skip
        image.save(tmp_path / f"{number}.png")
        read = pictures.read(tmp_path / f"{number}.png")
        assert np.abs(read[:, :10].astype(int) - X[:, :10]).max() <= 1 and not read[:, 10:].any()
    palette = Image.fromarray(np.where(alpha, X // 2, 255).astype(np.uint8)).convert("P")
    palette.save(tmp_path / "p.png", transparency=255)
    assert not pictures.read(tmp_path / "p.png")[:, 10:].any()
    Image.fromarray(np.where(alpha, 1000, 65535).astype(np.uint16)).save(tmp_path / "deep.png", transparency=65535)
    assert set(np.unique(pictures.read(tmp_path / "deep.png"))) == {0, 1000}


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_person_07_a_picture_is_turned_as_its_exif_says(tmp_path: Path, ending: str) -> None:
    upright = np.kron(np.array([[250, 20], [20, 20], [20, 120]], np.uint8), np.ones((8, 8), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    Image.fromarray(np.rot90(upright)).save(tmp_path / f"x.{ending}", exif=exif, quality=100)
    read = pictures.read(tmp_path / f"x.{ending}")
    assert read.shape == upright.shape and np.abs(read.astype(int) - upright).max() < 12
