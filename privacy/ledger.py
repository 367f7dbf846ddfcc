"""The hospital's durable record of what its patients have spent: reserve a whole run, then draw its rounds, then compute.

Guarantee     whatever crashes and whenever, the epsilon on record is at least that of the noise already released: a record is
              written and fsynced, and its high-water mark too, before `draw` returns; nothing is ever refunded, nor is what a run
              did not use. Everything on record together is (cap, delta)-DP, though runs may be chosen by what was seen (filters.py)
Relation      add or remove all data of one patient of the cohort; all runs and rounds on that cohort compose
Form          JSON lines, append-only, chained by hashes (chain.py); the header is record 0; reservations.py says what each means
One writer    an exclusive `flock` spans read, check, append and mark. A second writer waits, then fails with LedgerError

| edge case                            | what happens                                                               |
|--------------------------------------|----------------------------------------------------------------------------|
| a run would pass the cap             | BudgetExceeded; nothing is written                                         |
| a round that is on record already    | it is reserved again, alone; round 1 in another run: the whole plan is     |
| other events under a plan's key      | PrivacyError: not the plan that was reserved                               |
| the hospital lowered its cap         | rounds that were reserved under the old one are refused too                |
| noise_multiplier 0                   | epsilon is infinite: BudgetExceeded, but with an infinite cap (rehearsals) |
| killed after the write               | the record counts, though nothing may have been computed                   |
| last line whole, its newline missing | it counts; the next record ends the line first                             |
| last line torn                       | `draw` had not returned, so nothing was computed: the bytes move to        |
|                                      | <name>.torn-N, and a record of kind "repair" says so; but a line that the  |
|                                      | mark claims was whole once: LedgerError                                    |
| any byte changed                     | LedgerError names the record; nothing more is drawn                        |
| shorter than a mark, another, or gone| LedgerError until the privacy office decides: high_water.py                |
| file empty                           | LedgerError: a ledger is born together with its header                     |
| another cohort, or a larger delta    | LedgerError                                                                |
| another cap, or a smaller delta      | the hospital's right; every record keeps those under which it was made     |
| who was in the cohort is not known   | the reservation counts for everybody                                       |
| disk full, or fsync fails            | LedgerError, and the caller must not compute                               |

Several cohorts of one hospital, or one that changes from ingest to ingest, share one ledger: see ledger_members.py. A ledger of an
older version is read as it is: each of its records is a plan of its own, and it gets its mark at the next use.

Left out: one person under two keys, which are two ledgers; a ledger rewritten together with its mark while no mark is kept
elsewhere; a signed statement (statement.py).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from privacy import accounting, filters, high_water, ledger_file, ledger_members, reservations
from privacy.durable import told
from privacy.high_water import Mark
from privacy.ledger_file import accept, begun, checked_records, delta_now, delta_of
from privacy.reservations import Draw, Reservation, ReservedPlan
from shared.errors import BudgetExceeded, LedgerError, PrivacyError
from shared.journal.chain import Chain, Record

__all__ = [  # of which the records, the marks and the file itself have modules of their own
    "Draw",
    "Drawn",
    "Ledger",
    "Mark",
    "ReservedPlan",
    "accept",
    "begun",
    "checked_records",
    "counted",
    "delta_now",
    "delta_of",
    "draws",
    "spent",
]

TOLERANCE = 1e-9  # of the comparison with the cap: rounding only


@dataclass(frozen=True)
class Drawn:
    """What is on record after a draw, per patient.

    epsilon   as the filter counts it, at the delta that was asked for
    spent     the same if nothing was chosen by what was seen: the PLD of everything
    mark      the ledger's high-water mark
    """

    epsilon: float
    spent: float
    mark: Mark


class Ledger:
    """The ledger of one hospital's key. The file is created when it is absent.

    path        the file; its folder exists
    cohort      name that the key stands for; all work on its patients goes through this one file
    cap         epsilon per patient that the total never passes at `delta`
    separate_cohorts   count only what may have touched a patient of the cohort at hand; else everything counts for everybody
    timeout_s   how long to wait for another writer
    marks       high-water marks known from elsewhere; the ledger must run through each

    Raises LedgerError when the file is damaged, locked, of another cohort, began with a smaller delta, or forgot something.
    """

    def __init__(
        self,
        path: Path,
        *,
        cohort: str,
        cap: float,
        delta: float,
        separate_cohorts: bool = False,
        timeout_s: float = 60.0,
        marks: Sequence[Mark] = (),
    ) -> None:
        if not cap > 0 or not 0 < delta < 1:
            raise PrivacyError(f"a ledger needs a positive cap and a delta between 0 and 1, not {cap} and {delta}")
        self.path, self.cohort, self.cap, self.delta, self.timeout_s = Path(path), cohort, cap, delta, timeout_s
        self.separate, self.marks = separate_cohorts, tuple(marks)
        ledger_file.create(self.path, self.cohort, self.delta, self.marks)
        with ledger_file.locked(self.path, self.timeout_s, write=True) as file:
            self._open(file)

    def draw(
        self,
        plan: ReservedPlan,
        number: int,
        *,
        run: str,
        members: str | Collection[str] | None = None,
        told_delta: float | None = None,
    ) -> Drawn:
        """Put round `number` (from 1) of `plan` on record, on disk, before it is computed; the whole plan with its first round.

        run          the engine's name of the run, at most 200 characters
        members      who may be touched: the name of a list that `membership.keep` gave, or keyed pseudonyms of all of them;
                     none: not known, so it counts for everybody
        told_delta   delta at which both numbers are returned and named in a refusal, all of which may travel; none: the
                     ledger's own, which may follow from the number of patients. The cap holds at the ledger's own

        Raises BudgetExceeded, with nothing written, when the plan does not fit under the cap, PrivacyError when it is another than
        was reserved, and LedgerError when the record cannot be made durable. After an error, do not compute.
        """
        if not 1 <= number <= len(plan.rounds) or len(run) > reservations.WORDS:
            raise PrivacyError(
                f"round {number} of a plan of {len(plan.rounds)}, in a run whose name has {len(run)} characters: there is no such "
                f"round, or the name is longer than {reservations.WORDS}"
            )
        with ledger_file.locked(self.path, self.timeout_s, write=True) as file:
            found = self._open(file)
            before, _ = reservations.read(found.records)
            body = reservations.next_record(before, plan, number, run)
            with told(self.path):
                name = ledger_members.name_of(self.path, members)
            body |= {"members": name, "separate_cohorts": self.separate}
            after, _ = reservations.read([*found.records, body])
            epsilon = counted(self._groups(after, name), self.delta)
            if not epsilon <= self.cap + TOLERANCE:
                raise self._exceeded(before, after, name, told_delta)
            limits = {"epsilon": _finite(epsilon), "cap": _finite(self.cap), "delta": self.delta}
            found = ledger_file.append(file, self.path, found, body | (limits if body["kind"] == "reserve" else {}))
            mark = high_water.now(found.records)
        delta, groups = told_delta or self.delta, self._groups(after, name)
        return Drawn(counted(groups, delta), spent(groups, delta), mark)

    def epsilon(self) -> float:
        """Epsilon per patient of everything on record, as the filter counts it, at the ledger's delta."""
        records = self.records()
        return counted(ledger_members.counted(self.path, records, reservations.read(records)[0]), self.delta)

    def records(self) -> list[Record]:
        """Every whole record, the header first."""
        with ledger_file.locked(self.path, self.timeout_s, write=False) as file:
            return ledger_file.read(file, self.path).records

    def _groups(self, held: list[Reservation], members: str | None) -> list[list[Reservation]]:
        return ledger_members.groups(self.path, held, members) if self.separate and members is not None else [held]

    def _exceeded(
        self, before: list[Reservation], after: list[Reservation], members: str | None, told_delta: float | None
    ) -> BudgetExceeded:
        delta = told_delta or self.delta
        so_far, together = (counted(self._groups(held, members), delta) for held in (before, after))
        alone = filters.epsilon([r.events for r in after[len(before) :]], delta)
        own = (
            ". The cap holds at the site's own delta, at most this one: a smaller `privacy.delta` in the experiment "
            "plans with it, or the hospital sets `delta` in its file"
        )
        return BudgetExceeded(
            f'cohort "{self.cohort}": epsilon {so_far:.4f} per patient is spent and {alone:.4f} is asked, together '
            f"{together:.4f}; the cap is {self.cap:.4f} (delta {delta:g}). Nothing was computed. Ask for more noise or "
            f"fewer steps; only the hospital can raise `epsilon_cap`{own if told_delta else ''}"
        )

    def _open(self, file: int) -> Chain:
        """Check the chain, its marks and whose it is, and set a torn last line aside. The caller holds the lock for writing."""
        found = ledger_file.read(file, self.path)
        header = found.records[0]
        for key, mine in (("cohort", (self.cohort,)), ("version", ledger_file.VERSIONS)):
            if header.get(key) not in mine:
                raise LedgerError(
                    f'{self.path.name} is of {key} "{header.get(key)}", not "{mine[-1]}"; open it as what it is, or begin '
                    "another ledger for another cohort"
                )
        if self.delta > header["delta"]:
            raise LedgerError(  # without saying which: it may follow from the number of patients, and this line may travel
                f"{self.path.name} is of a smaller delta than {self.delta:g}, and a larger one would weaken what was promised; "
                "`fedsynth privacy ledger show` says which: set `delta` to that or less"
            )
        with told(self.path):
            high_water.check(self.path, found.records, self.marks)
        return ledger_file.mended(file, self.path, found)


def counted(groups: Sequence[Sequence[Reservation]], delta: float) -> float:
    """The most that a patient of any group has spent, as the filter counts it."""
    return max(filters.epsilon([r.events for r in group], delta) for group in groups)


def spent(groups: Sequence[Sequence[Reservation]], delta: float) -> float:
    """The same if nothing was chosen by what was seen: the PLD of everything."""
    return max(accounting.epsilon([event for r in group for event in r.events], delta) for group in groups)


def draws(records: Sequence[Record]) -> list[Draw]:
    """Every round that may have been computed, in order, from the records of a ledger that was verified."""
    return reservations.read(records)[1]


def _finite(value: float) -> float | None:
    """JSON has no infinity: null stands for it."""
    return value if math.isfinite(value) else None
