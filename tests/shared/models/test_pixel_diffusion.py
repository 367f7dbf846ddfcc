"""The network draws, guides, and trains exactly what it says."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import Attention

from shared.adapters.base import attach
from shared.models.base import Sampling, shapes
from shared.models.diffusion import Process, alphas_cumprod
from shared.models.pixel_diffusion import PixelDiffusion, PixelDiffusionSettings

TINY = PixelDiffusionSettings(image_size=16, channels=(8, 16), groups=4, latents=4, encoder_channels=8)


def tiny() -> PixelDiffusion:
    torch.manual_seed(0)
    return PixelDiffusion(TINY, ("healthy", "atrophy", "lesion"))


def test_attention_is_at_the_lowest_level_only() -> None:
    unet = tiny().denoiser.unet
    assert not any(isinstance(m, Attention) for block in unet.down_blocks[:-1] for m in block.modules())
    assert not any(isinstance(m, Attention) for block in unet.up_blocks[1:] for m in block.modules())
    assert any(isinstance(m, Attention) for m in unet.down_blocks[-1].modules())


def test_no_layer_mixes_patients() -> None:
    assert not any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in tiny().modules())


def test_the_adapter_is_the_appearance_and_full_is_everything_but_the_encoder() -> None:
    model = tiny()
    adapter = attach(model, "appearance")
    assert set(shapes(adapter)) == {"appearance.mean", "appearance.variance"}
    full = attach(model, "full")
    assert set(adapter) < set(full)
    assert not any(name.startswith("encoder.") for name in full)
    assert not any(p.requires_grad for p in model.encoder.parameters())


def test_unlabelled_and_unmapped_classes_use_the_any_label() -> None:
    model = PixelDiffusion(TINY, ("healthy", "atrophy", "lesion"), {"old": "atrophy", "odd": "any"})
    assert model._base_label(torch.tensor([0, 1, -1])).tolist() == [1, 3, 3]


@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
def test_sampling_is_reproducible_and_depends_on_the_batch_size_not_at_all_in_shape(sampler: str) -> None:
    model = tiny().eval()
    labels = torch.tensor([0, 1, 2, -1, 0])
    draw = [
        model.sample(labels, torch.Generator().manual_seed(1), Sampling(sampler, steps=3, batch=2))  # type: ignore[arg-type]
        for _ in range(2)
    ]
    assert draw[0].shape == (5, 1, 16, 16)
    assert torch.equal(*draw)
    assert draw[0].abs().max() <= 1


def test_guidance_changes_the_samples_and_hiding_conditions_hides_them() -> None:
    model = tiny().eval()
    x, t = model.codec.encode(torch.randn(2, 1, 16, 16)), torch.tensor([5, 500])
    hidden = torch.zeros(2, dtype=torch.bool)
    one = model.denoiser(x, t, torch.tensor([0, 1]), torch.randn(2, 4), hidden)
    other = model.denoiser(x, t, torch.tensor([2, 2]), torch.randn(2, 4), hidden)
    assert torch.equal(one, other)
    seen = model.denoiser(x, t, torch.tensor([2, 2]), torch.randn(2, 4), ~hidden)
    assert not torch.allclose(one, seen)


def test_the_schedule_is_the_cosine_of_its_paper() -> None:
    t = torch.arange(1001, dtype=torch.float64) / 1000
    f = torch.cos((t + 0.008) / 1.008 * torch.pi / 2) ** 2
    torch.testing.assert_close(alphas_cumprod()[:900].double(), (f[1:901] / f[0]), atol=2e-3, rtol=0)


def test_the_loss_of_a_perfect_velocity_is_zero() -> None:
    process = Process()

    class Oracle:
        """Knows x, so it can return the velocity: v = (alpha x_t - x) / sigma."""

        def __call__(self, x_t: torch.Tensor, t: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
            alpha, sigma = (c[t].view(-1, 1, 1, 1) for c in (process.alpha, process.sigma))
            return (alpha * x_t - x) / sigma

    x, eps = torch.rand(8, 1, 16, 16) * 2 - 1, torch.randn(8, 1, 16, 16)
    label, z = torch.zeros(8, dtype=torch.long), torch.zeros(8, 4)
    loss = process.losses(Oracle(), x, label, z, noise=lambda: eps, condition_dropout=0.0)  # type: ignore[arg-type]
    assert float(loss.mean()) < 1e-4
