"""The report is one file, says what is missing, escapes what it is told, and claims no more than its figures carry."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from server.evaluation.evaluate import Heldout
from server.metrics.base import Description
from server.reports.report import words
from server.reports.report.data import read_run
from server.reports.report.write import write_report
from server.summary import Measured, write_summary
from shared.errors import DataError

HOSTILE = "<img src=x onerror=alert(1)>$x$"
VOID = {"meta", "img", "source", "br", "link", "hr", "input"}


def figure(value: float) -> dict[str, float]:
    return {"value": value, "floor": value / 4, "low": value * 0.9, "high": value * 1.1}


def make_run(out: Path, **changes: Any) -> Path:
    """A finished run of two rounds at three sites, one of which failed once and has a hostile name."""
    rng = np.random.default_rng(0)
    server = out / "server"
    (server / "samples").mkdir(parents=True)
    sites = ["north", "south", HOSTILE]
    metrics: dict[str, dict[str, Any]] = {"FD-efflite0": {}, "KID-efflite0": {}, "NN-SSIM to held-out": {}}
    events: list[dict[str, Any]] = [{"seconds": 0.0, "event": "run_started", "sites": 3, "unknown field": [1]}]
    for number in range(3):
        for metric, rounds in metrics.items():
            rounds[str(number)] = figure(100.0 - 30 * number if metric.startswith("FD") else 0.3)
        x_NHW = rng.integers(0, 256, (8, 16, 16), dtype=np.uint8)
        np.savez(server / "samples" / f"round-{number:03d}.npz", x_NHW=x_NHW, label_N=np.arange(8) % 2)
        if number:
            events.append({"seconds": number * 10.0, "event": "round_started", "round": number})
            for site in sites:
                e: dict[str, Any] = {"seconds": number * 10.0 + 2, "round": number, "site": site}
                if site == HOSTILE and number == 1:
                    events.append(e | {"event": "site_failed", "reason": "<b>cap</b> already spent"})
                else:
                    events.append(e | {"event": "site_replied", "epsilon": 3.9 * number, "bytes": 2000})
            events.append({"seconds": number * 10.0 + 4, "event": "round_finished", "round": number})
        evaluated = {name: rounds[str(number)] for name, rounds in metrics.items()}
        events.append({"seconds": number * 10.0 + 6, "event": "evaluated", "round": number, "metrics": evaluated})
    (server / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in events) + '{"torn', encoding="utf-8")
    settings = {
        "classes": {"healthy": "any", "lesion": "any"},
        "training": {"steps": 2},
        "privacy": {"sampling_rate": 0.5, "max_grad_norm": 1.0},
        "evaluation": {"bootstrap": 200},
        "release": {"epsilon_cap": 8.0},
    }
    (server / "experiment.json").write_text(json.dumps(settings))
    Heldout(rng.integers(0, 256, (8, 16, 16), dtype=np.uint8), np.arange(8) // 2, np.arange(8) % 2).save(
        server / "heldout.npz"
    )
    for site in sites[1:]:
        (out / "sites" / site).mkdir(parents=True)
        verdicts = [("PASS", "ok", "used")] * 5 + [("QUARANTINED", "localizer", "localizer")] * 3
        lines = [json.dumps({"verdict": v, "reason": r, "text": t}) for v, r, t in verdicts]
        (out / "sites" / site / "manifest.jsonl").write_text("\n".join(lines))
    summary: dict[str, Any] = {
        "name": "demo",
        "sites_total": 3,
        "sites_contributed": 2,
        "rounds": 2,
        "best_round": 2,
        "delta": 1e-5,
        "epsilon_per_patient": dict.fromkeys(sites, 7.8),
        "noise_multiplier": 2.0,
        "trainable_parameters": 420,
        "nsr": 0.8,
        "metrics": metrics,
        "bytes_per_round": 5000.0,
        "seconds": 61.5,
        "versions": {"fedsynth": "0.1.0", "dp-accounting": "0.6"},
    }
    write_summary(out, summary | changes)
    return out


class Page(HTMLParser):
    """Collects text, links and images, and fails on tags that do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("run") / "demo")
    assert write_report(folder) == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def html(out: Path) -> str:
    return (out / "report.html").read_text(encoding="utf-8")


def test_the_page_loads_nothing_from_anywhere(html: str) -> None:
    page = Page(html)
    assert not [tag for tag, _ in page.tags if tag in {"script", "link", "iframe", "object", "embed", "form"}]
    loads = [a[k] or "" for _, a in page.tags for k in ("src", "srcset", "href", "data", "poster") if k in a]
    assert loads
    assert all(load.startswith("data:image/png;base64,") for load in loads)
    assert not re.search(r"@import|url\(", html)
    assert not [a for _, a in page.tags if any(key.startswith("on") for key in a)]


def test_figures_under_privacy_are_never_shown_without_their_price(tmp_path: Path, html: str) -> None:
    assert "chose to give" not in html
    noisy = {"noise_multiplier": 30.0, "epsilon": 0.123, "values": {"north": {"1": 21.0}, "south": {"1": -4.0}}}
    folder = make_run(tmp_path / "demo", statistics={"patient-count": noisy})
    text = Page(write_report(folder).read_text(encoding="utf-8")).text
    for said in ("chose to give", "north patient count round 1: 21 noisy, epsilon 0.13", "noise multiplier 30", "-4"):
        assert said in text


def test_every_picture_has_words_for_those_who_do_not_see_it_and_lies_beside_the_page(out: Path, html: str) -> None:
    images = [a for tag, a in Page(html).tags if tag == "img"]
    assert len(images) >= 8
    assert all(len(a["alt"] or "") > 15 for a in images)
    for name in (
        "real",
        "synthetic",
        "round-000",
        "round-002",
        "fd-efflite0",
        "kid-efflite0",
        "epsilon",
        "epsilon-dark",
    ):
        with Image.open(out / "report" / f"{name}.png") as picture:
            picture.load()


def test_what_others_wrote_is_escaped(html: str) -> None:
    assert "onerror" in html
    assert "<img src=x" not in html
    assert "<b>cap</b>" not in html
    text = Page(html).text
    assert HOSTILE in text
    assert "<b>cap</b> already spent" in text


def test_pain06_the_page_says_how_many_sites_contributed_and_why_one_was_missing(html: str) -> None:
    text = Page(html).text
    assert "2 of 3 sites contributed" in text
    assert "Only 2 of 3 sites contributed to every round" in text
    assert "It was refused: only 2 of 3 sites contributed" in text


def test_every_figure_stands_beside_its_interval_and_its_floor(html: str) -> None:
    text = Page(html).text
    for said in ("100.0", "90.0 to 110.0", "40.0", "36.0 to 44.0", "Real against real", "10.0"):
        assert said in text


def test_the_privacy_statement_and_the_cap_are_on_the_page(html: str) -> None:
    text = Page(html).text
    assert "(7.80, 1e-5)-differentially private per patient" in text
    assert "cap 8, delta 1e-5" in text
    assert "Add or remove all data of one patient at one site" in text


def test_verdicts_and_reasons_of_every_manifest_are_counted(html: str) -> None:
    text = Page(html).text
    assert "south 5 3 0 3 × localizer" in text


def test_real_images_on_the_page_are_pointed_out(html: str) -> None:
    assert "shows real images of the held-out patients" in Page(html).text


def test_what_is_missing_is_said_and_the_page_still_comes(tmp_path: Path) -> None:
    out = make_run(tmp_path / "demo")
    shutil.rmtree(out / "sites")
    shutil.rmtree(out / "server")
    text = Page(write_report(out).read_text(encoding="utf-8")).text
    for said in (
        "What is missing from this page",
        "resolved settings",
        "no record of events",
        "held-out images",
        "No drawn images",
        "No site's manifest",
    ):
        assert said in text
    assert "2 of 3 sites contributed" in text


def test_damaged_parts_are_counted_and_left_out(tmp_path: Path) -> None:
    out = make_run(tmp_path / "demo")
    (out / "server" / "samples" / "round-001.npz").write_bytes(b"not a zip")
    text = Page(write_report(out).read_text(encoding="utf-8")).text
    assert "1 line(s) of the record of events are damaged" in text
    assert "images of round 1 could not be read" in text


def test_a_run_that_has_not_finished_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has the run finished"):
        write_report(tmp_path)


def test_a_run_without_privacy_says_so_in_red(tmp_path: Path) -> None:
    out = make_run(tmp_path / "demo", private=False, noise_multiplier=None, epsilon_per_patient={"north": None})
    text = Page(write_report(out).read_text(encoding="utf-8")).text
    assert "trained without differential privacy. It carries no guarantee" in text
    assert "differentially private per patient" not in text


@pytest.mark.parametrize(
    ("after", "verdict"),
    [((60, 55, 65), "nearer"), ((140, 130, 150), "farther"), ((95, 85, 105), "not to be told apart")],
)
def test_better_is_said_only_where_intervals_do_not_overlap(after: tuple[int, int, int], verdict: str) -> None:
    value, low, high = after
    base, best = Measured(value=100, floor=20, low=90, high=110), Measured(value=value, floor=20, low=low, high=high)
    assert words.compare(base, best, Description("distance", "lower")) == verdict
    assert words.compare(best, base, Description("share", "higher")) == verdict


def test_a_node_that_never_said_its_name_is_not_counted_as_a_site(tmp_path: Path) -> None:
    out = make_run(tmp_path / "demo")
    with (out / "server" / "events.jsonl").open("a") as file:
        file.write('\n{"event": "site_failed", "round": 2, "site": "node 8123", "reason": "no reply"}\n')
    assert read_run(out).sites == sorted(["north", "south", HOSTILE])


@pytest.mark.debian("chromium")
def test_a_browser_renders_the_page(out: Path, tmp_path: Path) -> None:
    browser = shutil.which("chromium")
    if not browser:
        assert not os.environ.get("CI"), "CI must have chromium"
        pytest.skip("chromium is absent; apt-get install chromium")
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--hide-scrollbars", *quiet]
    target = [
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--screenshot={tmp_path / 'page.png'}",
        "--window-size=1200,2400",
    ]
    page = (out / "report.html").resolve().as_uri()
    subprocess.run([*command, *target, page], check=True, capture_output=True, timeout=120)
    with Image.open(tmp_path / "page.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    assert pixels.shape == (2400, 1200)
    assert pixels[:50].std() < 5, "a quiet margin at the top"
    assert pixels.std() > 20, "text and pictures below"
