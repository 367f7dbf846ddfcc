"""summary.json: what a run came to, for scripts. Its fields are a contract; new ones may be added, none renamed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from shared.config.experiment import Evaluation
from shared.errors import DataError
from shared.files import write_bytes


class Measured(BaseModel):
    """One figure of one evaluated round: its value, what real images score, and a 95 % interval."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    value: float
    floor: float
    low: float
    high: float


class Noisy(BaseModel):
    """A figure that sites gave under privacy: noisy, its price part of the epsilon. values: site -> round as text -> value."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    noise_multiplier: float
    epsilon: float
    values: dict[str, dict[str, float]]


class Summary(BaseModel):
    """The contents of summary.json.

    sites_contributed   sites whose update is in every round
    epsilon_per_patient per site, over all rounds; none where a site trained without privacy
    nsr                 noise-to-signal ratio of one step, none without privacy
    metrics             metric -> round as text -> figure; round "0" is the public base
    descriptions        metric -> how its figures are shown and read (server/metrics/base.py); absent in summaries of older runs
    select_by           the metric that says which round is best
    statistics          noisy figure ("patient-count", "mean-loss") -> what sites gave; empty where none was asked
    studied             biomarkers and downstream utility of the best round (server/evaluation/study.py), none where not measured
    bytes_per_round     all sites together, updates only
    """

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    name: str
    sites_total: int
    sites_contributed: int
    rounds: int
    best_round: int | None
    unit_of_privacy: str = "patient"
    private: bool = True
    delta: float
    epsilon_per_patient: dict[str, float | None]
    epsilon_cap: float | None = None
    noise_multiplier: float | None
    trainable: str | None = None
    trainable_parameters: int
    nsr: float | None
    metrics: dict[str, dict[str, Measured]]
    descriptions: dict[str, dict[str, Any]] = {}
    select_by: str = Evaluation().select_by
    statistics: dict[str, Noisy] = {}
    studied: dict[str, Any] | None = None
    bytes_per_round: float
    seconds: float
    device: str | None = None
    base: dict[str, str | None] | None = None
    versions: dict[str, str]


def write_summary(out: Path, summary: dict[str, Any]) -> None:
    """Write OUT/summary.json whole or not at all. A dict that breaks the contract is our own mistake: ValidationError."""
    text = Summary.model_validate(summary).model_dump_json(indent=2) + "\n"
    write_bytes(out / "summary.json", text.encode())


def read_summary(out: Path) -> Summary:
    """Read OUT/summary.json. DataError where it is absent or is not a summary."""
    path = out / "summary.json"
    try:
        return Summary.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise DataError(f"no summary.json in {out}; has the run finished?") from error
    except (ValueError, ValidationError) as error:
        raise DataError(f"{path} is not a summary of a run; write it again with `fedsynth report {out}`") from error
