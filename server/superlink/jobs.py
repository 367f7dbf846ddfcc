"""Runs as folders: what `server run` asks for, and the running server does.

    FOLDER/runs/NAME/wanted.json      what to run: the experiment (JSON); written by `server run`, removed by `--stop`
    FOLDER/runs/NAME/job.json         Flower's number of the run and its state; written by the server
    FOLDER/runs/NAME/server/nodes.json  which node is which site, so that no site answers under another's name
    FOLDER/runs/NAME/server/          what the run itself writes (see coordinate.py)

A run that ended without finishing (a crash, a restart) is started again and goes on after its last round; one that recorded
why it failed waits for `server run` to ask again.
"""

from __future__ import annotations

import fcntl
import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, Status
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.supercore.auth.typing import AccountInfo
from flwr.supercore.fab import Fab
from flwr.superlink.servicer.control import control_handlers

from server import journal
from server.events import Events, read
from server.superlink import nodes
from shared.crypto import bundle
from shared.errors import FederationError
from shared.files import write_bytes
from shared.journal.journal import configuration

LOG = logging.getLogger("fedsynth.server")
RESTARTS = 3  # of a run that keeps ending without a word, and without finishing a round in between


class Lock:
    """Held while a server runs in a folder, by its process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("a")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise FederationError(f"another server runs in {path.parent.parent}; stop that one first") from error

    def release(self) -> None:
        self._file.close()


def serving(folder: Path) -> bool:
    """Whether a server runs in this folder."""
    path = folder / "state" / "serving"
    try:
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


class Board:
    """Starts, watches and stops runs through Flower's own handlers, in this process."""

    def __init__(self, folder: Path, state: Any) -> None:
        self.folder, self.state = folder, state
        self._account = AccountInfo(flwr_aid=NOOP_FLWR_AID, account_name=NOOP_ACCOUNT_NAME)
        self._names = b"{}"
        self._restarts: dict[str, tuple[int, int]] = {}  # name -> rounds finished, starts since then
        self._said = {path: len(read(path)) for path in folder.glob("*/server/events.jsonl")}
        self._sizes: dict[Path, int] = {}  # of each record when it was last read
        for run in self.state.get_run_info():  # what an earlier server left running has lost its process
            if run.status.status != Status.FINISHED:
                self.state.stop_run(run.run_id)

    def step(self, names: dict[int, str]) -> None:
        """Bring Flower's runs to what the folders want. `names`: the site of each node, for the runs to know."""
        self._names = json.dumps(names, sort_keys=True).encode()
        for path in sorted(self.folder.glob("*/job.json")):
            if not (path.parent / "wanted.json").exists():
                self._stop(path)
        for path in sorted(self.folder.glob("*/wanted.json")):
            self._want(path.parent)
            self._say(path.parent)

    def _say(self, out: Path) -> None:
        """The run's own record, as lines of the server's log."""
        path = out / "server" / "events.jsonl"
        size = path.stat().st_size if path.exists() else 0
        if size == self._sizes.get(path):
            return  # asked every second, and most seconds bring nothing
        self._sizes[path] = size
        events = read(path)
        for event in events[self._said.get(path, 0) :]:
            kind, number, site = event["event"], event.get("round"), event.get("site")
            where = ", ".join(
                [out.name, *([f"round {number}"] if number is not None else []), *([site] if site else [])]
            )
            reason = f": {event['reason']}" if "reason" in event else ""
            LOG.log(
                logging.WARNING if reason else logging.DEBUG if kind == "drawn" else logging.INFO,
                "%s: %s%s", where, kind.replace("_", " "), reason,
                extra={"run": out.name, "round": number, "site": site},
            )  # fmt: skip
        self._said[path] = len(events)

    def _want(self, out: Path) -> None:
        path = out / "server" / nodes.FILE
        if not path.exists() or path.read_bytes() != self._names:
            write_bytes(path, self._names)
        job = _read(out / "job.json")
        if job is None:
            self._launch(out)
            return
        runs = self.state.get_run_info(run_ids=[job["run"]])
        if runs and runs[0].status.status != Status.FINISHED:
            return
        events = [e["event"] for e in read(out / "server" / "events.jsonl")]
        if events and events[-1] in ("run_finished", "run_failed"):
            self._done(out)
            return
        rounds = events.count("round_finished")
        before, count = self._restarts.get(out.name, (rounds, 0))
        count = count + 1 if before == rounds else 1
        self._restarts[out.name] = (rounds, count)
        if count > RESTARTS:
            Events(out / "server" / "events.jsonl", partial(journal.from_event, out)).write(
                "run_failed", reason="the server's app keeps ending without a word; the server's own log says why"
            )
            self._done(out)
            return
        LOG.warning("%s ended without finishing; starting it again", out.name, extra={"run": out.name})
        self._launch(out)

    def _launch(self, out: Path) -> None:
        experiment = (out / "wanted.json").read_text(encoding="utf-8")
        data = bundle.build()
        request = StartRunRequest(
            fab=fab_to_proto(Fab(bundle.sha256(data), data, {})),
            override_config=user_config_to_proto({"experiment": experiment, "out": str((out / "server").resolve())}),
        )
        run = {"bundle": bundle.sha256(data), "configuration": configuration(json.loads(experiment))}
        response = control_handlers.start_run(request, self._account, self.state, "grpc-rere", source="cli")
        write_bytes(out / "job.json", json.dumps({"run": response.run_id, "bundle": run["bundle"]}).encode())
        journal.write(out, "run_launched", flower=str(response.run_id), **run)
        LOG.info("started %s, bundle %s", out.name, bundle.sha256(data)[:12], extra={"run": out.name})

    def _stop(self, path: Path) -> None:
        job = _read(path)
        if job is not None:
            runs = self.state.get_run_info(run_ids=[job["run"]])
            if runs and runs[0].status.status != Status.FINISHED:
                self.state.stop_run(job["run"])
                LOG.info("stopped %s", path.parent.name, extra={"run": path.parent.name})
                journal.write(path.parent, "run_stopped")
        path.unlink(missing_ok=True)

    def _done(self, out: Path) -> None:
        (out / "wanted.json").unlink(missing_ok=True)
        (out / "job.json").unlink(missing_ok=True)
        self._restarts.pop(out.name, None)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("run"), int) else None


def want(out: Path, experiment: str) -> None:
    """Ask the running server for a run."""
    write_bytes(out / "wanted.json", experiment.encode())
