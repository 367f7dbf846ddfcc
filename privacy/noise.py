"""Randomness that privacy rests on: AES-256 in counter mode, keyed by the operating system.

Mechanism     Gaussian noise N(0, 1) per value, Poisson sampling of patients, uniform choice of slices
Guarantee     none by itself: `sgd.py` scales the noise and `accounting.py` turns scale and rate into an epsilon
Relation      add or remove one patient, which is what Poisson sampling amplifies (Balle et al. 2018, Theorem 8)
Source        AES-CTR: NIST SP 800-38A; Box and Muller 1958; 53-bit uniforms as in Holohan & Braghin 2021, section 2

| edge case                     | what happens                                                      |
|-------------------------------|-------------------------------------------------------------------|
| uniform is 0                  | impossible: radii use the uniforms 2^-53 .. 1, so log is finite   |
| tail                          | |x| <= sqrt(106 ln 2) = 8.57; the mass beyond is 1e-17            |
| shape with a zero, or ()      | an empty array; one value                                         |
| rate 0 / rate 1               | nobody / everybody                                                |
| size > population in `subset` | the permutation repeats, so that the shape stays fixed            |
| the process forks             | the child draws a fresh key: two processes never share a stream   |
| deepcopy or pickle            | TypeError: a copied stream would repeat its noise                 |
| a given key, in a hospital's app | PrivacyError, whether the stream is made there or only used there |

Left out: the discrete Gaussian (the grid of `sgd.PatientOptimizer` stands in for it), and any seed from a config.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import NoReturn

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from shared.errors import PrivacyError

SEED_VARIABLE = "FEDSYNTH_SIMULATED_SEED"  # set by a simulation alone: its noise can be repeated, and protects nobody
KEY_BYTES = 32
CHUNK = 1 << 15  # pairs at a time: the working set stays in the L2 cache
TWO_53 = 2.0**53


_strict = False
_rehearsal: tuple[bytes, Iterator[int]] | None = None


@contextmanager
def operating_system_only() -> Iterator[None]:
    """While this lasts, any use of a stream with a given key in this process is a PrivacyError. The hospital's app works in it."""
    global _strict  # noqa: PLW0603 - of the process on purpose: no argument that somebody could forget to pass on
    before, _strict = _strict, True
    try:
        yield
    finally:
        _strict = before


@contextmanager
def rehearsal(key: bytes) -> Iterator[None]:
    """While this lasts, streams without a key of their own are keyed from `key`, one after another: a run that can be repeated.

    It protects nobody. For simulations, which then state an infinite epsilon.
    """
    global _rehearsal  # noqa: PLW0603 - of the process, as above
    before, _rehearsal = _rehearsal, (key, count())
    try:
        yield
    finally:
        _rehearsal = before


def rehearsed() -> bool:
    """Whether noise is drawn for a rehearsal at present."""
    return _rehearsal is not None


class SecureRandom:
    """A stream of cryptographic randomness. Not for use from two threads at once.

    key     None draws 32 bytes from `os.urandom`: the only way that protects anybody. A given key makes the stream
            repeatable and the noise removable by whoever knows it: **tests only**, and `deterministic` says so.

    Raises PrivacyError when a given key is not 32 bytes, and at any use of it inside `operating_system_only`.
    """

    def __init__(self, key: bytes | None = None) -> None:
        if key is not None and len(key) != KEY_BYTES:
            raise PrivacyError(f"a noise key has {KEY_BYTES} bytes, not {len(key)}; leave it out outside tests")
        if key is None and _rehearsal is not None:
            key = hashlib.sha256(_rehearsal[0] + next(_rehearsal[1]).to_bytes(8, "big")).digest()
        self.deterministic = key is not None
        self._start(key)

    def _start(self, key: bytes | None) -> None:
        self._pid = os.getpid()
        cipher = Cipher(algorithms.AES(os.urandom(KEY_BYTES) if key is None else key), modes.CTR(bytes(16)))
        self._stream = cipher.encryptor()

    def _integers(self, count: int) -> NDArray[np.uint64]:
        """`count` uniform 64-bit integers."""
        if self.deterministic and _strict:
            raise PrivacyError("this noise would come from a given key, and whoever knows it can take the noise away")
        if os.getpid() != self._pid:
            self._start(None)
        return np.frombuffer(self._stream.update(bytes(8 * count)), dtype="<u8")

    def _uniforms(self, count: int) -> NDArray[np.float64]:
        """`count` uniforms, multiples of 2^-53 in [0, 1)."""
        return (self._integers(count) >> np.uint64(11)).astype(np.float64) / TWO_53

    def gaussian(self, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """Independent N(0, 1) values of `shape`, float64, by Box-Muller: sqrt(-2 ln u1) (cos, sin)(2 pi u2)."""
        total = math.prod(shape)
        values = np.empty(total + total % 2)
        for start in range(0, len(values), 2 * CHUNK):
            block = values[start : start + 2 * CHUNK]
            half = len(block) // 2
            u = self._uniforms(2 * half)
            radius = np.sqrt(-2 * np.log(u[:half] + 1 / TWO_53))
            angle = torch.from_numpy(u[half:] * (2 * math.pi))  # torch's cosine is three times as fast as numpy's
            np.multiply(radius, torch.cos(angle).numpy(), out=block[:half])
            np.multiply(radius, torch.sin(angle).numpy(), out=block[half:])
        return values[:total].reshape(shape)

    def poisson_sample(self, population: int, rate: float) -> list[int]:
        """Indices of 0..population-1, each in with probability `rate`, independently. May well be empty.

        The rate is met to 2^-53. Raises PrivacyError when the rate is not in [0, 1] or the population is negative.
        """
        if not 0 <= rate <= 1 or population < 0:
            raise PrivacyError(f"cannot sample {population} patients at rate {rate}; the rate lies in [0, 1]")
        return [int(index) for index in np.flatnonzero(self._uniforms(population) < rate)]

    def subset(self, population: int, size: int) -> list[int]:
        """`size` indices of 0..population-1, uniform without replacement, in random order.

        Beyond the population it starts over, so that one patient's micro-batch has the same shape however few slices
        there are. Raises PrivacyError when there is nothing to choose from.
        """
        if population < 0 or size < 0 or (population == 0 and size > 0):
            raise PrivacyError(f"cannot choose {size} of {population}")
        order = np.argsort(self._integers(population))  # a tie of 64-bit keys has probability under 1e-13 at 1,000
        return [int(order[i % population]) for i in range(size)]

    def seed(self) -> int:
        """A seed for a generator whose draws protect nobody, such as the noise of the diffusion process."""
        return int(self._integers(1)[0] >> np.uint64(8))

    def __deepcopy__(self, _memo: object) -> NoReturn:
        raise TypeError("a copy of a noise stream would repeat its noise; make a new SecureRandom")

    def __reduce__(self) -> NoReturn:
        raise TypeError("a copy of a noise stream would repeat its noise; make a new SecureRandom")
