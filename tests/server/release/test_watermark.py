"""The invisible mark is faint, found again after JPEG, cropping and noise, and never seen where it is not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from typer.testing import CliRunner

from server.evaluation import tools
from server.release import watermark
from simulations.benchmarks.watermark import changes


def slices(count: int, size: int) -> np.ndarray:
    """Ellipses with texture on black, as brains lie in a frame."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    inside = (x / 0.75) ** 2 + (y / 0.9) ** 2 < 1
    texture = ndimage.gaussian_filter(rng.normal(size=(count, size, size)), (0, size / 40, size / 40))
    return np.asarray(np.clip(110 + 40 * texture / texture.std(), 1, 255) * inside, np.uint8)


PLAIN = slices(20, 128)
MARKED = watermark.mark(PLAIN)


def test_the_mark_is_faint_and_leaves_the_background_black() -> None:
    difference = MARKED.astype(int) - PLAIN
    assert 0 < np.abs(difference).max() <= 20
    assert 10 * np.log10(255**2 / np.mean(difference**2)) > 36
    assert not difference[PLAIN == 0].any()
    np.testing.assert_array_equal(MARKED, watermark.mark(PLAIN))


@pytest.mark.parametrize("name", ["nothing", "JPEG 75", "three quarters kept", "noise of 5", "brighter by a fifth"])
def test_the_mark_is_found_in_single_images_and_never_where_it_is_not(name: str) -> None:
    change = changes(128)[name]
    assert np.mean([watermark.score(change(x)[None]) >= watermark.THRESHOLD for x in MARKED]) >= 0.9
    assert not any(watermark.score(change(x)[None]) >= watermark.THRESHOLD for x in PLAIN)


def test_small_images_show_it_together() -> None:
    plain = slices(20, 64)
    assert watermark.score(watermark.mark(plain)) >= watermark.THRESHOLD
    assert watermark.score(plain) < watermark.THRESHOLD


def test_what_is_too_small_or_flat_has_no_mark() -> None:
    assert watermark.score(np.zeros((3, 16, 16), np.uint8)) == 0
    assert watermark.score(np.full((3, 64, 64), 90, np.uint8)) == 0


def test_what_is_left_out_is_left_out() -> None:
    """The limits that the module states: if these hold no longer, its words must change."""
    for name in ("mirrored", "resized to 90 %"):
        change = changes(128)[name]
        assert np.mean([watermark.score(change(x)[None]) >= watermark.THRESHOLD for x in MARKED]) < 0.1


@pytest.mark.parametrize("size", [64, 128])
def test_the_corner_reads_synthetic_and_the_rest_is_untouched(size: int) -> None:
    x_NHW = np.full((2, size, size), 77, np.uint8)
    labelled = watermark.corner(x_NHW)
    changed = (labelled != x_NHW).any(0)
    assert changed.any()
    assert not changed[: size * 3 // 4].any()
    corner = labelled[0][changed.any(1)][:, changed.any(0)]
    assert corner.max() > 200
    assert corner.min() == 0


def test_the_command_finds_the_mark_in_a_folder_and_says_no_otherwise(tmp_path: Path) -> None:
    for name, x_NHW in (("marked", MARKED), ("plain", PLAIN)):
        (tmp_path / name).mkdir()
        for i, x_HW in enumerate(x_NHW[:6]):
            Image.fromarray(x_HW).save(tmp_path / name / f"{i}.jpg", quality=85)
    done = CliRunner().invoke(tools.app, ["detect", str(tmp_path / "marked"), "--json"])
    found = json.loads(done.stdout)
    assert done.exit_code == 0
    assert (found["images"], found["marked_together"]) == (6, True)
    done = CliRunner().invoke(tools.app, ["detect", str(tmp_path / "plain")])
    assert done.exit_code == 1
    assert "0 of 6 images" in done.stdout
