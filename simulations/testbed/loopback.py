"""A real federation on this machine's loopback interface: a server and its sites as processes of their own, TLS, node keys.

Everything is made with the commands that people type. Each process and all that it starts carry two marks in their environment, so
that they can be found, killed, and ended whatever happens:

    FEDSYNTH_LOOPBACK   the folder of the federation
    FEDSYNTH_PART       "server", or the name of a site

Left out: installing at run time, and anything beyond 127.0.0.1.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner

from client.cli import app as client_app
from client.readers.ingest import ingest
from client.supernode import isolation, node
from server.cli import app as server_app
from server.events import read as read_events
from server.superlink import jobs
from server.superlink.run import gather
from shared import flower, ports
from shared.config.experiment import Experiment
from shared.crypto import keys
from shared.errors import FederationError
from simulations.cohorts import hospitals
from simulations.federation import ROOT
from simulations.guardian import marked

POLL_S = 0.05
CLIENT, SERVER = "from client.cli import app; app()", "from server.cli import app; app()"


def command(app: Any, *words: object) -> str:
    """A command of ours, in this process; what it printed."""
    return str(CliRunner().invoke(app, [str(w) for w in words], catch_exceptions=False).output).strip()


@dataclass
class Loopback:
    """A federation in `folder`; `sites`: their names, of whom none has started yet."""

    folder: Path
    experiment: Experiment
    sites: tuple[str, ...]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def federation(self) -> Path:
        return self.folder / "brains"

    def work(self, site: str) -> Path:
        return self.folder / "work" / site

    def file(self, site: str) -> Path:
        return self.folder / f"{site}.yaml"

    def kit(self, site: str) -> keys.Kit:
        return node.load_kit(self.work(site))

    def log(self, name: str) -> str:
        """What a process has said so far."""
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def start(self, name: str, *program: object, part: str | None = None) -> subprocess.Popen[bytes]:
        """Start our Python with `program`; its output is added to NAME.log. `part`: whose it is, if not its own."""
        marks = {"FEDSYNTH_LOOPBACK": str(self.folder), "FEDSYNTH_PART": part or name, "PYTHONPATH": str(ROOT)}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, *map(str, program)],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | flower.SETTINGS | marks,
                cwd=self.folder,
            )
        return self.processes[name]

    def serve(self, patience_s: float = 300.0) -> None:
        """Start the server and wait until it serves."""
        said = self.log("server").count("serving brains") if "server" in self.processes else 0
        process = self.start("server", "-c", SERVER, "serve", self.folder / "fed.yaml")
        until(
            lambda: process.poll() is not None or self.log("server").count("serving brains") > said,
            patience_s,
            "the server serves",
        )
        if process.poll() is not None:
            raise FederationError(f"the server did not start: {self.log('server')[-300:]}")

    def join(self, site: str, *, supervised: bool = True, door: Path | None = None) -> None:
        """Start a site's node: as a hospital starts it, or without its supervisor; `door`: with its app apart, as in containers."""
        words: list[object] = [self.file(site), "--work", self.work(site)]
        if door is not None:
            self.start(f"{site}-app", "-c", CLIENT, "app", *words, "--door", door, part=site)
        if supervised:
            self.start(site, "-c", CLIENT, "serve", *words, *(["--door", door] if door else []))
        else:
            self.start(site, "-P", "-m", "client.supernode.serve", words[0], words[2], *([door] if door else []))

    def pids(self, part: str, word: str = "") -> list[int]:
        """The processes of a part, oldest first; with `word` only those whose command holds it."""
        both = set(marked(f"FEDSYNTH_PART={part}")) & set(marked(f"FEDSYNTH_LOOPBACK={self.folder}"))
        return [pid for pid in sorted(both) if word in command_of(pid)]

    def kill(self, part: str, word: str = "", sign: int = signal.SIGKILL, spare: int = 0) -> list[int]:
        """Send a signal to the processes of a part, all at once; returns them. `spare`: one that it is not sent to."""
        struck = [pid for pid in self.pids(part, word) if pid != spare]
        for pid in struck:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sign)
        return struck

    def stop(self, *names: str, patience_s: float = 40.0) -> dict[str, int]:
        """End processes as their operators would; returns their exit codes."""
        ending = {name: process for name, process in self.processes.items() if name in names}
        for process in ending.values():
            process.send_signal(signal.SIGTERM)
        return {name: process.wait(patience_s) for name, process in ending.items()}

    def admit(self, site: str, authority: str, *, new_key: bool = False) -> None:
        """From the site's request to its approval of the code. `authority`: the digits that the coordinator reads out."""
        file, work, fed = self.file(site), self.work(site), self.folder / "fed.yaml"
        words = ["--new-key"] if new_key else []
        with contextlib.chdir(self.folder):
            asked = command(client_app, "request", file, "--work", work, *words)
        digits = asked.splitlines()[-1].partition(":  ")[2]
        command(server_app, "approve", fed, self.folder / f"{site}.request.json", "--fingerprint", digits)
        kit = self.federation / "kits" / f"{site}.kit.json"
        command(client_app, "join", file, kit, "--work", work, "--fingerprint", authority)
        if not command(client_app, "approve", file, "--work", work, "--yes").endswith("it may run"):
            raise FederationError(f"{site} could not approve the code")

    def want(self, experiment: Experiment) -> Path:
        """Ask the running server for a run, as `server run` does; returns its folder."""
        out = self.federation / "runs" / experiment.name
        (out / "server").mkdir(parents=True, exist_ok=True)
        (out / "experiment.json").write_text(experiment.model_dump_json())
        gather(self.work("heldout")).save(out / "server" / "heldout.npz")
        jobs.want(out, experiment.model_dump_json())
        return out

    def events(self, run: str) -> list[dict[str, Any]]:
        """The record of a run so far."""
        return read_events(self.federation / "runs" / run / "server" / "events.jsonl")


def command_of(pid: int) -> str:
    """The words of a process and the name that it has given itself, empty when it is gone."""
    folder = Path("/proc") / str(pid)
    try:
        words = (folder / "cmdline").read_bytes().replace(b"\0", b" ") + (folder / "comm").read_bytes()
        return words.decode(errors="replace")
    except OSError:
        return ""


def until(true: Callable[[], Any], patience_s: float, what: str) -> Any:
    """Wait for something that is true and return it; FederationError says what did not come."""
    deadline = time.monotonic() + patience_s
    while not (found := true()):
        if time.monotonic() > deadline:
            raise FederationError(f"waited {patience_s:g} s in vain: {what}")
        time.sleep(POLL_S)
    return found


@contextlib.contextmanager
def federation(folder: Path, experiment: Experiment, **settings: object) -> Iterator[Loopback]:
    """Provision a server, let the experiment's sites join and approve the code; start nothing. At the end nothing is left running.

    settings   further lines of every site's file
    """
    sites, heldout = hospitals.build(experiment, folder, lambda _: None)
    for site in [*sites, heldout]:
        tree = site.model_dump(mode="json") | settings
        if not isolation.available():
            tree["policy"]["app_network"] = "host"
        (folder / f"{site.name}.yaml").write_text(yaml.safe_dump(tree))
        ingest(
            site,
            classes=list(experiment.classes),
            image_size=experiment.model.image_size,
            slices_per_patient=experiment.cohort.slices_per_patient,
            work=folder / "work" / site.name,
        )
    fed = folder / "fed.yaml"
    fed.write_text(f"name: brains\naddress: 127.0.0.1:{ports.free()}\nlisten: 127.0.0.1\n")
    authority = command(server_app, "provision", fed).splitlines()[-1].partition(":  ")[2]
    net = Loopback(folder, experiment, tuple(site.name for site in sites))
    for name in net.sites:
        net.admit(name, authority)
    with ending(net):
        yield net


@contextlib.contextmanager
def ending(net: Loopback) -> Iterator[None]:
    """At the end nothing of the federation is left running."""
    try:
        yield
    finally:
        _end(net)


def _end(net: Loopback) -> None:
    """Politely, then not."""
    mark = f"FEDSYNTH_LOOPBACK={net.folder}"

    def ended() -> bool:
        return all(process.poll() is not None for process in net.processes.values()) and not marked(mark)

    for sign, patience_s in ((signal.SIGTERM, 30.0), (signal.SIGKILL, 10.0)):
        living = [process.pid for process in net.processes.values() if process.poll() is None]
        for pid in living if sign == signal.SIGTERM else marked(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sign)
        with contextlib.suppress(FederationError):
            until(ended, patience_s, "everything ends")
            return
