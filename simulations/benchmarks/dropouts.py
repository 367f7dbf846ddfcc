"""python -m simulations.benchmarks.dropouts [--repetitions 20] [--rounds 20] [--sites 8] [--rate 0.3]

Runs in which every site drops out at random: in each round a site is, with the given rate, away, silent, late or failing, or its
reply is lost after its ledger was charged, or it sends what is broken. A run must finish all its rounds, whatever is drawn. The
server's strategy and checkpoints and the hospitals' app, its ledger and its kept replies are the real ones; between them stands a
grid in memory, with a clock that passes when somebody waits (a round of the simulated SuperLink takes seconds; 400 are needed).
Ends with code 1 when a run does not finish, a round is recorded by other names than those that answered well, or a ledger holds
less than what was received.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import yaml
from flwr.app import ArrayRecord, Error, RecordDict
from rich.console import Console
from rich.progress import Progress

from client import app, dataset
from client.deidentification import pseudonym
from privacy import ledger
from server import checkpoint
from server.aggregation.base import Tensors
from server.aggregation.server_optimizer import ServerOptimizer
from server.events import Events, read
from server.ledgers import Ledgers
from server.plan import plan
from server.strategy import Strategy, largest_update
from shared.adapters.base import attach
from shared.config.experiment import Experiment
from shared.config.site import Site
from shared.errors import FedsynthError
from shared.models import weights
from simulations.testbed.fake_grid import Clock, MemoryGrid, inside_a_run

WAYS = ("away", "silent", "late", "lost", "failing", "broken")
SIZE, PATIENTS = 16, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--sites", type=int, default=8)
    parser.add_argument("--rate", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    start, contributed, ways, bad = time.monotonic(), Counter[int](), Counter[str](), list[str]()
    with Progress(console=Console(stderr=True), transient=True) as bar:
        for number in bar.track(range(options.repetitions)):
            with tempfile.TemporaryDirectory() as folder:
                rng = random.Random((options.seed << 20) + number)
                try:
                    found, drawn = once(Path(folder), options.rounds, options.sites, options.rate, rng)
                    contributed.update(found)
                    ways.update(drawn)
                except FedsynthError as error:
                    bad.append(f"repetition {number}: {error}")
    rounds = sum(contributed.values())
    console = Console(soft_wrap=True, highlight=False)
    console.print(
        f"{options.repetitions - len(bad)} of {options.repetitions} runs finished, {rounds} rounds of "
        f"{options.repetitions * options.rounds}, {time.monotonic() - start:.0f} s"
    )
    console.print(
        "rounds by contributors: "
        + ", ".join(f"{n} of {options.sites}: {count}" for n, count in sorted(contributed.items()))
    )
    console.print("dropouts: " + ", ".join(f"{name} {count}" for name, count in sorted(ways.items())))
    for line in bad:
        console.print(line)
    sys.exit(int(bool(bad)))


def once(out: Path, rounds: int, sites: int, rate: float, rng: random.Random) -> tuple[list[int], Counter[str]]:
    """One run; returns the contributors of each round, and what was drawn. FedsynthError when it did not end as promised."""
    experiment = Experiment.model_validate(
        {
            "name": "dropouts",
            "base": "none",
            "model": {"image_size": SIZE, "channels": (8, 16), "groups": 4, "latents": 4, "encoder_channels": 8},
            "cohort": {"sites": sites, "patients_per_site": PATIENTS},
            "training": {"trainable": "appearance", "rounds": rounds, "steps": 2},
            "privacy": {"epsilon": 4, "max_nsr": 1e6},
            "federation": {"minimum_sites": 1, "deadline_s": 60, "join_timeout_s": 10},
        }
    )
    names = [f"site-{i + 1}" for i in range(sites)]
    for name in names:
        hospital(out / name, name)
    clock, drawn, well = Clock(), Counter[str](), set[str]()
    way = dict.fromkeys(names, "")
    grid = MemoryGrid({i: site(out / name, name, way, well) for i, name in enumerate(names)}, clock)

    def draw() -> None:
        well.clear()
        for i, name in enumerate(names):
            way[name] = rng.choice(WAYS) if rng.random() < rate else ""
            drawn[way[name] or "none"] += 1
            grid.delay_s[i] = 100.0 if way[name] == "late" else rng.uniform(0.0, 20.0)
        grid.absent = {i for i, name in enumerate(names) if way[name] == "away"}
        if all(way.values()):
            way[names[0]] = ""  # one of them must answer: with nobody at all a run ends, as it should
            grid.absent.discard(0)
            grid.delay_s[0] = 1.0

    told: list[set[str]] = []

    def after(number: int, tensors: Tensors) -> None:
        checkpoint.save(out / "checkpoints", number, tensors)
        told.append(set(well))
        draw()

    model = weights.load_base("none", experiment.model, experiment.classes)
    tensors = {name: p.detach().clone() for name, p in attach(model, "appearance").items()}
    noise = plan(experiment).noise_multiplier
    events = Events(out / "events.jsonl")
    strategy = Strategy(
        experiment, tensors, noise_multiplier=noise, sites=sites, minimum_sites=1,
        largest=largest_update(experiment, noise, sum(t.numel() for t in tensors.values())), events=events,
        optimizer=ServerOptimizer(experiment.federation, tensors), after_round=after, ledgers=Ledgers(out), clock=clock,
        sleep=clock.sleep,
    )  # fmt: skip
    draw()
    with inside_a_run(), patch.dict(os.environ):
        strategy.run(grid, 1, rounds)
    return check(out, names, read(events.path), told, rounds), drawn


def check(out: Path, names: list[str], events: list[dict[str, Any]], told: list[set[str]], rounds: int) -> list[int]:
    """The contributors of each round. FedsynthError where the record or a ledger is wrong."""
    finished = [e for e in events if e["event"] == "round_finished"]
    if [e["round"] for e in finished] != list(range(1, rounds + 1)) or checkpoint.latest(out / "checkpoints") != rounds:
        raise FedsynthError(f"only rounds {[e['round'] for e in finished]} finished")
    for event, well in zip(finished, told, strict=True):
        if set(event["contributed"]) != well:
            raise FedsynthError(
                f"round {event['round']}: {event['contributed']} recorded, {sorted(well)} answered well"
            )
    for name in names:
        drawn = {d.number for d in ledger.draws(ledger.checked_records(out / name / "ledger.jsonl"))}
        for event in finished:
            if name in event["contributed"] and event["round"] not in drawn:
                raise FedsynthError(f"{name} was not charged for round {event['round']}")
    return [len(e["contributed"]) for e in finished]


def hospital(folder: Path, name: str) -> None:
    """A small cohort of noise."""
    folder.mkdir(parents=True)
    pseudonym.load_or_make(folder / dataset.KEY_FILE)
    rng = np.random.default_rng(0)
    for i in range(PATIENTS):
        images = rng.integers(0, 255, (2, SIZE, SIZE), np.uint8)
        dataset.save(dataset.Patient(f"p{i}", i % 3, images), folder / "cohort")
    site = Site(name=name, data=folder, format="images", face_removal="none", epsilon_cap=16.0)
    (folder / "site.yaml").write_text(yaml.safe_dump(site.model_dump(mode="json")))
    dataset.register(site, folder, image_size=SIZE, classes=())


def site(
    folder: Path, name: str, way: dict[str, str], well: set[str]
) -> Callable[[RecordDict, int], RecordDict | Error | None]:
    """The hospital's app behind what happens to it in this round."""
    runs = itertools.count(1)

    def answer(request: RecordDict, _: int) -> RecordDict | Error | None:
        if way[name] == "silent":
            return None
        if way[name] == "failing":
            return Error(code=0, reason="killed")
        context = SimpleNamespace(
            node_config={"site": str(folder / "site.yaml"), "work": str(folder)}, run_config={}, run_id=next(runs)
        )
        reply = app.answer(request, context)
        if way[name] == "lost":
            return None
        if way[name] == "broken":
            arrays = {k: torch.from_numpy(v.numpy() * math.nan) for k, v in reply["arrays"].items()}
            reply["arrays"] = ArrayRecord(arrays)
        if not way[name]:
            well.add(name)
        return reply

    return answer


if __name__ == "__main__":
    main()
