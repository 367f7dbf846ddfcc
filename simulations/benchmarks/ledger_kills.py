"""python -m simulations.benchmarks.ledger_kills [--kills 1000] [--seed 0]

A process draws the rounds of runs on a ledger and then "releases" (adds a byte to a file), over and over, naming a list of patients
that changes. It is killed with SIGKILL after a random 1 to 150 ms; a quarter of the kills strike inside a write that was cut short:
of a record, of a mark, or of the groups of patients. After each kill the next process opens the same ledger. Wrong is: a ledger
that does not open or check, or not run through the last mark that was told; a release without its draw on record; or an epsilon on
record below that of what was released. Prints how often each happened; anything but 0 ends with code 1.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from privacy.accounting import Event, epsilon
from privacy.ledger import Ledger, Mark, ReservedPlan, checked_records, draws
from shared.errors import FedsynthError

STEP, DELTA = Event(20.0, 1.0, 1), 1e-5  # full batches: epsilon is exact and instant
ROUNDS = 3
EACH = 50  # kills on one ledger


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    wrong = dict.fromkeys(("does not open", "release not on record", "epsilon below what was released"), 0)
    released = reserved = torn = 0
    start = time.monotonic()
    for first in range(0, options.kills, EACH):
        print(f"\r{first} of {options.kills}", end="", file=sys.stderr, flush=True)  # noqa: T201 - a bar would fork with its thread
        with tempfile.TemporaryDirectory() as folder:
            path, out = Path(folder) / "ledger.jsonl", Path(folder) / "released"
            out.write_text("")
            for _ in range(min(EACH, options.kills - first)):
                kill_once(path, out, rng)
                told = out.read_text().split("\n")[:-1]
                count = len(told)
                try:
                    book = opened(path, *told[-1:])
                    on_record = len(draws(checked_records(path)))
                    wrong["release not on record"] += on_record < count
                    wrong["epsilon below what was released"] += book.epsilon() < epsilon([STEP] * count, DELTA)
                except FedsynthError:
                    wrong["does not open"] += 1
            released, reserved = released + count, reserved + on_record
            torn += len(list(Path(folder).glob("*.torn-*")))
    print("\r", end="", file=sys.stderr)  # noqa: T201
    Console().print(
        f"{options.kills} kills in {time.monotonic() - start:.0f} s: {reserved} draws on record, {released} released, "
        f"{torn} torn records set aside; " + ", ".join(f"{name}: {count}" for name, count in wrong.items()),
        highlight=False,
        soft_wrap=True,
    )
    sys.exit(int(any(wrong.values())))


def opened(path: Path, *told: str) -> Ledger:
    marks = [Mark(int(records), digest) for records, digest in (text.split(":") for text in told)]
    return Ledger(path, cohort="benchmark", cap=1e6, delta=DELTA, marks=marks)


def kill_once(path: Path, out: Path, rng: random.Random) -> None:
    """Start a writer, let it work, kill it."""
    cut = rng.randrange(1, 400) if rng.random() < 0.25 else None
    after_s, writes = rng.uniform(0.001, 0.15), rng.randrange(1, 16)
    child = os.fork()
    if child == 0:
        try:
            work(path, out, cut, writes)
        finally:
            os._exit(1)
    if cut is None:
        time.sleep(after_s)
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def work(path: Path, out: Path, cut: int | None, writes: int) -> None:
    """Draw, then release, for ever; with `cut`, die inside a later write, after that many bytes."""
    real, done = os.write, 0

    def short(file: int, data: bytes) -> int:
        nonlocal done
        if data.lstrip().startswith(b"{"):
            done += 1
            if done > writes:
                real(file, data[:cut])
                os.kill(os.getpid(), signal.SIGKILL)
        return real(file, data)

    if cut is not None:
        os.write = short  # type: ignore[assignment]
    for number in itertools.count():
        plan = ReservedPlan(f"{os.getpid():032x}{number // ROUNDS:032x}", "run", ((STEP,),) * ROUNDS)
        members = {f"patient-{number % 3}", f"patient-{os.getpid()}"}
        told = opened(path).draw(plan, number % ROUNDS + 1, run="run", members=members)
        with out.open("a") as file:
            file.write(f"{told.mark}\n")


if __name__ == "__main__":
    main()
