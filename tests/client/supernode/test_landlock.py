"""What the app's process sees of its hospital: patients, site file, libraries. Code that may do anything tries the rest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from client import dataset
from client.supernode import isolation, landlock, starter, view
from shared.config.experiment import Experiment, Privacy, Training
from shared.models.pixel_diffusion import PixelDiffusionSettings

# What hostile code tries, as the app's process; it prints what came of each. The words of a refusal do not matter
ATTACK = """
import ctypes, json, os, signal, sys
from pathlib import Path
work, records, data, home, node, secret = sys.argv[1:7]
work, records, data, home, node = Path(work), Path(records), Path(data), Path(home), int(node)
said = {}
def attempt(name, action):
    try:
        said[name] = bool(action())
    except OSError:
        said[name] = False
def write(path):
    path.write_text("attack")
    return True
def memory():
    for line in Path(f"/proc/{node}/maps").read_text().splitlines():
        start, end = (int(n, 16) for n in line.split()[0].split("-"))
        if "rw" in line:
            with open(f"/proc/{node}/mem", "rb") as file:
                file.seek(start)
                if secret.encode() in file.read(end - start):
                    return True
def trace():
    return ctypes.CDLL(None).ptrace(16, node, 0, 0) == 0  # PTRACE_ATTACH
attempt("approves code", lambda: write(work / "node" / "approvals" / "0.json"))
attempt("reads the node's key", lambda: (work / "node" / "node.key").read_bytes())
attempt("writes the journal", lambda: write(work / "node" / "journal.jsonl"))
attempt("reads the ledger", lambda: (records / "ledger.jsonl").read_bytes())
attempt("writes the ledger", lambda: write(records / "ledger.jsonl"))
attempt("reads the key of the pseudonyms", lambda: (records / "pseudonym.key").read_bytes())
attempt("reads the lists of patients", lambda: list((records / "ledger.members").iterdir()))
attempt("reads a scan", lambda: (data / "scan.dcm").read_bytes())
attempt("lists the scans", lambda: list(data.iterdir()))
attempt("reads the manifest", lambda: (work / "manifest.jsonl").read_bytes())
attempt("reads what lies at home", lambda: (home / "private.txt").read_bytes())
attempt("writes at home", lambda: write(home / "planted.txt"))
attempt("changes a patient", lambda: write(work / "cohort" / "p.npz"))
attempt("adds a patient", lambda: write(work / "cohort" / "q.npz"))
attempt("changes the site file", lambda: write(work / "site.yaml"))
attempt("changes its own code", lambda: open(sys.argv[7], "r+b"))
attempt("changes a mode", lambda: os.chmod(work / "site.yaml", 0o666) is None)
attempt("goes round by the node's root", lambda: Path(f"/proc/{node}/root{work}/node/node.key").read_bytes())
attempt("reads the node's environment", lambda: Path(f"/proc/{node}/environ").read_bytes())
attempt("reads the node's memory", memory)
attempt("traces the node", trace)
attempt("signals the node", lambda: os.kill(node, 0) is None)
attempt("inherits what is open", lambda: [n for n in os.listdir("/proc/self/fd") if int(n) > 3])
attempt("reopens the log", lambda: Path("/proc/self/fd/2").resolve().is_file() and open("/proc/self/fd/2").read())
attempt("dumps its memory", lambda: __import__("resource").getrlimit(4)[0] != 0)
attempt("reads a token of the environment", lambda: "PACS_TOKEN" in os.environ)
print(json.dumps(said))
"""
# What the app needs; True each
NEEDS = """
import json, os, sys, tempfile
from pathlib import Path
work = Path(sys.argv[1])
said = {"patients": len(list((work / "cohort").glob("*.npz"))) == 1 and bool((work / "cohort" / "p.npz").read_bytes()),
        "settings": "north" in (work / "site.yaml").read_text(),
        "scratch": bool(Path(tempfile.mkdtemp()).joinpath("x").write_text("x")),
        "flower": bool(Path(os.environ["FLWR_HOME"]).mkdir(parents=True, exist_ok=True) is None),
        "random": len(Path("/dev/urandom").open("rb").read(4)) == 4,
        "nothing": Path("/dev/null").write_text("x") == 1}
print(json.dumps(said))
"""


def possible(how: str) -> bool:
    if how == "landlock":
        return landlock.interface() > 0
    free = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--mount-proc", "true"]
    return subprocess.run(free, capture_output=True, check=False).returncode == 0


@pytest.fixture(params=["namespaces", "landlock"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each thing that can keep an app from files, where this machine has it. Another program's word: ours might be wrong."""
    if not possible(request.param):
        pytest.skip(f"this machine has no {request.param} for a user")
    monkeypatch.setenv("PACS_TOKEN", "secret")
    return str(request.param)


@dataclass
class Hospital:
    """Everything that an app could be after. `node`: a process of the same user that holds `secret`."""

    folder: Path
    node: int
    secret: str

    @property
    def work(self) -> Path:
        return self.folder / "work"

    def words(self) -> list[str]:
        places = [self.work, *(self.folder / name for name in ("records", "data", "home"))]
        return [*map(str, places), str(self.node), self.secret, view.__file__]


@pytest.fixture
def hospital() -> Iterator[Hospital]:
    secret = os.urandom(8).hex()
    with tempfile.TemporaryDirectory(prefix="hospital-") as place:
        folder = Path(place)
        for name in ("work/node/approvals", "work/cohort", "records/ledger.members", "data", "home"):
            (folder / name).mkdir(parents=True, mode=0o700)
        for name in ("work/node/node.key", "work/node/journal.jsonl", "work/cohort/p.npz", "work/manifest.jsonl",
                     "records/ledger.jsonl", "records/pseudonym.key", "records/ledger.members/0.txt", "data/scan.dcm",
                     "home/private.txt"):  # fmt: skip
            (folder / name).write_text("something")
        (folder / "work" / "site.yaml").write_text(
            f"name: north\ndata: {folder / 'data'}\nrecords: {folder / 'records'}\n"
        )
        program = "import sys, time; secret = sys.argv[1][::-1]; print(flush=True); time.sleep(600)"
        with subprocess.Popen([sys.executable, "-c", program, secret[::-1]], stdout=subprocess.PIPE) as node:
            assert node.stdout is not None
            node.stdout.readline()
            yield Hospital(folder, node.pid, secret)
            node.kill()


def command(hospital: Hospital, how: str, script: str, *words: str) -> list[str]:
    """Run a script as the app's process is run."""
    seen = starter.seen(hospital.work / "site.yaml", hospital.work)
    scratch = hospital.folder / "scratch"
    scratch.mkdir(exist_ok=True)
    enclosure = isolation.Enclosure(how, str(scratch), seen, str(hospital.folder / "none"), 4567)
    return isolation.command(enclosure, [sys.executable, "-c", script, *words])


def inside(hospital: Hospital, how: str, script: str, *words: str) -> subprocess.CompletedProcess[str]:
    """What it says."""
    log = hospital.folder / "node.log"
    log.write_text("what the node said\n")
    with log.open("a") as errors:
        done = subprocess.run(
            command(hospital, how, script, *words),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            timeout=120,
            check=False,
            env=view.environment(),
        )
    assert done.returncode == 0, log.read_text()
    return done


def test_attack_09_the_app_writes_approvals_and_reads_keys_ledger_and_scans(hospital: Hospital, how: str) -> None:
    said = json.loads(inside(hospital, how, ATTACK, *hospital.words()).stdout)
    cannot = ["changes a mode"] if how == "landlock" else []  # as landlock.py says
    assert [name for name, done in said.items() if done] == cannot
    assert not list((hospital.work / "node" / "approvals").iterdir())


def test_attack_09_the_app_ends_its_node_with_a_signal_to_the_whole_group(hospital: Hospital, how: str) -> None:
    """A group of processes knows no namespace: whoever is in it is struck."""
    strike = "import os, signal; os.kill(0, signal.SIGTERM)"
    words = command(hospital, how, strike)
    node = f"import subprocess; subprocess.run({words!r}); print('the node lives')"
    done = subprocess.run(
        [sys.executable, "-c", node],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=view.environment(),
        start_new_session=True,
    )
    assert done.stdout.strip() == "the node lives", done


def test_the_app_has_what_it_needs(hospital: Hospital, how: str) -> None:
    said = json.loads(inside(hospital, how, NEEDS, *hospital.words()).stdout)
    assert [name for name, done in said.items() if not done] == []


# A round of training as the app does it, with the libraries of the real environment, from a process that has loaded nothing
TRAIN = """
import json, sys, tempfile
from pathlib import Path
import torch
from client import dataset
from client.train import train
from shared.models import weights
from shared.config.experiment import Experiment
experiment = Experiment.model_validate_json(sys.argv[2])
model = weights.load_base(experiment.base, experiment.model, experiment.classes)
cohort = dataset.load(Path(sys.argv[1]) / "cohort")
update = train(model, cohort, experiment, noise_multiplier=1.0, expected_patients=4)
print(json.dumps({"patients": len(cohort), "finite": all(bool(t.isfinite().all()) for t in update.values()),
                  "tensors": len(update)}))
"""


def test_a_round_is_trained_inside(hospital: Hospital, how: str) -> None:
    """With the interpreter and libraries of this very environment, wherever they lie: at home, in /opt or beside the checkout."""
    (hospital.work / "cohort" / "p.npz").unlink()
    for name in ("p", "q"):
        pixels = np.random.default_rng(0).integers(0, 255, (3, 16, 16), dtype=np.uint8)
        dataset.save(dataset.Patient(name, 0, pixels), hospital.work / "cohort")
    experiment = Experiment(
        name="tiny",
        base="none",
        model=PixelDiffusionSettings(image_size=16, channels=(8, 16), groups=4, latents=4, encoder_channels=8),
        training=Training(trainable="full", rounds=1, steps=2),
        privacy=Privacy(epsilon=4, sampling_rate=0.5),
    )
    said = json.loads(inside(hospital, how, TRAIN, str(hospital.work), experiment.model_dump_json()).stdout)
    assert said == {"patients": 2, "finite": True, "tensors": said["tensors"]} and said["tensors"] > 10


def test_an_environment_in_a_home_folder_is_shown_in_parts(
    hospital: Hospital, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = hospital.folder / "home"
    venv.create(home / "env", symlinks=True, with_pip=False)
    monkeypatch.setattr(sys, "executable", str(home / "env" / "bin" / "python"))
    look = "import sys; from pathlib import Path; print(sys.prefix); print(Path(sys.argv[1]).read_text())"
    words = command(hospital, how, look, str(home / "env" / "pyvenv.cfg"))
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60, env=view.environment())
    assert done.stdout.splitlines()[0] == str(home / "env"), done.stderr
    words = command(hospital, how, look, str(home / "private.txt"))
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60, env=view.environment())
    assert "Error" in done.stderr and "something" not in done.stdout


def test_what_an_app_leaves_behind_ends_with_it(hospital: Hospital, how: str) -> None:
    """A process in a session of its own, whose parent is gone: outside it is known by its words."""
    mark = f"left-{hospital.secret}"
    quiet = "stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True"
    leave = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)', '{mark}'], {quiet})"
    inside(hospital, how, leave)
    found = [p for p in Path("/proc").glob("[0-9]*/cmdline") if mark.encode() in p.read_bytes().split(b"\0")]
    assert found == []


def test_what_is_chosen_is_had_or_nothing_starts(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    """An enclosure that cannot be made does not fall back to a weaker one, and the program is never run."""
    words = command(hospital, "namespaces", "print('ran')")
    words[0:4] = [sys.executable, "-P", "-c", UNABLE]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60, env=view.environment())
    assert done.returncode == 1 and "ran" not in done.stdout
    assert "cannot be shut in (namespaces)" in done.stderr


UNABLE = """
import sys
from client.supernode import isolation, mounts
def fail(*_):
    raise OSError("no mounts here")
mounts._mount = fail
sys.exit(isolation.main(sys.argv[1:]))
"""


def test_the_word_for_what_holds_is_that_of_a_trial(how: str) -> None:
    assert isolation.files() == ("namespaces" if possible("namespaces") else "landlock")
