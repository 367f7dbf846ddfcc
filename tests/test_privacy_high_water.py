"""A ledger that forgot something is not used: a cut tail is no refund, and a lost ledger is not a new one."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

import pytest

from privacy.accounting import Event
from privacy.ledger import Drawn, Ledger, Mark, Plan, accept, verify
from shared.errors import LedgerError

DELTA, STEP = 1e-5, Event(20.0, 1.0, 1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def use(path: Path, *marks: Mark) -> Drawn:
    book = Ledger(path, cohort="north", cap=8.0, delta=DELTA, marks=marks)
    return book.draw(Plan(secrets.token_hex(32), "demo", ((STEP,),)), 1, run="run-1")


def two_bytes(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def one_record(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def all_but_the_header(path: Path) -> None:
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])


def the_file(path: Path) -> None:
    path.unlink()


def another_ledger(path: Path) -> None:
    path.unlink()
    new = path.with_name("new.jsonl")
    for _ in range(5):
        use(new)
    new.rename(path)


@pytest.mark.parametrize("cut", [two_bytes, one_record, all_but_the_header, the_file, another_ledger])
def test_attack_07_a_cut_tail_is_no_refund_and_a_lost_ledger_is_not_a_new_one(
    path: Path, cut: Callable[[Path], None]
) -> None:
    for _ in range(3):
        use(path)
    cut(path)
    before = path.read_bytes() if path.exists() else None
    for look in (lambda: use(path), lambda: verify(path)):
        with pytest.raises(LedgerError):
            look()
    assert (path.read_bytes() if path.exists() else None) == before
