"""Apps that are forked: as new as a process that was started, with libraries that are loaded already."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor import ExecutionSpec

from client.supernode import prefork

CHILD = """
import json, os, socket, sys, threading, time
from pathlib import Path
import flwr.supernode.runtime.run_clientapp as flower
from client.supernode import prefork

folder = Path(sys.argv[1])

def app(token, **spec):
    kept = sorted(name for name in sys.modules if name.partition(".")[0] in prefork.OURS)
    torch = sys.modules["torch"]
    sys.path.insert(0, str(folder))  # as Flower does with the bundle
    import client
    where = client.__file__
    sys.path.pop(0)
    prefork.forget()
    from privacy import noise
    said = {"kept": kept, "client": where, "threads": threading.active_count(), "parent": spec["parent_pid"],
            "cuda": torch.cuda.is_initialized(), "diffusers": "diffusers.models.unets.unet_2d" in sys.modules,
            "noise": noise.SecureRandom().gaussian((4,)).tolist(),
            "product": float((torch.ones(600, 600) @ torch.ones(600, 600)).sum()),
            "open": sorted(int(name) for name in os.listdir("/proc/self/fd"))[:-1],  # the last is of the listing itself
            "words": Path("/proc/self/cmdline").read_text(), "comm": Path("/proc/self/comm").read_text().strip()}
    new = folder / f"{token}.new"
    new.write_text(json.dumps(said))
    new.rename(folder / f"{token}.json")
    os._exit(0)

flower.run_clientapp = app
ours, theirs = socket.socketpair()
if os.fork() == 0:
    ours.close()
    prefork.nurse(theirs)
    os._exit(0)
theirs.close()
from flwr.supercore.superexec.executor import ExecutionSpec
nursery = prefork.Nursery(ours)
for number, token in enumerate(("one", "two"), 1):
    spec = ExecutionSpec("flwr-clientapp", "127.0.0.1:1", token, True, None, False, os.getpid(), False, number)
    print(nursery.launch(spec).status)
while len(list(folder.glob("*.json"))) < 2:
    time.sleep(0.1)
nursery.close()  # with the nursery every app ends
os.wait()
"""

# The first app fills the folder of a bundle that is not there yet, and leaves a process behind; the second says what it finds
LEAVING = """
import json, os, socket, subprocess, sys, time
from pathlib import Path
import flwr.supernode.runtime.run_clientapp as flower
from client.supernode import prefork

folder = Path(sys.argv[1])

def app(token, **spec):
    planted = Path(os.environ["FLWR_HOME"]) / "apps" / "another.bundle" / "client" / "app.py"
    if token == "one":
        planted.parent.mkdir(parents=True)
        planted.write_text("planted")
        program = [sys.executable, "-c", "import time; time.sleep(120)"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        said = {"left": subprocess.Popen(program, start_new_session=True, **quiet).pid}
    else:
        left = json.loads((folder / "one.json").read_text())["left"]
        said = {"planted": planted.exists(), "left": Path(f"/proc/{left}").exists()}
    new = folder / f"{token}.new"
    new.write_text(json.dumps(said))
    new.rename(folder / f"{token}.json")
    os._exit(0)

flower.run_clientapp = app
ours, theirs = socket.socketpair()
if os.fork() == 0:
    ours.close()
    prefork.nurse(theirs)
    os._exit(0)
theirs.close()
from flwr.supercore.superexec.executor import ExecutionSpec
nursery = prefork.Nursery(ours)
for number, token in enumerate(("one", "two"), 1):
    nursery.launch(ExecutionSpec("flwr-clientapp", "127.0.0.1:1", token, True, None, False, os.getpid(), False, number))
    while not (folder / f"{token}.json").exists():
        time.sleep(0.1)
nursery.close()
"""


def test_attack_09_an_app_plants_code_for_a_bundle_to_come_and_leaves_a_process_to_guard_it(tmp_path: Path) -> None:
    """Flower takes a folder that has a bundle's name for that bundle. Code that is approved no more must not stay in it."""
    (tmp_path / "flower").mkdir()
    environment = os.environ | {"FLWR_HOME": str(tmp_path / "flower")}
    program = [sys.executable, "-c", LEAVING, str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    left = json.loads((tmp_path / "one.json").read_text())["left"]
    with contextlib.suppress(ProcessLookupError):
        os.kill(left, signal.SIGKILL)
    assert json.loads((tmp_path / "two.json").read_text()) == {"planted": False, "left": False}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two apps, forked one after the other, see."""
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "client").mkdir()
    (folder / "client" / "__init__.py").write_text("")
    program = [sys.executable, "-c", CHILD, str(folder)]
    done = subprocess.run(program, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["accepted"] * 2, done.stderr
    found = sorted(folder.glob("*.json"))
    return [json.loads(path.read_text()) | {"folder": str(folder)} for path in found]


def test_an_app_takes_our_code_from_its_bundle_and_libraries_from_the_nursery(said: list[dict[str, Any]]) -> None:
    assert len(said) == 2
    for app in said:
        assert app["kept"] == []
        assert app["client"] == str(Path(app["folder"]) / "client" / "__init__.py")
        assert app["diffusers"]
        assert (app["threads"], app["cuda"]) == (1, False)
        assert app["product"] == 600.0**3  # what computes with several threads does not hang


def test_an_app_has_nothing_open_but_its_output(said: list[dict[str, Any]]) -> None:
    """Not the line on which other tasks' tokens travel, nor what the nursery had open."""
    assert [app["open"] for app in said] == [[0, 1, 2]] * 2


def test_two_apps_draw_different_noise(said: list[dict[str, Any]]) -> None:
    """A generator that was filled before the fork would give both the same."""
    one, two = (app["noise"] for app in said)
    assert not set(one) & set(two)


def test_a_tasks_token_is_on_no_command_line(said: list[dict[str, Any]]) -> None:
    assert {app["comm"] for app in said} == {prefork.APP}
    assert not any("one" in app["words"].split("\0") or "two" in app["words"].split("\0") for app in said)


def test_only_this_roles_work_is_taken_and_a_nursery_that_is_gone_is_said() -> None:
    ours, theirs = socket.socketpair()
    nursery = prefork.Nursery(ours)
    assert nursery.get_eligible_capacity(set(TaskType)) == ({TaskType.CLIENT_APP}, set())
    theirs.close()
    spec = ExecutionSpec(TaskType.CLIENT_APP, "127.0.0.1:1", "t", True, None, False, os.getpid(), False, 1)
    assert nursery.launch(spec).status == "failed"
    nursery.close()
