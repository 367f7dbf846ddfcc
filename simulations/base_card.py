"""The card of a base: NAME.json for programs, NAME.md and NAME.png for people."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from shared.files import write_bytes
from shared.models.base import GenerativeModel, Sampling
from simulations.cohorts import phantoms

COLUMNS, SAMPLER_STEPS = 12, 20


def write_card(model: GenerativeModel, about: dict[str, Any], path: Path, seed: int) -> None:
    """Write the card beside the weights at `path`: what they are, how they were made, and what they draw."""
    write_bytes(path.with_suffix(".json"), (json.dumps(about, indent=2) + "\n").encode())
    real, _ = phantoms.cohort(np.random.default_rng(seed + 2), COLUMNS, 3, model.settings.image_size)
    labels = torch.arange(len(phantoms.CLASSES)).repeat_interleave(COLUMNS)
    rng = torch.Generator().manual_seed(seed)
    drawn = model.sample(labels, rng, Sampling(steps=SAMPLER_STEPS))
    bytes_NHW = ((drawn[:, 0] + 1) * 127.5).round().to(torch.uint8).numpy()
    rows = [_row(real[:, 1]), *(_row(bytes_NHW[i * COLUMNS : (i + 1) * COLUMNS]) for i in range(len(phantoms.CLASSES)))]
    Image.fromarray(np.concatenate(rows)).save(path.with_suffix(".png"))
    write_bytes(path.with_suffix(".md"), _words(about, path.stem).encode())


def _row(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.concatenate(list(images), axis=1)


def _words(about: dict[str, Any], name: str) -> str:
    training, versions, size = (
        json.dumps(about["training"], indent=2),
        about["versions"],
        about["model"]["image_size"],
    )
    made = f"`{about['command']}`, {about['cpu_minutes']:g} CPU minutes on {about['device']}, torch {versions['torch']}"
    return f"""# The public base `{name}`

![Samples]({name}.png)

First row: phantoms, the training data. Then what the base draws of {", ".join(about["labels"])}
({SAMPLER_STEPS} DPM-Solver++ steps, the first ones, not picked).

- **What it is.** A diffusion U-Net, encoder, prior and appearance: {about["parameters"]:,} parameters, fp16 safetensors.
- **What it learned from.** {about["data"][0].upper() + about["data"][1:]}. It has never seen a person.
- **How it was made.** {made}.
- **sha256** `{about["sha256"]}`, checked at every load.
- **Limits.** Axial T1-like slices of the cerebrum at {size} pixels. One anatomy varied by warps: the folds are nobody's,
  and pathology is limited to wide ventricles, thin cortex and dark spots in white matter.

```json
{training}
```
"""
