"""What the records of a ledger say: which plans were reserved, and which of their rounds were drawn.

Guarantee     a round of a reservation is drawn once; what is drawn is what was reserved, event for event
Relation      none of its own: accounting.py and filters.py say what a plan costs

| record                        | what it says                                                                       |
|-------------------------------|------------------------------------------------------------------------------------|
| "reserve" with `rounds`       | a whole plan is reserved, and round `round` of it drawn by `run`                   |
| "reserve" with `retry_of` too | that one round of an earlier reservation, `rounds` alone, is reserved again and drawn |
| "draw"                        | round `round` of the reservation in record `of` is drawn by `run`                  |
| "reserve" without `rounds`    | of an older version: one event, a plan of its own, drawn at once                   |
| "repair", "accepted"          | nothing was reserved                                                               |

Each names the list of patients that it may touch (ledger_members.py). A reservation touches those of its own record and of all its
draws, and is counted whole for all of them.

Left out: whether there is room under the cap (ledger.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from privacy.accounting import Event
from privacy.high_water import Mark
from shared.errors import PrivacyError
from shared.journal.chain import Record

EVENT_KEYS = ("noise_multiplier", "sampling_rate", "steps")
MOST_ROUNDS, MOST_EVENTS, WORDS = 10_000, 16, 200

Rounds = tuple[tuple[Event, ...], ...]


@dataclass(frozen=True)
class ReservedPlan:
    """A run as it is fixed before its first step. Raises PrivacyError when it is none.

    key      64 hex digits that follow from its public settings alone: the same settings have the same key
    name     for people, at most 200 characters; no patient data
    rounds   the events of each round, in order
    """

    key: str
    name: str
    rounds: Rounds

    def __post_init__(self) -> None:
        if not isinstance(self.key, str) or not re.fullmatch("[0-9a-f]{64}", self.key):
            raise PrivacyError("a plan's key has 64 hex digits")
        if not isinstance(self.name, str) or len(self.name) > WORDS:
            raise PrivacyError(f"a plan's name has at most {WORDS} characters")
        if not 1 <= len(self.rounds) <= MOST_ROUNDS or not all(1 <= len(r) <= MOST_EVENTS for r in self.rounds):
            raise PrivacyError(f"a plan has 1 to {MOST_ROUNDS} rounds of 1 to {MOST_EVENTS} events each")


@dataclass
class Reservation:
    """What stands reserved.

    record   its number in the ledger
    rounds   what is reserved; `events`: the same as one plan for the filter
    lists    names of the lists of patients that it may touch; None among them: not known
    drawn    round -> run that drew it, the first time
    whole    a plan, not the retry of one round
    """

    record: int
    key: str
    name: str
    rounds: Rounds
    lists: set[str | None]
    whole: bool
    drawn: dict[int, str] = field(default_factory=dict)

    @property
    def events(self) -> tuple[Event, ...]:
        return tuple(event for events in self.rounds for event in events)


@dataclass(frozen=True)
class Draw:
    """One round that may have been computed: which, for whom, and what it was. `record`: the ledger's, from 0."""

    record: int
    key: str
    name: str
    number: int
    run: str
    events: tuple[Event, ...]


def read(records: Sequence[Record]) -> tuple[list[Reservation], list[Draw]]:
    """All reservations and all draws, in order. PrivacyError naming the first record that says nothing sensible."""
    found: dict[int, Reservation] = {}
    draws: list[Draw] = []
    for index, record in enumerate(records):
        try:
            if record["kind"] == "reserve":
                found[index] = _reservation(index, record)
            if record["kind"] in ("reserve", "draw"):
                draws.append(_draw(index, record, found))
            if record["kind"] == "accepted":
                _ = [Mark(**lost) for lost in record["lost"]], record["who"], record["why"]
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, PrivacyError) as error:
            why = error if isinstance(error, PrivacyError) else "not what a ledger writes"
            raise PrivacyError(f"record {index} is damaged ({why})") from None
    return list(found.values()), draws


def latest(reservations: Sequence[Reservation], key: str) -> Reservation | None:
    """The last whole reservation of a plan."""
    return next((r for r in reversed(reservations) if r.whole and r.key == key), None)


def next_record(reservations: Sequence[Reservation], plan: ReservedPlan, number: int, run: str) -> Record:
    """What must be written before round `number` of `plan` may be computed in `run`, without the limits and the time.

    Raises PrivacyError when another plan stands under the same key.
    """
    held = latest(reservations, plan.key)
    if held is not None and held.rounds != plan.rounds:
        raise PrivacyError(
            f'"{plan.name}" is not the plan that was reserved under its key: a run keeps the noise, rates, steps and rounds '
            "that it began with"
        )
    whole = {
        "kind": "reserve",
        "key": plan.key,
        "name": plan.name,
        "rounds": _spelled(plan.rounds),
        "round": number,
        "run": run,
    }
    if held is None or (number == 1 and held.drawn.get(1, run) != run):
        return whole
    if number not in held.drawn:
        return {"kind": "draw", "of": held.record, "round": number, "run": run}
    return {**whole, "rounds": _spelled(plan.rounds[number - 1 : number]), "retry_of": held.record}


def _reservation(index: int, record: Record) -> Reservation:
    lists: set[str | None] = {record.get("members")}
    if "rounds" not in record:
        event = Event.from_dict({key: record.get(key) for key in EVENT_KEYS})
        return Reservation(index, "", str(record.get("purpose", "")), ((event,),), lists, whole=False)
    rounds = tuple(tuple(Event.from_dict(event) for event in events) for events in record["rounds"])
    plan = ReservedPlan(record["key"], record["name"], rounds)
    return Reservation(index, plan.key, plan.name, rounds, lists, whole="retry_of" not in record)


def _draw(index: int, record: Record, found: dict[int, Reservation]) -> Draw:
    of = found[record["of"] if record["kind"] == "draw" else index]
    old = "rounds" not in record and record["kind"] == "reserve"
    number, run = (1, str(record.get("run", ""))) if old else (record["round"], record["run"])
    if type(number) is not int or number < 1 or not isinstance(run, str):
        raise PrivacyError(f"it draws round {number}")
    if record["kind"] == "draw" and (not of.whole or number in of.drawn):
        raise PrivacyError(f"it draws round {number} of record {of.record} a second time")
    events = of.rounds[number - 1 if of.whole else 0]
    of.drawn[number] = run
    of.lists.add(record.get("members"))
    return Draw(index, of.key, of.name, number, run, events)


def _spelled(rounds: Rounds) -> list[list[dict[str, Any]]]:
    return [[event.to_dict() for event in events] for events in rounds]
