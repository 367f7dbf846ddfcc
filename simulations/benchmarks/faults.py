"""python -m simulations.benchmarks.faults [--cut 60] [--deadline 90] [--only WORD ...]

A real server and two sites as processes on the loopback interface, TLS and node keys on, and everything that can go wrong done to
them, one after the other, while one run goes on: what was promised, what happened. Ends with code 1 when anything was not as
promised. The full disk needs the right to mount one (root); without it that row says so.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from client import dataset, reply_cache
from shared.config.experiment import Experiment
from shared.config.loading import validate
from shared.errors import FederationError, FedsynthError
from shared.messages import TrainReply
from simulations.faults import running, startup
from simulations.faults.running import Strike
from simulations.testbed.loopback import Loopback, federation
from simulations.testbed.run_probe import RunProbe
from simulations.testbed.tcp_proxy import Cable

SMALL = """
name: long
data: phantoms
base: none
model: {image_size: 16, channels: [8, 16], groups: 4, latents: 4, encoder_channels: 8}
cohort: {sites: 2, patients_per_site: 4, heldout_patients: 4, slices_per_patient: 2}
training: {trainable: appearance, rounds: 400, steps: 1000, learning_rate: 1.0e-6}
privacy: {epsilon: 4, max_nsr: 1000000}
federation: {minimum_sites: 1, join_timeout_s: 15}
evaluation: {samples: 24, sampler_steps: 2, bootstrap: 20, every: 1000}
release: {images_per_class: 0}
"""
SITE = {"epsilon_cap": 8.0, "policy": {"rounds": 400, "steps": 2_000_000}}


def experiment(deadline_s: float, sites: int = 2) -> Experiment:
    """A run of many rounds, in which a site trains for some seconds: long enough to be struck."""
    tree = yaml.safe_load(SMALL)
    tree["federation"]["deadline_s"] = deadline_s
    tree["cohort"]["sites"] = sites
    return validate(tree, Experiment, source="the small federation")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cut", type=float, default=60.0, help="how long the link is cut, s")
    parser.add_argument("--deadline", type=float, default=90.0, help="of a round, s")
    parser.add_argument("--only", nargs="+", default=[""], help="only faults whose name holds one of these")
    parser.add_argument("--keep", type=Path, help="work in this folder and leave it")
    options = parser.parse_args()
    table = Table(title="Faults", show_lines=True)
    for column in ("fault", "promised", "happened", "as promised", "s"):
        table.add_column(column)
    bad = 0
    with contextlib.ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        for name, promised, do in cases(stack, folder.resolve(), options.deadline, options.cut, options.only):
            start = time.monotonic()
            try:
                happened, kept = do(), "yes"
            except FedsynthError as error:
                happened, kept, bad = str(error), "NO", bad + 1
            seconds = f"{time.monotonic() - start:.0f}"
            print(f"{name}: {kept}: {happened} ({seconds} s)", file=sys.stderr, flush=True)  # noqa: T201 - progress
            table.add_row(name, promised, happened, kept, seconds)
    Console(width=200).print(table)
    sys.exit(int(bad > 0))


def cases(
    stack: contextlib.ExitStack, folder: Path, deadline_s: float, cut_s: float, only: Sequence[str]
) -> Iterator[tuple[str, str, Callable[[], str]]]:
    """Start the federation and name each fault, what is promised, and what does it."""
    settings = experiment(deadline_s)
    net = stack.enter_context(federation(folder, settings, **SITE))
    north, south = net.sites
    cable = through_a_cable(net, south)
    fill = _small_disk(net, north, stack)
    net.serve()
    for site in net.sites:
        net.join(site)
    net.want(settings)
    run = RunProbe(net, settings)
    run.back(north, 0)
    run.back(south, 0)

    one = "the round stands without it, named, or it answers in time; it comes back; charged at least once for each update"
    disk = "what is not on the ledger is not computed, its log says why, it comes back when there is room"
    shut = "not one update of it is used any more, its log says why; with a new key it comes back"
    struck: list[tuple[str, str, Callable[[], Strike]]] = [
        ("site slow", "left out of the round; its late reply is not used", lambda: running.site_slow(run, north)),
        ("node revoked", shut, lambda: running.revoked(run, north)),
        ("hospital's disk full", disk, lambda: running.disk_full(run, north, fill or _no_disk())),
        ("app killed", one, lambda: running.killed(run, north, running.APP)),
        ("what starts apps killed", one, lambda: running.killed(run, north, running.STARTER)),
        ("node killed", one, lambda: running.killed(run, north)),
        (f"link cut for {cut_s:g} s", one, lambda: running.link_cut(run, south, cable, cut_s)),
        (
            "site absent",
            "rounds go on without it, it is waited for once, and comes back",
            lambda: running.site_absent(run, north),
        ),
        (
            "code not approved",
            "refused at the hospital before a byte of it runs",
            lambda: running.unapproved(run, north),
        ),
        ("configuration beyond the file", "refused, nothing charged", lambda: running.changed_file(run, north)),
        ("NaN update", "rejected, the site named", lambda: running.bad_answer(run, north, nan, "not finite")),
        (
            "replayed update",
            "rejected, the site named",
            lambda: running.bad_answer(run, north, lambda honest: replayed(net, north, honest), "another request"),
        ),
        (
            "server killed",
            "goes on after its last finished round; every site is asked again",
            lambda: running.server_killed(run),
        ),
        ("ServerApp killed", "the same", lambda: running.server_app_killed(run)),
    ]
    for name, promised, strike in struck:
        if any(word in name for word in only):
            yield name, promised, lambda strike=strike: through(strike())  # type: ignore[misc]
    line = "the process ends with one line that says why"
    refused: list[tuple[str, Callable[[], str]]] = [
        ("server's certificate expired: the server", lambda: startup.expired_server(net)),
        ("server's certificate expired: a node", lambda: startup.expired_line(net, north)),
        ("another site's key", lambda: startup.another_sites_key(net, north, south)),
        ("wrong key", lambda: startup.wrong_key(net, north)),
        ("unknown node", lambda: startup.unknown_node(net, north)),
        ("wrong certificate authority", lambda: startup.wrong_authority(net, north)),
        ("nobody at the address", lambda: startup.nobody_there(net, north)),
        ("changed configuration, under the run's name", lambda: startup.changed_configuration(net, settings)),
        ("clock 400 s ahead", lambda: startup.wrong_clock(net, north)),
    ]
    yield from ((name, line, do) for name, do in refused if any(word in name for word in only))
    yield "after all of it", "no ledger is below what was received", lambda: running.never_below(run)


def through(strike: Strike) -> str:
    """Do it and look; returns what happened."""
    next(strike)
    return finish(strike)


def finish(strike: Strike) -> str:
    """Look whether what was promised came true, after the harm is done; returns what happened."""
    try:
        next(strike)
    except StopIteration as end:
        return str(end.value)
    raise AssertionError("a fault yields once")


def nan(honest: TrainReply) -> TrainReply:
    update = {name: u * math.nan for name, u in honest.update.items()}
    return dataclasses.replace(honest, update=update)


def replayed(net: Loopback, site: str, _: TrainReply) -> TrainReply:
    """What the site's own app sent last."""
    head = (net.work(site) / reply_cache.FILE).read_bytes().split(b"\n")[1]
    kept = reply_cache.find(net.work(site), json.loads(head)["request"])
    assert kept is not None
    return kept


def through_a_cable(net: Loopback, site: str) -> Cable:
    """Put a cable between a site that has not started and the server."""
    kit = net.kit(site)
    host, _, port = kit.address.rpartition(":")
    cable = Cable((host, int(port)))
    startup.put_kit(net.work(site), kit.model_copy(update={"address": f"127.0.0.1:{cable.port}"}))
    return cable


def _small_disk(net: Loopback, site: str, stack: contextlib.ExitStack) -> Path | None:
    """Put the site's records on a disk of 256 KiB; returns a file there that may grow, none where nothing may be mounted."""
    place = net.folder / "small-disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs", place], capture_output=True, check=False
    )
    if done.returncode != 0:
        return None
    stack.callback(lambda: subprocess.run(["umount", place], check=False))
    shutil.move(net.work(site) / dataset.KEY_FILE, place / dataset.KEY_FILE)
    tree = yaml.safe_load(net.file(site).read_text())
    net.file(site).write_text(yaml.safe_dump(tree | {"records": str(place)}))
    return place / "fill"


def _no_disk() -> Path:
    raise FederationError("not done: nothing may be mounted here; run it as root")


if __name__ == "__main__":
    main()
