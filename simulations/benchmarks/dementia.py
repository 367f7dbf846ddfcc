"""python -m simulations.benchmarks.dementia [--out out/benchmarks] [--fine-tune-steps 10]

What privacy costs on real brains: configs/dementia.yaml at epsilon 8 and 3, the same parameters and steps without privacy, and
non-private fine-tuning of the whole network (Adam 3e-4). Prints one table; every figure with its floor and 95 % interval.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from shared.config import Experiment, read
from shared.errors import ReleaseRefused
from simulations.run import simulate

CONFIG = Path("configs/dementia.yaml")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks"))
    parser.add_argument("--fine-tune-steps", type=int, default=10, help="local steps a round, 4 rounds")
    options = parser.parse_args()
    full = {
        "privacy.epsilon": None,
        "privacy.sampling_rate": 0.25,
        "training.trainable": "full",
        "training.steps": options.fine_tune_steps,
        "training.optimizer": "adam",
        "training.learning_rate": 3e-4,
    }
    variants: dict[str, dict[str, Any]] = {
        "epsilon 8": {},
        "epsilon 3": {"privacy.epsilon": 3.0},
        "no privacy, same parameters and steps": {"privacy.epsilon": None},
        "no privacy, whole network": full,
    }
    console = Console(width=140)
    table = Table(title="96 patients, 4 hospitals, 24 patients held out, last round")
    for column in ("run", "parameters", "FD-efflite0", "KID-efflite0 x 1000", "diversity gap", "NN-SSIM to held-out"):
        table.add_column(column)
    first: dict[str, Any] | None = None
    for name, overrides in variants.items():
        folder = options.out / name.replace(" ", "-").replace(",", "")
        try:
            simulate(read(CONFIG, Experiment, overrides), folder, console)
        except ReleaseRefused as error:  # as it must be without privacy
            console.print(f"{name}: {error}")
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        if first is None:
            first = summary
            table.add_row("round 0, the public base", "0", *_cells(summary, "0"))
        table.add_row(name, f"{summary['trainable_parameters']:,}", *_cells(summary, str(summary["rounds"])))
    assert first is not None
    floors = [rounds["0"]["floor"] for rounds in first["metrics"].values()]
    table.add_row(
        "floor: real against real",
        "",
        f"{floors[0]:.1f}",
        f"{1000 * floors[1]:.1f}",
        f"{floors[2]:.3f}",
        f"{floors[3]:.3f}",
    )
    console.print(table)


def _cells(summary: dict[str, Any], number: str) -> list[str]:
    cells = []
    for name, scale, digits in (
        ("FD-efflite0", 1, 1),
        ("KID-efflite0", 1000, 1),
        ("MS-SSIM diversity gap", 1, 3),
        ("NN-SSIM to held-out", 1, 3),
    ):
        f = summary["metrics"][name][number]
        value, low, high = (f"{scale * f[key]:.{digits}f}" for key in ("value", "low", "high"))
        cells.append(f"{value} ({low} to {high})")
    return cells


if __name__ == "__main__":
    main()
