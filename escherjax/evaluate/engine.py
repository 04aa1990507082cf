"""Evaluates one set of weights: reads cases ahead, draws their views, scores and records them.

Cases, (scene, N), are numbered N by N in the protocol's order; of n processes, process i takes
every n-th from the i-th on. They are batched in that order, whether or not some are done already,
so that a job which was killed and started again computes what it would have computed.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from escherjax import cameras
from escherjax.data.inputs import radius_notes
from escherjax.errors import UserError
from escherjax.evaluate import pictures
from escherjax.evaluate.cases import sample_cases
from escherjax.evaluate.protocol import Case, Protocol
from escherjax.evaluate.scoring import CaseScorer
from escherjax.models.diffusion.sampling import Sampling
from escherjax.reports import results
from escherjax.reports.results import CaseName, Record, RecordFile
from escherjax.sample.pipeline import Pipeline

_LOG_EVERY_SECONDS = 30.0  # where there is no terminal for a progress bar

log = logging.getLogger("escherjax.evaluate")


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be evaluated, and which part of it by this process.

    scene_ids: in the protocol's order; shard: (index, count); batch_size: cases drawn at a time;
    shown: scenes whose pictures are kept for the report; save_views: whether all views are kept,
    in files of their own.
    """

    protocol: Protocol
    scene_ids: Sequence[str]
    reference_counts: Sequence[int]
    sampling: Sampling
    out: Path
    batch_size: int = 1
    shard: tuple[int, int] = (0, 1)
    shown: frozenset[str] = frozenset()
    save_views: bool = False

    def cases(self) -> list[CaseName]:
        return [CaseName(scene, n) for n in self.reference_counts for scene in self.scene_ids]

    def batches(self) -> list[list[CaseName]]:
        """This process's cases, in batches of one N each."""
        mine = self.cases()[self.shard[0] :: self.shard[1]]
        by_count = collections.defaultdict(list)
        for name in mine:
            by_count[name.num_references].append(name)
        return [
            names[start : start + self.batch_size]
            for names in by_count.values()
            for start in range(0, len(names), self.batch_size)
        ]


def run(
    pipe: Pipeline,
    scorer: CaseScorer,
    job: Job,
    stopped: Callable[[], bool],
    start: Callable[[], None],
) -> bool:
    """Does this process's part of a job, or what is left of it; False if stopped before its end.

    stopped: asked after each batch. start: called once, before the first record is written; what it
    raises ends the job. Records go to `records.PER_VIEW`, and before them what else is
    asked for; what a case lacks of it, scored or not, is made up for. Cases that cannot be read go
    to `records.SKIPPED`, named and counted. The first scene whose cameras stand far from those of
    training is named in a warning.
    """
    files = _Files(job, scorer)
    skipped_path = results.shard_file(job.out, results.SKIPPED, job.shard)
    results.forget_skipped(job.out, job.shard)  # tried again
    batches = job.batches()
    left = [batch for batch in batches if any(map(files.lacking, batch))]
    total = sum(map(len, batches))
    progress = _Progress(total, total - sum(map(len, left)))
    skipped: list[Record] = []
    far: list[str] = []
    started = False
    try:
        for batch, read in read_ahead(left, lambda name: read_case(job.protocol, pipe, name)):
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
            for case in cases if not far else []:
                name = f"scene {case.scene_id!r}, maybe not the only one: references"
                far += radius_notes(case.reference_c2w, name, pipe.facts)
                if far:
                    log.warning("%s", far[0].text)
                    break
            scores: list[Record] = []
            if cases:
                drawn = sample_cases(pipe, cases, job.sampling, job.batch_size)
                if not started:
                    start()
                    started = True
                scores = _score_batch(pipe, scorer, job, cases, drawn, files)
            progress.advance(len(batch), scores)
            if stopped():
                return batch is left[-1]
        return True
    finally:
        progress.close()
        files.close()


class _Files:
    """What is on the disk of each case, and what is lacking."""

    def __init__(self, job: Job, scorer: CaseScorer):
        self._job, self._stack = job, contextlib.ExitStack()
        self._scores = self._open(results.PER_VIEW, results.read_records)
        self._known = {results.PER_VIEW: results.case_names(results.read_all(job.out))}
        self._consistency = None
        if scorer.has_consistency:
            self._consistency = self._open(results.CONSISTENCY, results.read_consistency)
            rows = results.read_all_consistency(job.out)
            self._known[results.CONSISTENCY] = results.case_names(rows)

    def _open(self, kind: str, read: Callable[[Path], results.Contents]) -> RecordFile:
        path = results.shard_file(self._job.out, kind, self._job.shard)
        return self._stack.enter_context(contextlib.closing(RecordFile(path, read)))

    def lacking(self, name: CaseName) -> set[str]:
        """Kinds of records, and `pictures.VIEWS`, that a case lacks."""
        kinds = {kind for kind, known in self._known.items() if name not in known}
        if self._job.save_views and not pictures.has_views(self._job.out, name):
            kinds.add(pictures.VIEWS)
        return kinds

    def append(self, scores: list[Record], consistency: list[Record]) -> None:
        if consistency and self._consistency is not None:
            self._consistency.append(consistency)
        if scores:
            self._scores.append(scores)

    def close(self) -> None:
        self._stack.close()


def read_case(protocol: Protocol, pipe: Pipeline, name: CaseName) -> Case | str:
    """The case, or why it cannot be read."""
    try:
        return protocol.read(*name, pipe.resolution, pipe.model.cape)
    except (UserError, OSError) as error:
        return str(error)


def read_ahead(
    batches: Sequence[list[CaseName]], read: Callable[[CaseName], Any], num_ahead: int = 2
) -> Iterator[tuple[list[CaseName], list[Any]]]:
    """(batch, what `read` gives for each of it) in order; threads are `num_ahead` batches ahead."""
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        waiting: collections.deque = collections.deque()
        try:
            for batch in batches:
                waiting.append((batch, [pool.submit(read, name) for name in batch]))
                if len(waiting) > num_ahead:
                    batch, futures = waiting.popleft()
                    yield batch, [future.result() for future in futures]
            while waiting:
                batch, futures = waiting.popleft()
                yield batch, [future.result() for future in futures]
        finally:
            for _, futures in waiting:
                for future in futures:
                    future.cancel()


def _score_batch(
    pipe: Pipeline,
    scorer: CaseScorer,
    job: Job,
    cases: list[Case],
    drawn: list[np.ndarray],
    files: _Files,
) -> list[Record]:
    """Writes what cases, of which these views were drawn, lack, and returns the new scores."""
    rows: list[Record] = []
    consistency: list[Record] = []
    for case, views in zip(cases, drawn, strict=True):
        lacking = files.lacking(CaseName(case.scene_id, case.num_references))
        views = job.protocol.conventions.to_uint8(views)
        K = target_intrinsics(case, pipe)
        if pictures.VIEWS in lacking:
            pictures.save_views(job.out, case, views, K)
        if results.CONSISTENCY in lacking:
            consistency.append(scorer.consistency(case, views, K))
        if results.PER_VIEW in lacking:
            scores = scorer.scores(case, views)
            if case.scene_id in job.shown:
                pictures.save(job.out, case, views, scores)
            rows += scores
    files.append(rows, consistency)
    return rows


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
        drawn = [row for row in scores if row["method"] == results.SAMPLES]
        if drawn and "psnr" in drawn[0]:
            psnr = np.mean([row["psnr"] for row in drawn])
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
