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

from escherjax.data.whole_files import whole_file
from escherjax.errors import UserError, in_words
from escherjax.evaluate.case_consistency import VALUES
from escherjax.reports import results as records
from escherjax.reports.bootstrap import interval, paired_interval
from escherjax.reports.results import NEAREST, SAMPLES, Record

FILE_NAME = "summary.json"
CONFIDENCE = 0.95

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
            f"{path} is no summary of an evaluation ({in_words(error)}); needed the --out of "
            "escherjax.evaluate, once it has finished."
        ) from error
    return summary


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
                **{name: _over_known([of[name] for of in scenes.values()]) for name in VALUES},
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
