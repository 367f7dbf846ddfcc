"""What the randomness promises: the right law at the right scale, from a stream that nobody else has."""

import copy
import math
import multiprocessing
import os
import pickle
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from privacy.noise import SecureRandom
from shared.errors import PrivacyError

KEY = bytes(range(32))
ALPHA = 1e-4


def accepted(values: np.ndarray, scale: float) -> bool:
    """Chi-square of the variance and Kolmogorov-Smirnov of the law, both at `ALPHA`."""
    statistic = float(np.sum((values / scale) ** 2))
    chi2 = 2 * min(stats.chi2.cdf(statistic, len(values)), stats.chi2.sf(statistic, len(values)))
    return chi2 > ALPHA and stats.kstest(values / scale, "norm").pvalue > ALPHA


@pytest.mark.parametrize("scale", [1e-3, 1.0, 40.0])
def test_noise_has_the_scale_it_claims_and_two_thirds_or_three_halves_of_it_are_rejected(scale: float) -> None:
    values = scale * SecureRandom(KEY).gaussian((20_000,))
    assert accepted(values, scale)
    assert not accepted(values, scale * 2 / 3)
    assert not accepted(values, scale * 3 / 2)


def test_neighbouring_values_of_the_noise_are_independent() -> None:
    x = SecureRandom(KEY).gaussian((4 * 65_536,))  # four chunks: cosine and sine halves lie 32768 apart
    for lag in (1, 2, 32_768, 65_536):
        for f in (lambda v: v, np.square, np.sign):
            assert abs(np.corrcoef(f(x[:-lag]), f(x[lag:]))[0, 1]) * math.sqrt(len(x) - lag) < 4.5


def test_a_given_key_repeats_the_stream_and_admits_it() -> None:
    assert np.array_equal(SecureRandom(KEY).gaussian((3, 5)), SecureRandom(KEY).gaussian((3, 5)))
    assert SecureRandom(KEY).deterministic


def test_the_operating_system_gives_a_new_stream_every_time() -> None:
    a, b = SecureRandom(), SecureRandom()
    assert not a.deterministic
    assert not np.array_equal(a.gaussian((8,)), b.gaussian((8,)))
    assert not np.array_equal(a.gaussian((8,)), a.gaussian((8,)))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (5,), (2, 3), (65_537,)])
def test_any_shape_is_filled_with_finite_float64(shape: tuple[int, ...]) -> None:
    values = SecureRandom(KEY).gaussian(shape)
    assert values.shape == shape
    assert values.dtype == np.float64
    assert np.isfinite(values).all()


def test_the_logarithm_of_zero_cannot_happen(monkeypatch: pytest.MonkeyPatch) -> None:
    for word in (0, 2**64 - 1):
        monkeypatch.setattr(SecureRandom, "_integers", lambda _self, n, w=word: np.full(n, w, dtype=np.uint64))
        values = SecureRandom(KEY).gaussian((4,))
        assert np.isfinite(values).all()
        assert np.abs(values).max() <= math.sqrt(106 * math.log(2)) + 1e-12


def test_a_stream_cannot_be_copied_or_pickled() -> None:
    for act in (copy.deepcopy, copy.copy, pickle.dumps):
        with pytest.raises(TypeError, match="repeat its noise"):
            act(SecureRandom())


def _draw(stream: SecureRandom, queue: "multiprocessing.Queue[list[float]]") -> None:
    queue.put(stream.gaussian((4,)).tolist())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")  # forking is the point of this test
def test_a_forked_process_never_shares_the_stream() -> None:
    context = multiprocessing.get_context("fork")
    stream, queue = SecureRandom(KEY), context.Queue()
    children = [context.Process(target=_draw, args=(stream, queue)) for _ in range(2)]
    for child in children:
        child.start()
    drawn = [tuple(queue.get(timeout=30)) for _ in children] + [tuple(stream.gaussian((4,)).tolist())]
    for child in children:
        child.join()
    assert len(set(drawn)) == 3


def test_millions_of_values_take_a_fraction_of_a_second() -> None:
    stream, start = SecureRandom(KEY), time.process_time()
    stream.gaussian((2_700_000,))
    assert time.process_time() - start < 0.5


def test_every_patient_is_included_at_the_stated_rate() -> None:
    stream, people, rate, steps = SecureRandom(KEY), 40, 0.3, 3_000
    counts = np.zeros(people)
    for _ in range(steps):
        counts[stream.poisson_sample(people, rate)] += 1
    for claimed, right in ((rate, True), (rate * 1.1, False), (rate / 1.1, False)):
        chi2 = float(np.sum((counts - steps * claimed) ** 2) / (steps * claimed * (1 - claimed)))
        assert (stats.chi2.sf(chi2, people) > ALPHA) == right


def test_inclusions_are_pairwise_independent_and_the_batch_size_is_binomial() -> None:
    stream, people, rate, steps = SecureRandom(KEY), 12, 0.4, 4_000
    included = np.zeros((steps, people))
    for step in range(steps):
        included[step, stream.poisson_sample(people, rate)] = 1
    correlation = np.corrcoef(included.T)[np.triu_indices(people, 1)]
    assert np.abs(correlation).max() * math.sqrt(steps) < 4.5  # 66 pairs
    assert stats.chi2.sf(steps * float(np.sum(correlation**2)), len(correlation)) > ALPHA
    sizes = included.sum(1)  # a shuffled fixed-size batch would have no variance
    assert sizes.var() == pytest.approx(people * rate * (1 - rate), rel=0.1)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 300), st.floats(0, 1))
def test_a_poisson_sample_is_an_increasing_list_of_patients(population: int, rate: float) -> None:
    chosen = SecureRandom().poisson_sample(population, rate)
    assert chosen == sorted(set(chosen))
    assert all(0 <= i < population for i in chosen)
    if rate in (0, 1):
        assert len(chosen) == population * rate


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(0, 150))
def test_a_subset_has_its_size_and_repeats_only_when_it_must(population: int, size: int) -> None:
    chosen = SecureRandom().subset(population, size)
    assert len(chosen) == size
    counts = np.bincount(chosen, minlength=population) if size else np.zeros(population)
    assert counts.max() - counts.min() <= 1


def test_a_subset_is_uniform_over_places() -> None:
    stream, counts = SecureRandom(KEY), np.zeros((6, 3))
    for _ in range(3_000):
        for place, index in enumerate(stream.subset(6, 3)):
            counts[index, place] += 1
    assert stats.chisquare(counts.ravel()).pvalue > ALPHA


def test_impossible_requests_are_refused_in_one_line() -> None:
    stream = SecureRandom(KEY)
    requests = [
        lambda: SecureRandom(b"short"),
        lambda: stream.poisson_sample(3, 1.1),
        lambda: stream.poisson_sample(3, math.nan),
        lambda: stream.poisson_sample(-1, 0.5),
        lambda: stream.subset(0, 2),
        lambda: stream.subset(2, -1),
    ]
    for request in requests:
        with pytest.raises(PrivacyError) as error:
            request()
        assert "\n" not in str(error.value)
