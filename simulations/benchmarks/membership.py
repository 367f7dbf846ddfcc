"""python -m simulations.benchmarks.membership [--data ../shared/data/slices_dementia] [--steps 3000]

Can it be told whom a model was trained on? 20 real patients against 100 others, 8 slices each at 32 x 32: a small network trained
whole without privacy until it remembers (the positive control: an attack that cannot find these members finds nobody's), the same
network at epsilon 8, and the 68 numbers of the appearance at epsilon 8. Prints AUC and TPR with 95 % intervals, and what epsilon 8
allows at most. About 10 minutes.

One split, one model each: the intervals are over patients and not over trainings. Few members, because 20 patients are remembered
in minutes on a CPU; 100 others, so that an FPR of 1 % can be seen: one of them above the threshold.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from client import audit_run
from client.dataset import Patient
from privacy import membership_inference
from privacy.accounting import best_attack, gdp_mu
from shared.config.experiment import Experiment
from shared.errors import DataError
from shared.files import write_bytes
from shared.models import weights
from simulations import audit_plots

EPSILON, SIZE, SLICES = 8.0, 32, 8
MEMBERS, OTHERS = 20, 100
SMALL = {"image_size": SIZE, "channels": (32, 64), "groups": 8, "latents": 4, "encoder_channels": 16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/slices_dementia"))
    parser.add_argument("--steps", type=int, default=3000, help="of the positive control")
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/membership"))
    options = parser.parse_args()
    names, people = read(options.data)
    plain = {"trainable": "full", "slices": 8, "draws": 1, "optimizer": "adam", "learning_rate": 1e-3, "rounds": 1}
    variants: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "no privacy, whole network": (
            plain | {"steps": options.steps},
            {"epsilon": None, "sampling_rate": 1.2 / MEMBERS},
        ),
        "epsilon 8, whole network": (plain | {"steps": 12}, {"epsilon": EPSILON}),
        "epsilon 8, appearance": ({"rounds": 4, "steps": 3}, {"epsilon": EPSILON}),
    }
    mu, best = gdp_mu(EPSILON, 1e-5), best_attack(EPSILON, 1e-5)
    table = Table(title=f"{MEMBERS} members, {OTHERS} others, {SLICES} slices each, {SIZE} x {SIZE}")
    for column in ("training", "attack", "AUC", "TPR at 1 % FPR"):
        table.add_column(column)
    for name, (training, privacy) in variants.items():
        scores = attack(names, people, training, privacy)
        figures = {kind: membership_inference.measure(*pair) for kind, pair in scores.items()}
        for kind, m in figures.items():
            tpr = f"{m.tpr_at_1pct:.2f} ({m.tpr_low:.2f} to {m.tpr_high:.2f})"
            table.add_row(name, kind, f"{m.auc:.3f} ({m.auc_low:.3f} to {m.auc_high:.3f})", tpr)
        table.add_section()
        picture = audit_plots.membership(scores, figures, mu, EPSILON)
        write_bytes(options.out / f"{name.replace(' ', '-').replace(',', '')}.png", picture)
    fpr = 2 / (OTHERS + 1)  # expected, of a threshold that one of them passes
    allowed = f"{best.tpr_at_1pct:.2f}; {membership_inference.ceiling(fpr, mu):.2f} at an FPR of 2/{OTHERS + 1}"
    table.add_row("epsilon 8 allows at most", "any", f"{best.auc:.3f}", allowed)
    Console(width=130).print(table)


def read(folder: Path) -> tuple[list[str], list[Patient]]:
    """Members first, then the others; a random split with a fixed seed, the same share of each class in both parts."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; --data names a folder class/patient/*.jpg")
    rng, parts = np.random.default_rng(0), ([], [])  # type: tuple[np.random.Generator, tuple[list[Patient], list[Patient]]]
    names, every = sorted(p.name for p in folder.iterdir() if p.is_dir()), (MEMBERS + OTHERS) // MEMBERS
    for label, name in enumerate(names):
        everyone = sorted(p for p in (folder / name).iterdir() if p.is_dir())
        for i, index in enumerate(rng.permutation(len(everyone))):
            files = sorted(everyone[index].glob("*.jpg"))
            chosen = np.linspace(0, len(files) - 1, SLICES).round().astype(int)
            x = np.stack([np.asarray(Image.open(files[k]).convert("L").resize((SIZE, SIZE))) for k in chosen])
            parts[i % every > 0].append(Patient(everyone[index].name, label, x))
    return names, [*parts[0][:MEMBERS], *parts[1][:OTHERS]]


def attack(
    names: list[str], people: list[Patient], training: dict[str, Any], privacy: dict[str, Any]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Train on the members as one site; scores of members and of others by each attack."""
    tree = {"name": "membership", "base": "none", "classes": dict.fromkeys(names, "any"), "model": SMALL}
    size = {"cohort": {"patients_per_site": MEMBERS}}
    experiment = Experiment.model_validate({**tree, **size, "training": training, "privacy": privacy})
    noise = 0.0 if experiment.privacy.epsilon is None else audit_run.stated(experiment).noise_multiplier
    model = weights.load_base("none", experiment.model, experiment.classes)
    states = audit_run.trajectory(model, people[:MEMBERS], experiment, noise_multiplier=noise)
    found = audit_run.evidence(model, states, people, experiment)
    return {kind: (score[:MEMBERS], score[MEMBERS:]) for kind, score in found.items()}


if __name__ == "__main__":
    main()
