"""The live page and the command say how a federation stands: on this machine alone, to whoever has the token; nothing changes."""

from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from client.supernode import node
from server import status
from server.cli import app
from server.events import Events
from server.reports.watch import make_server
from server.reports.watch_page import PAGE
from server.superlink import jobs, provision
from shared.config.experiment import Experiment
from shared.config.site import Site
from shared.crypto import keys
from shared.journal import journal

TOKEN = "the-token"
FIGURE = {"value": 50.0, "floor": 40.0, "low": 45.0, "high": 55.0}


class Brains:
    """A federation of two sites, half-way through the second round of three; its server is this process."""

    def __init__(self, tmp_path: Path) -> None:
        self.file, self.folder = tmp_path / "fed.yaml", tmp_path / "brains"
        self.federation = provision.FederationFile(name="brains", address="fed.example.org:9443")
        self.file.write_text("name: brains\naddress: fed.example.org:9443\n")
        list(provision.provision(self.federation, self.folder))
        for name in ("north", "south"):
            work = tmp_path / name
            work.mkdir()
            site = Site(name=name, data=work, face_removal="none")
            provision.approve(self.federation, self.folder, node.request(site, work))
        keys.private_folder(self.folder / "state")
        self.lock = jobs.Lock(self.folder / "state" / "serving")
        heard = (keys.now() - datetime.timedelta(seconds=300)).isoformat()
        seen = {
            "north": {"connected": True, "seen": keys.now().isoformat()},
            "south": {"connected": False, "seen": heard},
        }
        (self.folder / "state" / "seen.json").write_text(json.dumps(seen))
        self.run = self.folder / "runs" / "demo"
        experiment = Experiment(name="demo")
        jobs.want(self.run, experiment.model_dump_json())
        (self.run / "job.json").write_text('{"run": 1}')
        (self.run / "server" / "samples").mkdir(parents=True)
        (self.run / "server" / "experiment.json").write_text(experiment.model_dump_json())
        rng = np.random.default_rng(0)
        np.savez_compressed(
            self.run / "server" / "samples" / "round-001.npz",
            x_NHW=rng.integers(0, 255, (6, 16, 16), np.uint8),
            label_N=np.repeat([0, 1], 3),
        )
        self.events = Events(self.run / "server" / "events.jsonl")
        told = {
            "FD-efflite0": {"name": "FD-efflite0", "digits": 1, "factor": 1.0, "reading": "Lower is <i>nearer</i>."}
        }
        self.events.write("run_started", rounds=3, sites=2, descriptions=told)
        for number in (0, 1):
            if number:
                self.events.write("round_started", round=number, asked=2)
                for name in ("north", "south"):
                    self.events.write("site_replied", round=number, site=name, epsilon=1.5, bytes=1)
                self.events.write("round_finished", round=number, contributed=["north", "south"])
            self.events.write("evaluated", round=number, metrics={"FD-efflite0": FIGURE})
        self.events.write("round_started", round=2, asked=2)
        self.events.write("site_replied", round=2, site="north", epsilon=2.5, bytes=1)
        self.events.write("site_failed", round=2, site="south", reason="<b>NaN</b> in the update")

    def look(self) -> status.Status:
        return status.of_federation(self.federation, self.folder)


@pytest.fixture
def brains(tmp_path: Path) -> Iterator[Brains]:
    made = Brains(tmp_path)
    yield made
    made.lock.release()


def test_the_status_says_who_is_there_what_goes_on_and_what_it_has_cost(brains: Brains) -> None:
    found = brains.look()
    assert (found.serving, found.alarms, found.journal and found.journal["state"]) == (True, [], "whole")
    assert 360 < found.certificates["server"] <= 365 < found.certificates["authority"]
    north, south = found.sites
    assert (north.state, north.round, north.epsilon, north.last) == ("connected", 2, 2.5, "update received")
    assert (south.state, south.round, south.epsilon, south.last) == ("away", 1, 1.5, "<b>NaN</b> in the update")
    assert 700 < (north.days or 0) <= 730
    assert status.ago(south.seen, keys.now()) == "5 min ago"
    run = found.run
    assert run is not None
    assert (run.name, run.state, run.stage, run.round, run.rounds) == ("demo", "running", "training", 2, 3)
    assert (run.asked, run.sites, run.contributed) == (2, 2, ["north"])
    assert run.history == [{"round": 1, "contributed": ["north", "south"], "failed": []}]
    assert [m["round"] for m in run.metrics["FD-efflite0"]] == [0, 1]
    assert (run.charted["name"], run.charted["digits"]) == ("FD-efflite0", 1)
    assert (run.samples, run.epsilon) == ([1], 8.0)


def test_a_run_is_followed_to_its_end_whichever_it_is(brains: Brains) -> None:
    def now() -> tuple[str, str, int]:
        run = brains.look().run
        assert run is not None
        return run.state, run.stage, run.attempt

    brains.events.write("round_failed", round=2, attempt=1, reason="too few")
    assert now() == ("running", "asking again", 2)
    brains.events.write("round_started", round=2, asked=2)
    brains.events.write("round_finished", round=2, contributed=["north"])
    brains.events.write("asking", images=6)
    brains.events.write("site_judged", site="north", passed=True)
    brains.events.write("site_did_not_judge", site="south", reason="no answer")
    run = brains.look().run
    assert run is not None and run.judged == {"north": True, "south": None}
    assert now() == ("running", "asking the sites about the release", 1)
    (brains.run / "job.json").unlink()
    assert now()[0] == "waiting"
    (brains.run / "wanted.json").unlink()
    (brains.run / "server" / "nodes.json").write_text("{}")
    assert now()[0] == "stopped"
    brains.events.write("run_finished", round=2)
    assert now()[0] == "finished"
    (brains.run / "gate.json").write_text('{"passed": false, "forced": null, "checks": []}')
    run = brains.look().run
    assert run is not None and run.release == "refused"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda b: b.lock.release(), "no server runs"),
        (lambda b: (b.folder / journal.FILE).write_bytes(b"x"), "the journal is"),
        (lambda b: [(b.run / "wanted.json").unlink(), b.events.write("run_failed", reason="boom")], "failed: boom"),
    ],
)
def test_what_must_be_looked_at_is_an_alarm_and_an_exit_code(
    brains: Brains, damage: Callable[[Brains], Any], said: str
) -> None:
    assert CliRunner().invoke(app, ["status", str(brains.file)]).exit_code == 0
    damage(brains)
    done = CliRunner().invoke(app, ["status", str(brains.file), "--json"])
    assert done.exit_code == 1
    assert said in " ".join(json.loads(done.stdout)["alarms"])


def test_the_command_prints_a_table_that_a_person_can_read(brains: Brains) -> None:
    text = CliRunner().invoke(app, ["status", str(brains.file)]).stdout
    for words in ("fed.example.org:9443, serving", "round          2 of 3, 1 of 2 contributed", "5 min ago", "2.500"):
        assert words in text


def test_a_run_on_one_machine_has_a_status_too(brains: Brains, tmp_path: Path) -> None:
    (brains.run / "wanted.json").unlink()
    (brains.run / "job.json").unlink()
    done = CliRunner().invoke(app, ["status", str(brains.run), "--json"])
    found = json.loads(done.stdout)
    assert (done.exit_code, found["address"], found["run"]["state"]) == (0, None, "open")
    assert [site["name"] for site in found["sites"]] == ["north", "south"]
    assert CliRunner().invoke(app, ["status", str(tmp_path)]).exit_code == 1


@contextmanager
def serving(brains: Brains) -> Iterator[str]:
    with make_server(brains.look, brains.folder / "runs", TOKEN) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def fetch(url: str, method: str = "GET", **headers: str) -> tuple[int, bytes, Any]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method, headers=headers), timeout=10) as reply:
            return reply.status, reply.read(), reply.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), error.headers


def test_the_page_answers_this_machine_and_its_token_alone_and_only_get(brains: Brains) -> None:
    with serving(brains) as url:
        port = url.rpartition(":")[2]
        for path in ("/", "/facts", "/samples/demo/1"):
            good = f"{url}{path}?token={TOKEN}"
            assert fetch(good)[0] == 200
            assert fetch(good, Host=f"localhost:{port}")[0] == 200
            assert fetch(good, Host=f"[::1]:{port}")[0] == 200
            for host in (
                "evil.example",
                f"evil.example:{port}",
                "127.0.0.1.evil.example",
                "",
                "127.0.0.1@evil.example",
            ):
                assert fetch(good, Host=host)[0] == 403, host  # a name that was pointed at this machine
            assert fetch(f"{url}{path}")[0] == fetch(f"{url}{path}?token=guess")[0] == 403
            for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"):
                assert fetch(good, method=method)[0] == 405, method
        for path in (
            "/samples/demo/2",
            "/samples/../demo/1",
            "/samples/demo/..%2f1",
            "/samples/nowhere/1",
            "/etc/passwd",
        ):
            assert fetch(f"{url}{path}?token={TOKEN}")[0] == 404, path
        assert fetch(f"{url}/samples/demo/1?token={TOKEN}")[1].startswith(b"\x89PNG")


def test_the_page_has_no_resource_from_elsewhere_and_runs_no_script_but_its_own(brains: Brains) -> None:
    with serving(brains) as url:
        _, page, headers = fetch(f"{url}/?token={TOKEN}")
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and policy.count("'sha256-") == 2
    assert page.decode() == PAGE
    assert "http" not in PAGE.replace("http://www.w3.org/2000/svg", "")
    assert "innerHTML" not in PAGE and " on" not in "".join(
        part.split(">")[0] for part in PAGE.split("<body>")[1].split("<button")
    )


def test_what_the_facts_hold_is_nothing_of_a_patient_and_no_key(brains: Brains) -> None:
    with serving(brains) as url:
        facts = fetch(f"{url}/facts?token={TOKEN}")[1].decode()
    assert "PRIVATE" not in facts and str(brains.folder) not in facts
    (brains.folder / "server.pem").unlink()
    with serving(brains) as url:
        assert "error" in json.loads(fetch(f"{url}/facts?token={TOKEN}")[1]), (
            "one look that fails does not end the page"
        )


def test_the_command_serves_until_ctrl_c_and_then_ends_quietly(brains: Brains) -> None:
    # Whoever starts the tests in the background of a script has SIGINT ignored, and so would the command
    program = ["env", "--default-signal=INT", sys.executable, "-c", "from server.cli import app; app()"]
    program += ["watch", str(brains.file), "--port", "0"]
    words = {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen(
        program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | words
    ) as watch:
        try:
            assert watch.stdout is not None
            url, hint = watch.stdout.readline().strip(), watch.stdout.readline().strip()
            assert hint == "Ctrl-C ends."
            address, _, token = url.partition("?token=")
            assert fetch(url)[1].decode() == PAGE
            facts = json.loads(fetch(f"{address}facts?token={token}")[1])
            assert (facts["serving"], facts["run"]["name"]) == (True, "demo")
            assert fetch(address)[0] == fetch(f"{address}?token={TOKEN}")[0] == 403
            watch.send_signal(signal.SIGINT)
            rest = watch.communicate(timeout=20)
        finally:
            watch.kill()
    assert (watch.returncode, *rest) == (0, "", "")
    with pytest.raises(urllib.error.URLError):
        fetch(url)


@pytest.mark.debian("chromium")
def test_the_page_goes_on_by_itself_in_a_browser_and_shows_text_as_text(
    brains: Brains, browser: Any, tmp_path: Path
) -> None:
    browser.send("Log.enable")
    with serving(brains) as url:
        browser.send("Page.navigate", url=f"{url}/?token={TOKEN}")
        browser.wait("document.getElementById('tiles')?.textContent.includes('2 of 3')")
        browser.wait("document.getElementById('picture').naturalWidth > 0")
        assert browser.see("document.getElementById('pulse').textContent").strip() == "live"
        assert "<b>NaN</b> in the update" in browser.see("document.getElementById('body').textContent")
        assert browser.see("document.querySelectorAll('#chart circle').length") == 2
        assert "real against real 40.0" in browser.see("document.getElementById('chart').textContent")
        assert "Lower is <i>nearer</i>." in browser.see("document.getElementById('best').textContent")
        assert browser.see("getComputedStyle(document.querySelector('.tile')).paddingTop") != "0px", (
            "its style was let in"
        )
        assert browser.see("document.documentElement.scrollWidth <= innerWidth")
        for scheme in ("light", "dark"):
            browser.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            (tmp_path / f"{scheme}.png").write_bytes(browser.picture())
        assert browser.see("getComputedStyle(document.body).backgroundColor") == "rgb(18, 23, 27)"
        brains.events.write("site_replied", round=2, site="south", epsilon=2.5, bytes=1)
        browser.wait("document.getElementById('tiles').textContent.includes('2 of 2')")
        brains.lock.release()
        browser.wait("document.getElementById('said').textContent.includes('no server runs')")
    browser.wait("document.getElementById('pulse').textContent.includes('no answer')")
