"""python -m simulations.benchmarks.server_memory [--sites 4 16 64] [--at-once 4]

Peak memory of a real server while N sites send it an update of 10 million parameters: the SuperLink, which takes messages in, and
the ServerApp, which adds them up, each by its VmHWM. The server is started anew for every N; one warm-up round, then the counters
are set back and one round is measured. The sites speak Flower's own protocol over TLS with keys of their own, but do not train:
every update is different, and at most `--at-once` are on their way at a time (it is this machine's memory that bounds that).
Ends with code 1 when the peak of the most sites is over 1.25 times that of the fewest.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric import ec
from rich.console import Console
from rich.table import Table

from privacy.accounting import Event, epsilon
from server.evaluation.heldout import Heldout
from server.superlink import jobs, provision
from server.superlink.federation import FederationFile
from shared import flower, messages, ports
from shared.config.experiment import Experiment
from shared.crypto import keys
from shared.errors import FederationError
from simulations.testbed.byzantine_client import rogue
from simulations.testbed.loopback import Loopback, ending, until

NETWORK = {"image_size": 16, "channels": (96, 192, 192), "groups": 8, "latents": 4, "encoder_channels": 8}
ALLOWED = 1.25
ROUNDS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--at-once", type=int, default=4)
    options = parser.parse_args()
    if not flower.SETTINGS.items() <= os.environ.items():  # Flower reads them when it is imported
        again = [sys.executable, "-m", __spec__.name, *sys.argv[1:]]
        os.execve(sys.executable, again, os.environ | flower.SETTINGS)  # noqa: S606 - ourselves
    table = Table(title="10-million-parameter updates, one round")
    for column in ("sites", "SuperLink, MiB", "ServerApp, MiB", "both, MiB", "against the fewest", "round, s"):
        table.add_column(column)
    first = last = 0.0
    for sites in options.sites:
        with tempfile.TemporaryDirectory() as folder:
            link, app, seconds = measure(Path(folder).resolve(), sites, options.at_once)
        last = link + app
        first = first or last
        row = (str(sites), f"{link:.0f}", f"{app:.0f}", f"{last:.0f}", f"{last / first:.2f}", f"{seconds:.0f}")
        print(" ".join(row), file=sys.stderr, flush=True)  # noqa: T201 - it takes minutes
        table.add_row(*row)
    Console().print(table)
    sys.exit(int(last > ALLOWED * first))


def measure(folder: Path, sites: int, at_once: int) -> tuple[float, float, float]:
    """Peaks of SuperLink and ServerApp in MiB, and the seconds of the measured round."""
    experiment = Experiment.model_validate(
        {
            "name": "memory",
            "base": "none",
            "model": NETWORK,
            "cohort": {"sites": sites},
            "training": {"trainable": "full", "rounds": ROUNDS, "steps": 1},
            "privacy": {"epsilon": None},
            "federation": {"minimum_sites": sites, "attempts": 1},
            "evaluation": {"samples": 24, "sampler_steps": 2, "bootstrap": 20, "every": 1000},
            "release": {"images_per_class": 0},
        }
    )
    federation = FederationFile(name="brains", address=f"127.0.0.1:{ports.free()}", listen="127.0.0.1")
    (folder / "fed.yaml").write_text(f"name: brains\naddress: {federation.address}\nlisten: 127.0.0.1\n")
    net = Loopback(folder, experiment, ())
    list(provision.provision(federation, net.federation))
    gate, stop = threading.Semaphore(at_once), threading.Event()
    with ending(net), ThreadPoolExecutor(sites) as pool:
        papers = [_join(federation, net.federation, f"site-{i + 1}") for i in range(sites)]
        net.serve()
        nodes = [pool.submit(_site, *paper, gate, stop) for paper in papers]
        out = net.federation / "runs" / experiment.name
        (out / "server").mkdir(parents=True)
        rng = np.random.default_rng(0)
        images = rng.integers(0, 255, (12, 16, 16), np.uint8)
        Heldout(images, np.arange(12) // 2, np.arange(12) % 3).save(out / "server" / "heldout.npz")
        jobs.want(out, experiment.model_dump_json())
        try:
            until(lambda: _count(net, "round_started") == ROUNDS or _ended(net), 1800.0, "the first round ends")
            pids = [net.pids("server", word)[0] for word in ("serve", "flwr-serverapp")]
            for pid in pids:
                (Path("/proc") / str(pid) / "clear_refs").write_text("5")
            began = time.monotonic()
            until(lambda: _count(net, "round_finished") == ROUNDS or _ended(net), 1800.0, "the round ends")
            peaks = [_peak(pid) for pid in pids]
        finally:
            stop.set()
        seconds = time.monotonic() - began
        for node in nodes:
            node.cancel()
    return peaks[0], peaks[1], seconds


def _join(federation: FederationFile, folder: Path, name: str) -> tuple[keys.Kit, ec.EllipticCurvePrivateKey]:
    key = ec.generate_private_key(ec.SECP384R1())
    return provision.approve(federation, folder, keys.sign_request(name, key)), key


def _site(kit: keys.Kit, key: ec.EllipticCurvePrivateKey, gate: threading.Semaphore, stop: threading.Event) -> None:
    """Answer every round with noise of the right shape, nobody else's."""
    with rogue(kit, key) as line:
        while not stop.is_set():
            try:
                request = line.asked(5.0)
            except FederationError:  # nothing yet
                continue
            with gate:
                experiment, number, noise, arrays = messages.unpack_request(request.content)
                rng = torch.Generator().manual_seed(hash((kit.site, number)) & 0xFFFFFFFF)
                update = {name: torch.randn(a.shape, generator=rng) * 1e-3 for name, a in arrays.items()}
                asked = messages.request_id(request.content)
                steps, privacy = experiment.training.steps, experiment.privacy
                spent = epsilon([Event(noise, privacy.sampling_rate, steps)], privacy.delta)
                reply = messages.TrainReply(kit.site, update, spent, steps, request=asked)
                line.answer(request, messages.pack_reply(reply))
                del request, arrays, update, reply


def _count(net: Loopback, kind: str) -> int:
    return sum(e["event"] == kind for e in net.events("memory"))


def _ended(net: Loopback) -> bool:
    failed = [e["reason"] for e in net.events("memory") if e["event"] == "run_failed"]
    if failed:
        raise FederationError(failed[0])
    return False


def _peak(pid: int) -> float:
    """VmHWM of a process, MiB."""
    status = (Path("/proc") / str(pid) / "status").read_text()
    return int(next(row for row in status.splitlines() if row.startswith("VmHWM")).split()[1]) / 1024


if __name__ == "__main__":
    main()
