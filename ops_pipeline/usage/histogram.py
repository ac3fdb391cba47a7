"""Latency histograms: log-spaced buckets that merge by addition, and the quantiles read from them.

Bucket i counts the values v with GAMMA^(i-1) < v <= GAMMA^i, in milliseconds. Any value of a bucket is answered
by `bucket_value(i)`, at most `RELATIVE_ERROR` (1.96 %) away from it, so every quantile is that exact. The
scheme is that of DDSketch (Masson, Rim and Lee, VLDB 2019) without its collapsing of buckets.

What belongs here: the arithmetic. The SQL that fills and merges buckets is in `statements` and `reading`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from fractions import Fraction

GAMMA = 1.04
RELATIVE_ERROR = (GAMMA - 1) / (GAMMA + 1)
SMALLEST_MS = 0.001
LARGEST_MS = 1e12
"""Values beyond these are counted in the outermost buckets: a negative duration in the first, NaN in the last."""
QUANTILES = (0.5, 0.9, 0.95, 0.99)


def bucket_of(milliseconds: float) -> int:
    """The bucket of a value in milliseconds; agrees with the SQL except where a float lies on a bound."""
    if math.isnan(milliseconds):
        milliseconds = LARGEST_MS
    clamped = min(max(milliseconds, SMALLEST_MS), LARGEST_MS)
    return math.ceil(math.log(clamped) / math.log(GAMMA))


def bucket_value(bucket: int) -> float:
    """The value in milliseconds that stands for a bucket: equally far, relatively, from both of its bounds."""
    return GAMMA**bucket * 2 / (1 + GAMMA)


def histogram(milliseconds: Iterable[float]) -> Counter[int]:
    """Count values by bucket."""
    return Counter(bucket_of(value) for value in milliseconds)


def merge(histograms: Iterable[Mapping[int, int]]) -> Counter[int]:
    """The histogram of the union: bucket by bucket, the sum."""
    total: Counter[int] = Counter()
    for one in histograms:
        total.update(one)
    return total


def quantile(counts: Mapping[int, int], fraction: float) -> float | None:
    """The nearest-rank quantile in milliseconds, within `RELATIVE_ERROR`; None for an empty histogram.

    The nearest rank of n values is the ceil(fraction * n)-th smallest, and the first for a fraction of 0.

    Raises:
        ValueError: `fraction` is not between 0 and 1.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"a quantile lies between 0 and 1, not at {fraction}")
    total = sum(counts.values())
    # As floats, 0.28 * 25 is a little more than 7.
    rank = max(1, math.ceil(Fraction(str(fraction)) * total))
    seen = 0
    for bucket in sorted(counts):
        seen += counts[bucket]
        if counts[bucket] and seen >= rank:
            return bucket_value(bucket)
    return None


def quantiles(counts: Mapping[int, int]) -> dict[str, float | None]:
    """The four quantiles that reports show, in milliseconds, by name: p50, p90, p95, p99."""
    return {f"p{fraction * 100:g}": quantile(counts, fraction) for fraction in QUANTILES}
