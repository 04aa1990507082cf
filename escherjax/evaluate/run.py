"""One evaluation from its request to its summary and report.

`settings.json`, what figures depend on, is written before the first of them and compared when the
evaluation is continued.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from escherjax.devices.stopping import Stop
from escherjax.errors import UserError, describe_error, listed
from escherjax.evaluate import engine, report
from escherjax.evaluate.cases import Request, all_cases
from escherjax.evaluate.protocol import Protocol
from escherjax.evaluate.scoring import CaseScorer, describe_consistency
from escherjax.files import whole_file
from escherjax.reports import results, summary
from escherjax.sample import loading
from escherjax.sample.pipeline import Pipeline
from escherjax.weights import identity

SETTINGS = "settings.json"
STEP_PREFIX = "step_"  # of folders that `follow` makes
ELSEWHERE = ("weights.path", "scenes.data")  # where things lie does not change figures

log = logging.getLogger("escherjax.evaluate")


def evaluate(request: Request, weights: str | Path, stop: Stop) -> bool:
    """Evaluates one set of weights; False if stopped, or other processes have parts to do.

    Raises UserError for whatever the request asks that cannot be, and if no scene can be used.
    """
    protocol = request.source.open()
    scorer = CaseScorer(request.metrics, protocol.conventions)
    weights, folder = identity.pin(weights)
    pipe = load(request, weights)
    return evaluate_pipeline(request, protocol, scorer, pipe, folder, stop)


def load(request: Request, weights: str | Path) -> Pipeline:
    """The pipeline of some weights, as the request wants it."""
    return loading.load(
        weights,
        request.dtype,
        request.cape,
        request.params,
        view_devices=request.view_devices,
        scene_devices=request.scene_devices(),
    )


def evaluate_pipeline(
    request: Request,
    protocol: Protocol,
    scorer: CaseScorer,
    pipe: Pipeline,
    folder: Path,
    stop: Stop,
    on_start: Callable[[], None] = lambda: None,
) -> bool:
    """Evaluates loaded weights; see `evaluate`. folder: what they were loaded from.

    on_start: called before anything is recorded, if anything is.
    """
    sampling = request.sampling.resolve(
        pipe.facts.guidance_scale, pipe.model.schedule.num_train_timesteps
    )
    request = dataclasses.replace(request, sampling=sampling)
    described = {**describe(request, protocol), "weights": identity.describe(pipe.facts, folder)}
    check(request.out, described)
    request.out.mkdir(parents=True, exist_ok=True)

    def start() -> None:
        on_start()
        start_or_continue(request.out, described)

    if not engine.run(pipe, scorer, protocol, request, lambda: stop.heard, start):
        return False
    rows = results.read_all(request.out)
    skipped = results.read_skipped(request.out, rows)
    known = results.case_names(rows) | results.case_names(skipped)
    left = len(set(all_cases(protocol)) - known)
    if left:
        log.info("%d cases are left to other processes; the last one writes the summary", left)
        return False
    return merge(request.out)


def merge(out: Path) -> bool:
    """Writes summary and report of what is in `out`. Raises UserError if nothing is."""
    rows = results.read_all(out)
    skipped = results.read_skipped(out, rows)
    if not rows and skipped:
        reasons = listed(
            [f"{row['scene']} (N = {row['num_references']}): {row['reason']}" for row in skipped],
            most=5,
        )
        raise UserError(f"no scene could be evaluated. {reasons}")
    started = read_settings(out)
    if not rows:
        raise UserError(f"no scene is evaluated in {out} yet.")
    consistency = results.read_all(out, results.CONSISTENCY)
    for kind, records in ((results.PER_VIEW, rows), (results.CONSISTENCY, consistency)):
        if list(out.glob(f"{kind}.*.jsonl")):  # of several processes
            results.write_rows(out / f"{kind}.jsonl", records)
    content = summary.summarize(started, rows, skipped, consistency)
    summary.write(out, content)
    report.write(out, content)
    print(report.as_text(content), file=sys.stderr)
    return True


def describe(request: Request, protocol: Protocol) -> dict[str, Any]:
    """All that figures depend on but the weights."""
    scene_ids = json.dumps(protocol.scene_ids()).encode()
    has_consistency = results.CONSISTENCY in request.metrics
    return {
        "protocol": protocol.describe(),
        "scenes": {
            "data": str(request.source.data_path),
            "hash": hashlib.sha256(scene_ids).hexdigest()[:16],
        },
        "metrics": list(request.metrics),
        **({"consistency": describe_consistency()} if has_consistency else {}),
        "sampling": {**dataclasses.asdict(request.sampling), "dtype": request.dtype},
    }


def check(out: Path, settings: dict[str, Any]) -> None:
    """Checks that an evaluation with these settings may start or go on in `out`; changes nothing.

    Raises UserError, listing every field that differs, if `out` holds another evaluation, or
    something else. What an attempt left that scored nothing is in nobody's way.
    """
    path = out / SETTINGS
    settings = json.loads(json.dumps(settings))  # as they will be read
    if not path.exists():
        # Looked for again at the end: another process of this job may be writing it just now.
        taken = out.exists() and not (out.is_dir() and _is_unscored(out))
        if taken and not path.exists():
            raise UserError(
                f"--out {out} is not an empty folder and holds no {SETTINGS}, so it is not an "
                "evaluation to continue; name a new one."
            )
        if not path.exists():
            return
    changes = summary.differences(read_settings(out), settings, ELSEWHERE)
    if changes:
        lines = "\n  ".join(f"{name}: {ours} was {theirs}" for name, theirs, ours in changes)
        raise UserError(
            f"--out {out} holds an evaluation with other settings:\n  {lines}\nName a new --out, "
            "or set these back to continue that one."
        )


def start_or_continue(out: Path, settings: dict[str, Any]) -> None:
    """Writes the settings of an evaluation that is about to write its first record, or `check`s."""
    check(out, settings)
    if not (out / SETTINGS).exists():
        out.mkdir(parents=True, exist_ok=True)
        with whole_file(out / SETTINGS) as file:
            file.write_text(json.dumps(settings, indent=2) + "\n")
        check(out, settings)  # another process may have been first


def _is_unscored(folder: Path) -> bool:
    """Whether there is nothing in a folder but what evaluations leave that scored nothing."""

    def scored_nothing(path: Path) -> bool:
        if path.is_dir():
            return path.name.startswith(STEP_PREFIX) and _is_unscored(path)
        if path.name.startswith((results.PER_VIEW, results.CONSISTENCY)):
            return path.stat().st_size == 0
        return path.name.startswith((SETTINGS, f"{results.SKIPPED}."))

    return all(map(scored_nothing, folder.iterdir()))


def read_settings(out: Path) -> dict[str, Any]:
    """The settings of the evaluation in `out`. Raises UserError if there are none."""
    try:
        return json.loads((out / SETTINGS).read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{out / SETTINGS} cannot be read ({describe_error(error)}); it must be in the --out "
            "of an evaluation."
        ) from error
