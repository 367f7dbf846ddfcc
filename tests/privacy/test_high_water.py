"""A ledger that forgot something is not used: a cut tail is no refund, and a lost ledger is not a new one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from privacy import high_water, statement
from privacy.accounting import Event
from privacy.cli import app
from privacy.ledger import Drawn, Ledger, Mark, ReservedPlan, accept, begun, checked_records
from shared.errors import LedgerError, PrivacyError

DELTA, STEP = 1e-5, Event(20.0, 1.0, 1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def use(path: Path, *marks: Mark) -> Drawn:
    book = Ledger(path, cohort="north", cap=8.0, delta=DELTA, marks=marks)
    return book.draw(ReservedPlan(secrets.token_hex(32), "demo", ((STEP,),)), 1, run="run-1")


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
    new = path.with_name(f"{secrets.token_hex(4)}.jsonl")
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
    for look in (lambda: use(path), lambda: checked_records(path)):
        with pytest.raises(LedgerError):
            look()
    assert (path.read_bytes() if path.exists() else None) == before


def marked(path: Path) -> Mark:
    kept = high_water.load(path)
    assert kept is not None
    assert kept.mark is not None
    return kept.mark


@pytest.mark.parametrize("cut", [two_bytes, one_record, all_but_the_header, the_file, another_ledger])
def test_the_privacy_office_may_go_on_and_its_decision_shows_for_ever(path: Path, cut: Callable[[Path], None]) -> None:
    for _ in range(3):
        use(path)
    lost = marked(path)
    cut(path)
    with pytest.raises(LedgerError, match="--who NAME") as error:
        use(path)
    assert "\n" not in str(error.value)
    assert accept(path, "Dr. Office", "the disk failed") == [lost]
    assert use(path, lost).mark == marked(path)  # whoever holds the lost mark goes on too
    decided = [r for r in checked_records(path, [lost]) if r["kind"] == "accepted"]
    assert [(r["who"], r["why"], r["lost"]) for r in decided] == [
        ("Dr. Office", "the disk failed", [{"records": lost.records, "hash": lost.hash}])
    ]
    (said,) = statement.body(path, checked_records(path))["accepted"]
    assert (said["who"], said["why"]) == ("Dr. Office", "the disk failed")
    shown = CliRunner().invoke(app, ["ledger", "show", str(path)]).stdout
    assert "Dr. Office" in " ".join(shown.split())
    cut(path)  # one decision excuses one loss
    with pytest.raises(LedgerError):
        use(path)


def test_a_killed_writer_leaves_a_ledger_that_is_longer_than_its_mark_and_goes_on(path: Path) -> None:
    use(path)
    early = high_water.load(path)
    assert early is not None
    use(path)
    high_water.keep(path, early)
    checked_records(path)
    assert use(path).mark.records == 4


def test_a_torn_line_that_no_mark_claims_is_set_aside_and_one_that_it_claims_is_not(path: Path) -> None:
    use(path)
    path.write_bytes(path.read_bytes() + b'{"cap":8.0,"de')
    assert use(path).mark.records == 4  # the header, two reservations and the repair
    two_bytes(path)
    with pytest.raises(LedgerError, match="does not run through its mark at 4"):
        use(path)
    assert len(list(path.parent.glob("*.torn-*"))) == 1


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"\xff", b'{"records": 0, "hash": ""}', b'{"decision": {"who": "x"}}', None]
)
def test_a_mark_that_is_damaged_or_gone_stops_the_work_until_it_is_accepted(path: Path, content: bytes | None) -> None:
    use(path)
    if content is None:
        high_water.file_of(path).unlink()
    else:
        high_water.file_of(path).write_bytes(content)
    for look in (lambda: use(path), lambda: checked_records(path)):
        with pytest.raises(LedgerError, match=r"ledger\.mark"):
            look()
    assert accept(path, "me", "so") == []
    use(path)
    checked_records(path)


@pytest.mark.parametrize("everything", [False, True])
def test_a_mark_from_elsewhere_shows_what_was_rolled_back_together_with_its_own(path: Path, everything: bool) -> None:
    use(path)
    before, mark_before = path.read_bytes(), high_water.file_of(path).read_bytes()
    elsewhere = use(path).mark
    if everything:
        path.unlink()
        high_water.file_of(path).unlink()
    else:
        path.write_bytes(before)
        high_water.file_of(path).write_bytes(mark_before)
    for look in (lambda: use(path, elsewhere), lambda: checked_records(path, [elsewhere])):
        with pytest.raises(LedgerError, match=str(elsewhere)):
            look()
    words = ["ledger", "accept", str(path), "--who", "me", "--why", "so", "--mark", str(elsewhere)]
    assert CliRunner().invoke(app, words).exit_code == 0
    use(path, elsewhere)
    with pytest.raises(LedgerError):
        use(path, Mark(2, "0" * 64))


def test_an_old_backup_put_back_after_a_decision_for_a_new_ledger_must_run_through_the_lost_mark(path: Path) -> None:
    use(path)
    old = path.read_bytes()
    use(path)
    new = path.read_bytes()
    path.unlink()
    accept(path, "me", "gone")
    assert not begun(path)
    path.write_bytes(old)
    with pytest.raises(LedgerError, match="does not run through its mark at 3"):
        use(path)
    path.write_bytes(new)
    use(path)


def test_nothing_is_accepted_where_nothing_is_lost_and_nobody_decides_without_a_name(path: Path) -> None:
    with pytest.raises(PrivacyError, match="never was"):
        accept(path, "me", "so")
    assert not begun(path)
    use(path)
    before = path.read_bytes()
    with pytest.raises(PrivacyError, match="nothing to accept"):
        accept(path, "me", "so")
    one_record(path)
    for who, why in (("", "so"), ("me", " "), ("me\n", "so"), ("m" * 201, "so"), ("me", "\x1b[31m")):
        with pytest.raises(PrivacyError, match="one line"):
            accept(path, who, why)
    assert path.read_bytes() == before.splitlines(keepends=True)[0]
    assert begun(path)
    path.write_bytes(before.replace(b'"steps":1', b'"steps":2'))
    with pytest.raises(LedgerError, match="record 1 is damaged"):  # a changed byte is no matter of decisions
        accept(path, "me", "so")


@pytest.mark.parametrize("text", ["", "3", "3:", "x:" + "0" * 64, "0:" + "0" * 64, "3:" + "g" * 64, "-1:" + "0" * 64])
def test_a_mark_that_is_none_is_refused(path: Path, text: str) -> None:
    use(path)
    result = CliRunner().invoke(app, ["ledger", "accept", str(path), "--who", "me", "--why", "so", "--mark", text])
    assert isinstance(result.exception, PrivacyError)


def test_the_mark_and_its_folder_are_on_the_disk_before_draw_returns(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(path)
    synced, real = [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda file: (synced.append(Path(f"/proc/self/fd/{file}").readlink()), real(file))[1]
    )
    use(path)
    assert synced[0] == path
    assert synced[-1] == path.parent  # after the mark took its name
    assert synced[1].name.startswith(".ledger.mark")


def test_a_mark_that_cannot_be_written_stops_the_work_and_the_record_counts(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(high_water, "write_new", full)
    with pytest.raises(LedgerError, match="nothing may be computed"):
        use(path)
    monkeypatch.undo()
    assert len(checked_records(path)) == 3
    use(path)
