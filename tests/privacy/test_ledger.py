"""What the ledger promises: it never knows less than was spent, it never passes the cap, and it shows every change."""

import json
import math
import os
import random
import secrets
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from privacy import accounting, filters, high_water, ledger_file
from privacy.accounting import Event
from privacy.ledger import Ledger, Mark, ReservedPlan, checked_records, delta_now, delta_of, draws
from shared.errors import BudgetExceeded, LedgerError, PrivacyError
from shared.journal import chain

DELTA = 1e-5
STEP = Event(20.0, 1.0, 1)  # full batches: epsilon is exact and instant, about 0.18 for the first
# Forking from a process with threads is what these tests need: the children only touch the ledger.
forks = pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def _held(file: int) -> bytes:
    opened = Path(f"/proc/self/fd/{file}")
    return b"" if opened.is_dir() else opened.read_bytes()


def opened(path: Path, **changes: object) -> Ledger:
    return Ledger(path, **({"cohort": "north", "cap": 8.0, "delta": DELTA} | changes))  # type: ignore[arg-type]


def plan(*rounds: Event, key: str = "", name: str = "demo") -> ReservedPlan:
    """One event a round. Without a key, another plan than all others."""
    return ReservedPlan(key or secrets.token_hex(32), name, tuple((event,) for event in rounds))


def reserve(book: Ledger, event: Event = STEP) -> float:
    return book.draw(plan(event), 1, run="run-1").epsilon


def spent(count: int, delta: float = DELTA) -> float:
    return filters.epsilon([[STEP]] * count, delta)


def test_a_reservation_is_on_disk_and_synced_before_reserve_returns(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book, synced, real = opened(path), [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(_held(file)), real(file))[1])
    reserve(book)
    assert synced[0] == path.read_bytes()
    assert json.loads(synced[0].splitlines()[-1])["rounds"][0][0]["noise_multiplier"] == 20.0
    assert json.loads(synced[1]) == json.loads(high_water.file_of(path).read_bytes())


def test_a_ledger_says_whose_it_is_and_what_it_protects(path: Path) -> None:
    header = opened(path).records()[0]
    assert (header["cohort"], header["delta"], header["unit_of_privacy"]) == ("north", DELTA, "patient")
    assert header["neighbouring_relation"] == "add or remove all data of one patient"
    assert path.stat().st_mode & 0o077 == 0
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name, "ledger.mark"]


def test_pain09_epsilon_composes_every_run_whatever_its_noise_and_rate(path: Path) -> None:
    events = [Event(4.0, 1.0, 3), Event(2.0, 0.1, 50), Event(4.0, 1.0, 3)]
    book = opened(path)
    assert book.epsilon() == 0
    told = [reserve(opened(path), event) for event in events]
    assert [e for d in draws(checked_records(path)) for e in d.events] == events
    assert told == [filters.epsilon([[e] for e in events[: i + 1]], DELTA) for i in range(3)]
    assert book.epsilon() == told[-1]
    assert [r["epsilon"] for r in checked_records(path)[1:]] == told


def test_pain10_what_would_pass_the_cap_is_refused_in_one_line_and_nothing_is_written(path: Path) -> None:
    book = opened(path, cap=1.0)
    while (after := spent(len(draws(checked_records(path))) + 1)) <= 1.0:
        assert reserve(book) == after
    before = path.read_bytes()
    with pytest.raises(BudgetExceeded) as error:
        reserve(book)
    assert path.read_bytes() == before
    assert book.epsilon() <= 1.0
    for part in ("north", f"{book.epsilon():.4f}", "1.0000", "epsilon_cap"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_the_cap_is_met_to_a_billionth_and_not_beyond(path: Path) -> None:
    cost = spent(1)
    with pytest.raises(BudgetExceeded):
        reserve(opened(path, cap=cost - 1e-8))
    assert reserve(opened(path, cap=cost)) == cost
    with pytest.raises(BudgetExceeded):
        reserve(opened(path, cap=cost))


def test_work_without_noise_is_never_affordable(path: Path) -> None:
    with pytest.raises(BudgetExceeded, match="inf"):
        reserve(opened(path, cap=1e9), Event(0.0, 0.1, 1))


def test_a_calibrated_run_fits_its_cap_however_it_is_cut_into_rounds(path: Path) -> None:
    noise = accounting.noise_multiplier_for(epsilon=8.0, delta=DELTA, sampling_rate=0.25, steps=12)
    book = opened(path)
    run = plan(*[Event(noise, 0.25, 4)] * 3)
    for number in (1, 2, 3):
        assert 7.9 < book.draw(run, number, run="1").epsilon <= 8.0
    assert 7.9 < book.epsilon() <= 8.0
    with pytest.raises(BudgetExceeded):
        reserve(book, Event(noise, 0.25, 1))


@pytest.mark.parametrize("changes", [{"cohort": "south"}, {"delta": 1e-4}])
def test_another_cohort_or_a_larger_delta_is_refused(path: Path, changes: dict) -> None:
    opened(path)
    with pytest.raises(LedgerError, match=r"ledger\.jsonl is of"):
        opened(path, **changes)


def test_a_smaller_delta_counts_everything_on_record_anew_and_each_record_keeps_its_own(path: Path) -> None:
    first = reserve(opened(path))
    book = opened(path, delta=1e-7)
    assert book.epsilon() == accounting.epsilon([STEP], 1e-7) > first
    assert reserve(book) == spent(2, 1e-7)
    assert [r["delta"] for r in checked_records(path)[1:]] == [DELTA, 1e-7]
    assert (delta_of(path), delta_now(checked_records(path))) == (DELTA, 1e-7)
    with pytest.raises(BudgetExceeded):
        reserve(opened(path, cap=spent(3), delta=1e-7))
    assert reserve(opened(path, cap=spent(3))) == spent(3)


def test_the_hospital_may_change_its_cap_and_each_record_keeps_its_own(path: Path) -> None:
    reserve(opened(path, cap=4.0))
    reserve(opened(path, cap=6.0))
    assert [r["cap"] for r in checked_records(path)[1:]] == [4.0, 6.0]


@pytest.mark.parametrize("changes", [{"cap": 0.0}, {"cap": -1.0}, {"cap": math.nan}, {"delta": 0.0}])
def test_a_ledger_without_a_real_cap_is_refused(path: Path, changes: dict) -> None:
    with pytest.raises(PrivacyError):
        opened(path, **changes)
    assert not path.exists()


def test_a_flipped_byte_at_any_position_is_found_and_its_record_named(path: Path) -> None:
    book = opened(path)
    for _ in range(2):
        reserve(book)
    good, rng = path.read_bytes(), random.Random(0)
    for position in range(len(good)):
        number = good[:position].count(b"\n")
        for bit in range(8) if position % 25 == 0 or good[position] == 10 else [rng.randrange(8)]:
            path.write_bytes(good[:position] + bytes([good[position] ^ (1 << bit)]) + good[position + 1 :])
            with pytest.raises(LedgerError, match=rf"record {number} "):
                checked_records(path)
            if position % 50 == 0:
                with pytest.raises(LedgerError, match=rf"record {number} "):
                    reserve(book)


def test_removed_swapped_repeated_or_inserted_records_are_found(path: Path) -> None:
    book = opened(path)
    for _ in range(3):
        reserve(book)
    a, b, c, d = path.read_bytes().splitlines(keepends=True)
    for lines in ([a, c, d], [a, c, b, d], [a, b, b, c, d], [b, c, d], [a, b, b"{}\n", c], [a, b, b"\n", c], [a, a]):
        path.write_bytes(b"".join(lines))
        with pytest.raises(LedgerError, match="record"):
            checked_records(path)


def test_a_record_that_is_well_chained_but_no_event_is_found(path: Path) -> None:
    records = opened(path).records()
    body = {"kind": "reserve", "noise_multiplier": -1.0, "sampling_rate": 1.0, "steps": 1}
    path.write_bytes(path.read_bytes() + chain.line(body, records[-1]))
    with pytest.raises(LedgerError, match="record 1 is damaged"):
        checked_records(path)


@pytest.mark.parametrize("content", [b"", b"\n", b"not a ledger", b'{"kind":"header"}\n'])
def test_a_file_that_is_no_ledger_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    for use in (lambda: checked_records(path), lambda: opened(path)):
        with pytest.raises(LedgerError):
            use()
    assert path.read_bytes() == content


def test_a_missing_ledger_or_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="No such file"):
        checked_records(tmp_path / "none.jsonl")
    with pytest.raises(LedgerError, match="No such file"):
        opened(tmp_path / "none" / "ledger.jsonl")
    book = opened(tmp_path / "ledger.jsonl")
    book.path.unlink()
    with pytest.raises(LedgerError, match="No such file"):  # not born again: that would forget what was spent
        reserve(book)


def test_a_torn_last_line_is_set_aside_recorded_and_the_rest_still_counts(path: Path) -> None:
    reserve(opened(path))
    reserve(opened(path))
    for keep in (1, 20, -2):
        torn = chain.line({"kind": "reserve", **STEP.to_dict()}, checked_records(path)[-1])[:keep]
        path.write_bytes(path.read_bytes() + torn)
        with pytest.raises(LedgerError, match="torn"):
            checked_records(path)
        book = opened(path)
        assert book.epsilon() == spent(2)
        repair = checked_records(path)[-1]
        assert (repair["kind"], repair["torn_bytes"]) == ("repair", len(torn))
        assert (path.parent / repair["torn_file"]).read_bytes() == torn
    assert len(list(path.parent.glob("*.torn-*"))) == 3
    assert reserve(book) == spent(3)


def test_zeros_left_by_a_power_cut_are_set_aside(path: Path) -> None:
    reserve(opened(path))
    path.write_bytes(path.read_bytes() + bytes(4096))
    assert opened(path).epsilon() == spent(1)
    checked_records(path)


def test_a_last_record_that_only_lost_its_newline_counts(path: Path) -> None:
    reserve(opened(path))
    path.write_bytes(path.read_bytes()[:-1])
    assert len(checked_records(path)) == 2
    assert opened(path).epsilon() == spent(1)
    assert reserve(opened(path)) == spent(2)
    assert len(checked_records(path)) == 3


def test_pain19_a_full_disk_stops_the_work(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book, real = opened(path), os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[: len(data) // 2]))
    with pytest.raises(LedgerError, match="disk is full"):
        reserve(book)
    monkeypatch.undo()
    assert reserve(opened(path)) == spent(1)
    assert checked_records(path)[1]["kind"] == "repair"


def test_a_failed_sync_stops_the_work_and_still_counts(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_file: int) -> None:
        raise OSError(5, "Input/output error")

    book = opened(path)
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(LedgerError, match="Input/output error; nothing may be computed"):
        reserve(book)
    monkeypatch.undo()
    assert book.epsilon() == spent(1)


def test_a_second_writer_waits_and_then_fails_cleanly(path: Path) -> None:
    book = opened(path, timeout_s=0.2)
    with ledger_file.locked(path, 1.0, write=True):
        for use in (lambda: reserve(book), lambda: opened(path, timeout_s=0.2), book.epsilon):
            with pytest.raises(LedgerError, match="held by another writer"):
                use()
    assert reserve(book) == spent(1)


def test_a_second_writer_that_is_patient_gets_its_turn(path: Path) -> None:
    book, got = opened(path, timeout_s=30), []
    waiting = threading.Thread(target=lambda: got.append(reserve(book)))
    with ledger_file.locked(path, 1.0, write=True):
        waiting.start()
        time.sleep(0.1)
        assert got == []
    waiting.join(30)
    assert got == [spent(1)]


def _in_child(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


@forks
def test_writers_in_many_processes_lose_nothing_and_never_pass_the_cap_together(path: Path) -> None:
    opened(path)
    fits = max(n for n in range(1, 200) if spent(n) <= 1.0)

    def work() -> None:
        for _ in range(fits):
            reserve(opened(path, cap=1.0))

    children = [_in_child(work) for _ in range(3)]
    for child in children:
        os.waitpid(child, 0)
    assert len(checked_records(path)) == 1 + fits
    assert opened(path).epsilon() == spent(fits)


@forks
def test_ledgers_created_at_the_same_moment_are_one_ledger(path: Path) -> None:
    children = [_in_child(lambda: reserve(opened(path)) and None) for _ in range(6)]
    for child in children:
        os.waitpid(child, 0)
    assert [r["kind"] for r in checked_records(path)] == ["header"] + ["reserve"] * 6
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name, "ledger.mark"]


@forks
def test_after_a_kill_at_any_moment_the_record_covers_what_was_released(path: Path) -> None:
    """A writer reserves, then releases, over and over, and is killed 40 times."""
    released, rng = path.with_name("released"), random.Random(0)
    released.write_bytes(b"")

    def work() -> None:
        with released.open("ab", buffering=0) as out:
            while True:
                reserve(opened(path, cap=1e6))
                out.write(b"x")

    for _ in range(40):
        child = _in_child(work)
        time.sleep(rng.uniform(0.001, 0.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        steps = released.stat().st_size
        assert opened(path, cap=1e6).epsilon() >= spent(steps)  # the next run starts
        reservations = len(draws(checked_records(path)))  # and the chain is whole
        assert steps <= reservations <= steps + 40
    assert steps > 0


@forks
@pytest.mark.parametrize("written", [0, 1, 100, 10_000])
def test_a_kill_inside_the_write_leaves_a_ledger_that_starts_again(path: Path, written: int) -> None:
    reserve(opened(path))
    real = os.write

    def work() -> None:
        def cut(file: int, data: bytes) -> int:
            real(file, data[:written])
            os.kill(os.getpid(), signal.SIGKILL)
            return 0

        os.write = cut  # type: ignore[assignment]
        reserve(opened(path))

    os.waitpid(_in_child(work), 0)
    assert opened(path).epsilon() == spent(2 if written == 10_000 else 1)
    checked_records(path)


@pytest.mark.parametrize("stop", ["write_new", "truncate", "append"])
def test_a_crash_during_the_repair_is_repaired_too(path: Path, stop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reserve(opened(path))
    path.write_bytes(path.read_bytes() + b'{"torn')

    class Crash(Exception):
        pass

    def crash(*_: object, **__: object) -> None:
        raise Crash

    monkeypatch.setattr(os if stop == "truncate" else ledger_file, stop, crash)
    with pytest.raises(Crash):
        opened(path)
    monkeypatch.undo()
    assert opened(path).epsilon() == spent(1)
    checked_records(path)


def test_long_words_in_a_reservation_are_refused(path: Path) -> None:
    with pytest.raises(PrivacyError, match="200"):
        opened(path).draw(plan(STEP), 1, run="r" * 201)
    with pytest.raises(PrivacyError, match="200"):
        plan(STEP, name="n" * 201)


def test_words_in_any_script_survive(path: Path) -> None:
    opened(path, cohort="hôpital-北").draw(plan(STEP, name="Über\u2028"), 1, run='a"b\n')
    assert checked_records(path)[1]["run"] == 'a"b\n'
    assert path.read_bytes().count(b"\n") == 2


def test_only_an_infinite_cap_admits_work_without_noise_and_its_record_says_null(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "ledger.jsonl", cohort="c", cap=math.inf, delta=1e-5)
    assert reserve(book, Event(0.0, 1.0, 3)) == math.inf
    last = checked_records(tmp_path / "ledger.jsonl")[-1]
    assert last["epsilon"] is None
    assert last["cap"] is None
    with pytest.raises(BudgetExceeded):
        reserve(Ledger(tmp_path / "ledger.jsonl", cohort="c", cap=8.0, delta=1e-5), Event(5.0, 1.0, 1))


RUN = "a" * 64


def test_a_run_is_reserved_whole_and_its_rounds_cost_nothing_more(path: Path) -> None:
    book = opened(path)
    three = plan(STEP, STEP, STEP, key=RUN)
    told = [book.draw(three, number, run="1") for number in (1, 3, 2)]
    assert {t.epsilon for t in told} == {t.spent for t in told} == {accounting.epsilon([STEP] * 3, DELTA)}
    assert [r["kind"] for r in checked_records(path)[1:]] == ["reserve", "draw", "draw"]
    assert [t.mark for t in told] == [Mark(n, checked_records(path)[n - 1]["hash"]) for n in (2, 3, 4)]
    assert [(d.key, d.number, d.run, d.events) for d in draws(checked_records(path))] == [
        (RUN, n, "1", (STEP,)) for n in (1, 3, 2)
    ]


def test_a_round_that_was_drawn_is_charged_again_and_so_is_a_run_that_begins_again(path: Path) -> None:
    book, two = opened(path), plan(STEP, STEP, key=RUN)
    for number, run in ((1, "1"), (1, "1"), (2, "1"), (2, "1"), (2, "2"), (1, "2"), (2, "2"), (1, "2")):
        told = book.draw(two, number, run=run)
    kinds = [(r["kind"], len(r.get("rounds", [])), "retry_of" in r) for r in checked_records(path)[1:]]
    whole, drawn, retry = ("reserve", 2, False), ("draw", 0, False), ("reserve", 1, True)
    assert kinds == [whole, retry, drawn, retry, retry, whole, drawn, retry]
    assert len(draws(checked_records(path))) == 8  # one for each update that may have left
    assert told.spent == accounting.epsilon([STEP] * (2 * 2 + 4), DELTA)
    assert told.epsilon == filters.epsilon([[STEP] * n for n in (2, 1, 1, 1, 2, 1)], DELTA)


def test_what_does_not_fit_whole_is_refused_before_its_first_round(path: Path) -> None:
    book = opened(path, cap=accounting.epsilon([STEP] * 2, DELTA))
    with pytest.raises(BudgetExceeded):
        book.draw(plan(STEP, STEP, STEP), 1, run="1")
    book.draw(plan(STEP, STEP, key=RUN), 1, run="1")
    before = path.read_bytes()
    for number, run in ((1, "1"), (1, "2")):  # neither again nor anew
        with pytest.raises(BudgetExceeded):
            book.draw(plan(STEP, STEP, key=RUN), number, run=run)
    assert path.read_bytes() == before
    book.draw(plan(STEP, STEP, key=RUN), 2, run="1")


def test_anything_else_than_the_plan_that_was_reserved_is_refused(path: Path) -> None:
    book = opened(path)
    book.draw(plan(STEP, STEP, key=RUN), 1, run="1")
    before = path.read_bytes()
    for other in ((STEP,), (STEP, STEP, STEP), (STEP, Event(19.0, 1.0, 1)), (STEP, Event(20.0, 1.0, 2))):
        for number, run in ((1, "1"), (1, "2"), (len(other), "1")):
            with pytest.raises(PrivacyError, match="not the plan that was reserved"):
                book.draw(plan(*other, key=RUN), number, run=run)
    for number in (0, 3, -1):
        with pytest.raises(PrivacyError, match="no such"):
            book.draw(plan(STEP, STEP, key=RUN), number, run="1")
    assert path.read_bytes() == before


def test_rounds_reserved_under_a_cap_that_the_hospital_lowered_are_refused(path: Path) -> None:
    opened(path).draw(plan(STEP, STEP, key=RUN), 1, run="1")
    with pytest.raises(BudgetExceeded):
        opened(path, cap=spent(1)).draw(plan(STEP, STEP, key=RUN), 2, run="1")
    assert len(draws(checked_records(path))) == 1


@pytest.mark.parametrize("key", ["", "A" * 64, "a" * 63, 7])
def test_a_plan_that_is_none_is_refused(key: object) -> None:
    with pytest.raises(PrivacyError):
        ReservedPlan(key, "demo", ((STEP,),))  # type: ignore[arg-type]
    for rounds in ((), ((),), ((STEP,) * 17,), ((STEP,),) * 10_001):
        with pytest.raises(PrivacyError):
            ReservedPlan(RUN, "demo", rounds)


@pytest.mark.parametrize(
    "body",
    [
        {"kind": "draw", "of": 1, "round": 1, "run": "1"},  # a second time
        {"kind": "draw", "of": 1, "round": 9, "run": "1"},
        {"kind": "draw", "of": 0, "round": 1, "run": "1"},
        {"kind": "draw", "of": 1, "round": True, "run": "1"},
        {"kind": "draw", "of": 1, "round": -1, "run": "1"},
        {"kind": "draw", "of": 1, "round": 2},
        {"kind": "reserve", "key": RUN, "name": "demo", "rounds": [[{"steps": 1}]], "round": 1, "run": "1"},
        {"kind": "reserve", "key": RUN, "name": "demo", "rounds": 7, "round": 1, "run": "1"},
        {"kind": "accepted", "who": "me", "why": "so", "lost": [{"records": 0, "hash": "no"}]},
    ],
)
def test_records_that_are_well_chained_but_say_nothing_sensible_are_found(path: Path, body: dict) -> None:
    opened(path).draw(plan(STEP, STEP, key=RUN), 1, run="1")
    path.write_bytes(path.read_bytes() + chain.line({"time": "", **body}, checked_records(path)[-1]))
    for use in (lambda: checked_records(path), lambda: opened(path)):
        with pytest.raises(LedgerError, match="record 2 is damaged"):
            use()


# As the version before high-water marks and whole plans wrote it: two rounds of one run, the second with a list of patients
OLD = (
    '{"cohort":"north","delta":1e-05,"hash":"769146db5e769e14f06292bc3dab28e9b1398711f700d46ee32402faad546390","index":0,'
    '"kind":"header","neighbouring_relation":"add or remove all data of one patient","previous":"'
    + "0"
    * 64
    + '","time":"2026-11-28T03:01:59+00:00","unit_of_privacy":"patient","version":1}\n'
    '{"cap":8.0,"delta":1e-05,"epsilon":1.9930914044151198,"hash":'
    '"932fdf8ed09828901be6a9f2dd9347753f7e90a282ccf4ddbd1813b4f1a79eeb","index":1,"kind":"reserve","members":null,'
    '"noise_multiplier":4.0,"previous":"769146db5e769e14f06292bc3dab28e9b1398711f700d46ee32402faad546390",'
    '"purpose":"demo, round 1","run":"17","sampling_rate":1.0,"separate_cohorts":false,"steps":4,'
    '"time":"2026-11-28T03:01:59+00:00"}\n'
    '{"cap":8.0,"delta":1e-05,"epsilon":2.943225239801325,"hash":'
    '"51a014b088f014994241a1129b82c1e6ee3d4726ad7ed1bee609bb8601a16e70","index":2,"kind":"reserve","members":'
    '"96d7d896bf82d0eb9e36764b3b477bc6a07a2301eda20b31475fb0cba5d41361","noise_multiplier":4.0,"previous":'
    '"932fdf8ed09828901be6a9f2dd9347753f7e90a282ccf4ddbd1813b4f1a79eeb","purpose":"demo, round 2","run":"17",'
    '"sampling_rate":1.0,"separate_cohorts":false,"steps":4,"time":"2026-11-28T03:01:59+00:00"}\n'
)


def test_a_ledger_of_the_older_version_is_read_counts_and_goes_on_in_the_new_form(path: Path) -> None:
    path.write_text(OLD)
    old = [[Event(4.0, 1.0, 4)]] * 2
    assert [(d.name, d.number, d.run) for d in draws(checked_records(path))] == [
        ("demo, round 1", 1, "17"),
        ("demo, round 2", 1, "17"),
    ]
    assert not high_water.file_of(path).exists()
    book = opened(path)
    assert high_water.load(path) == high_water.Kept(
        high_water.now(checked_records(path))
    )  # it gets its mark at the next use
    assert book.epsilon() == filters.epsilon(old, DELTA)
    told = book.draw(plan(STEP, key=RUN), 1, run="18")
    assert told.epsilon == filters.epsilon([*old, [STEP]], DELTA)
    assert told.spent == accounting.epsilon([*old[0] * 2, STEP], DELTA)
    assert path.read_text().startswith(OLD)
    assert (told.mark.records, checked_records(path)[-1]["key"]) == (4, RUN)
