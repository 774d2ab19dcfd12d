"""Figures from repeated measurements: mean, spread, outliers, and what a ratio is worth.

Contract: pure arithmetic on lists of positive numbers; nothing here measures or draws. A ratio
carries its 95 % confidence interval, because one without invites to read noise.
Limits: the interval covers what the repetitions show. What changes between two runs and not within
one (a warmer machine, another day) it cannot know; interleaving can.
Sources: Student (1908) and Welch (1947) for the intervals, taken on logarithms, since speeds are
compared as ratios; Iglewicz and Hoaglin, "How to Detect and Handle Outliers" (1993), for 0.6745
and 3.5.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95
OUTLIER_SCORE = 3.5  # modified z-score beyond which a value is named
OUTLIER_SHARE = 0.03  # and it is this far from the median: tiny spreads make anything an outlier


@dataclass(frozen=True, slots=True)
class Summary:
    """What `n` repetitions say; `outliers` are indexes, counted from 0. `sd` of one is 0."""

    n: int
    mean: float
    sd: float
    median: float
    low: float
    high: float
    outliers: tuple[int, ...]


def summary(samples: Sequence[float]) -> Summary:
    """Of at least one sample. The standard deviation is the sample's (n - 1), as llama-bench's."""
    return Summary(
        n=len(samples),
        mean=statistics.fmean(samples),
        sd=statistics.stdev(samples) if len(samples) > 1 else 0.0,
        median=statistics.median(samples),
        low=min(samples),
        high=max(samples),
        outliers=outliers(samples),
    )


def outliers(samples: Sequence[float]) -> tuple[int, ...]:
    """Indexes of values that do not belong to the others: modified z-score 0.6745 (x - m) / MAD."""
    if len(samples) < 3:
        return ()
    middle = statistics.median(samples)
    off = [abs(x - middle) for x in samples]
    # where more than half are equal, MAD is 0 and only the share decides
    limit = max(OUTLIER_SCORE * statistics.median(off) / 0.6745, OUTLIER_SHARE * middle)
    return tuple(index for index, distance in enumerate(off) if distance > limit)


@dataclass(frozen=True, slots=True)
class Ratio:
    """A ratio and its 95 % confidence interval; without one (`low` is None) nothing is proved."""

    value: float
    low: float | None = None
    high: float | None = None

    @property
    def within_noise(self) -> bool:
        """No difference is proved: the interval holds 1, or there is none."""
        return self.low is None or self.high is None or self.low <= 1 <= self.high

    @property
    def gain(self) -> float:
        """What is proved: the end of the interval that is nearer to 1, 1 within noise."""
        if self.within_noise or self.low is None or self.high is None:
            return 1.0
        return self.low if self.value > 1 else self.high


def paired_ratio(pairs: Sequence[tuple[float, float]]) -> Ratio:
    """a / b of pairs that were measured in turns: Student's interval of the mean logarithm."""
    logs = [math.log(a / b) for a, b in pairs]
    middle = statistics.fmean(logs)
    if len(logs) < 2:
        return Ratio(math.exp(middle))
    error = statistics.stdev(logs) / math.sqrt(len(logs))
    return _interval(middle, error, len(logs) - 1)


def ratio(a: Sequence[float], b: Sequence[float]) -> Ratio:
    """Geometric mean of `a` over that of `b`, two separate runs: Welch's interval on logarithms."""
    logs = [[math.log(x) for x in samples] for samples in (a, b)]
    middle = statistics.fmean(logs[0]) - statistics.fmean(logs[1])
    if min(len(a), len(b)) < 2:
        return Ratio(math.exp(middle))
    shares = [statistics.variance(x) / len(x) for x in logs]
    spread = sum(shares)
    if spread == 0:
        return _interval(middle, 0.0, 1)
    rows = zip(shares, logs, strict=True)
    freedom = spread**2 / sum(share**2 / (len(x) - 1) for share, x in rows)
    return _interval(middle, math.sqrt(spread), freedom)


def _interval(middle: float, error: float, freedom: float) -> Ratio:
    reach = t_quantile(freedom) * error
    return Ratio(math.exp(middle), math.exp(middle - reach), math.exp(middle + reach))


def t_quantile(freedom: float, confidence: float = CONFIDENCE) -> float:
    """t such that |Student's t with `freedom` degrees| is below it with probability `confidence`.

    With t = sqrt(f) tan(x) the distribution is an integral of cos(x)^(f - 1): smooth and finite.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < confidence else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: float, steps: int = 256) -> float:
    """Probability of |t| < sqrt(freedom) tan(angle), by Simpson's rule."""
    log_scale = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(math.pi)
    width = angle / steps
    heights = [math.cos(step * width) ** (freedom - 1.0) for step in range(steps + 1)]
    area = heights[0] + heights[-1] + 4 * sum(heights[1:-1:2]) + 2 * sum(heights[2:-1:2])
    return float(2 * math.exp(log_scale) * area * width / 3)
