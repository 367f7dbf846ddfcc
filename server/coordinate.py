"""One federated run, from the public base to the last round: train, checkpoint, evaluate, record.

Everything it knows lies in its folder: experiment.json, heldout.npz, nodes.json (over a network), events.jsonl, checkpoints/,
samples/. Started again on the same folder it goes on after the last round that has a checkpoint.

Left out: the release and the report (see finalize.py); they need no network.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

import numpy as np
import torch
from flwr.serverapp import Grid

from privacy.noise import SEED_VARIABLE
from server import checkpoint, journal
from server.aggregation.base import Tensors
from server.aggregation.server_optimizer import ServerOptimizer
from server.evaluation.evaluate import Evaluator, Heldout
from server.evaluation.study import study
from server.events import Events, read
from server.ledgers import Ledgers
from server.plan import plan
from server.release.draw import draw
from server.release.release_vote import propose
from server.strategy import Strategy, largest_update
from server.superlink.nodes import names
from server.trackers import trackers
from shared.adapters.base import attach
from shared.config.experiment import Experiment
from shared.files import write_arrays, write_bytes
from shared.journal.journal import configuration
from shared.modalities.base import modality
from shared.models import weights
from shared.models.base import GenerativeModel
from shared.models.device import device_for


def coordinate(grid: Grid, experiment: Experiment, out: Path) -> None:
    """Run the federation of `experiment` in the server's folder `out`.

    Raises FederationError when too few sites join or contribute.
    """
    # Set up
    write_bytes(out / "experiment.json", experiment.model_dump_json(indent=2).encode())
    events = Events(out / "events.jsonl", partial(journal.from_event, out.parent), *trackers(out))
    hashed = configuration(experiment)
    device = device_for(experiment.performance)
    model = weights.load_base(experiment.base, experiment.model, experiment.classes).to(device)
    trainable = attach(model, experiment.training.trainable)
    tensors: Tensors = {name: p.detach().cpu().clone() for name, p in trainable.items()}
    heldout = Heldout.load(out / "heldout.npz")
    evaluator = Evaluator(
        heldout,
        bootstrap=experiment.evaluation.bootstrap,
        seed=experiment.seed,
        metrics=experiment.evaluation.metrics,
        options={"inception_weights": _inception_weights()},
        samples=experiment.evaluation.samples,
    )
    sites = len(experiment.sites) or experiment.cohort.sites
    rounds = experiment.training.rounds
    folder = out / "checkpoints"

    optimizer = ServerOptimizer(experiment.federation, tensors)

    def after_round(number: int, current: Tensors) -> None:
        optimizer.save(folder / f"optimizer-{number:03d}.safetensors")  # first: no checkpoint without its moments
        checkpoint.save(folder, number, current)
        if number in (0, rounds) or number % experiment.evaluation.every == 0:
            _evaluate(number, current, model, experiment, evaluator, heldout, events, out)

    # Resume, or begin with the public base
    done = checkpoint.latest(folder)
    if done is None:
        work = plan(experiment)
        events.write(
            "run_started",
            rounds=rounds,
            sites=sites,
            noise_multiplier=work.noise_multiplier,
            nsr=work.nsr,
            trainable_parameters=work.trainable_parameters,
            device=device.type,
            descriptions={name: told.to_dict() for name, told in evaluator.descriptions.items()},
            configuration=hashed,
        )
        after_round(0, tensors)
        done = 0
    else:
        for name, t in checkpoint.load(folder, done).items():
            tensors[name].copy_(t)
        optimizer.load(folder / f"optimizer-{done:03d}.safetensors")
        events.write("run_resumed", round=done, configuration=hashed)
    noise_multiplier = next(e["noise_multiplier"] for e in read(events.path) if e["event"] == "run_started")
    # Rounds
    parameters = sum(t.numel() for t in tensors.values())
    strategy = Strategy(
        experiment,
        tensors,
        noise_multiplier=noise_multiplier,
        sites=sites,
        minimum_sites=experiment.federation.minimum_sites or experiment.release.minimum_sites or sites,
        largest=largest_update(experiment, noise_multiplier, parameters),
        events=events,
        optimizer=optimizer,
        after_round=after_round,
        ledgers=Ledgers(out.parent),
        names=lambda: names(out),
        rehearsal=SEED_VARIABLE in os.environ,
    )
    strategy.run(grid, done + 1, rounds)
    _study(experiment, evaluator, heldout, events, out)
    # What would be released: drawn here, so that every site can be asked about it while it is still connected
    propose(grid, experiment, model, strategy.nodes, heldout, events, out)
    events.write("run_finished", round=rounds)


def _evaluate(
    number: int,
    tensors: Tensors,
    model: GenerativeModel,
    experiment: Experiment,
    evaluator: Evaluator,
    heldout: Heldout,
    events: Events,
    out: Path,
) -> None:
    """Draw from the model of a round, measure against the held-out set, keep pictures, mark the best."""
    settings = experiment.evaluation
    events.write("evaluating", round=number)
    model.load_state_dict(tensors, strict=False)
    # Classes as they are in the held-out set, the same noise in every round: rounds differ by the model alone
    labels = torch.from_numpy(np.random.default_rng(experiment.seed).choice(heldout.label_N, settings.samples))
    images = draw(model, labels, settings, experiment.performance, seed=experiment.seed)
    write_arrays(out / "samples" / f"round-{number:03d}.npz", x_NHW=images, label_N=labels.numpy())
    figures = evaluator(images)
    events.write("evaluated", round=number, metrics={name: figure.to_dict() for name, figure in figures.items()})
    trained = [e for e in read(events.path) if e["event"] == "evaluated" and e["round"] > 0]
    if trained:
        name = settings.select_by
        best = min(trained, key=lambda e: evaluator.descriptions[name].distance(**e["metrics"][name])[0])
        checkpoint.mark_best(out / "checkpoints", best["round"], name, best["metrics"][name]["value"])


def _study(experiment: Experiment, evaluator: Evaluator, heldout: Heldout, events: Events, out: Path) -> None:
    """Biomarkers and downstream utility of the best round, from the images that its figures were measured on; once."""
    best = checkpoint.best(out / "checkpoints")
    if best is None or any(e["event"] == "studied" and e["round"] == best for e in read(events.path)):
        return
    events.write("studying", round=best)
    with np.load(out / "samples" / f"round-{best:03d}.npz", allow_pickle=False) as drawn:
        found = study(
            heldout,
            drawn["x_NHW"],
            drawn["label_N"],
            list(experiment.classes),
            bootstrap=experiment.evaluation.bootstrap,
            seed=experiment.seed,
            with_utility=experiment.evaluation.utility and len(experiment.classes) > 1,
            markers=modality(experiment.modality).biomarkers,
            real_Nd=evaluator.features,
        )
    events.write("studied", **({"round": best} | found))


def _inception_weights() -> Path | None:
    """Inception-v3 weights for the true FID, when the coordinator named a file."""
    path = os.environ.get("FEDSYNTH_INCEPTION_WEIGHTS")
    return Path(path) if path else None
