"""The audit of an experiment: canaries, membership inference and copies, on made-up patients or on a finished simulation.

    canaries     always a rehearsal of one site: the experiment's own settings on public phantoms (client/audit_run.py)
    membership   the model that the rehearsal trained, or the checkpoints of a finished run; patients of its sites against
                 patients that it never saw
    copies       images drawn from that model, or the run's release

What stands in the result is not private. It is for public phantoms, and for cohorts that may be evaluated in the open.

Left out: whether a release may be published (server/release/release.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from client import audit_run, dataset
from client.dataset import Patient
from privacy import accounting, audit, copies, membership_inference
from privacy.accounting import Attack, Event
from privacy.copies import Copies, Group, Nearness
from privacy.membership_inference import Membership
from server import checkpoint
from shared.config.experiment import Experiment
from shared.config.loading import read
from shared.errors import ConfigError, DataError
from shared.files import write_bytes
from shared.models import weights
from shared.models.base import GenerativeModel, Sampling
from shared.models.device import device_for
from simulations import audit_plots
from simulations.cohorts import phantoms

BESIDE = 8  # patients among whom the canaries hide; how many, and who, does not change what a canary reveals
BESIDE_SLICES = 4
PATIENTS = 60  # phantoms trained on, and held out, at most
IMAGES = 96  # drawn to look for copies

Tell = Callable[[int, int], None]


@dataclass(frozen=True)
class Material:
    """A trained model and who was in it: states as `rehearsal.trajectory` returns them; synthetic images (N, H, H) uint8."""

    members: list[Patient]
    nonmembers: list[Patient]
    states: list[dict[str, torch.Tensor]]
    synthetic: NDArray[np.uint8]


@dataclass(frozen=True)
class Audit:
    """Everything that was found. `best`: the most that any attack could reach if the stated epsilon is true."""

    experiment: str
    source: str
    stated: Event
    canaries: audit.Bound
    sampling: audit.Sampling
    best: Attack
    membership: dict[str, Membership]
    nearness: Nearness
    copies: Copies

    def problems(self) -> list[str]:
        """What contradicts the stated epsilon, in words; empty when nothing does."""
        found = []
        if self.canaries.refuted:
            found.append(f"canaries show epsilon {self.canaries.epsilon:.2f}, stated is {self.canaries.stated:.2f}")
        if self.sampling.refuted:
            found.append(f"patients are not Poisson-sampled: {self.sampling.worst} (p = {self.sampling.p_value:.2g})")
        for name, m in self.membership.items():
            if m.auc_low > self.best.auc:
                found.append(f"the attack by {name} reaches AUC {m.auc:.2f}, more than any attack could")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with `problems`."""
        return {**asdict(self), "problems": self.problems()}


def run(
    experiment: Experiment, out: Path, *, canaries: int, finished: Path | None, progress: Callable[[str], Any]
) -> Audit:
    """Audit, write audit.json and three pictures into `out`, and return what was found.

    canaries   how many
    finished   folder of a finished simulation; none: rehearse on phantoms
    progress   context manager for a bar, by what is being done
    """
    claim = audit_run.stated(experiment)
    if finished is not None:
        _check(experiment, finished)
    device = device_for(experiment.performance)
    model = weights.load_base(experiment.base, experiment.model, experiment.classes).to(device)
    rng = np.random.default_rng(experiment.seed)
    with progress("canaries: training again and again") as tell:
        beside = people(experiment, rng, BESIDE, BESIDE_SLICES)
        seen = audit_run.canaries(model, beside, experiment, canaries, progress=tell)
        bound = audit.lower_bound(seen.inside, seen.outside, claim, experiment.privacy.delta)
        sampling = audit.sampling(seen.taken, claim.sampling_rate)
    with progress("a model, and images drawn from it") as tell:
        source = (
            _rehearsed(model, experiment, rng, tell) if finished is None else _finished(model, experiment, finished)
        )
    scores, attacked = attack(model, source, experiment, progress)
    with progress("copies"):
        arrays = [np.concatenate([p.x_SHW for p in group]) for group in (source.members, source.nonmembers)]
        train, heldout = (
            Group(copies.pixels(x), np.repeat(np.arange(len(group)), [len(p.x_SHW) for p in group]))
            for x, group in zip(arrays, (source.members, source.nonmembers), strict=True)
        )
        drawn = copies.pixels(source.synthetic)
        mirrored = copies.pixels(np.ascontiguousarray(source.synthetic[:, :, ::-1]))
        near = copies.nearness(drawn, train, heldout, mirrored_Sd=mirrored)
        copied = copies.find(source.synthetic, arrays[0])
    best = accounting.best_attack([claim], experiment.privacy.delta)
    name = "rehearsal on phantoms" if finished is None else str(finished)
    found = Audit(experiment.name, name, claim, bound, sampling, best, attacked, near, copied)
    write_bytes(out / "canaries.png", audit_plots.canaries(seen.inside, seen.outside, bound))
    mu = accounting.gdp_mu(bound.stated, bound.delta)
    write_bytes(out / "membership.png", audit_plots.membership(scores, attacked, mu, bound.stated))
    to_train, to_heldout = (copies.distances([drawn, mirrored], group).min(1) for group in (train, heldout))
    between = copies.distances([heldout.feature_Nd], train).min(1)
    write_bytes(out / "copies.png", audit_plots.copies(to_train, to_heldout, between, near))
    write_bytes(out / "audit.json", json.dumps(found.to_dict(), indent=2).encode())
    return found


def attack(
    model: GenerativeModel, source: Material, experiment: Experiment, progress: Callable[[str], Any]
) -> tuple[dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]], dict[str, Membership]]:
    """Scores of members and non-members by each attack, and their figures."""
    with progress("membership inference") as tell:
        everyone = audit_run.evidence(
            model, source.states, [*source.members, *source.nonmembers], experiment, progress=tell
        )
    m = len(source.members)
    scores = {name: (score[:m], score[m:]) for name, score in everyone.items()}
    return scores, {name: membership_inference.measure(*pair) for name, pair in scores.items()}


def people(experiment: Experiment, rng: np.random.Generator, count: int, slices: int) -> list[Patient]:
    """Phantoms as patients, with the experiment's classes in turn."""
    images, _ = phantoms.cohort(rng, count, slices, experiment.model.image_size)
    return [Patient(f"phantom-{i:03d}", i % len(experiment.classes), x) for i, x in enumerate(images)]


def _rehearsed(model: GenerativeModel, experiment: Experiment, rng: np.random.Generator, tell: Tell) -> Material:
    each = min(PATIENTS, experiment.cohort.patients_per_site)
    everyone = people(experiment, rng, 2 * each, experiment.cohort.slices_per_patient)
    members, nonmembers = everyone[:each], everyone[each:]
    noise = audit_run.stated(experiment).noise_multiplier
    states = audit_run.trajectory(model, members, experiment, noise_multiplier=noise)
    return Material(members, nonmembers, states, _draw(model, experiment, tell))


def _check(experiment: Experiment, folder: Path) -> None:
    """ConfigError where a simulation has other settings, DataError where it is not finished."""
    if not (folder / "summary.json").is_file():
        raise DataError(f"{folder} holds no finished simulation; run `fedsynth simulate` first, or leave out --run")
    if read(folder / "experiment.json", Experiment) != experiment:
        raise ConfigError(f"{folder} holds a run with other settings; audit {folder / 'experiment.json'} instead")


def _finished(model: GenerativeModel, experiment: Experiment, folder: Path) -> Material:
    """What a simulation left behind."""
    members = [p for site in sorted((folder / "sites").iterdir()) for p in dataset.load(site / "cohort")]
    nonmembers = dataset.load(folder / "heldout" / "cohort")
    last = checkpoint.latest(folder / "server" / "checkpoints")
    if last is None:
        raise DataError(f"{folder} has no checkpoint; run `fedsynth simulate` on it again")
    states = [checkpoint.load(folder / "server" / "checkpoints", number) for number in range(last + 1)]
    model.load_state_dict(states[-1], strict=False)
    released = folder / "release" / "images.npz"
    if released.is_file():
        with np.load(released, allow_pickle=False) as arrays:
            return Material(members, nonmembers, states, arrays["x_NHW"])
    return Material(members, nonmembers, states, _draw(model, experiment, lambda _, __: None))


def _draw(model: GenerativeModel, experiment: Experiment, tell: Tell) -> NDArray[np.uint8]:
    labels = torch.arange(IMAGES) % len(experiment.classes)
    settings = experiment.release
    batch = experiment.performance.sampling_batch // 4
    sampling = Sampling(settings.sampler, settings.sampler_steps, settings.guidance, batch)
    x_N1HW = model.eval().sample(labels, torch.Generator().manual_seed(experiment.seed), sampling, tell)
    return np.asarray(((x_N1HW[:, 0] + 1) * 127.5).round().to(torch.uint8).numpy())
