"""What is evaluated, case by case: one scene seen through its first N references.

Cases are numbered N by N in the protocol's order; of n processes, process i takes every n-th from
the i-th on. They are batched in that order, whether or not some are done already, so that a job
which was killed and started again computes what it would have computed.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from escherjax.cameras import Cameras
from escherjax.errors import StoppedError, UserError
from escherjax.evaluate.protocol import Case, Protocol, Source
from escherjax.models.diffusion.sampling import Sampling
from escherjax.reports.results import CaseName
from escherjax.sample.pipeline import Pipeline


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be evaluated, and which part of it by this process."""

    source: Source
    out: Path
    metrics: tuple[str, ...] = ("psnr", "ssim", "lpips")
    sampling: Sampling = Sampling()
    dtype: str = "float32"  # of the computation
    cape: str | None = None  # camera encoding of a folder that does not name it
    params: str | None = None  # of a work directory: "ema" or "raw"
    batch_size: int | None = None  # cases sampled at a time; None for one a group of devices
    view_devices: int = 1  # devices that share the views of a case
    shard: tuple[int, int] = (0, 1)  # (index, count) of this process
    report_scenes: int = 30  # scenes whose pictures are kept for the report
    save_views: bool = False  # whether all views are kept, in files of their own

    def num_cases_at_once(self) -> int:
        """The batch size asked for, or one case for each group of devices."""
        return self.batch_size or max(1, jax.local_device_count() // self.view_devices)

    def scene_devices(self) -> int:
        """How many groups of `view_devices` share a batch: as many as there are and divide it."""
        groups = max(1, jax.local_device_count() // self.view_devices)
        size = self.num_cases_at_once()
        return max(n for n in range(1, groups + 1) if size % n == 0)

    def batches(self, protocol: Protocol) -> list[list[CaseName]]:
        """This process's cases, in batches of one N each."""
        index, count = self.shard
        by_count = collections.defaultdict(list)
        for name in all_cases(protocol)[index::count]:
            by_count[name.num_references].append(name)
        size = self.num_cases_at_once()
        return [
            names[start : start + size]
            for names in by_count.values()
            for start in range(0, len(names), size)
        ]

    def shown(self, protocol: Protocol) -> set[str]:
        """Scenes whose pictures are kept for the report, evenly spread."""
        scenes = protocol.scene_ids()
        places = np.linspace(0, len(scenes) - 1, min(self.report_scenes, len(scenes)))
        return {scenes[place] for place in places.round().astype(int)}


def default_shard() -> tuple[int, int]:
    """This process among those of jax.distributed."""
    return jax.process_index(), jax.process_count()


def all_cases(protocol: Protocol) -> list[CaseName]:
    """The cases of a protocol, N by N."""
    counts, scenes = protocol.reference_counts, protocol.scene_ids()
    return [CaseName(scene, count) for count in counts for scene in scenes]


def sample_cases(
    pipe: Pipeline, cases: Sequence[Case], sampling: Sampling, batch_size: int
) -> list[np.ndarray]:
    """Views [M, R, R, 3] float32 in [0, 1] of each case; all targets of a case jointly.

    cases: up to `batch_size`, of one number of references; fewer are filled up, so that one
    program serves all. Raises StoppedError, naming the case, if a view is not finite, and UserError
    if the cases do not fit the device's memory.
    """
    filled = [*cases, *[cases[-1]] * (batch_size - len(cases))]
    num_targets = np.array([len(case.target_c2w) for case in filled])
    size = pipe.target_bucket(int(num_targets.max()))
    target_c2w = [
        np.concatenate([case.target_c2w, case.target_c2w[-1:].repeat(size - count, axis=0)])
        for case, count in zip(filled, num_targets, strict=True)
    ]
    try:
        views = pipe.generate_batch(
            np.stack([case.reference_images for case in filled]) / np.float32(255),
            Cameras(np.stack([case.reference_c2w for case in filled])),
            Cameras(np.stack(target_c2w)),
            sampling,
            num_targets=num_targets.tolist(),
            seeds=[case_seed(sampling.seed, case) for case in filled],
        )
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        one = pipe.estimate_memory(cases[0].num_references, size, sampling.guidance_scale)
        raise UserError(
            f"{batch_size} scene(s) of {size} views at once do not fit this device: for one scene "
            f"{one.describe()}. Lower --batch-size, take --dtype bfloat16, or more devices "
            "(--view-parallel)."
        ) from error
    sampled = [v[:count] for v, count in zip(views[: len(cases)], num_targets, strict=False)]
    for case, of_case in zip(cases, sampled, strict=True):
        if not np.isfinite(of_case).all():
            raise StoppedError(
                f"scene {case.scene_id!r} with N = {case.num_references} gave views that are not "
                "finite. The weights are broken, or too large for the compute type; try "
                "--dtype float32."
            )
    return sampled


def case_seed(seed: int, case: Case) -> int:
    """The seed of a case's noise, from the seed of the evaluation, the scene's name and N.

    The noise of each view follows from it and the view's number, so that it depends neither on the
    batch nor on what was sampled before. In [0, 2^31).
    """
    name = f"{seed}\0{case.scene_id}\0{case.num_references}".encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:4], "big") >> 1
