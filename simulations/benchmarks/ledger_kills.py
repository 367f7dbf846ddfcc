"""python -m simulations.benchmarks.ledger_kills [--kills 1000] [--seed 0]

A process reserves in a ledger and then "releases" (adds a byte to a file), over and over, naming a list of patients that changes.
It is killed with SIGKILL after a random 1 to 80 ms; a quarter of the kills strike inside a write that was cut short. After each
kill the next process opens the same ledger. Wrong is: a ledger that does not open or verify, a release without its reservation on
record, or an epsilon on record below that of what was released. Prints how often each happened; anything but 0 ends with code 1.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from privacy.accounting import Event, epsilon
from privacy.ledger import Ledger, verify
from shared.errors import FedsynthError

STEP, DELTA = Event(20.0, 1.0, 1), 1e-5  # full batches: epsilon is exact and instant
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
            out.write_bytes(b"")
            for _ in range(min(EACH, options.kills - first)):
                kill_once(path, out, rng)
                count = out.stat().st_size
                try:
                    book = opened(path)
                    on_record = sum(r["kind"] == "reserve" for r in verify(path))
                    wrong["release not on record"] += on_record < count
                    wrong["epsilon below what was released"] += book.epsilon() < epsilon([STEP] * count, DELTA)
                except FedsynthError:
                    wrong["does not open"] += 1
            released, reserved = released + count, reserved + on_record
            torn += len(list(Path(folder).glob("*.torn-*")))
    print("\r", end="", file=sys.stderr)  # noqa: T201
    Console().print(
        f"{options.kills} kills in {time.monotonic() - start:.0f} s: {reserved} reservations on record, {released} released, "
        f"{torn} torn records set aside; " + ", ".join(f"{name}: {count}" for name, count in wrong.items()),
        highlight=False,
        soft_wrap=True,
    )
    sys.exit(int(any(wrong.values())))


def opened(path: Path) -> Ledger:
    return Ledger(path, cohort="benchmark", cap=1e6, delta=DELTA)


def kill_once(path: Path, out: Path, rng: random.Random) -> None:
    """Start a writer, let it work, kill it."""
    cut = rng.randrange(1, 400) if rng.random() < 0.25 else None
    after_s, reservations = rng.uniform(0.001, 0.08), rng.randrange(1, 6)
    child = os.fork()
    if child == 0:
        try:
            work(path, out, cut, reservations)
        finally:
            os._exit(1)
    if cut is None:
        time.sleep(after_s)
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def work(path: Path, out: Path, cut: int | None, reservations: int) -> None:
    """Reserve, then release, for ever; with `cut`, die inside the write of a later record, after that many bytes."""
    real, done = os.write, 0

    def short(file: int, data: bytes) -> int:
        if done >= reservations and data.lstrip().startswith(b"{"):
            real(file, data[:cut])
            os.kill(os.getpid(), signal.SIGKILL)
        return real(file, data)

    if cut is not None:
        os.write = short  # type: ignore[assignment]
    with out.open("ab", buffering=0) as file:
        while True:
            book = opened(path)
            book.reserve(STEP, run="run", purpose="step", members={f"patient-{done % 3}", f"patient-{os.getpid()}"})
            file.write(b"x")
            done += 1


if __name__ == "__main__":
    main()
