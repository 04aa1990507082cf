"""`summary.json`: means over scenes, their intervals, and the values they are made of.

A scene's value is the mean over its scored views; means and bootstrap intervals are over scenes.
The same records give the same bytes, in whatever order and by however many processes they came.
"""

from __future__ import annotations

import collections
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from escherjax.errors import UserError, describe_error, listed
from escherjax.files import whole_file
from escherjax.reports import page
from escherjax.reports import results as records
from escherjax.reports.results import NEAREST, SAMPLES, Record

FILE_NAME = "summary.json"
CONFIDENCE = 0.95
_METHODS = {"bca": "BCa", "percentile": "percentile"}  # name -> SciPy's
_MOST_AT_ONCE = 2**24  # resampled values held in memory
_MISSING = "(not set)"

# Method -> number of references, as text -> scene -> metric -> value.
PerScene = dict[str, dict[str, dict[str, dict[str, float]]]]


def summarize(
    settings: dict[str, Any],
    rows: Sequence[Record],
    skipped: Sequence[Record],
    consistency: Sequence[Record] = (),
) -> dict[str, Any]:
    """The content of summary.json.

    `results[method][N][metric]` has mean, low and high of a 95% bootstrap interval over scenes
    (null where there is one scene only), and `num_scenes` and `num_views` beside the metrics;
    `gain_over_nearest_reference[N][metric]` is the paired difference of the two methods;
    `per_scene[method][N][scene][metric]`. Of consistency, where it was asked for, `consistency` has
    the same `results` and `per_scene`, with the method `true_views` where there are such. A scene
    without a value counts in no mean: `num_scenes` of each value says how many do.
    """
    values = scene_means(rows)
    views = collections.Counter((row["method"], str(row["num_references"])) for row in rows)
    results = {
        method: {
            count: {
                "num_scenes": len(scenes),
                "num_views": views[method, count],
                **_over_scenes(scenes, interval),
            }
            for count, scenes in by_count.items()
        }
        for method, by_count in values.items()
    }
    gains = {
        count: _over_scenes(scenes, paired_interval, values[NEAREST][count])
        for count, scenes in values.get(SAMPLES, {}).items()
    }
    return {
        "settings": settings,
        "confidence": CONFIDENCE,
        "results": results,
        "gain_over_nearest_reference": gains,
        "num_skipped": len(skipped),
        "skipped": list(skipped),
        "per_scene": values,
        **({"consistency": _consistency(consistency)} if consistency else {}),
    }


def describe(content: dict[str, Any]) -> tuple[str, str]:
    """(title, a line about weights, sampling and scenes)."""
    settings = content["settings"]
    protocol, weights, sampling = (settings[k] for k in ("protocol", "weights", "sampling"))
    scenes = max(of["num_scenes"] for of in content["results"][SAMPLES].values())
    step = weights["trained_steps"]
    parts = [
        f"{weights['path']}" + (f" ({weights['params']})" if weights["params"] else ""),
        *([] if step is None else [f"{step:,} updates"]),
        f"{weights['cape']}, {weights['resolution']} px, {sampling['dtype']}",
        f"{sampling['sampler']}, {sampling['num_steps']} steps, "
        f"guidance {sampling['guidance_scale']:g}, seed {sampling['seed']}",
        f"{scenes:,} scene" + ("" if scenes == 1 else "s"),
    ]
    return f"{protocol['protocol']} · {protocol['mode']}", " · ".join(parts)


def scene_means(rows: Sequence[Record]) -> PerScene:
    """The mean of each metric over the views of each scene; rows are sorted as `read_all` does."""
    collected: dict = collections.defaultdict(list)
    for row in rows:
        place = row["method"], str(row["num_references"]), row["scene"]
        collected[place].append({k: v for k, v in row.items() if k not in records.FIELDS})
    means: PerScene = {}
    for (method, count, scene), of_views in collected.items():
        by_scene = means.setdefault(method, {}).setdefault(count, {})
        by_scene[scene] = {
            name: float(np.mean([values[name] for values in of_views])) for name in of_views[0]
        }
    return {method: means[method] for method in records.METHODS if method in means}


def write(out: Path, summary: dict[str, Any]) -> Path:
    """Writes summary.json, whole or not at all."""
    with whole_file(out / FILE_NAME) as file:
        file.write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")
    return out / FILE_NAME


def read(out: Path) -> dict[str, Any]:
    """The summary in an evaluation's folder. Raises UserError if there is none."""
    path = out / FILE_NAME if out.is_dir() else out
    try:
        summary = json.loads(path.read_text())
        _ = summary["results"], summary["settings"]["protocol"], summary["per_scene"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a summary of an evaluation ({describe_error(error)}); it must be the "
            "--out of escherjax.evaluate, once it has finished."
        ) from error
    return summary


def interval(
    values: np.ndarray | Sequence[float],
    confidence: float = CONFIDENCE,
    seed: int = 0,
    resamples: int = 10_000,
    method: str = "bca",
) -> tuple[float, float, float]:
    """The mean over scenes and its two-sided bootstrap confidence interval.

    Args:
      values: [S], one finite value per scene; average over a scene's views first, since they are
        not independent.
      confidence: in (0, 1).
      seed: of the resampling; the same arguments give the same interval.
      resamples: number of resampled means.
      method: "bca", bias-corrected and accelerated, or "percentile" (Efron and Tibshirani, An
        Introduction to the Bootstrap, 1993, 14.3 and 13.3).

    Returns:
      (mean, low, high). The bounds are NaN for a single scene, which says nothing about others,
      and equal the mean where all scenes have one value.

    Raises:
      UserError: for no values, values that are not finite, and arguments out of range.
    """
    values = np.asarray(values, np.float64)
    _check_interval(values, confidence, resamples, method)
    mean = float(values.mean())
    if len(values) == 1:
        return mean, math.nan, math.nan
    if np.ptp(values) == 0:
        return mean, mean, mean
    from scipy import stats  # takes a second to import

    found = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=resamples,
        batch=max(1, _MOST_AT_ONCE // len(values)),
        confidence_level=confidence,
        method=_METHODS[method],
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return mean, float(found.low), float(found.high)


def paired_interval(
    a: np.ndarray | Sequence[float], b: np.ndarray | Sequence[float], **options: Any
) -> tuple[float, float, float]:
    """(mean, low, high) of a - b over scenes that both were evaluated on.

    An interval without 0 is a difference that other scenes of the kind would show too. It is much
    narrower than two intervals side by side, because how hard a scene is cancels out.

    Args:
      a: [S], one value per scene.
      b: [S], values of the same scenes in the same order.
      **options: see `interval`.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise UserError(
            f"paired_interval: a and b must have one pair a scene, got shapes {a.shape} and "
            f"{b.shape}. Keep the scenes that both have, in one order."
        )
    return interval(a - b, **options)


def _check_interval(values: np.ndarray, confidence: float, resamples: int, method: str) -> None:
    problems = []
    if values.ndim != 1 or not len(values):
        problems.append(f"values must be [S] with S at least 1, got shape {values.shape}.")
    elif wrong := np.flatnonzero(~np.isfinite(values)).tolist():
        problems.append(
            f"values of scenes {wrong[:10]} are not finite ({len(wrong)} of {len(values)}); "
            "find out why, or leave those scenes out and say so."
        )
    if not 0 < confidence < 1:
        problems.append(f"confidence must be above 0 and below 1, got {confidence}.")
    if resamples < 1:
        problems.append(f"resamples must be at least 1, better 10000, got {resamples}.")
    if method not in _METHODS:
        problems.append(f"method must be one of {', '.join(_METHODS)}, got {method!r}.")
    if problems:
        raise UserError(f"bootstrap interval: {listed(problems)}")


def differences(
    a: dict[str, Any], b: dict[str, Any], ignored: Sequence[str] = ()
) -> list[tuple[str, str, str]]:
    """(field, value in a, value in b) of every setting that differs, as JSON; nested by dots."""
    flat_a, flat_b = (
        {name: json.dumps(value) for name, value in page.flat(tree).items()} for tree in (a, b)
    )
    return [
        (name, flat_a.get(name, _MISSING), flat_b.get(name, _MISSING))
        for name in flat_a | flat_b
        if name not in ignored and flat_a.get(name) != flat_b.get(name)
    ]


def _over_scenes(
    scenes: dict[str, dict[str, float]],
    over: Callable[..., tuple[float, float, float]],
    others: dict[str, dict[str, float]] | None = None,
) -> dict[str, dict[str, float | None]]:
    """Mean, low and high of each metric."""
    table = {}
    for name in next(iter(scenes.values())):
        columns = [[of[scene][name] for scene in scenes] for of in (scenes, others) if of]
        mean, low, high = over(*map(np.array, columns), confidence=CONFIDENCE)
        table[name] = {"mean": mean, "low": _finite(low), "high": _finite(high)}
    return table


def _consistency(rows: Sequence[Record]) -> dict[str, Any]:
    per_scene: dict[str, Any] = {}
    for row in rows:
        for method in (SAMPLES, records.TRUE_VIEWS):
            if row.get(method) is not None:
                by_count = per_scene.setdefault(method, {})
                by_count.setdefault(str(row["num_references"]), {})[row["scene"]] = row[method]
    results = {
        method: {
            count: {
                "num_scenes": len(scenes),
                **{
                    name: _over_known([of[name] for of in scenes.values()])
                    for name in records.CONSISTENCY_VALUES
                },
            }
            for count, scenes in by_count.items()
        }
        for method, by_count in per_scene.items()
    }
    return {"results": results, "per_scene": per_scene}


def _over_known(values: Sequence[float | None]) -> dict[str, float | int | None]:
    known = np.array([value for value in values if value is not None])
    if not len(known):
        return {"mean": None, "low": None, "high": None, "num_scenes": 0}
    mean, low, high = interval(known, confidence=CONFIDENCE)
    return {"mean": mean, "low": _finite(low), "high": _finite(high), "num_scenes": len(known)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
