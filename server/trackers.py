"""A run's figures for the viewers people already have, beside our own record: TensorBoard and MLflow.

TensorBoard   files in RUN/tensorboard, where the package is installed: `pip install fedsynth[tensorboard]`; with sample images
MLflow        at MLFLOW_TRACKING_URI, where that is set: `pip install fedsynth[mlflow]`; figures only, one MLflow run a run

They are told what events.jsonl holds and nothing else: metrics with their intervals, epsilon by site, who contributed. A
tracker that fails is named once and left alone for the rest of the run; training never waits for it or ends because of it.

Left out: the experiment's settings (experiment.json has them), models and checkpoints.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from shared.errors import ConfigError

LOG = logging.getLogger("fedsynth.server")
MLFLOW_VARIABLE = "MLFLOW_TRACKING_URI"
IMAGES = 16  # of a round that was evaluated
Tracker = Callable[[str, dict[str, Any]], None]


def trackers(out: Path) -> list[Tracker]:
    """One for each viewer that is installed or asked for. ConfigError when it is asked for and not installed."""
    found: list[Tracker] = []
    if importlib.util.find_spec("tensorboard") is not None:
        found.append(_patient("TensorBoard", _tensorboard(out)))
    if os.environ.get(MLFLOW_VARIABLE):
        if importlib.util.find_spec("mlflow") is None:
            raise ConfigError(
                f"{MLFLOW_VARIABLE} is set and mlflow is not installed; install fedsynth[mlflow] or unset it"
            )
        found.append(_patient("MLflow", _mlflow(out)))
    return found


def scalars(event: str, fields: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Names and values of an event of one round, under the names that both viewers show."""
    match event:
        case "evaluated":
            for name, figure in fields["metrics"].items():
                for part in ("value", "low", "high", "floor"):
                    if isinstance(figure.get(part), int | float):
                        yield f"{name}/{part}", float(figure[part])
        case "site_replied":
            for part in ("epsilon", "bytes"):
                if isinstance(fields.get(part), int | float):
                    yield f"sites/{fields['site']}/{part}", float(fields[part])
        case "round_finished":
            yield "sites/contributed", float(len(fields["contributed"]))


def _tensorboard(out: Path) -> Callable[[], Tracker]:
    def begin() -> Tracker:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  (seconds, and nobody may look)

        writer: Any = SummaryWriter(out / "tensorboard")

        def tell(event: str, fields: dict[str, Any]) -> None:
            for name, value in scalars(event, fields):
                writer.add_scalar(name, value, fields["round"])
            if event == "evaluated":
                with np.load(out / "samples" / f"round-{fields['round']:03d}.npz") as file:
                    x_N1HW = file["x_NHW"][:IMAGES, None]
                writer.add_images("samples", x_N1HW, fields["round"])
            writer.flush()

        return tell

    return begin


def _mlflow(out: Path) -> Callable[[], Tracker]:
    def begin() -> Tracker:
        os.environ.setdefault(
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"
        )  # the round does not wait for a server that is away
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        from mlflow import MlflowClient  # noqa: PLC0415

        client = MlflowClient()
        name = out.resolve().parent.name  # RUN/server
        found = client.get_experiment_by_name("fedsynth")
        group = found.experiment_id if found else client.create_experiment("fedsynth")
        kept = out / "mlflow-run"
        if not kept.exists():
            kept.write_text(client.create_run(group, run_name=name).info.run_id, encoding="utf-8")
        run = kept.read_text(encoding="utf-8")

        def tell(event: str, fields: dict[str, Any]) -> None:
            for key, value in scalars(event, fields):
                client.log_metric(run, key, value, step=fields["round"])
            if event in ("run_finished", "run_failed"):
                client.set_terminated(run, "FINISHED" if event == "run_finished" else "FAILED")

        return tell

    return begin


def _patient(name: str, begin: Callable[[], Tracker]) -> Tracker:
    """Begun at the first event; given up after its first failure, whatever that is."""
    state: list[Tracker | None] = []

    def tell(event: str, fields: dict[str, Any]) -> None:
        try:
            if not state:
                state.append(begin())
            if state[0] is not None:
                state[0](event, fields)
        except Exception as error:  # noqa: BLE001 - a viewer never stops the training
            state[:] = [None]
            LOG.warning("%s is told nothing more of this run: %s", name, type(error).__name__)

    return tell
