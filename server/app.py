"""The coordinator's Flower ServerApp, thin: the run's configuration -> `coordinate`."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from server import journal
from server.coordinate import coordinate
from server.events import Events
from shared.config import Experiment, validate
from shared.errors import ConfigError, FedsynthError

app = ServerApp()


@app.main()  # type: ignore[untyped-decorator]  # flwr is untyped for us
def main(grid: Grid, context: Context) -> None:
    """Run the experiment that `flwr run --run-config` hands over: `experiment` (JSON) and `out` (the server's folder)."""
    out = Path(str(context.run_config["out"]))
    try:
        text = str(context.run_config["experiment"])
        if not text:
            raise ConfigError("the run has no experiment; start it with `fedsynth simulate CONFIG`")
        coordinate(grid, validate(json.loads(text), Experiment, source="the run's experiment"), out)
    except FedsynthError as error:
        Events(out / "events.jsonl", partial(journal.from_event, out.parent)).write(
            "run_failed", reason=f"{type(error).__name__}: {error}"
        )
        raise
