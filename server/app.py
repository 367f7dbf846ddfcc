"""The coordinator's Flower ServerApp, thin: the run's configuration -> `coordinate`.

One process works on a run at a time: a second one, which Flower may start while it takes the first for dead, waits until that is
gone. A disk without room ends the run with that reason; asked for again, it goes on after its last round.
"""

from __future__ import annotations

from shared import libraries  # noqa: F401 - first of all, see there

# isort: split

import errno
import fcntl
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server import journal
from server.coordinate import coordinate
from server.events import Events
from server.superlink import nodes
from shared import plugins
from shared.config.experiment import Experiment
from shared.config.loading import validate
from shared.errors import ConfigError, FederationError, FedsynthError

app = ServerApp()
PATIENCE_S = 600.0
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@app.main()  # type: ignore[untyped-decorator]  # flwr is untyped for us
def main(grid: Grid, context: Context) -> None:
    """Run the experiment that `flwr run --run-config` hands over: `experiment` (JSON) and `out` (the server's folder)."""
    out = Path(str(context.run_config["out"]))
    try:
        text = str(context.run_config["experiment"])
        if not text:
            raise ConfigError("the run has no experiment; start it with `fedsynth simulate CONFIG`")
        if nodes.names(out) is None:  # a simulation
            plugins.load_from_environment()
        experiment = validate(json.loads(text), Experiment, source="the run's experiment")
        plugins.refuse(experiment)
        with _alone(out), _room():
            coordinate(grid, experiment, out)
    except FedsynthError as error:
        Events(out / "events.jsonl", partial(journal.from_event, out.parent)).write("run_failed", reason=str(error))
        raise


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """FederationError when another process works on the run and does not end."""
    out.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + PATIENCE_S
    with (out / "working").open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise FederationError("another process works on this run and does not end; end it") from None
            time.sleep(0.5)
        yield


@contextmanager
def _room() -> Iterator[None]:
    """FederationError in place of the error that a full disk is."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise FederationError(
            "the server's disk is full; make room, and run the same command again to go on"
        ) from error
