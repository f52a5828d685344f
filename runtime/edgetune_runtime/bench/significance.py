"""Whether two systems differ on the same samples, or just got lucky."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from edgetune_runtime.errors import InputError

_CHUNK = 256


class Delta(NamedTuple):
    """Mean of the second system minus mean of the first, with a confidence interval."""

    delta: float
    low: float
    high: float


class McNemar(NamedTuple):
    """Samples that only the first or only the second got right, and the two-sided exact p-value."""

    only_first: int
    only_second: int
    p: float


def paired_bootstrap(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    groups: Sequence[Hashable],
    *,
    seed: int = 0,
    resamples: int = 10_000,
    level: float = 0.95,
) -> Delta:
    """Return how much better the second system is, with a percentile interval.

    Whole groups (images) are drawn again, not samples: several questions about one picture are not
    independent (cluster bootstrap, Davison & Hinkley 1997).

    Args:
        first: per-sample scores [n] of one system.
        second: scores [n] of the other on the same samples.
        groups: the image of each sample [n].
        seed: of the random generator; the result repeats exactly.
        resamples: number of bootstrap samples.
        level: coverage of the interval.

    Raises:
        InputError: lengths differ, a score is not finite, or there are fewer than two groups.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or len(groups) != len(a):
        raise InputError(f"paired scores must have one length, got {a.shape}, {b.shape} and {len(groups)} groups")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("paired scores must be finite numbers")
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    if len(numbers) < 2:
        raise InputError(f"a paired interval needs at least two images, got {len(numbers)}")
    member = np.array([numbers[group] for group in groups])
    sums = np.bincount(member, weights=b - a)
    counts = np.bincount(member)
    deltas = [
        sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
        for drawn in draws(len(sums), seed=seed, resamples=resamples)
    ]
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(deltas), [tail, 1 - tail])
    return Delta(float((b - a).mean()), float(low), float(high))


def draws(groups: int, *, seed: int, resamples: int) -> Iterator[npt.NDArray[np.int64]]:
    """Yield which groups each bootstrap sample draws, with replacement: int64 [K, groups], `resamples` rows in all."""
    generator = np.random.default_rng(seed)
    for start in range(0, resamples, _CHUNK):
        yield generator.integers(groups, size=(min(_CHUNK, resamples - start), groups))


def mcnemar(first: npt.ArrayLike, second: npt.ArrayLike) -> McNemar:
    """Compare two systems that are right or wrong on the same samples (exact test, McNemar 1947).

    Args:
        first: booleans [n], whether one system is right.
        second: the same of the other.

    Raises:
        InputError: lengths differ.
    """
    a, b = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if a.shape != b.shape or a.ndim != 1:
        raise InputError(f"paired results must have one length, got {a.shape} and {b.shape}")
    only_first, only_second = int((a & ~b).sum()), int((b & ~a).sum())
    changed = only_first + only_second
    tail = sum(math.comb(changed, k) for k in range(min(only_first, only_second) + 1))
    return McNemar(only_first, only_second, min(1.0, 2 * tail / 2**changed))
