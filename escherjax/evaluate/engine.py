"""Evaluates one set of weights: reads cases ahead, samples their views, scores and records them."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Sequence

import numpy as np
from tqdm import tqdm

from escherjax import cameras
from escherjax.data.inputs import radius_notes
from escherjax.data.read_ahead import map_ahead
from escherjax.errors import UserError
from escherjax.evaluate import pictures
from escherjax.evaluate.cases import Request, sample_cases
from escherjax.evaluate.protocol import Case, Protocol
from escherjax.evaluate.scoring import CaseScorer
from escherjax.reports import results
from escherjax.reports.results import CaseName, Record, RecordFile
from escherjax.sample.pipeline import Pipeline

_LOG_EVERY_SECONDS = 30.0  # where there is no terminal for a progress bar

log = logging.getLogger("escherjax.evaluate")


def run(
    pipe: Pipeline,
    scorer: CaseScorer,
    protocol: Protocol,
    request: Request,
    stopped: Callable[[], bool],
    start: Callable[[], None],
) -> bool:
    """Does this process's part of a request, or what is left of it.

    Records go to `results.PER_VIEW`, and before them what else is asked for; what a case lacks of
    it, scored or not, is made up for. Cases that cannot be read go to `results.SKIPPED`, named and
    counted. The first scene whose cameras stand far from those of training is named in a warning.

    Args:
      pipe: the weights.
      scorer: scores the views.
      protocol: which the request's source opened.
      request: what to do.
      stopped: asked after each batch.
      start: called once, before the first record is written; what it raises ends the run.

    Returns:
      Whether the part is done; False if stopped before its end.
    """

    def read_batch(names: list[CaseName]) -> list[Case | str]:
        return [read_case(protocol, pipe, name) for name in names]

    files = _Files(request, scorer)
    skipped_path = results.shard_file(request.out, results.SKIPPED, request.shard)
    results.forget_skipped(request.out, request.shard)  # tried again
    batches = request.batches(protocol)
    shown = request.shown(protocol)
    left = [batch for batch in batches if any(map(files.lacking, batch))]
    total = sum(map(len, batches))
    progress = _Progress(total, total - sum(map(len, left)))
    skipped: list[Record] = []
    started = is_far = False
    try:
        for batch, read in map_ahead(read_batch, left, workers=4, num_ahead=2):
            cases = [case for case in read if isinstance(case, Case)]
            new = [
                {"scene": name.scene_id, "num_references": name.num_references, "reason": problem}
                for name, problem in zip(batch, read, strict=True)
                if isinstance(problem, str)
            ]
            if new:
                skipped += new
                results.write_rows(skipped_path, skipped)
                for row in new:
                    log.warning("skipped scene %r with N = %d: %s", *row.values())
            is_far = is_far or _warn_of_far_cameras(cases, pipe)
            scores: list[Record] = []
            if cases:
                views = sample_cases(pipe, cases, request.sampling, request.num_cases_at_once())
                if not started:
                    start()
                    started = True
                for case, of_case in zip(cases, views, strict=True):
                    of_case = protocol.conventions.to_uint8(of_case)
                    K = target_intrinsics(case, pipe)
                    scores += files.complete(case, of_case, K, case.scene_id in shown)
            progress.advance(len(batch), scores)
            if stopped():
                return batch is left[-1]
        return True
    finally:
        progress.close()
        files.close()


class _Files:
    """What is on the disk of each case, and what is lacking."""

    def __init__(self, request: Request, scorer: CaseScorer):
        self._request, self._scorer, self._stack = request, scorer, contextlib.ExitStack()
        kinds = [results.PER_VIEW] + [results.CONSISTENCY] * scorer.has_consistency
        self._files = {kind: self._open(kind) for kind in kinds}
        self._known = {
            kind: results.case_names(results.read_all(request.out, kind)) for kind in kinds
        }

    def _open(self, kind: str) -> RecordFile:
        path = results.shard_file(self._request.out, kind, self._request.shard)
        return self._stack.enter_context(contextlib.closing(RecordFile(path)))

    def lacking(self, name: CaseName) -> set[str]:
        """Kinds of records, and `pictures.VIEWS`, that a case lacks."""
        kinds = {kind for kind, known in self._known.items() if name not in known}
        if self._request.save_views and not pictures.has_views(self._request.out, name):
            kinds.add(pictures.VIEWS)
        return kinds

    def complete(
        self, case: Case, views: np.ndarray, K: np.ndarray, is_shown: bool
    ) -> list[Record]:
        """Writes what a case with these views lacks, its scores last; returns new scores."""
        lacking = self.lacking(CaseName(case.scene_id, case.num_references))
        out, scores = self._request.out, []
        if pictures.VIEWS in lacking:
            pictures.save_views(out, case, views, K)
        if results.CONSISTENCY in lacking:
            self._files[results.CONSISTENCY].append([self._scorer.consistency(case, views, K)])
        if results.PER_VIEW in lacking:
            scores = self._scorer.scores(case, views)
            if is_shown:
                pictures.save(out, case, views, scores)
            self._files[results.PER_VIEW].append(scores)
        return scores

    def close(self) -> None:
        self._stack.close()


def read_case(protocol: Protocol, pipe: Pipeline, name: CaseName) -> Case | str:
    """The case, or why it cannot be read."""
    try:
        return protocol.read(*name, pipe.resolution, pipe.model.cape)
    except (UserError, OSError) as error:
        return str(error)


def _warn_of_far_cameras(cases: Sequence[Case], pipe: Pipeline) -> bool:
    """Whether references of a case stand far from the cameras of training; warns of the first."""
    for case in cases:
        name = f"scene {case.scene_id!r}, maybe not the only one: references"
        for note in radius_notes(case.reference_c2w, name, pipe.facts)[:1]:
            log.warning("%s", note.text)
            return True
    return False


def target_intrinsics(case: Case, pipe: Pipeline) -> np.ndarray:
    """K [M, 3, 3] of a case's targets; the network's field of view where no protocol knows it."""
    if case.target_K is not None:
        return case.target_K
    fov_rad = math.radians(pipe.facts.fov_deg or cameras.PUBLISHED_FOV_DEG)
    K = cameras.intrinsics_from_fov(fov_rad, pipe.resolution, pipe.resolution)
    return np.tile(K, (len(case.target_c2w), 1, 1))


class _Progress:
    """A bar with rate and time left; without a terminal, a line in the log now and then."""

    def __init__(self, total: int, done: int):
        self._bar = tqdm(
            total=total,
            initial=done,
            desc="evaluate",
            unit="case",
            dynamic_ncols=True,
            disable=None,
        )
        self._count = self._start = done
        self._total, self._began = total, time.perf_counter()
        self._logged = self._began

    def advance(self, count: int, scores: list[Record]) -> None:
        self._count += count
        self._bar.update(count)
        sampled = [row for row in scores if row["method"] == results.SAMPLES]
        if sampled and "psnr" in sampled[0]:
            psnr = np.mean([row["psnr"] for row in sampled])
            self._bar.set_postfix(psnr=f"{psnr:.2f}", refresh=False)
        now = time.perf_counter()
        if self._bar.disable and (now - self._logged > _LOG_EVERY_SECONDS):
            self._logged = now
            rate = (self._count - self._start) / (now - self._began)
            log.info(
                "%d of %d cases, %.2f cases/s, %.0f s left",
                self._count,
                self._total,
                rate,
                (self._total - self._count) / rate,
            )

    def close(self) -> None:
        self._bar.close()
