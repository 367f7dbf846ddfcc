"""Weights are safetensors, checked by their hash, and fit or are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shared.errors import WeightsError
from shared.models import weights
from shared.models.pixel_diffusion import PixelDiffusionSettings

ANY = {"a": "any", "b": "healthy"}


def test_the_shipped_base_loads_and_maps_its_labels() -> None:
    model = weights.load_base("phantoms-64", PixelDiffusionSettings(), ANY)
    assert model.to_base == [3, 0]
    assert model.prior.offset.shape[0] == 2


def test_the_shipped_base_is_small_and_half_precision() -> None:
    path = weights.base_path("phantoms-64")
    assert path.stat().st_size <= 10_000_000
    assert {t.dtype for t in weights.read(path).values()} == {torch.float16}


def test_the_card_says_how_the_base_was_made_and_for_how_long() -> None:
    card = weights.card("phantoms-64")
    assert card["cpu_minutes"] >= 90 or card["device"] == "cuda"
    assert card["command"] == "fedsynth pretrain configs/base.yaml"


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    source = weights.base_path("phantoms-64")
    data = bytearray(source.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "x.safetensors").write_bytes(data)
    (tmp_path / "x.json").write_bytes(source.with_suffix(".json").read_bytes())
    with pytest.raises(WeightsError, match="altered"):
        weights.load_base(str(tmp_path / "x.safetensors"), PixelDiffusionSettings(), ANY)


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    torch.save({"a": torch.ones(1)}, path)
    with pytest.raises(WeightsError, match="not a safetensors file"):
        weights.read(path)


def test_another_network_an_unknown_base_and_an_unknown_label_are_refused() -> None:
    with pytest.raises(WeightsError, match="another model; differing settings: latents"):
        weights.load_base("phantoms-64", PixelDiffusionSettings(latents=8), ANY)
    with pytest.raises(WeightsError, match="no base is called"):
        weights.load_base("nothing", PixelDiffusionSettings(), ANY)
    with pytest.raises(WeightsError, match="maps to `sick`"):
        weights.load_base("phantoms-64", PixelDiffusionSettings(), {"a": "sick"})


def test_writing_leaves_no_temporary_file(tmp_path: Path) -> None:
    weights.write(tmp_path / "a.safetensors", {"x": torch.ones(3)})
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]
