"""The global model after each round: the trainable tensors, safetensors, never pickle. `best` names the round to keep."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from shared.files import write_bytes
from shared.models import weights


def save(folder: Path, number: int, tensors: Mapping[str, Tensor]) -> str:
    """Write the checkpoint of a round (0: as it began) durably; returns its sha256."""
    return weights.write(folder / f"round-{number:03d}.safetensors", tensors, {"round": str(number)})


def load(folder: Path, number: int) -> dict[str, Tensor]:
    return weights.read(folder / f"round-{number:03d}.safetensors")


def latest(folder: Path) -> int | None:
    """The last round with a checkpoint, none when there is none."""
    rounds = [
        int(m[1])
        for p in folder.glob("round-*.safetensors")
        if (m := re.fullmatch(r"round-(\d+)\.safetensors", p.name))
    ]
    return max(rounds, default=None)


def mark_best(folder: Path, number: int, metric: str, value: float) -> None:
    """Record which round is best, by which metric."""
    text = json.dumps({"round": number, "metric": metric, "value": value}) + "\n"
    write_bytes(folder / "best.json", text.encode())


def best(folder: Path) -> int | None:
    """The best round so far, none before the first evaluation."""
    path = folder / "best.json"
    return int(json.loads(path.read_text(encoding="utf-8"))["round"]) if path.exists() else None
