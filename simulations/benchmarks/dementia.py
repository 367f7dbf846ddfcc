"""python -m simulations.benchmarks.dementia [--out out/dementia-table] [--fine-tune-steps 10]

What privacy costs on real brains, every metric in one table: the public base, configs/dementia.yaml without privacy (the same
parameters and steps), non-private fine-tuning of the whole network (Adam 3e-4), epsilon 8 and epsilon 3. Figures of the last round
on 24 held-out patients, beside what real images score, with 95 % intervals; biomarkers by class; and what classifiers trained on
the drawn images know of the real patients. Prints the table and writes it to OUT/table.md.

Interrupted, the same command goes on; a run that is finished is not done again. Nothing is released: no image is drawn but for
evaluation. About 20 minutes on 2 idle cores, two thirds of them for the whole network.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from server.evaluation import study
from server.evaluation.heldout import Heldout
from server.metrics.base import Description, describe
from server.summary import Measured
from shared.config.experiment import Experiment
from shared.config.loading import read
from shared.files import write_bytes
from simulations.run import simulate

CONFIG = Path("configs/dementia.yaml")
BASE = "base"
FLOOR = "real against real"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/dementia-table"))
    parser.add_argument("--fine-tune-steps", type=int, default=10, help="local steps a round, 4 rounds")
    parser.add_argument("--samples", type=int, default=240, help="images drawn for an evaluation")
    parser.add_argument("--slices", type=int, default=24, help="of each patient")
    options = parser.parse_args()
    console = Console(width=140)
    common = {
        "evaluation.every": 4,
        "evaluation.samples": options.samples,
        "cohort.slices_per_patient": options.slices,
        "release.images_per_class": 0,
    }
    variants: dict[str, dict[str, Any]] = {
        "no privacy": {"privacy.epsilon": None},
        "epsilon 8": {},
        "epsilon 3": {"privacy.epsilon": 3.0},
        "no privacy, whole network": {
            "privacy.epsilon": None,
            "privacy.sampling_rate": 0.25,
            "training.trainable": "full",
            "training.steps": options.fine_tune_steps,
            "training.optimizer": "adam",
            "training.learning_rate": 3e-4,
        },
    }
    columns: dict[str, dict[str, str]] = {}
    for name, overrides in variants.items():
        folder = options.out / name.replace(" ", "-").replace(",", "")
        experiment = read(CONFIG, Experiment, common | overrides)
        if not (folder / "summary.json").exists():
            simulate(experiment, folder, console)
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        if not columns:  # the base and the held-out patients are the same in every run
            columns[BASE] = column(summary, "0", _base_study(folder, experiment, options.out / "base-study.json"))
        columns[name] = column(summary, str(summary["rounds"]), summary["studied"])
        floors = floor(summary)
    order = [BASE, "no privacy", "no privacy, whole network", "epsilon 8", "epsilon 3", FLOOR]
    text = markdown(columns | {FLOOR: floors}, order)
    write_bytes(options.out / "table.md", text.encode())
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    console.print(options.out / "table.md")


def _base_study(run: Path, experiment: Experiment, kept: Path) -> dict[str, Any]:
    """Biomarkers and utility of the public base's images; measured once and kept."""
    if not kept.exists():
        with np.load(run / "server" / "samples" / "round-000.npz", allow_pickle=False) as drawn:
            found = study.study(
                Heldout.load(run / "server" / "heldout.npz"),
                drawn["x_NHW"],
                drawn["label_N"],
                list(experiment.classes),
                bootstrap=experiment.evaluation.bootstrap,
                seed=experiment.seed,
                with_utility=True,
            )
        write_bytes(kept, json.dumps(found).encode())
    tree: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    return tree


def described(summary: Mapping[str, Any]) -> dict[str, Description]:
    return describe(list(summary["metrics"]), summary.get("descriptions"))


def column(summary: Mapping[str, Any], number: str, studied: Mapping[str, Any] | None) -> dict[str, str]:
    """One run's cells: metric -> value (low to high)."""
    cells = {}
    for name, told in described(summary).items():
        f = Measured.model_validate(summary["metrics"][name][number])
        cells[told.title] = f"{told.shown(f.value)} ({told.interval(f.low, f.high)})"
    for name, _, _, _, ks, _ in _by_class(studied):
        cells[name] = ks
    for classifier, metric, synthetic, *_ in study.utility_rows(studied or {}):
        cells[f"{classifier}, {metric}"] = synthetic
    return cells


def floor(summary: Mapping[str, Any]) -> dict[str, str]:
    """What real images score by each metric; for classifiers, what training on real patients does, and chance."""
    cells = {
        told.title: told.shown(next(iter(summary["metrics"][name].values()))["floor"])
        for name, told in described(summary).items()
    }
    for name, *_, real in _by_class(summary["studied"]):
        cells[name] = real
    for classifier, metric, _, real, _, chance in study.utility_rows(summary["studied"] or {}):
        cells[f"{classifier}, {metric}"] = f"{real}; chance {chance}"
    return cells


def _by_class(studied: Mapping[str, Any] | None) -> list[list[str]]:
    return [[f"KS of {name}, {label}", label, *rest] for name, label, *rest in study.biomarker_rows(studied or {})]


def markdown(columns: Mapping[str, Mapping[str, str]], order: list[str]) -> str:
    """Metrics down, runs across; what a run lacks is empty."""
    metrics = list(dict.fromkeys(metric for name in order for metric in columns[name]))
    rows = [["metric", *order], ["---"] * (len(order) + 1)]
    rows += [[metric, *(columns[name].get(metric, "") for name in order)] for metric in metrics]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


if __name__ == "__main__":
    main()
