"""Draw images from a model as the settings of an evaluation or a release say.

`draw` returns a few hundred at once. `Draws` is the job of thousands: batch after batch, each from a seed of its own and
written whole before the next begins. Killed anywhere and started again it goes on, and gives the same images bit for bit (same
machine, same versions, same batch size); memory holds one batch.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.release import watermark
from shared.config.experiment import Evaluation, Performance, Release
from shared.files import write_arrays, write_bytes
from shared.models.base import GenerativeModel, Sampling
from shared.models.device import precision


def draw(
    model: GenerativeModel,
    label_N: Tensor,
    settings: Evaluation | Release,
    performance: Performance,
    *,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.uint8]:
    """Images (N, H, W) uint8 for the experiment's labels (N,). The same seed gives the same images (same machine, same batch)."""
    model.eval()
    device = next(model.parameters()).device
    if performance.compile and device.type == "cuda":
        model.accelerate()
    with precision(performance, device):
        sampling = Sampling(settings.sampler, settings.sampler_steps, settings.guidance, performance.sampling_batch)
        x_NCHW = model.sample(label_N, torch.Generator().manual_seed(seed), sampling, progress)
    images: NDArray[np.uint8] = ((x_NCHW[:, 0].float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    return images


@dataclass(frozen=True)
class Draws:
    """Images of a release, batch after batch, in the order of their classes.

    counts   class -> how many
    size     pixels a side
    """

    counts: Mapping[str, int]
    size: int
    batch: int
    read: Callable[[int], NDArray[np.uint8]]

    def __len__(self) -> int:
        return sum(self.counts.values())

    def batches(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
        """Labels (B,) and images (B, H, W) of each batch."""
        label_N = np.repeat(np.arange(len(self.counts)), list(self.counts.values()))
        for number, start in enumerate(range(0, len(self), self.batch)):
            yield label_N[start : start + self.batch], self.read(number)

    def sha256(self) -> str:
        """Digest of all pixels and labels: what a check that saw these images binds itself to."""
        digest = hashlib.sha256(f"{self.size} {dict(self.counts)}".encode())
        for _, x_BHW in self.batches():
            digest.update(np.ascontiguousarray(x_BHW).data)
        return digest.hexdigest()

    @staticmethod
    def of(images: Mapping[str, NDArray[np.uint8]]) -> Draws:
        """Images that are in memory already, class -> (n, H, W)."""
        counts = {label: len(x_NHW) for label, x_NHW in images.items()}
        x_NHW = np.concatenate(list(images.values()))
        return Draws(counts, int(x_NHW.shape[1]), max(1, len(x_NHW)), lambda number: x_NHW)


def draw_all(
    folder: Path,
    model: GenerativeModel,
    settings: Release,
    performance: Performance,
    *,
    seed: int,
    model_sha256: str,
    progress: Callable[[int, int], None] | None = None,
) -> Draws:
    """Draw a release into `folder`, or go on where it stopped.

    folder   one file a batch; a folder of another model, seed or setting is begun anew, and a torn file is drawn again
    """
    names = list(model.classes)
    label_N = torch.arange(len(names)).repeat_interleave(settings.images_per_class)
    plan = _plan(settings, performance, seed=seed, model_sha256=model_sha256, classes=names)
    if not _same(folder / "plan.json", plan):
        shutil.rmtree(folder, ignore_errors=True)
        write_bytes(folder / "plan.json", plan)
    batch = performance.sampling_batch
    for number, start in enumerate(range(0, len(label_N), batch)):
        label_B = label_N[start : start + batch]
        if _batch(folder, number, len(label_B)) is None:
            own = int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:7])
            x_BHW = draw(model, label_B, settings, performance, seed=own)
            # Marked here and not later: what the gate and the sites look at is what is published
            x_BHW = watermark.mark(x_BHW) if settings.watermark else x_BHW
            x_BHW = watermark.corner(x_BHW) if settings.corner_label else x_BHW
            write_arrays(_path(folder, number), x_BHW=x_BHW)
        if progress:
            progress(start + len(label_B), len(label_N))

    def read(number: int) -> NDArray[np.uint8]:
        x_BHW = _batch(folder, number, min(batch, len(label_N) - number * batch))
        assert x_BHW is not None, "drawn above"
        return x_BHW

    counts = dict.fromkeys(names, settings.images_per_class)
    return Draws(counts, model.settings.image_size, batch, read)


def _plan(settings: Release, performance: Performance, *, seed: int, model_sha256: str, classes: list[str]) -> bytes:
    """Everything that the pixels follow from; the number of threads and the device move them by a rounding at most."""
    tree: dict[str, Any] = {
        "model_sha256": model_sha256,
        "seed": seed,
        "classes": classes,
        "images_per_class": settings.images_per_class,
        "sampler": settings.sampler,
        "sampler_steps": settings.sampler_steps,
        "guidance": settings.guidance,
        "watermark": settings.watermark,
        "corner_label": settings.corner_label,
        "batch": performance.sampling_batch,
        "precision": performance.precision,
    }
    return json.dumps(tree, sort_keys=True).encode()


def _same(path: Path, plan: bytes) -> bool:
    return path.is_file() and path.read_bytes() == plan


def _path(folder: Path, number: int) -> Path:
    return folder / f"batch-{number:05d}.npz"


def _batch(folder: Path, number: int, images: int) -> NDArray[np.uint8] | None:
    """A batch that was drawn before, or none where it is not there whole."""
    try:
        with _path(folder, number).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            x_BHW: NDArray[np.uint8] = arrays["x_BHW"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return x_BHW if len(x_BHW) == images else None
