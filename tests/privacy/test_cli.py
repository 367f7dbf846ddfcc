"""What `fedsynth privacy` promises: the numbers of the accountant, one line for an error, and ledgers left as they are."""

import json
import math
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from privacy import filters, planning
from privacy.accounting import Event, epsilon
from privacy.cli import app
from privacy.ledger import Ledger, ReservedPlan
from shared.errors import LedgerError, PrivacyError


def run(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def fails(kind: type[Exception], *words: str) -> str:
    """The one line that `fedsynth` prints: it catches our errors at the top."""
    result = run(*words)
    assert isinstance(result.exception, kind)
    assert kind.exit_code == 1  # type: ignore[attr-defined]
    assert "\n" not in str(result.exception)
    return str(result.exception)


def test_plan_prints_the_noise_that_meets_the_target_and_what_an_attacker_could_do() -> None:
    result = run("plan", "--patients", "100", "--epsilon", "8", "--parameters", "300", "--sites", "4", "--json")
    assert result.exit_code == 0
    tree = json.loads(result.stdout)
    plan = tree["plan"]
    assert plan["epsilon"] == epsilon([Event(plan["noise_multiplier"], 1.0, 12)], 1e-5) <= 8.0
    assert plan["nsr"] == pytest.approx(math.sqrt(300) * plan["noise_multiplier"] / 100)
    assert plan["nsr_all_sites"] == pytest.approx(plan["nsr"] / 2)
    assert (plan["attack_auc"], plan["attack_tpr_at_1pct"]) == pytest.approx((0.881, 0.255), abs=2e-3)
    assert tree["alternatives"]["epsilon 1"]["nsr"] > tree["alternatives"]["epsilon 3"]["nsr"] > plan["nsr"]
    assert tree["alternatives"]["1/10 parameters"]["nsr"] < plan["nsr"]


def test_plan_is_a_table_for_people() -> None:
    result = run("plan", "--patients", "100", "--parameters", "300")
    assert result.exit_code == 0
    for words in ("per patient", "NSR", "AUC", "as asked", "half the"):
        assert words in result.stdout
    assert "warning" not in result.stderr


def test_plan_warns_above_four_and_fails_above_ten_unless_forced() -> None:
    assert "warning" in run("plan", "--patients", "100", "--parameters", "60000").stderr  # NSR 5.1
    words = ("plan", "--patients", "100", "--parameters", "300000")  # NSR 11.4
    assert "11.4 times" in fails(PrivacyError, *words)
    assert "as asked" in run(*words).stdout  # the table comes all the same
    forced = run(*words, "--force")
    assert forced.exit_code == 0
    assert "warning" in forced.stderr


def test_the_default_delta_is_well_under_one_over_the_patients() -> None:
    assert planning.default_delta(100) == 1e-5
    assert planning.default_delta(10**6) == 1e-7
    for patients in (1, 9_999, 10_000, 10_001, 10**5, 10**5 + 1, 123_456_789):
        delta = planning.default_delta(patients)
        assert delta <= min(1e-5, 1 / (10 * patients))
        assert f"{delta:g}" in {"1e-05", "1e-06", "1e-07", "1e-10"}  # a power of ten: it does not tell the number
    tree = json.loads(run("plan", "--patients", "100000", "--json").stdout)
    assert tree["plan"]["delta"] == 1e-6


def test_attack_10_a_delta_that_may_tell_a_patient_whole_is_refused_with_the_largest_sensible_one() -> None:
    assert "take 0.001 or less" in fails(PrivacyError, "plan", "--patients", "100", "--delta", "0.1")
    assert run("plan", "--patients", "100", "--delta", "0.001", "--parameters", "300").exit_code == 0


@pytest.mark.parametrize(
    "words", [["--epsilon", "0"], ["--epsilon", "nan"], ["--sampling-rate", "2"], ["--delta", "1"]]
)
def test_impossible_plans_are_one_line(words: list[str]) -> None:
    fails(PrivacyError, "plan", "--patients", "10", *words)


@pytest.mark.parametrize(
    "words",
    [["plan"], *(["ledger", name] for name in ("show", "verify", "accept", "export", "check-statement"))],
)
def test_help_gives_an_example(words: list[str]) -> None:
    assert "Example: fedsynth privacy" in run(*words, "--help").stdout


@pytest.fixture
def path(tmp_path: Path) -> Path:
    book = Ledger(tmp_path / "ledger.jsonl", cohort="north", cap=8.0, delta=1e-5)
    for key, name in (("1" * 64, "demo [bold]"), ("2" * 64, "second \x1b[31m")):
        book.draw(ReservedPlan(key, name, ((Event(4.0, 1.0, 4),), (Event(4.0, 0.5, 2),))), 1, run="7")
    return book.path


def test_show_and_verify_tell_the_epsilon_of_record_and_change_nothing(path: Path) -> None:
    run_1 = [Event(4.0, 1.0, 4), Event(4.0, 0.5, 2)]
    before, total, spent = path.read_bytes(), filters.epsilon([run_1, run_1], 1e-5), epsilon(run_1 * 2, 1e-5)
    for command in ("show", "verify"):
        told = run("ledger", command, str(path))
        assert told.exit_code == 0
        assert f"{total:.4f}" in told.stdout
        assert f"{spent:.4f}" in told.stdout
        assert spent < total < spent * 1.1
        tree = json.loads(run("ledger", command, str(path), "--json").stdout)
        assert tree["spent"] == spent
        assert (tree["epsilon"], tree["cohort"], tree["records"] if command == "verify" else 3) == (total, "north", 3)
        assert tree["last_hash"] == json.loads(before.splitlines()[-1])["hash"]
    assert path.read_bytes() == before


def test_show_prints_the_words_of_a_run_as_they_are(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    told = run("ledger", "show", str(path)).stdout
    for words in ("demo [bold]", "second ?[31m", "1/2"):
        assert words in told
    assert "\x1b" not in told


def test_show_tells_of_a_repair(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b'{"torn')
    Ledger(path, cohort="north", cap=8.0, delta=1e-5)
    assert "6 torn bytes" in " ".join(run("ledger", "show", str(path)).stdout.split())


def test_a_changed_byte_is_named_and_a_missing_file_is_one_line(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"steps":4', b'"steps":3', 1))
    for command in ("show", "verify"):
        assert "record 1 is damaged" in fails(LedgerError, "ledger", command, str(path))
        assert "No such file" in fails(LedgerError, "ledger", command, str(path.with_name("none")))
