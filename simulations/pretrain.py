"""Train the public base on phantoms: `fedsynth pretrain configs/base.yaml`.

One function, resumable: run the same command again. Progress is counted in images. Everything random follows from the
seed and the step, so an interrupted run gives the weights of an uninterrupted one (same machine, same threads).

Left out: several devices; the phantoms of a run fit in memory.
"""

from __future__ import annotations

import platform
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from shared.errors import ConfigError
from shared.files import write_arrays
from shared.models import weights
from shared.models.device import device_for, precision
from shared.models.diffusion import Process
from shared.models.pixel_diffusion import PixelDiffusion, PixelDiffusionSettings
from simulations.base_card import write_card
from simulations.cohorts import phantoms
from simulations.pretraining import Pretraining


def pretrain(settings: Pretraining, out: Path) -> Path:
    """Train, and write OUT/NAME.safetensors (fp16) and OUT/NAME.json (its card). Returns the weights' path."""
    # Set up
    device = device_for(settings.performance)
    if not isinstance(settings.model, PixelDiffusionSettings):
        raise ConfigError(
            f"a base of the kind `{settings.model.kind}` cannot be made here yet; use `kind: pixel-diffusion`"
        )
    model = PixelDiffusion(settings.model, phantoms.CLASSES).to(device)
    torch.manual_seed(settings.seed)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()  # type: ignore[operator]  # Module.__getattr__ hides the method
    ema = {name: t.clone() for name, t in model.state_dict().items()}
    parameters = [*model.denoiser.parameters(), *model.encoder.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=settings.learning_rate, betas=(0.9, 0.99))
    process = Process(device)
    state = out / "state.safetensors"
    done, cpu_s = 0, 0.0
    # Resume
    if state.exists():
        done, cpu_s = _restore(state, model, ema, optimizer, parameters)
    x_PSHW, label_P = _pool(settings, out)
    images = torch.from_numpy(x_PSHW).flatten(0, 1)
    label_N = torch.from_numpy(label_P).repeat_interleave(settings.slices_per_patient)
    began_cpu = time.process_time()
    with Progress(
        TextColumn("training the base"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("images · {task.fields[loss]}"),
        TimeRemainingColumn(),
    ) as bar:
        task = bar.add_task("", total=settings.steps * settings.batch, completed=done * settings.batch, loss="")
        average = 0.0
        for step in range(done, settings.steps):
            phase = settings.phase(step)
            # Draw a batch
            rng = torch.Generator(device).manual_seed(settings.seed * 1_000_003 + step)
            pick = torch.randint(len(images), (settings.batch,), generator=torch.Generator().manual_seed(step))
            x = images[pick].to(device).float()[:, None] / 127.5 - 1
            # Loss: velocity, and the latent's KL to a standard normal
            with precision(settings.performance, device):
                mean, log_std = model.encoder(x)
                z = mean + log_std.exp() * torch.randn(mean.shape, device=device, generator=rng)
                loss = process.losses(
                    model.denoiser,
                    model.codec.encode(x),
                    label_N[pick].to(device),
                    z,
                    noise=lambda x=x, rng=rng: model.codec.noise(tuple(x.shape), rng, device),  # type: ignore[misc]
                    condition_dropout=settings.condition_dropout,
                    label_dropout=phase.label_dropout,
                    rng=rng,
                ).mean()
            mean, log_std = mean.float(), log_std.float()
            kl = 0.5 * (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std).sum(1).mean()
            # Step: warm up, then as the phase says
            rate = min((step + 1) / settings.warmup_steps, 1.0) * settings.rate(step)
            optimizer.param_groups[0]["lr"] = settings.learning_rate * rate
            optimizer.zero_grad(set_to_none=True)
            (loss + phase.kl * kl).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            decay = min(settings.ema, (step + 1) / (step + 10))
            for name, t in model.state_dict().items():
                ema[name].lerp_(t, 1 - decay)
            # Report and save
            value = float(loss.detach())
            average = value if step == done else 0.98 * average + 0.02 * value
            bar.update(task, advance=settings.batch, loss=f"loss {average:.4f}")
            if (step + 1) % settings.checkpoint_every == 0 or step + 1 == settings.steps:
                spent = cpu_s + time.process_time() - began_cpu
                _save(state, model, ema, optimizer, parameters, step + 1, spent)
                line = f"step {step + 1} loss {average:.4f} kl {float(kl.detach()):.2f} cpu {spent / 60:.1f} min"
                bar.console.print(line, highlight=False)
    model.load_state_dict(ema)
    return _finish(settings, model, out, cpu_s + time.process_time() - began_cpu, device)


def _finish(
    settings: Pretraining,
    model: PixelDiffusion,
    out: Path,
    cpu_s: float,
    device: torch.device,
) -> Path:
    """Fit the public prior and appearance on the phantoms, write weights and card."""
    model.eval()
    patients, slices = 1000, 12  # whole stacks, because the prior knows the level in the stack
    rng = np.random.default_rng(settings.seed + 1)
    stacks, labels = phantoms.cohort(rng, patients, slices, settings.model.image_size)
    model.fit_public(torch.from_numpy(stacks)[:, :, None], torch.from_numpy(labels))
    model.cpu()
    path = out / f"{settings.name}.safetensors"
    digest = weights.write(path, {k: t.half() for k, t in model.state_dict().items()})
    about = {
        "name": settings.name,
        "sha256": digest,
        "labels": list(phantoms.CLASSES),
        "model": settings.model.model_dump(mode="json"),
        "parameters": sum(p.numel() for p in model.parameters()),
        "training": settings.model_dump(mode="json", exclude={"model"}),
        "data": "public digital phantoms drawn from the MNI152 tissue maps inside nilearn; no patient, no private data",
        "cpu_minutes": round(cpu_s / 60, 1),
        "device": device.type,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "command": "fedsynth pretrain configs/base.yaml",
    }
    write_card(model, about, path, settings.seed)
    return path


def _pool(settings: Pretraining, out: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The phantoms of a run, drawn once and kept beside the checkpoint."""
    file = out / "phantoms.npz"
    if file.exists():
        with np.load(file, allow_pickle=False) as arrays:
            return arrays["x_PSHW"], arrays["label_P"]
    rng = np.random.default_rng(settings.seed)
    labels = rng.integers(len(phantoms.CLASSES), size=settings.patients)
    images = np.empty((settings.patients, settings.slices_per_patient, *[settings.model.image_size] * 2), np.uint8)
    with Progress(TextColumn("drawing phantoms"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as bar:
        for i in bar.track(range(settings.patients)):
            phantom = phantoms.draw(rng, phantoms.CLASSES[labels[i]])
            images[i] = phantoms.render(phantom, settings.slices_per_patient, settings.model.image_size)
    write_arrays(file, x_PSHW=images, label_P=labels)
    return images, labels


def _save(
    state: Path,
    model: PixelDiffusion,
    ema: dict[str, torch.Tensor],
    optimizer: torch.optim.Adam,
    parameters: list[torch.nn.Parameter],
    step: int,
    cpu_s: float,
) -> None:
    tensors = {f"model.{k}": t for k, t in model.state_dict().items()} | {f"ema.{k}": t for k, t in ema.items()}
    for i, p in enumerate(parameters):
        tensors[f"adam.m.{i}"] = optimizer.state[p]["exp_avg"]
        tensors[f"adam.v.{i}"] = optimizer.state[p]["exp_avg_sq"]
    tensors["progress"] = torch.tensor([float(step), cpu_s], dtype=torch.float64)
    weights.write(state, tensors)


def _restore(
    state: Path,
    model: PixelDiffusion,
    ema: dict[str, torch.Tensor],
    optimizer: torch.optim.Adam,
    parameters: list[torch.nn.Parameter],
) -> tuple[int, float]:
    tensors = weights.read(state)
    step, cpu_s = tensors["progress"].tolist()
    model.load_state_dict({k[6:]: t for k, t in tensors.items() if k.startswith("model.")})
    for name, average in ema.items():
        average.copy_(tensors[f"ema.{name}"])
    for i, p in enumerate(parameters):
        optimizer.state[p] = {
            "step": torch.tensor(step),
            "exp_avg": tensors[f"adam.m.{i}"].to(p),
            "exp_avg_sq": tensors[f"adam.v.{i}"].to(p),
        }
    return int(step), float(cpu_s)
