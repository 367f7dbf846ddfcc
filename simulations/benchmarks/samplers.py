"""python -m simulations.benchmarks.samplers [--images 96] [--patients 24] [--base phantoms-64] [--out out/samplers]

Images per second and distance of the samplers, side by side, from one model: ancestral sampling with 1,000 steps, DDIM with 50 and
20, DPM-Solver++ with 15, 20 and 25. All draw the same labels in pieces of 24 images, in turn, so that what else the machine does
meets all of them; a piece that is there is not drawn again, and the speed is CPU time, not the clock's. The distance is FD-efflite0
to phantoms that the model was not trained on, with its floor and 95 % interval; what the default costs in quality is the difference
to ancestral sampling, with the interval of that difference (independent resamples of both sets of images). Ends with code 1
where the default is less than 40 times as fast, or farther away than ancestral sampling by the whole interval.

Left out: a GPU, where more images fit a batch and the ratio stays that of the steps.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from server.evaluation.evaluate import Evaluator
from server.evaluation.heldout import Heldout
from server.metrics import features
from server.release.draw import draw
from shared.config.experiment import Evaluation, Performance, Release, Sampler
from shared.files import write_bytes
from shared.models import weights
from shared.models.base import GenerativeModel
from simulations.cohorts import phantoms

SAMPLERS: tuple[tuple[Sampler, int], ...] = (
    ("ddpm", 1000), ("ddim", 50), ("ddim", 20), ("dpm++", 25), ("dpm++", 20), ("dpm++", 15),
)  # fmt: skip
DEFAULT: tuple[Sampler, int] = (Release().sampler, Release().sampler_steps)
TIMES = 40  # as fast as ancestral sampling the default must be
SLICES, SEED, BOOTSTRAP, PIECE = 4, 7, 200, 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=96, help="drawn by each sampler; a multiple of 24")
    parser.add_argument("--patients", type=int, default=24, help="phantoms they are compared with, four slices each")
    parser.add_argument("--base", default="phantoms-64")
    parser.add_argument("--out", type=Path, default=Path("out/samplers"), help="keeps the pieces")
    options = parser.parse_args()
    console = Console(width=130)

    card = weights.card(options.base)
    settings = weights.made_for(options.base)
    model = weights.load_base(options.base, settings, {label: label for label in card["labels"]})
    drawn: dict[tuple[Sampler, int], list[np.ndarray]] = {key: [] for key in SAMPLERS}
    seconds = dict.fromkeys(SAMPLERS, 0.0)
    for number in range(-(-options.images // PIECE)):
        for sampler, steps in SAMPLERS:
            x_NHW, took_s = piece(options.out, model, str(card["sha256"]), sampler, steps, number)
            drawn[sampler, steps].append(x_NHW)
            seconds[sampler, steps] += took_s
            console.print(f"{sampler} {steps}, piece {number + 1}: {took_s:.1f} CPU seconds", highlight=False)

    rng = np.random.default_rng(SEED)
    kinds = [phantoms.CLASSES[i % len(phantoms.CLASSES)] for i in range(options.patients)]
    x_NHW = np.concatenate([_phantom(rng, kind, settings.image_size) for kind in kinds])
    heldout = Heldout(x_NHW, np.repeat(np.arange(options.patients), SLICES), np.zeros(len(x_NHW), int))
    images = PIECE * len(drawn[DEFAULT])
    evaluator = Evaluator(heldout, bootstrap=BOOTSTRAP, seed=SEED, samples=images)
    rows = {}
    for key, pieces in drawn.items():
        all_NHW = np.concatenate(pieces)
        figure = evaluator(all_NHW)["FD-efflite0"]
        rows[key] = images / seconds[key], figure, features.extract(features.EfficientNetLite0(), all_NHW)

    slow = rows[SAMPLERS[0]]
    table = Table(title=f"{images} images each, {len(x_NHW)} phantom slices; floor {slow[1].floor:.1f}")
    for column in (
        "sampler",
        "steps",
        "images per CPU second",
        "times ancestral",
        "FD-efflite0",
        "difference to ancestral",
    ):
        table.add_column(column)
    for (sampler, steps), (rate, figure, drawn_Nd) in rows.items():
        low, high = _difference(evaluator.features, drawn_Nd, slow[2])
        table.add_row(
            f"{sampler}{' (default)' if (sampler, steps) == DEFAULT else ''}",
            str(steps),
            f"{rate:.3g}",
            f"{rate / slow[0]:.1f}",
            f"{figure.value:.1f} ({figure.low:.1f} to {figure.high:.1f})",
            "" if sampler == "ddpm" else f"{figure.value - slow[1].value:+.1f} ({low:+.1f} to {high:+.1f})",
        )
    console.print(table)
    times, worse = rows[DEFAULT][0] / slow[0], _difference(evaluator.features, rows[DEFAULT][2], slow[2])[0] > 0
    console.print(
        f"The default is {times:.1f} times as fast and {'farther away' if worse else 'no farther away'}.",
        highlight=False,
    )
    sys.exit(int(times < TIMES or worse))


def piece(
    folder: Path, model: GenerativeModel, model_sha256: str, sampler: Sampler, steps: int, number: int
) -> tuple[np.ndarray, float]:
    """Images (24, H, H) and the CPU seconds they took, read where they were drawn before."""
    plan = json.dumps([model_sha256, sampler, steps, number, PIECE, SEED, torch.__version__])
    path = folder / f"{hashlib.sha256(plan.encode()).hexdigest()[:16]}.npz"
    if not path.exists():
        labels = (torch.arange(PIECE) + number * PIECE) % len(model.classes)
        performance = Performance(sampling_batch=PIECE, precision="bfloat16")
        settings = Evaluation(sampler=sampler, sampler_steps=steps)
        if not number:
            draw(model, labels, settings.model_copy(update={"sampler_steps": 2}), performance, seed=SEED)  # warm up
        began = time.process_time()
        x_NHW = draw(model, labels, settings, performance, seed=SEED + number)
        buffer = BytesIO()
        np.savez_compressed(buffer, x_NHW=x_NHW, seconds=time.process_time() - began)
        write_bytes(path, buffer.getvalue())
    with np.load(path, allow_pickle=False) as kept:
        return kept["x_NHW"], float(kept["seconds"])


def _phantom(rng: np.random.Generator, kind: str, size: int) -> np.ndarray:
    """Slices (SLICES, H, W) uint8 of one new phantom."""
    return np.asarray(phantoms.render(phantoms.draw(rng, kind), SLICES, size))


def _difference(real: torch.Tensor, a_Nd: torch.Tensor, b_Nd: torch.Tensor) -> tuple[float, float]:
    """95 % interval of FD(real, a) - FD(real, b): the same patients for both, images of each on their own, resampled."""
    rng = np.random.default_rng(SEED)
    pa, pb = features.Products(real, a_Nd), features.Products(real, b_Nd)
    patients, ones = len(real) // SLICES, torch.ones(len(real), dtype=torch.float64)
    value = pa.frechet(ones, torch.ones(len(a_Nd)).double()) - pb.frechet(ones, torch.ones(len(b_Nd)).double())
    spread = []
    for _ in range(BOOTSTRAP):
        taken = np.bincount(rng.integers(patients, size=patients), minlength=patients).repeat(SLICES)
        w = torch.from_numpy(taken.astype(np.float64))
        v = [
            torch.from_numpy(np.bincount(rng.integers(len(x), size=len(x)), minlength=len(x)).astype(np.float64))
            for x in (a_Nd, b_Nd)
        ]
        spread.append(pa.frechet(w, v[0]) - pb.frechet(w, v[1]))
    low, high = np.quantile(spread, [0.025, 0.975]) - (float(np.mean(spread)) - value)
    return float(low), float(high)


if __name__ == "__main__":
    main()
