"""Confidence intervals of a mean over scenes, by resampling the scenes."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr, ndtri

from escherjax.errors import UserError, listed

METHODS = ("bca", "percentile")
_MOST_AT_ONCE = 2**24  # resampled values held in memory


def interval(
    values: np.ndarray,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = 10_000,
    method: str = "bca",
) -> tuple[float, float, float]:
    """(mean, low, high): the mean over scenes and its two-sided bootstrap confidence interval.

    values: [S], one finite value a scene; average over a scene's views first, for they are not
    independent. confidence: in (0, 1). method: "bca", bias-corrected and accelerated, or
    "percentile" (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, 14.3 and 13.3);
    both equal scipy.stats.bootstrap with rng=numpy.random.default_rng(seed).
    The same arguments give the same interval. low and high are NaN for a single scene, which says
    nothing about others, and equal the mean where all scenes have one value.
    Raises UserError for no values, values that are not finite, and arguments out of range.
    """
    values = np.asarray(values, np.float64)
    _check(values, confidence, resamples, method)
    mean = float(values.mean())
    if len(values) == 1:
        return mean, float("nan"), float("nan")
    if np.ptp(values) == 0:
        return mean, mean, mean
    means = _resampled_means(values, seed, resamples)
    low, high = (1 - confidence) / 2, (1 + confidence) / 2
    if method == "bca":
        low, high = _bca_levels(values, means, low, high)
    bounds = np.percentile(means, [100 * low, 100 * high])
    return mean, float(bounds[0]), float(bounds[1])


def paired_interval(
    a: np.ndarray,
    b: np.ndarray,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = 10_000,
    method: str = "bca",
) -> tuple[float, float, float]:
    """(mean, low, high) of a - b over scenes that both were evaluated on; see `interval`.

    a, b: [S], values of the same scenes in the same order. An interval without 0 is a difference
    that other scenes of the kind would show too. Much narrower than two intervals side by side:
    how hard a scene is cancels out.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise UserError(
            f"paired_interval: values of shapes {a.shape} and {b.shape}; needed one pair a scene. "
            "Keep the scenes that both have, in one order."
        )
    return interval(a - b, confidence, seed, resamples, method)


def _check(values: np.ndarray, confidence: float, resamples: int, method: str) -> None:
    problems = []
    if values.ndim != 1 or not len(values):
        problems.append(f"values have shape {values.shape}; needed [S], one a scene, S >= 1.")
    else:
        wrong = np.flatnonzero(~np.isfinite(values)).tolist()
        if wrong:
            problems.append(
                f"values of scenes {wrong[:10]} are not finite ({len(wrong)} of {len(values)}); "
                "find out why, or leave those scenes out and say so."
            )
    if not 0 < confidence < 1:
        problems.append(f"confidence is {confidence}; needed above 0 and below 1, such as 0.95.")
    if resamples < 1:
        problems.append(f"resamples is {resamples}; needed at least 1, better 10000.")
    if method not in METHODS:
        problems.append(f"method is {method!r}; needed one of {', '.join(METHODS)}.")
    if problems:
        raise UserError(f"bootstrap interval: {listed(problems)}")


def _resampled_means(values: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    rng, size = np.random.default_rng(seed), len(values)
    means = np.empty(resamples)
    chunk = max(1, _MOST_AT_ONCE // size)
    for start in range(0, resamples, chunk):
        rows = min(chunk, resamples - start)
        means[start : start + rows] = values[rng.integers(0, size, (rows, size))].mean(1)
    return means


def _bca_levels(
    values: np.ndarray, means: np.ndarray, low: float, high: float
) -> tuple[float, float]:
    """The levels whose percentiles of `means` are BCa's bounds; values must not all be equal.

    Efron and Tibshirani 1993, equations 14.10, 14.14 and 14.15; leaving one value out of a mean
    moves it in proportion to that value's deviation, so the acceleration needs no jackknife.
    """
    mean = values.mean()
    below = np.mean(means < mean) / 2 + np.mean(means <= mean) / 2  # ties count half
    bias = ndtri(below)
    deviation = values - mean
    acceleration = np.sum(deviation**3) / (6 * np.sum(deviation**2) ** 1.5)

    def corrected(level: float) -> float:
        shifted = bias + ndtri(level)
        return float(ndtr(bias + shifted / (1 - acceleration * shifted)))

    return corrected(low), corrected(high)
