"""One evaluation from its request to its summary and report."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from escherjax.devices.stopping import Stop
from escherjax.errors import UserError, listed
from escherjax.evaluate import engine, report, settings
from escherjax.evaluate.engine import Job
from escherjax.evaluate.protocol import Protocol, make_protocol
from escherjax.evaluate.scoring import CaseScorer, describe_consistency
from escherjax.models.diffusion.sampling import Sampling
from escherjax.reports import results, summary
from escherjax.sample import loading
from escherjax.sample.pipeline import Pipeline
from escherjax.weights import identity

PROTOCOL_OPTIONS = ("split", "num_targets", "max_radius", "fov_deg", "index_path")

log = logging.getLogger("escherjax.evaluate")


@dataclasses.dataclass(frozen=True)
class Request:
    """What the command line asks for; see `escherjax.evaluate`."""

    protocol: str
    data: str
    out: Path
    mode: str = "faithful"
    references: tuple[int, ...] | None = None
    metrics: tuple[str, ...] = ("psnr", "ssim", "lpips")
    limit: int | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sampling: Sampling = Sampling()
    dtype: str = "float32"
    cape: str | None = None
    params: str | None = None
    batch_size: int | None = None
    view_devices: int = 1
    shard: tuple[int, int] = (0, 1)
    report_scenes: int = 30
    save_views: bool = False

    def open_protocol(self) -> Protocol:
        return make_protocol(
            self.protocol,
            self.data,
            self.mode,
            reference_counts=self.references,
            limit=self.limit,
            **self.options,
        )

    def num_cases_at_once(self) -> int:
        """The batch size asked for, or one case for each group of devices."""
        return self.batch_size or max(1, jax.local_device_count() // self.view_devices)

    def scene_devices(self) -> int:
        """How many groups of `view_devices` share a batch: as many as there are and divide it."""
        groups = max(1, jax.local_device_count() // self.view_devices)
        size = self.num_cases_at_once()
        return max(n for n in range(1, groups + 1) if size % n == 0)


def default_shard() -> tuple[int, int]:
    """This process among those of jax.distributed."""
    return jax.process_index(), jax.process_count()


def evaluate(request: Request, weights: str | Path, stop: Stop) -> bool:
    """Evaluates one set of weights; False if stopped, or other processes have parts to do.

    Raises UserError for whatever the request asks that cannot be, and if no scene can be used.
    """
    protocol = request.open_protocol()
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
    settings.check(request.out, described)
    request.out.mkdir(parents=True, exist_ok=True)
    scene_ids = protocol.scene_ids()
    spread = np.linspace(0, len(scene_ids) - 1, min(request.report_scenes, len(scene_ids)))
    job = Job(
        protocol=protocol,
        scene_ids=scene_ids,
        reference_counts=protocol.reference_counts,
        sampling=request.sampling,
        out=request.out,
        batch_size=request.num_cases_at_once(),
        shard=request.shard,
        shown=frozenset(scene_ids[i] for i in spread.round().astype(int)),
        save_views=request.save_views,
    )

    def start() -> None:
        on_start()
        settings.start_or_continue(request.out, described)

    if not engine.run(pipe, scorer, job, lambda: stop.heard, start):
        return False
    rows = results.read_all(request.out)
    skipped = results.read_skipped(request.out, rows)
    known = results.case_names(rows) | results.case_names(skipped)
    left = len(set(job.cases()) - known)
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
    started = settings.read(out)
    if not rows:
        raise UserError(f"no scene is evaluated in {out} yet.")
    consistency = results.read_all_consistency(out)
    if list(out.glob(f"{results.PER_VIEW}.*.jsonl")):  # of several processes
        results.write_rows(out / f"{results.PER_VIEW}.jsonl", rows)
    if list(out.glob(f"{results.CONSISTENCY}.*.jsonl")):
        results.write_rows(out / f"{results.CONSISTENCY}.jsonl", consistency)
    content = summary.summarize(started, rows, skipped, consistency)
    summary.write(out, content)
    report.write(out, content)
    print(report.as_text(content), file=sys.stderr)
    return True


def describe(request: Request, protocol: Protocol) -> dict[str, Any]:
    """All that figures depend on but the weights."""
    return {
        "protocol": protocol.describe(),
        "scenes": {"data": request.data, "hash": settings.scenes_hash(protocol.scene_ids())},
        "metrics": list(request.metrics),
        **(
            {"consistency": describe_consistency()}
            if results.CONSISTENCY in request.metrics
            else {}
        ),
        "sampling": {**dataclasses.asdict(request.sampling), "dtype": request.dtype},
    }
