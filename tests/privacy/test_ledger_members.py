"""One patient in several cohorts of a hospital: everything that touched them counts, and nothing more than may have."""

from __future__ import annotations

import random
import re
import secrets
from collections.abc import Collection
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from privacy import accounting, filters, ledger, ledger_members, reservations
from privacy.accounting import Event
from privacy.cli import app
from privacy.ledger import Ledger, ReservedPlan, checked_records, counted
from shared.errors import BudgetExceeded, LedgerError, PrivacyError
from shared.journal import chain

DELTA = 1e-5
STEP = Event(20.0, 1.0, 1)
NORTH, BOTH, SOUTH = {"ann", "bob"}, {"bob", "cid"}, {"cid", "dan"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def reserve(path: Path, members: str | Collection[str] | None, *, apart: bool = True, cap: float = 8.0) -> float:
    book = Ledger(path, cohort="key", cap=cap, delta=DELTA, separate_cohorts=apart)
    return book.draw(plan(), 1, run="r", members=members).epsilon


def plan(*more: Event) -> ReservedPlan:
    """Another than all others."""
    return ReservedPlan(secrets.token_hex(32), "p", ((STEP, *more),))


def spent(count: int) -> float:
    return filters.epsilon([[STEP]] * count, DELTA)


def total(path: Path) -> float:
    records = checked_records(path)
    return counted(ledger_members.counted(path, records, reservations.read(records)[0]), DELTA)


def test_a_patient_of_two_cohorts_is_charged_for_both(path: Path) -> None:
    assert reserve(path, NORTH) == spent(1)
    assert reserve(path, BOTH) == spent(2)  # bob is in both
    assert reserve(path, SOUTH) == spent(2)  # cid: this and the one before; never the first
    assert total(path) == spent(2)


def test_two_cohorts_together_never_pass_the_cap_on_the_patient_they_share(path: Path) -> None:
    reserve(path, NORTH, cap=spent(2))
    reserve(path, NORTH, cap=spent(2))
    before = path.read_bytes()
    with pytest.raises(BudgetExceeded):
        reserve(path, BOTH, cap=spent(2))
    assert path.read_bytes() == before
    assert reserve(path, SOUTH, cap=spent(2)) == spent(1)


def test_without_a_word_of_the_hospital_everything_counts_for_everybody(path: Path) -> None:
    reserve(path, NORTH, apart=False)
    assert reserve(path, SOUTH, apart=False) == spent(2)
    assert total(path) == spent(2)
    assert reserve(path, SOUTH, apart=True) == spent(2)  # the lists were kept all along


def test_a_cohort_that_drops_or_adds_patients_keeps_what_the_old_ones_spent(path: Path) -> None:
    reserve(path, {"ann", "bob"})
    assert reserve(path, {"bob"}) == spent(2)  # ann was dropped
    assert reserve(path, {"ann", "bob", "eve"}) == spent(3)  # and came back: bob has three
    assert reserve(path, {"eve"}) == spent(2)
    assert reserve(path, {"ann"}) == spent(3)


@pytest.mark.parametrize("order", [(None, NORTH), (NORTH, None)])
def test_a_reservation_without_a_list_counts_for_everybody(path: Path, order: tuple[set[str] | None, ...]) -> None:
    for number, members in enumerate(order, start=1):
        assert reserve(path, members) == spent(number)
    assert reserve(path, SOUTH) == spent(2)


def test_a_ledger_of_an_older_version_counts_for_everybody(path: Path) -> None:
    Ledger(path, cohort="key", cap=8.0, delta=DELTA)
    body = {"kind": "reserve", **STEP.to_dict(), "run": "r", "purpose": "p", "epsilon": spent(1), "cap": 8.0}
    path.write_bytes(path.read_bytes() + chain.line(body, checked_records(path)[-1]))
    assert total(path) == spent(1)
    assert reserve(path, NORTH) == spent(2)
    assert reserve(path, SOUTH) == spent(2)
    assert total(path) == spent(2)


@pytest.mark.parametrize("spoil", ["remove", "add a line", "drop a line", "flip", "empty", "no text"])
def test_groups_that_were_changed_count_for_everybody_until_they_are_written_anew(path: Path, spoil: str) -> None:
    reserve(path, NORTH)
    file = ledger_members.groups_file(path)
    good = file.read_bytes()
    bad = {
        "add a line": good + good,
        "drop a line": b"[]\n",
        "flip": bytes([good[0] ^ 1]) + good[1:],
        "empty": b"",
        "no text": b"\xff\xfe",
    }
    south = ledger_members.keep(path, SOUTH)
    if spoil == "remove":
        file.unlink()
    else:
        file.write_bytes(bad[spoil])
    assert reserve(path, south) == spent(2)  # by name: the lists are not opened
    assert reserve(path, NORTH) == spent(2)  # and now they are known again
    assert total(path) == spent(2)


@pytest.mark.parametrize("spoil", ["remove", "add a line", "drop a line", "flip", "empty", "no text"])
def test_a_list_that_was_changed_counts_for_everybody_and_is_written_anew(path: Path, spoil: str) -> None:
    reserve(path, NORTH)
    (file,) = ledger_members.folder(path).iterdir()
    good = file.read_bytes()
    bad = {
        "add a line": good + b"zoe\n",
        "drop a line": good.split(b"\n", 1)[1],
        "flip": bytes([good[0] ^ 1]) + good[1:],
        "empty": b"",
        "no text": b"\xff\xfe",
    }
    if spoil == "remove":
        file.unlink()
    else:
        file.write_bytes(bad[spoil])
    assert reserve(path, SOUTH) == spent(2)
    assert reserve(path, NORTH) == spent(2)  # north itself, whose list is known again, and not south
    assert file.read_bytes() == good
    assert total(path) == spent(2)


def test_a_list_is_named_by_what_it_holds_in_the_chain_and_is_for_its_owner_alone(path: Path) -> None:
    reserve(path, ["bob", "ann", "bob"])
    reserve(path, {"ann", "bob"})
    (file,) = ledger_members.folder(path).iterdir()
    assert [r["members"] for r in checked_records(path)[1:]] == [file.stem, file.stem]
    assert file.stem in ledger_members.groups_file(path).read_text()
    assert not {"ann", "bob"} & set(re.findall("[a-z]+", ledger_members.groups_file(path).read_text()))
    assert ledger_members.groups_file(path).stat().st_mode & 0o077 == 0
    assert file.read_text() == "ann\nbob\n"
    assert file.stat().st_mode & 0o077 == 0
    assert ledger_members.folder(path).stat().st_mode & 0o077 == 0
    assert "ann" not in path.read_text()
    path.write_bytes(path.read_bytes().replace(file.stem.encode(), b"0" * 64, 1))
    with pytest.raises(LedgerError, match="record 1 "):
        checked_records(path)


def test_verify_says_how_many_reservations_count_for_everybody(path: Path) -> None:
    reserve(path, NORTH)
    reserve(path, SOUTH)
    told = CliRunner().invoke(app, ["ledger", "verify", str(path)]).stdout
    assert "counted for everybody" not in told
    (ledger_members.folder(path) / f"{checked_records(path)[1]['members']}.txt").unlink()
    ledger_members.keep(path, BOTH)
    told = CliRunner().invoke(app, ["ledger", "verify", str(path)]).stdout
    assert "counted for everybody" in told and told.rstrip().endswith(": 1 reservation")


def test_a_list_that_cannot_be_written_stops_the_work(path: Path) -> None:
    book = Ledger(path, cohort="key", cap=8.0, delta=DELTA)
    ledger_members.folder(path).write_text("in the way")
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="nothing may be computed"):
        book.draw(plan(), 1, run="r", members=NORTH)
    assert path.read_bytes() == before


def test_what_comes_next_is_refused_before_the_first_is_charged(path: Path) -> None:
    book = Ledger(path, cohort="key", cap=spent(2), delta=DELTA)
    with pytest.raises(BudgetExceeded):
        book.draw(plan(STEP, STEP), 1, run="r")
    assert len(checked_records(path)) == 1
    assert book.draw(plan(STEP), 1, run="r").epsilon == accounting.epsilon([STEP, STEP], DELTA)


def test_what_travels_is_told_at_the_other_delta_and_the_cap_holds_at_the_ledgers_own(path: Path) -> None:
    book = Ledger(path, cohort="key", cap=spent(1), delta=1e-7)
    with pytest.raises(BudgetExceeded, match="own delta") as error:
        book.draw(plan(), 1, run="r", told_delta=DELTA)
    assert f"{spent(1):.4f} is asked" in str(error.value)
    assert "1e-07" not in str(error.value)
    book = Ledger(path, cohort="key", cap=8.0, delta=1e-7)
    assert book.draw(plan(), 1, run="r", told_delta=DELTA).epsilon == spent(1)
    assert checked_records(path)[-1]["epsilon"] == accounting.epsilon([STEP], 1e-7)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.none() | st.sets(st.sampled_from("abcdef"), min_size=1), min_size=1, max_size=8), st.integers(0, 99))
def test_no_patient_ever_passes_the_cap_whatever_the_cohorts(
    tmp_path_factory: pytest.TempPathFactory, cohorts: list[set[str] | None], seed: int
) -> None:
    """Against the plain count: for each person, how many reservations touched or may have touched them."""
    path, rng = tmp_path_factory.mktemp("ledger") / "ledger.jsonl", random.Random(seed)
    touched, cap = dict.fromkeys("abcdef", 0), 3
    for members in cohorts:
        fits = (
            all(touched[p] < cap for p in members)
            if members
            else sum(r["kind"] == "reserve" for r in found(path)) < cap
        )
        try:
            told = reserve(path, members, cap=spent(cap))
        except BudgetExceeded:
            assert not fits
            continue
        assert fits
        for person in members or touched:
            touched[person] += 1
        if members:
            assert told == spent(max(touched[p] for p in members))
        assert max(touched.values()) <= cap
        if rng.random() < 0.1:
            assert total(path) >= spent(max(touched.values()))


def found(path: Path) -> list[dict[str, object]]:
    return ledger.checked_records(path) if path.exists() else []


def test_a_cohort_that_changes_within_a_run_counts_the_whole_plan_for_who_came_and_for_who_left(path: Path) -> None:
    book = Ledger(path, cohort="key", cap=8.0, delta=DELTA, separate_cohorts=True)
    two = ReservedPlan("a" * 64, "p", ((STEP,), (STEP,)))
    whole = accounting.epsilon([STEP, STEP], DELTA)
    assert book.draw(two, 1, run="r", members=NORTH).epsilon == whole
    assert reserve(path, SOUTH) == spent(1)
    both = filters.epsilon([[STEP, STEP], [STEP]], DELTA)
    assert book.draw(two, 2, run="r", members=SOUTH).epsilon == both
    assert total(path) == both
    assert reserve(path, {"eve"}) == spent(1)


def test_a_change_of_cohort_within_a_run_is_refused_where_the_plan_does_not_fit_for_who_came(path: Path) -> None:
    whole = accounting.epsilon([STEP, STEP], DELTA)
    book = Ledger(path, cohort="key", cap=whole, delta=DELTA, separate_cohorts=True)
    two = ReservedPlan("a" * 64, "p", ((STEP,), (STEP,)))
    book.draw(two, 1, run="r", members=NORTH)
    reserve(path, SOUTH, cap=whole)
    with pytest.raises(BudgetExceeded):
        book.draw(two, 2, run="r", members=SOUTH)
    book.draw(two, 2, run="r", members=NORTH)


def test_a_list_that_is_named_but_unknown_counts_for_everybody_and_no_name_is_a_path(path: Path) -> None:
    name = ledger_members.keep(path, NORTH)
    assert reserve(path, name) == spent(1)
    assert reserve(path, "f" * 64) == spent(2)
    assert reserve(path, ledger_members.keep(path, SOUTH)) == spent(2)
    for wrong in ("../ledger", "F" * 64, "f" * 63, ""):
        with pytest.raises(PrivacyError, match="64 hex digits"):
            reserve(path, wrong)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sets(st.sampled_from("abcde"), min_size=1), min_size=1, max_size=6))
def test_groups_without_the_lists_are_the_groups_of_the_lists(
    tmp_path_factory: pytest.TempPathFactory, cohorts: list[set[str]]
) -> None:
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    names = [ledger_members.keep(path, cohort) for cohort in cohorts]
    for file in ledger_members.folder(path).iterdir():
        file.unlink()
    held = [reservations.Reservation(n, "", "", ((STEP,),), {name}, whole=True) for n, name in enumerate(names)]
    for name, cohort in zip(names, cohorts, strict=True):
        found = {frozenset(r.record for r in group) for group in ledger_members.groups(path, held, name)}
        each = {frozenset(n for n, other in enumerate(cohorts) if who in other) for who in cohort}
        assert found == {mine for mine in each if not any(mine < other for other in each)}
