"""python -m simulations.benchmarks.samplers [--images 48] [--patients 24] [--base phantoms-64]

Images per second and distance of the samplers, side by side, from one model in one process: ancestral sampling with 1,000 steps,
DDIM with 50 and 20, DPM-Solver++ with 15, 20 and 25. All draw the same labels. The distance is FD-efflite0 to phantoms that the
model was not trained on, with its floor and 95 % interval; what the default costs in quality is the difference to ancestral
sampling, with the interval of that difference (independent resamples of both sets of images).

Left out: a GPU, where more images fit a batch and the ratio stays that of the steps.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from server.measure import features
from server.measure.evaluate import Evaluator
from server.measure.heldout import Heldout
from server.publish.draw import draw
from shared import weights
from shared.config import Evaluation, Network, Performance, Sampler, validate
from simulations import phantoms

SAMPLERS: tuple[tuple[Sampler, int], ...] = (
    ("ddpm", 1000), ("ddim", 50), ("ddim", 20), ("dpm++", 25), ("dpm++", 20), ("dpm++", 15),
)  # fmt: skip
DEFAULT: tuple[Sampler, int] = ("dpm++", 20)
SLICES, SEED, BOOTSTRAP = 4, 7, 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=48, help="drawn by each sampler")
    parser.add_argument("--patients", type=int, default=24, help="phantoms they are compared with, four slices each")
    parser.add_argument("--base", default="phantoms-64")
    options = parser.parse_args()
    console = Console(width=130)

    card = weights.card(options.base)
    network = validate(card["network"], Network, source="card")
    model = weights.load_base(options.base, network, {label: label for label in card["labels"]})
    rng = np.random.default_rng(SEED)
    kinds = [phantoms.CLASSES[i % len(phantoms.CLASSES)] for i in range(options.patients)]
    x_NHW = np.concatenate([_phantom(rng, kind, network.image_size) for kind in kinds])
    heldout = Heldout(x_NHW, np.repeat(np.arange(options.patients), SLICES), np.zeros(len(x_NHW), int))
    evaluator = Evaluator(heldout, bootstrap=BOOTSTRAP, seed=SEED, samples=options.images)
    labels = torch.arange(options.images) % len(card["labels"])

    rows = []
    for sampler, steps in SAMPLERS:
        settings = Evaluation(sampler=sampler, sampler_steps=steps)
        performance = Performance(sampling_batch=min(48, options.images))
        draw(model, labels[:2], settings.model_copy(update={"sampler_steps": 2}), performance, seed=SEED)  # warm up
        began = time.perf_counter()
        drawn = draw(model, labels, settings, performance, seed=SEED)
        rate = options.images / (time.perf_counter() - began)
        figure = evaluator(drawn)["FD-efflite0"]
        console.print(f"{sampler} {steps}: {rate:.3g} images/s, FD-efflite0 {figure.value:.1f}", highlight=False)
        rows.append((sampler, steps, rate, figure, features.extract(features.EfficientNetLite0(), drawn)))

    slow = rows[0]
    real = features.extract(features.EfficientNetLite0(), heldout.x_NHW)
    table = Table(title=f"{options.images} images each, {len(x_NHW)} phantom slices; floor {slow[3].floor:.1f}")
    for column in ("sampler", "steps", "images/s", "times ancestral", "FD-efflite0", "difference to ancestral"):
        table.add_column(column)
    for sampler, steps, rate, figure, drawn_Nd in rows:
        low, high = _difference(real, drawn_Nd, slow[4])
        table.add_row(
            f"{sampler}{' (default)' if (sampler, steps) == DEFAULT else ''}",
            str(steps),
            f"{rate:.3g}",
            f"{rate / slow[2]:.1f}",
            f"{figure.value:.1f} ({figure.low:.1f} to {figure.high:.1f})",
            "" if steps == slow[1] else f"{figure.value - slow[3].value:+.1f} ({low:+.1f} to {high:+.1f})",
        )
    console.print(table)


def _phantom(rng: np.random.Generator, kind: str, size: int) -> np.ndarray:
    """Slices (SLICES, H, W) uint8 of one new phantom."""
    return np.asarray(phantoms.render(phantoms.draw(rng, kind), SLICES, size))


def _difference(real: torch.Tensor, a_Nd: torch.Tensor, b_Nd: torch.Tensor) -> tuple[float, float]:
    """95 % interval of FD(real, a) - FD(real, b): the same patients for both, images of each on their own, resampled."""
    rng = np.random.default_rng(SEED)
    pa, pb = features.Products(real, a_Nd), features.Products(real, b_Nd)
    patients, ones = len(real) // SLICES, torch.ones(len(real), dtype=torch.float64)
    value = pa.frechet(ones, torch.ones(len(a_Nd))) - pb.frechet(ones, torch.ones(len(b_Nd)))
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
