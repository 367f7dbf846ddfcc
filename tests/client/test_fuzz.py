"""A sample of `simulations.benchmarks.fuzz`, with another seed in every run."""

from __future__ import annotations

import random

from simulations.benchmarks import fuzz


def test_e05_mutated_files_end_with_a_verdict_in_time_and_nothing_planted_comes_out() -> None:
    seed = random.SystemRandom().randrange(2**31)
    outcome = fuzz.run(200, seed)
    assert sum(outcome.verdicts.values()) == 200, seed
    assert outcome.slowest_s <= fuzz.LIMIT_S, seed
    assert not outcome.leaks, seed
    assert outcome.planted > 60, "most mutants must still hold something to find"
    assert len(outcome.verdicts) >= 5, "the mutations must reach more than the first gate"
