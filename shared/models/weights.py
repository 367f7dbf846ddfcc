"""Read and write weights: safetensors only, never pickle; a sha256 beside every base.

A base is two files, NAME.safetensors (fp16) and NAME.json (sha256, settings of the model, labels, how it was made). The
shipped ones lie in the package `weights`.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from shared.config.model import MODELS, ModelSettings, settings_of
from shared.errors import WeightsError
from shared.files import write_bytes
from shared.models.base import GenerativeModel


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Write tensors to a temporary name, rename, and return the file's sha256 in hex."""
    data: bytes = save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, dict(metadata or {}))
    write_bytes(path, data)
    return hashlib.sha256(data).hexdigest()


def read(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """Read tensors; WeightsError when the file is missing, is not safetensors, or is not the one named by `sha256`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"cannot read weights {path}: {error.strerror or error}") from error
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256:
        raise WeightsError(
            f"{path} was altered: its sha256 is {found[:12]}..., its card says {sha256[:12]}...; reinstall it"
        )
    try:
        tensors: dict[str, Tensor] = load(data)
    except SafetensorError as error:
        raise WeightsError(f"{path} is not a safetensors file") from error
    return tensors


def base_path(base: str) -> Path:
    """The weights file of a shipped base by name, or the path itself; WeightsError lists what there is."""
    if base.endswith(".safetensors"):
        return Path(base)
    folder = Path(str(importlib.resources.files("weights")))
    path = folder / f"{base}.safetensors"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.safetensors"))) or "none"
        raise WeightsError(f"no base is called `{base}`; shipped: {known}; or give a path to a .safetensors file")
    return path


def card(base: str) -> dict[str, Any]:
    """The card of a base, as a dictionary."""
    path = base_path(base).with_suffix(".json")
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"there is no whole card {path}; make the base with `fedsynth pretrain`, or name a shipped one"
        ) from error
    return found


def made_for(base: str) -> ModelSettings:
    """The model that a base was made for, by its card."""
    about = card(base)
    try:
        return settings_of(about["model"] if "model" in about else about["network"])  # `network`: cards of version 0.1
    except (KeyError, ValueError) as error:
        raise WeightsError(f"the card of `{base}` does not say for which model it was made") from error


def labels_of(base: str, settings: ModelSettings, classes: dict[str, str]) -> tuple[str, ...]:
    """What the labels of a base mean, in order; of "none" the experiment's own.

    Raises WeightsError when the base was made for another model than `settings`, or does not know a class.
    """
    if base == "none":
        return tuple(classes)
    about, other = card(base), made_for(base)
    if other != settings:
        ours, theirs = settings.model_dump(), other.model_dump()
        different = sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k))
        raise WeightsError(f"the base `{base}` was made for another model; differing settings: {', '.join(different)}")
    labels = tuple(about["labels"])
    unknown = [name for name in classes.values() if name not in (*labels, "any")]
    if unknown:
        raise WeightsError(f"`classes` maps to `{unknown[0]}`; the base knows {', '.join(labels)} and any")
    return labels


def build(settings: ModelSettings, labels: tuple[str, ...], classes: dict[str, str] | None = None) -> GenerativeModel:
    """A model of the kind that `settings` names, with random weights."""
    model: GenerativeModel = MODELS[settings.kind](settings, labels, classes)
    return model


def load_base(base: str, settings: ModelSettings, classes: dict[str, str]) -> GenerativeModel:
    """A model with the weights of a base, its rows those of the experiment's classes.

    base   a shipped name, a path, or "none" for random weights, the same everywhere
    Raises WeightsError when the base was made for another model than `settings`.
    """
    if base == "none":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build(settings, tuple(classes), dict.fromkeys(classes, "any") | {c: c for c in classes})
    labels = labels_of(base, settings, classes)
    tensors = {k: t.float() for k, t in read(base_path(base), card(base)["sha256"]).items()}
    model = build(settings, labels, classes)
    model.load_base(tensors)
    return model
