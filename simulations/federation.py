"""Run one federation on this machine: own SuperLink, own ports, own folder, nothing left behind.

The SuperLink and everything that it starts end with this process, however that ends (guardian.py). The apps are the same bundle
that a deployment would run.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from client.app import SEED_VARIABLE, SITES_VARIABLE
from server.events import read
from shared import flower, plugins, ports
from shared.config.experiment import Experiment
from shared.errors import FederationError
from simulations import guardian

ROOT = Path(__file__).parent.parent  # the app: Flower bundles the sources from here
POLL_S = 0.3
QUIET_S = 10.0


def federate(
    experiment: Experiment,
    out: Path,
    on_event: Callable[[dict[str, Any]], None],
    inception_weights: Path | None = None,
    *,
    repeatable: bool = False,
) -> None:
    """Run the experiment; call `on_event` for every line of the server's record. Raises FederationError with the reason.

    repeatable   noise from the experiment's seed, and sites that state an infinite epsilon
    """
    home = out / "flower"
    home.mkdir(parents=True, exist_ok=True)
    record = out / "server" / "events.jsonl"
    seen = len(read(record))
    environment = (
        os.environ
        | flower.SETTINGS
        | plugins.environment()
        | {
            "FLWR_HOME": str(home.resolve()),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DEDUP_LOGS": "0",
            SITES_VARIABLE: str((out / "sites").resolve()),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        }
    )
    if inception_weights is not None:
        environment["FEDSYNTH_INCEPTION_WEIGHTS"] = str(inception_weights.resolve())
    environment.pop(SEED_VARIABLE, None)
    if not plugins.loaded():
        environment.pop(plugins.VARIABLE, None)
    if repeatable:
        environment[SEED_VARIABLE] = str(experiment.seed)
    sites = len(experiment.sites) or experiment.cohort.sites
    with _superlink(home, environment) as (address, superlink):
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "own"\n\n[superlink.own]\naddress = "{address}"\ninsecure = true\n',
            encoding="utf-8",
        )
        _submit(experiment, out, sites, home, environment)
        quiet_since = time.monotonic()
        try:
            while True:
                events = read(record)
                for event in events[seen:]:
                    quiet_since = time.monotonic()
                    on_event(event)
                    if event["event"] == "run_finished":
                        return
                    if event["event"] == "run_failed":
                        raise FederationError(f"the run ended: {event['reason']}")
                seen = len(events)
                if superlink.poll() is not None:
                    raise FederationError(f"the SuperLink ended by itself; see {home / 'superlink.log'}")
                if time.monotonic() - quiet_since > QUIET_S:
                    quiet_since = time.monotonic()
                    if _failed(home, environment):
                        raise FederationError(
                            f"an app ended with an error that it did not record; see {home / 'apps.log'}"
                        )
                time.sleep(POLL_S)
        finally:
            _keep_log(home, environment)


def _submit(experiment: Experiment, out: Path, sites: int, home: Path, environment: dict[str, str]) -> None:
    run_config = home / "run.toml"
    run_config.write_text(
        f"experiment = {json.dumps(experiment.model_dump_json())}\nout = {json.dumps(str((out / 'server').resolve()))}\n",
        encoding="utf-8",
    )
    # A site trains in its own Ray actor; on a small machine they take turns, so that each has all threads
    cpus = max(1, (os.cpu_count() or 1))
    command = [
        "flwr",
        "run",
        str(ROOT),
        "own",
        "--run-config",
        str(run_config),
        "--federation-config",
        f"num-supernodes={sites} client-resources-num-cpus={cpus} client-resources-num-gpus=0.0",
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180, check=False, cwd=home)
    (home / "submit.log").write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode != 0:
        raise FederationError(f"the run could not be submitted; see {home / 'submit.log'}")


@contextmanager
def _superlink(home: Path, environment: dict[str, str]) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A SuperLink with Flower's simulation engine on free ports of the loopback interface."""
    port = ports.free()
    command = [
        "flower-superlink",
        "--simulation",
        "--insecure",
        "--isolation",
        "subprocess",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--database",
        ":flwr-in-memory:",
        "--disable-runtime-dependency-installation",
    ]
    with (home / "superlink.log").open("wb") as log:
        process = subprocess.Popen(
            guardian.command(f"FLWR_HOME={environment['FLWR_HOME']}", command),
            env=environment | {"FLWR_HOME": ""},  # the guardian itself bears no mark
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=home,
        )
    try:
        _wait_until_open(port, process, home)
        yield f"127.0.0.1:{port}", process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the guardian, and with it whatever came of the run."""
    process.terminate()
    process.wait(timeout=30)


def _wait_until_open(port: int, process: subprocess.Popen[bytes], home: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with socket.socket() as probe:
            probe.settimeout(0.5)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise FederationError(f"the SuperLink did not start; see {home / 'superlink.log'}")


def _failed(home: Path, environment: dict[str, str]) -> bool:
    """Whether Flower says that the run ended badly (an app that died without recording why)."""
    done = subprocess.run(
        ["flwr", "ls", "own", "--format", "json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=home,
    )
    return "finished:failed" in done.stdout or "finished:stopped" in done.stdout


def _keep_log(home: Path, environment: dict[str, str]) -> None:
    """Ask the SuperLink for the apps' own output, which it keeps to itself, and write it beside its log."""
    run = re.search(r"run (\d+)", (home / "submit.log").read_text(encoding="utf-8"))
    if run:
        with suppress(subprocess.TimeoutExpired):
            done = subprocess.run(
                ["flwr", "log", run[1], "own", "--show"],
                env=environment,
                capture_output=True,
                text=True,
                timeout=30,
                check=False,
                cwd=home,
            )
            (home / "apps.log").write_text(done.stdout + done.stderr, encoding="utf-8")
