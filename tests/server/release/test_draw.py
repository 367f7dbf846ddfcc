"""Drawing thousands of images can be killed anywhere and gives the same release bit for bit; memory holds one batch."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from server.release import draw as drawing
from server.release import release, seal
from server.release.draw import Draws, draw_all
from server.release.release import ReleaseStatement
from shared.config.experiment import Performance, Release
from shared.crypto import signing
from shared.models import weights
from shared.models.pixel_diffusion import PixelDiffusion, PixelDiffusionSettings

NETWORK = PixelDiffusionSettings(image_size=16, channels=(8, 16), groups=4, latents=4, encoder_channels=8)
SETTINGS = Release(images_per_class=7, sampler_steps=2)
PERFORMANCE = Performance(sampling_batch=4)
STATEMENT = ReleaseStatement(
    epsilon_per_patient={"north": 7.4},
    delta=1e-5,
    sites_total=1,
    sites_contributed=1,
    rounds=1,
    trainable="appearance",
    noise_multiplier=2.1,
    sampling_rate=0.5,
    steps=1,
    max_grad_norm=1.0,
    accountant="PLD",
    model_sha256="ab" * 32,
    experiment="demo",
    base="none",
    metrics={},
)


class Killed(BaseException):
    """What no code of ours catches."""


@pytest.fixture(scope="module")
def model() -> PixelDiffusion:
    return weights.load_base("none", NETWORK, {"a": "any", "b": "any"})


def job(folder: Path, model: PixelDiffusion, **changes: Any) -> Draws:
    kept: dict[str, Any] = {"seed": 3, "model_sha256": "ab" * 32} | changes
    settings = kept.pop("settings", SETTINGS)
    return draw_all(folder, model, settings, PERFORMANCE, **kept)


def bundle(folder: Path, drawn: Draws) -> dict[str, bytes]:
    key = signing.load_or_make(folder / "key.pem")
    release.write(folder / "release", drawn, STATEMENT, SETTINGS, seed=3, key=key)
    seal.verify_release(folder / "release")
    files = (path for path in (folder / "release").rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_release_killed_twice_on_the_way_is_the_same_to_the_byte(
    tmp_path: Path, model: PixelDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    whole.mkdir()
    torn.mkdir()
    (torn / "key.pem").write_bytes(signing.load_or_make(whole / "key.pem") and (whole / "key.pem").read_bytes())
    (torn / "key.pem").chmod(0o600)
    expected = bundle(whole, job(whole / "draws", model))
    assert len(expected) == 2 * 14 + 7

    calls: list[int] = []
    draw = drawing.draw

    def killed_in_the_third(*args: Any, **kwargs: Any) -> np.ndarray:
        if len(calls) == 2:
            raise Killed
        calls.append(1)
        return draw(*args, **kwargs)

    # once while a batch is drawn, leaving half a file of it behind
    monkeypatch.setattr(drawing, "draw", killed_in_the_third)
    with pytest.raises(Killed):
        job(torn / "draws", model)
    (torn / "draws" / "batch-00002.npz").write_bytes((whole / "draws" / "batch-00002.npz").read_bytes()[:50])
    calls.clear()
    monkeypatch.setattr(drawing, "draw", lambda *a, **k: calls.append(1) or draw(*a, **k))
    drawn = job(torn / "draws", model)
    assert len(calls) == 2, "two of four batches were there already"
    # and once while the release is written: as by a signal that nothing can catch, so the half of it stays
    written: list[Path] = []
    write = release.dicom.write

    def killed_in_the_fifth(path: Path, *args: Any, **kwargs: Any) -> None:
        if len(written) == 5:
            raise Killed
        written.append(path)
        write(path, *args, **kwargs)

    monkeypatch.setattr(release.dicom, "write", killed_in_the_fifth)
    with monkeypatch.context() as patch:
        patch.setattr(release.shutil, "rmtree", lambda *a, **k: None)
        with pytest.raises(Killed):
            bundle(torn, drawn)
    assert (torn / ".release.new").is_dir()
    assert not (torn / "release").exists()
    monkeypatch.setattr(release.dicom, "write", write)
    found = bundle(torn, job(torn / "draws", model))
    assert found == expected
    assert not (torn / ".release.new").exists()


def test_another_model_seed_or_setting_begins_anew(tmp_path: Path, model: PixelDiffusion) -> None:
    first = job(tmp_path, model).sha256()
    assert job(tmp_path, model).sha256() == first
    for change in ({"seed": 4}, {"settings": SETTINGS.model_copy(update={"sampler": "ddim"})}):
        assert job(tmp_path, model, **change).sha256() != first
    assert job(tmp_path, model, settings=SETTINGS.model_copy(update={"images_per_class": 2})).counts == {"a": 2, "b": 2}
    assert len(list(tmp_path.glob("batch-*"))) == 1, "batches of another plan are gone"


def test_no_two_images_are_the_same_and_progress_is_told(tmp_path: Path, model: PixelDiffusion) -> None:
    told: list[tuple[int, int]] = []
    drawn = job(tmp_path, model, progress=lambda done, total: told.append((done, total)))
    assert told == [(4, 14), (8, 14), (12, 14), (14, 14)]
    x_NHW = np.concatenate([x_BHW for _, x_BHW in drawn.batches()])
    assert len(np.unique(x_NHW.reshape(14, -1), axis=0)) == 14
    assert np.concatenate([label_B for label_B, _ in drawn.batches()]).tolist() == [0] * 7 + [1] * 7


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path) -> None:
    def peak(batches: int) -> int:
        x_BHW = np.random.default_rng(0).integers(0, 256, (4, 128, 128), dtype=np.uint8)
        drawn = Draws({"a": 4 * batches}, 128, 4, lambda number: x_BHW.copy())
        tracemalloc.start()
        release.write(tmp_path / "release", drawn, STATEMENT, SETTINGS, seed=1)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    few, many = peak(2), peak(20)
    assert many - few < 18 * 4 * 128 * 128 / 4, "72 more images may not cost a quarter of their pixels"


@pytest.mark.parametrize("sampler", ["ddim", "dpm++", "ddpm"])
def test_every_sampler_draws_images_from_a_seed(model: PixelDiffusion, sampler: str) -> None:
    labels = torch.zeros(3, dtype=torch.long)
    settings = Release.model_validate({"sampler": sampler, "sampler_steps": 3, "guidance": 2.0})
    first, again, other = (drawing.draw(model, labels, settings, PERFORMANCE, seed=seed) for seed in (1, 1, 2))
    assert first.shape == (3, 16, 16)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
