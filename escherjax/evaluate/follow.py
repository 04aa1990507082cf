"""Evaluates the checkpoints of a training run as they are saved.

Only the run's folder is read, so the training may be on another machine. `out/STEP/` is the
evaluation of one checkpoint; `out/follow.jsonl` and `out/report.html` set them in a row.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

from escherjax.devices.stopping import Stop
from escherjax.evaluate import report, run
from escherjax.evaluate.cases import Request
from escherjax.evaluate.scoring import CaseScorer
from escherjax.reports import page, results, summary
from escherjax.reports.page import Cell, Series, Table
from escherjax.reports.results import NEAREST, SAMPLES
from escherjax.sample.pipeline import Pipeline
from escherjax.weights import integrity, runs

FILE_NAME = "follow.jsonl"
_MAX_COUNTS = 5  # curves that colours tell apart, beside the baseline's
_STEP_FOLDER = run.STEP_PREFIX + "{:08d}"

log = logging.getLogger("escherjax.evaluate")


def follow(
    request: Request, workdir: Path, stop: Stop, until_step: int | None = None, poll_sec: float = 20
) -> bool:
    """Evaluates each checkpoint of `workdir`, oldest first, until that of the last step.

    request: what to do with each; its `out` gets a folder a step. until_step: the last step to wait
    for, None for the training's own. Checkpoints deleted before they were read are skipped with a
    message, damaged ones too. Returns False if stopped by a signal, or if other processes have
    parts of the last one to do.
    Raises UserError if `workdir` is not a training work directory.
    """
    config = runs.read_config(workdir)  # also says what is wrong with the folder
    last = int(config.num_steps) if until_step is None else until_step
    follower = _Follower(request, workdir, stop)
    seen: set[int] = set()
    log.info("following %s until step %d", workdir, last)
    while True:
        new = [step for step in integrity.steps(workdir) if step not in seen and step <= last]
        for step in new:
            if stop.heard:
                return False
            if follower.evaluate(step):
                follower.write_curve()
            seen.add(step)
        if stop.heard:
            return False
        if any(step >= last for step in integrity.steps(workdir)):
            return follower.write_curve()
        if not new and stop.wait(poll_sec):
            return False


class _Follower:
    """Keeps the compiled programs from one checkpoint to the next."""

    def __init__(self, request: Request, workdir: Path, stop: Stop):
        self._request, self._workdir, self._stop = request, workdir, stop
        self._protocol = request.source.open()
        self._scorer = CaseScorer(request.metrics, self._protocol.conventions)
        self._pipe: Pipeline | None = None
        # Of all steps alike, so that no curve joins figures of different settings.
        self._settings = run.describe(request, self._protocol)
        run.check(request.out, self._settings)

    def evaluate(self, step: int) -> bool:
        """Whether the checkpoint of `step` is now evaluated, in whole."""
        out = self._request.out / _STEP_FOLDER.format(step)
        if (out / summary.FILE_NAME).exists():
            return True
        folder = self._workdir / "checkpoints" / str(step)
        try:
            loaded = run.load(self._request, folder)
            if self._pipe is None:
                self._pipe = loaded
            else:  # same network: the programs compiled for the first serve all
                self._pipe.params, self._pipe.facts = loaded.params, loaded.facts
            request = dataclasses.replace(self._request, out=out)
            return run.evaluate_pipeline(
                request,
                self._protocol,
                self._scorer,
                self._pipe,
                folder,
                self._stop,
                lambda: run.start_or_continue(self._request.out, self._settings),
            )
        except Exception as error:  # Orbax raises what it likes when files vanish under it
            if folder.is_dir() and not integrity.find_problems(folder, sizes_only=True):
                raise
            reason = "is damaged" if folder.is_dir() else "was deleted before it could be read"
            log.warning("checkpoint %s %s; skipped. (%s)", folder, reason, error)
            return False

    def write_curve(self) -> bool:
        """Writes follow.jsonl and the report over steps from the summaries there are."""
        rows = [
            curve_row(path.parent)
            for path in sorted(self._request.out.glob(f"{run.STEP_PREFIX}*/{summary.FILE_NAME}"))
        ]
        results.write_rows(self._request.out / FILE_NAME, rows)
        if rows:
            write_page(self._request.out, rows, run.read_settings(self._request.out))
        return bool(rows)


def curve_row(folder: Path) -> dict[str, Any]:
    """One line of follow.jsonl: the step, and of its summary all but scenes."""
    content = summary.read(folder)
    return {
        "step": int(folder.name.removeprefix(run.STEP_PREFIX)),
        "folder": folder.name,
        "results": content["results"],
        "num_skipped": content["num_skipped"],
        **({"consistency": content["consistency"]["results"]} if "consistency" in content else {}),
    }


def write_page(out: Path, rows: list[dict[str, Any]], settings: dict[str, Any]) -> Path:
    """Writes `out/report.html`, figures against the step; rows: of follow.jsonl, by step."""
    last = rows[-1]["results"][SAMPLES]
    names = [name for name in settings["metrics"] if name in next(iter(last.values()))]
    counts = list(last)[:_MAX_COUNTS]
    baseline = f"nearest reference, copied (N = {counts[-1]})"
    of_metrics = {
        name: [
            *(
                # colour 1 is the baseline's
                Series(f"N = {count}", _points(rows, SAMPLES, count, name), index + (index > 0))
                for index, count in enumerate(counts)
            ),
            Series(baseline, _points(rows, NEAREST, counts[-1], name), 1),
        ]
        for name in names
    }
    columns = [(name, count) for name in names for count in last]
    table = Table(
        ("step", *(f"{page.heading(name)} N={count}" for name, count in columns)),
        [
            (
                Cell(f"{row['step']:,}", address=f"{row['folder']}/{report.FILE_NAME}"),
                *(page.estimate(name, row["results"][SAMPLES][n][name]) for name, n in columns),
            )
            for row in rows
        ],
        "plain estimates",
    )
    path = out / report.FILE_NAME
    page.write(
        path,
        f"{settings['protocol']['protocol']} · {settings['protocol']['mode']} · over training",
        f"{len(rows)} checkpoints, the last of step {rows[-1]['step']:,}",
        [
            page.section("Against the step", page.charts(of_metrics, "step", log_x=False))
            if names
            else None,
            page.section("Step by step", table),
            page.section("How this was computed", page.facts("Protocol and sampling", settings)),
        ],
    )
    return path


def _points(
    rows: list[dict[str, Any]], method: str, count: str, name: str
) -> list[tuple[float, Any, Any, Any]]:
    found = [(row["step"], row["results"][method][count][name]) for row in rows]
    return [(float(step), of["mean"], of["low"], of["high"]) for step, of in found]
