"""A whole federation, small, through Flower's own engine; and what happens when something goes wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared.refusals import WORDS
from simulations.guardian import marked

TINY = """
name: tiny
data: phantoms
base: none
model: {image_size: 32, channels: [16, 32], groups: 4, latents: 4, encoder_channels: 8}
cohort: {sites: 2, patients_per_site: 6, heldout_patients: 6, slices_per_patient: 6, planted: south}
training: {trainable: appearance, rounds: 2, steps: 2}
privacy: {epsilon: 8, statistics: {patient_count: 60, mean_loss: 60}}
evaluation: {samples: 24, sampler_steps: 3, bootstrap: 20}
release: {images_per_class: 2, sampler_steps: 3, gate: {required: [privacy, sites]}}  # six patients of noise cannot be judged
"""


def fedsynth(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "fedsynth"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=cwd)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished simulation, shared by the tests of this file."""
    folder = tmp_path_factory.mktemp("federation")
    (folder / "tiny.yaml").write_text(TINY)
    done = fedsynth("simulate", folder / "tiny.yaml", "--out", folder / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "console.txt").write_text(done.stdout + done.stderr)
    return folder / "out"


def test_the_output_folder_holds_what_is_promised(run: Path) -> None:
    for name in ("report.html", "summary.json", "server/events.jsonl", "release/SHA256SUMS", "release/MODEL_CARD.md"):
        assert (run / name).stat().st_size > 0, name
    for site in ("north", "south"):
        assert (run / "sites" / site / "manifest.jsonl").stat().st_size > 0
        assert (run / "sites" / site / "ledger.jsonl").stat().st_size > 0


def test_the_summary_states_epsilon_per_patient_within_its_target(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert summary["sites_total"] == summary["sites_contributed"] == 2
    assert summary["unit_of_privacy"] == "patient"
    assert all(7 < epsilon <= 8 for epsilon in summary["epsilon_per_patient"].values())
    assert set(summary["metrics"]["FD-efflite0"]) == {"0", "1", "2"}
    for rounds in summary["metrics"].values():
        for figure in rounds.values():
            assert figure["low"] <= figure["value"] <= figure["high"]


def test_noisy_figures_are_in_the_summary_with_their_price_and_inside_the_epsilon(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    figures = summary["statistics"]
    assert sorted(figures) == ["mean-loss", "patient-count"]
    assert all(set(f["values"]) == {"north", "south"} for f in figures.values())
    assert set(figures["mean-loss"]["values"]["north"]) == {"1", "2"}
    assert set(figures["patient-count"]["values"]["north"]) == {"1"}
    assert 0 < figures["patient-count"]["epsilon"] < figures["mean-loss"]["epsilon"] < 1
    assert 7.9 < max(summary["epsilon_per_patient"].values()) <= 8
    assert "chose to give" in (run / "report.html").read_text()


def test_no_planted_identifier_is_in_any_written_byte_or_on_the_console(run: Path) -> None:
    planted = (run / "hospitals" / "south-planted.txt").read_text().split()
    assert len(planted) > 1000
    hospitals = run / "hospitals"
    written = [p for p in run.rglob("*") if p.is_file() and hospitals not in p.parents]
    text = b"\n".join([p.read_bytes() for p in written] + [str(p).encode() for p in written])
    text += (run.parent / "console.txt").read_bytes()
    assert [secret for secret in planted if secret.encode() in text] == []


def test_pain14_nothing_is_left_running(run: Path) -> None:
    assert marked(f"FLWR_HOME={(run / 'flower').resolve()}") == []


def test_the_same_command_again_repeats_nothing_and_spends_nothing(run: Path) -> None:
    ledger = (run / "sites" / "north" / "ledger.jsonl").read_bytes()
    done = fedsynth("simulate", run.parent / "tiny.yaml", "--out", run)
    assert done.returncode == 0, done.stderr
    assert (run / "sites" / "north" / "ledger.jsonl").read_bytes() == ledger


def test_other_settings_in_the_same_folder_are_refused(run: Path) -> None:
    done = fedsynth("simulate", run.parent / "tiny.yaml", "--out", run, "--epsilon", "4")
    assert done.returncode == 2
    assert "holds a run with other settings" in done.stderr


def test_an_interrupted_run_leaves_nothing_running_and_goes_on(tmp_path: Path) -> None:
    # The round that is cut off may be charged twice, since a ledger never refunds: leave room under the sites' cap of 8
    (tmp_path / "tiny.yaml").write_text(TINY.replace("epsilon: 8", "epsilon: 4"))
    out = tmp_path / "out"
    command = [
        str(Path(sys.executable).parent / "fedsynth"),
        "simulate",
        str(tmp_path / "tiny.yaml"),
        "--out",
        str(out),
    ]
    # Whoever starts the tests in the background of a script has SIGINT ignored, and so would the command
    command = ["env", "--default-signal=INT", *command]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 200
    while not (out / "server" / "checkpoints" / "round-001.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; run the same command again" in errors
    assert marked(f"FLWR_HOME={(out / 'flower').resolve()}") == []
    done = fedsynth("simulate", tmp_path / "tiny.yaml", "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert summary["sites_contributed"] == 2


def test_a_cap_that_is_already_spent_is_refused_and_nothing_is_released(run: Path) -> None:
    """The cohort of the finished run, asked for a second run: the sites say no."""
    again = run.parent / "again"
    again.mkdir()
    for name in ("sites", "hospitals", "heldout"):
        subprocess.run(["cp", "-r", str(run / name), str(again / name)], check=True)
    (again / "server").mkdir()
    subprocess.run(["cp", str(run / "server" / "heldout.npz"), str(again / "server")], check=True)
    done = fedsynth("simulate", run.parent / "tiny.yaml", "--out", again)
    assert done.returncode == 1
    assert "0 of 2 sites contributed" in done.stderr.replace("\n", " ")
    assert WORDS["budget"] in (again / "server" / "events.jsonl").read_text()
    assert not (again / "release").exists()


def test_training_without_privacy_is_reported_and_never_released(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    done = fedsynth("simulate", tmp_path / "tiny.yaml", "--out", tmp_path / "out", "--epsilon", "none", "--rounds", "1")
    assert done.returncode == 3
    assert (tmp_path / "out" / "report.html").exists()
    assert not (tmp_path / "out" / "release").exists()
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["private"] is False


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["simulate", "nothing.yaml"], 2, "cannot read"),
        (["simulate", "typo.yaml"], 2, "did you mean `rounds`?"),
        (["simulate", "noisy.yaml"], 1, "times the largest possible signal"),
        (["simulate", "folder.yaml"], 1, "there is no folder"),
    ],
)
def test_bad_input_is_one_line_and_a_code(tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    (tmp_path / "typo.yaml").write_text("name: a\ntraining: {rouns: 3}\n")
    (tmp_path / "noisy.yaml").write_text(TINY.replace("appearance", "full"))
    (tmp_path / "folder.yaml").write_text(TINY.replace("data: phantoms", "data: missing"))
    done = fedsynth(*arguments, cwd=tmp_path)
    assert done.returncode == code
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    done = fedsynth("simulate", "tiny.yaml", "--dry-run", cwd=tmp_path)
    plan = json.loads(done.stdout)["plan"]
    assert 7 < plan["epsilon"] <= 8
    assert plan["nsr"] > 0
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.yaml"]


def test_pain05_a_run_that_was_killed_and_resumed_equals_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    settings = TINY.replace("epsilon: 8, statistics: {patient_count: 60, mean_loss: 60}", "epsilon: 8").replace(
        "rounds: 2", "rounds: 3"
    )
    (tmp_path / "tiny.yaml").write_text(settings + "federation: {server_optimizer: adam, proximal: 0.1}\n")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    done = fedsynth("simulate", tmp_path / "tiny.yaml", "--repeatable", "--out", whole)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "trained without differential privacy" in done.stderr and not (whole / "release").exists()
    command = [
        str(Path(sys.executable).parent / "fedsynth"),
        "simulate",
        str(tmp_path / "tiny.yaml"),
        "--repeatable",
        "--out",
    ]
    process = subprocess.Popen([*command, str(parts)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while not (parts / "server" / "checkpoints" / "round-001.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    for victim in (process.pid, *marked(f"FLWR_HOME={(parts / 'flower').resolve()}")):
        os.kill(victim, signal.SIGKILL)
    process.wait(timeout=60)
    assert not (parts / "server" / "checkpoints" / "round-003.safetensors").exists()
    done = fedsynth("simulate", tmp_path / "tiny.yaml", "--repeatable", "--out", parts)
    assert done.returncode == 3, done.stdout + done.stderr
    for name in ("round-003.safetensors", "optimizer-003.safetensors"):
        one, other = ((folder / "server" / "checkpoints" / name).read_bytes() for folder in (whole, parts))
        assert one == other
