"""python -m simulations.benchmarks.overhead [--rounds 4] [--turns 2] [--large]

What a round costs beside the training: ours, over a real network with everything on, against a bare Flower app (FedAvg of as many
float32 numbers, no training, no TLS, no keys) on Flower's own SuperLink and SuperNodes. Both stand on the loopback interface with
two sites, and take turns with runs of a few rounds; the figure is the median round, the first of each run left out, less our
slowest site's training. Below: where our rounds go, watched from outside by what each side writes down, and what the app's own part
consists of, measured alone in a process like an app's. Ends with code 1 when ours is over 1.2 times the bare one.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from client.supernode import journal, node
from shared import ports
from shared.config.experiment import Experiment
from shared.errors import FederationError
from simulations.benchmarks.faults import SITE, experiment
from simulations.benchmarks.server_memory import NETWORK
from simulations.guardian import marked
from simulations.testbed.loopback import Loopback, federation, until
from simulations.testbed.run_probe import RunProbe, ledger_of

ALLOWED = 1.2
SITES = 2
PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "bare"
version = "0.1.0"
dependencies = ["flwr"]
[tool.flwr.app]
publisher = "bare"
[tool.flwr.app.components]
serverapp = "bare:server"
clientapp = "bare:client"
[tool.flwr.app.config]
rounds = 1
numbers = 1
log = ""
"""
APP = """
import time
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

server = ServerApp()
client = ClientApp()

@client.train()
def train(message, context):
    update = {name: a.numpy() * 0 + 1 for name, a in message.content["arrays"].items()}
    arrays = ArrayRecord({name: torch.from_numpy(a) for name, a in update.items()})
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})}), reply_to=message)

@server.main()
def main(grid, context):
    config = context.run_config
    def note(number, arrays):
        with open(config["log"], "a") as file:
            file.write(f"{time.time()}\\n")
    start = ArrayRecord({"a": torch.zeros(int(config["numbers"]))})
    strategy = FedAvg(fraction_evaluate=0.0, min_available_nodes=2, min_train_nodes=2)
    strategy.start(grid=grid, initial_arrays=start, num_rounds=int(config["rounds"]), evaluate_fn=note)
"""
PARTS = """
import json, sys, time
from client.supernode import prefork
import client.app
prefork.forget()  # an app finds the libraries loaded, and loads our code
times = [time.time()]
import client.app
times.append(time.time())
from pathlib import Path
from client import dataset
from client.train import train
from privacy import accounting
from shared.models import weights
from shared.config.experiment import Experiment
import torch
experiment = Experiment.model_validate_json(Path(sys.argv[1]).read_text())
model = weights.load_base(experiment.base, experiment.model, experiment.classes)
cohort = dataset.load(Path(sys.argv[2]) / "cohort")
times.append(time.time())
accounting.epsilon([accounting.Event(1.0, experiment.privacy.sampling_rate, experiment.training.steps)], 1e-5)
times.append(time.time())
train(model, cohort, experiment, noise_multiplier=1.0, expected_patients=experiment.expected_patients)
times.append(time.time())
print(json.dumps([b - a for a, b in zip(times, times[1:])]))
"""
POLL_S = 0.005
STAGES = (
    "the round begins -> it is on the ledger (polling, transfer, checks)",
    "-> the app may have it (the journal)",
    "-> the update leaves the node (see below; training, handing over, checks)",
    "-> the server has it (transfer, polling)",
    "-> the next round begins (the other site, combining, checkpoint)",
)


class Watch(threading.Thread):
    """Notes when the run's record and the sites' journals and ledgers say something new."""

    def __init__(self, net: Loopback, run: str) -> None:
        super().__init__(daemon=True)
        self.seen: list[tuple[float, str, dict[str, Any]]] = []
        self._over = threading.Event()
        self._files = {net.federation / "runs" / run / "server" / "events.jsonl": ""}
        self._files |= {node.folder(net.work(site)) / journal.FILE: site for site in net.sites}
        self._files |= {ledger_of(net, site): site for site in net.sites}

    def run(self) -> None:
        ends = {path: path.stat().st_size if path.exists() else 0 for path in self._files}
        while not self._over.wait(POLL_S):
            for path, whose in self._files.items():
                if path.exists() and path.stat().st_size > ends[path]:
                    with path.open("rb") as file:
                        file.seek(ends[path])
                        said = file.read()
                    whole = said[: said.rfind(b"\n") + 1]
                    ends[path] += len(whole)
                    self.seen += [(time.monotonic(), whose, json.loads(line)) for line in whole.splitlines()]

    def stages(self) -> list[list[float]]:
        """Of each round but the first and the last: how long each of STAGES took, on the way of the site that came last."""
        self._over.set()
        self.join()
        starts = [t for t, whose, line in self.seen if not whose and line["event"] == "round_started"]
        found = []
        for begin, end in itertools.pairwise(starts[1:]):
            now = [(t, whose, line) for t, whose, line in self.seen if begin <= t < end]
            replies = [(t, line["site"]) for t, whose, line in now if not whose and line["event"] == "site_replied"]
            last, site = max(replies)
            own = [(t, line) for t, whose, line in now if whose == site]
            asked, sent = (next(t for t, line in own if line["kind"] == kind) for kind in ("asked", "sent"))
            paid = next(t for t, line in own if line["kind"] in ("reserve", "draw"))
            times = [begin, paid, asked, sent, last, end]
            found.append([b - a for a, b in itertools.pairwise(times)])
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4, help="of each run, the first not counted")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--large", action="store_true", help="updates of 10 million numbers instead of 68")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name).resolve()
        small = experiment(deadline_s=600.0, sites=SITES)
        training = small.training.model_copy(update={"rounds": options.rounds, "steps": 2})
        small = small.model_copy(update={"training": training})
        if options.large:
            tree = small.model_dump(mode="json") | {"model": NETWORK}
            tree["training"]["trainable"] = "full"
            small = Experiment.model_validate(tree)
        net = stack.enter_context(federation(_folder(folder / "ours"), small, **SITE))
        net.serve()
        for site in net.sites:
            net.join(site, supervised=False)
        bare = stack.enter_context(_bare(_folder(folder / "bare")))
        ours, theirs, stages, size = list[float](), list[float](), list[list[float]](), 0
        for turn in range(options.turns):
            seconds, parts, size = _ours(net, small.model_copy(update={"name": f"turn-{turn}"}))
            ours += seconds
            stages += parts
            theirs += _theirs(bare, options.rounds, size // 4)
            print(f"turn {turn}: ours {ours}, bare {theirs}", file=sys.stderr, flush=True)  # noqa: T201 - it takes minutes
        imports, data, accounting, training_s = _parts(net, small)
    ours_s, bare_s = statistics.median(ours) - training_s, statistics.median(theirs)
    table = Table(title=f"A round of {SITES} sites, {size} bytes a message, median of {len(ours)} rounds each")
    table.add_column("")
    table.add_column("s", justify="right")
    rows = [("bare Flower", bare_s), ("ours, less training", ours_s), ("training, left out", training_s)]
    rows += [
        (f"  {what}", statistics.median(column)) for what, column in zip(STAGES, zip(*stages, strict=True), strict=True)
    ]
    rows += [("  in the app: our imports", imports), ("  in the app: network and patients", data)]
    rows += [("  in the app: the price of a round", accounting)]
    for what, value in rows:
        table.add_row(what, f"{value:.2f}")
    Console().print(table)
    Console().print(f"ours against bare: {ours_s / bare_s:.2f} (at most {ALLOWED})")
    sys.exit(int(ours_s > ALLOWED * bare_s))


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _ours(net: Loopback, wanted: Experiment) -> tuple[list[float], list[list[float]], int]:
    """Seconds of each round but the first, from one round's end to the next; their stages; and the bytes of an update."""
    watch = Watch(net, wanted.name)
    watch.start()
    net.want(wanted)
    run = RunProbe(net, wanted)
    until(lambda: run.events("run_finished") or run.events("run_failed"), 1800.0, "our run ends")
    ends = [float(e["seconds"]) for e in run.events("round_finished")]
    if len(ends) < wanted.training.rounds:
        raise FederationError(f"our run failed: {run.events('run_failed')}")
    return [b - a for a, b in itertools.pairwise(ends)], watch.stages(), int(run.events("site_replied")[0]["bytes"])


@contextlib.contextmanager
def _bare(folder: Path) -> Iterator[dict[str, Any]]:
    """Flower's own server and nodes, as its documentation starts them."""
    (folder / "pyproject.toml").write_text(PROJECT)
    (folder / "bare.py").write_text(APP)
    home = _folder(folder / "home")
    link = ports.free()
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}  # all else as it comes
    environment = os.environ | quiet | {"FLWR_HOME": str(home), "FEDSYNTH_BARE": str(folder)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    address = f"127.0.0.1:{link}"
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "own"\n\n[superlink.own]\naddress = "{address}"\ninsecure = true\n'
    )
    server = ["flower-superlink", "--insecure", "--host", "127.0.0.1", "--port", str(link)]
    server += ["--database", str(folder / "state.db"), "--disable-runtime-dependency-installation"]
    programs = [server]
    for _ in range(SITES):
        programs.append(["flower-supernode", "--insecure", "--superlink", address, "--port", str(ports.free())])
    try:
        for number, program in enumerate(programs):
            with (folder / f"{number}.log").open("wb") as log:
                subprocess.Popen(program, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
            time.sleep(10 if number == 0 else 0)
        yield {"folder": folder, "environment": environment}
    finally:
        for pid in marked(f"FEDSYNTH_BARE={folder}"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _theirs(bare: dict[str, Any], rounds: int, numbers: int) -> list[float]:
    """Seconds of each round but the first."""
    folder = bare["folder"]
    log = folder / f"{time.time()}.times"
    (folder / "run.toml").write_text(f'rounds = {rounds}\nnumbers = {numbers}\nlog = "{log}"\n')
    command = ["flwr", "run", str(folder), "own", "--run-config", str(folder / "run.toml")]
    done = subprocess.run(command, env=bare["environment"], capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode != 0:
        raise FederationError(f"the bare app could not be submitted: {done.stdout[-900:]}{done.stderr[-900:]}")
    until(lambda: log.exists() and len(log.read_text().splitlines()) == rounds + 1, 1800.0, "the bare run ends")
    times = [float(line) for line in log.read_text().splitlines()][1:]  # the first is before the first round
    return [b - a for a, b in itertools.pairwise(times)]


def _parts(net: Loopback, small: Experiment) -> tuple[float, ...]:
    """Seconds of our imports, of loading, of accounting and of training: of the slowest of as many processes as there are sites."""
    (net.folder / "small.json").write_text(small.model_dump_json())
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", PARTS, net.folder / "small.json", net.work(site)], stdout=subprocess.PIPE
        )
        for site in net.sites
    ]
    found = [json.loads(program.communicate()[0]) for program in programs]
    return tuple(max(column) for column in zip(*found, strict=True))


if __name__ == "__main__":
    main()
