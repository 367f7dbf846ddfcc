"""Readers judge blind, by key; every answer is kept at once; what they come to is computed as the papers say."""

from __future__ import annotations

import html
import json
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from typer.testing import CliRunner

from server.cli import app
from server.reports import agreement, review
from server.reports.report.write import write_report
from server.reports.review import Answer
from server.reports.review_server import make_server
from server.summary import write_summary
from shared.errors import DataError, FedsynthError

SUMMARY: dict[str, Any] = {
    "name": "demo",
    "sites_total": 1,
    "sites_contributed": 1,
    "rounds": 1,
    "best_round": 1,
    "delta": 1e-5,
    "epsilon_per_patient": {"north": 7.9},
    "noise_multiplier": 2.0,
    "trainable_parameters": 420,
    "nsr": 0.8,
    "metrics": {},
    "bytes_per_round": 1024.0,
    "seconds": 61.5,
    "versions": {"fedsynth": "0.1.0"},
}


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, Path]:
    """A release and real images, four of each; the release's PNGs say in words that they are synthetic."""
    rng = np.random.default_rng(0)
    marks = PngImagePlugin.PngInfo()
    marks.add_text("Synthetic", "YES")
    for kind, size in (("release", 32), ("real", 48)):
        (tmp_path / kind).mkdir()
        for i in range(4):
            picture = Image.fromarray(rng.integers(0, 256, (size, size), dtype=np.uint8))
            picture.save(tmp_path / kind / f"{kind}-{i}.png", pnginfo=marks)
    return tmp_path / "release", tmp_path / "real"


def make(images: tuple[Path, Path], *readers: str) -> review.Review:
    return review.prepare(images[0].parent / "review", *images, list(readers), images=4, patients="image", seed=0)


def test_nothing_about_an_image_says_which_it_is(images: tuple[Path, Path]) -> None:
    found = make(images, "anna", "ben")
    folder = images[0].parent / "review"
    assert sorted(found.truth.values()) == [False] * 4 + [True] * 4
    kinds: dict[bool, set[Any]] = {True: set(), False: set()}
    for name, real in found.truth.items():
        data = (folder / "images" / f"{name}.png").read_bytes()
        assert b"Synthetic" not in data
        with Image.open(folder / "images" / f"{name}.png") as picture:
            kinds[real].add((picture.size, picture.mode, tuple(picture.info)))
    assert kinds[True] == kinds[False]
    assert folder.stat().st_mode & 0o077 == 0
    assert (folder / "plan.json").stat().st_mode & 0o077 == 0
    assert found.order("anna") != found.order("ben")
    assert sorted(found.order("anna")) == sorted(found.order("ben"))


def test_a_review_goes_on_where_it_stopped_and_others_may_join(images: tuple[Path, Path]) -> None:
    first = make(images, "anna")
    image = first.order("anna")[0]
    first.add(Answer("anna", image, True, 4, ("blur",)))
    with (first.folder / "answers.jsonl").open("a") as file:
        file.write('{"reader": "anna", "im')  # killed in the middle of a line
    again = make(images, "anna", "ben")
    assert (again.truth, again.tokens["anna"]) == (first.truth, first.tokens["anna"])
    assert again.answers() == [Answer("anna", image, True, 4, ("blur",))]
    again.add(Answer("anna", image, False, 2, ()))
    assert again.answers() == [Answer("anna", image, False, 2, ())], (
        "the last answer counts, and a torn line harms no other"
    )
    with pytest.raises(DataError, match="letters, digits"):
        make(images, "../anna")
    (again.folder / "plan.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        make(images, "anna")


@contextmanager
def serving(found: review.Review) -> Iterator[str]:
    with make_server(found) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def fetch(url: str, body: Any = None, **headers: str) -> tuple[int, bytes, Any]:
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=10) as reply:
            return reply.status, reply.read(), reply.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), error.headers


def test_the_server_answers_readers_on_this_machine_alone(images: tuple[Path, Path]) -> None:
    found = make(images, "anna")
    with serving(found) as url:
        token = found.tokens["anna"]
        status, page, headers = fetch(f"{url}/?token={token}")
        assert (status, b"Real or synthetic?" in page) == (200, True)
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        for path in ("/", "/next", f"/image/{found.order('anna')[0]}"):
            assert fetch(f"{url}{path}")[0] == fetch(f"{url}{path}?token=guess")[0] == 403
            assert fetch(f"{url}{path}?token={token}", Host="evil.example")[0] == 403
        for path in ("/image/../plan", "/image/%2e%2e%2fplan", "/plan.json", "/image/unknown"):
            assert fetch(f"{url}{path}?token={token}")[0] == 404
        state = json.loads(fetch(f"{url}/next?token={token}")[1])
        assert set(state) == {"reader", "image", "done", "total", "artefacts", "before"}
        good = {"image": state["image"], "real": True, "score": 3, "artefacts": []}
        for bad in (
            good | {"score": 6},
            good | {"score": True},
            good | {"real": "yes"},
            good | {"artefacts": ["<b>"]},
            good | {"image": "other"},
            {"image": state["image"]},
            [1],
            b"{",
            b"x" * 5000,
        ):
            assert fetch(f"{url}/answer?token={token}", bad)[0] == 400
        assert not found.answers()
        after = json.loads(fetch(f"{url}/answer?token={token}", good | {"reader": "ben"})[1])
        assert (after["done"], after["before"]["image"]) == (1, state["image"])
        assert found.answers()[0].reader == "anna", "a reader answers for nobody else"


def test_kappa_is_that_of_the_papers() -> None:
    # Fleiss 1971, table 1: 30 patients, 6 psychiatrists, 5 diagnoses. Kappa 0.430
    table = """0 0 0 6 0|0 3 0 0 3|0 1 4 0 1|0 0 0 0 6|0 3 0 3 0|2 0 4 0 0|0 0 4 0 2|2 0 3 1 0|2 0 0 4 0|0 0 0 0 6
    |1 0 0 5 0|1 1 0 4 0|0 3 3 0 0|1 0 0 5 0|0 2 0 3 1|0 0 5 0 1|3 0 0 1 2|5 1 0 0 0|0 2 0 4 0|1 0 2 0 3
    |0 0 0 0 6|0 1 0 5 0|0 2 0 1 3|2 0 0 4 0|1 0 0 4 1|0 5 0 1 0|4 0 0 0 2|0 2 0 4 0|1 0 5 0 0|0 0 0 0 6"""
    counts = np.array([[int(x) for x in row.split()] for row in table.split("|")])
    assert agreement.fleiss_counts(counts) == pytest.approx(0.430, abs=0.0005)
    # two readers: yes-yes 20, yes-no 5, no-yes 10, no-no 15. Observed 0.7, chance 0.5
    a = np.repeat([True, True, False, False], [20, 5, 10, 15])
    b = np.repeat([True, False, True, False], [20, 5, 10, 15])
    assert agreement.cohen(a, b) == pytest.approx(0.4)
    assert agreement.cohen(a, a) == 1
    assert np.isnan(agreement.cohen(np.ones(4, bool), np.ones(4, bool)))
    found = agreement.wilson(8, 10)  # Newcombe 1998
    assert [found[k] for k in ("value", "low", "high")] == pytest.approx([0.8, 0.4902, 0.9433], abs=1e-4)
    assert agreement.wilson(0, 0)["value"] is None


def test_results_count_every_answer_once_and_carry_intervals(images: tuple[Path, Path]) -> None:
    found = make(images, "anna", "ben", "idle")
    for image, real in found.truth.items():
        found.add(Answer("anna", image, real, 5 if real else 2, () if real else ("blur",)))
        found.add(Answer("ben", image, True, 3, ()))
    said = agreement.results(found)
    assert set(said["readers"]) == {"anna", "ben"}
    assert said["readers"]["anna"]["confusion"] == {
        "real_called_real": 4, "real_called_synthetic": 0, "synthetic_called_real": 0, "synthetic_called_synthetic": 4,
    }  # fmt: skip
    assert said["readers"]["anna"]["artefacts"]["blur"] == {"real": 0, "synthetic": 4}
    assert said["readers"]["anna"]["score"]["synthetic"] == {"value": 2.0, "low": 2.0, "high": 2.0}
    assert said["readers"]["ben"]["accuracy"]["value"] == 0.5
    everybody = said["everybody"]["accuracy"]
    assert everybody["low"] <= everybody["value"] == 0.75 <= everybody["high"]
    assert said["agreement"]["measure"] == "Cohen's kappa"
    assert said["agreement"]["kappa"]["value"] == 0.0
    json.dumps(said, allow_nan=False)


def test_results_go_into_the_report_and_a_review_that_nobody_began_is_one_line(images: tuple[Path, Path]) -> None:
    def words() -> str:
        page = (out / "report.html").read_text(encoding="utf-8")
        return " ".join(html.unescape(re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)).split())

    out = images[0].parent / "demo"
    out.mkdir()
    write_summary(out, SUMMARY)
    images[0].rename(out / "release")
    found = review.prepare(
        out / "review", out / "release", images[1], ["anna", "ben"], images=4, patients="image", seed=0
    )
    for image, real in found.truth.items():
        for name in ("anna", "ben"):
            found.add(Answer(name, image, real, 4, ()))
    done = CliRunner().invoke(app, ["review", str(out / "release"), "--results"], catch_exceptions=False)
    assert json.loads(done.stdout)["everybody"]["accuracy"]["value"] == 1.0
    text = words()
    assert "2 readers judged up to 8 real and synthetic images blind" in text
    assert "Cohen's kappa: 1.00 (1.00 to 1.00)" in text
    assert "anna 4 of 4 0 of 4 1.00" in text
    (out / "review" / "review.json").write_text("{")
    write_report(out)
    assert "What the readers said (review/review.json) could not be read" in words()
    for arguments in ([], ["--real", str(images[1])], ["--reader", "anna"]):
        done = CliRunner().invoke(app, ["review", str(out / "elsewhere" / "release"), *arguments])
        assert isinstance(done.exception, FedsynthError), done.exception


@pytest.mark.debian("chromium")
def test_a_reader_judges_every_image_by_key_in_a_browser(
    images: tuple[Path, Path], browser: Any, tmp_path: Path
) -> None:
    found = make(images, "anna")
    order = found.order("anna")
    with serving(found) as url:
        address = f"{url}/?token={found.tokens['anna']}"
        browser.send("Page.navigate", url=address)
        browser.wait("document.getElementById('image')?.naturalWidth > 0")
        box = browser.see("(r => [r.top, r.bottom])(document.getElementById('image').getBoundingClientRect())")
        assert 0 <= box[0] < box[1] <= browser.see("innerHeight"), "the whole image is in view"
        browser.press("Enter")
        assert not found.answers(), "nothing is saved before both questions are answered"
        browser.press("r", "4", "z", "c")
        assert browser.see("document.querySelectorAll('[aria-pressed=true]').length") == 4
        (tmp_path / "page.png").write_bytes(browser.picture())
        browser.press("Enter")
        browser.wait("document.getElementById('count').textContent.startsWith('1 of')")
        assert found.answers() == [Answer("anna", order[0], True, 4, ("blur", "ghosting or ringing"))]
        # the one before is changed
        browser.press("Backspace", "s", "c", "Enter")
        browser.wait("document.querySelectorAll('[aria-pressed=true]').length === 0")
        assert found.answers() == [Answer("anna", order[0], False, 4, ("blur",))]
        # the page is closed and opened again: it goes on
        browser.send("Page.navigate", url="about:blank")
        browser.send("Page.navigate", url=address)
        for done in range(1, 8):
            browser.wait(f"document.getElementById('count')?.textContent === '{done} of 8'")
            browser.press("s", "1", "Enter")
        browser.wait("document.body.classList.contains('over')")
        assert [a.image for a in found.answers()] == order
        with Image.open(tmp_path / "page.png") as picture:
            assert picture.size == (1280, 800) or picture.width >= 1000
