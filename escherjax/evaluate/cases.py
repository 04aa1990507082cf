"""Draws the views of cases, several at a time, from noise that belongs to each case alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import jax
import numpy as np

from escherjax.cameras import Cameras
from escherjax.errors import StoppedError, UserError
from escherjax.evaluate.protocol import Case
from escherjax.models.diffusion.sampling import Sampling
from escherjax.sample.pipeline import Pipeline


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
        views = _drawn(pipe, filled, target_c2w, num_targets, sampling)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        one = pipe.estimate_memory(cases[0].num_references, size, sampling.guidance_scale)
        raise UserError(
            f"{batch_size} scene(s) of {size} views at once do not fit this device: for one scene "
            f"{one.describe()}. Lower --batch-size, take --dtype bfloat16, or more devices "
            "(--view-parallel)."
        ) from error
    drawn = [v[:count] for v, count in zip(views[: len(cases)], num_targets, strict=False)]
    for case, of_case in zip(cases, drawn, strict=True):
        if not np.isfinite(of_case).all():
            raise StoppedError(
                f"scene {case.scene_id!r} with N = {case.num_references} gave views that are not "
                "finite. The weights are broken, or too large for the compute type; try "
                "--dtype float32."
            )
    return drawn


def _drawn(
    pipe: Pipeline,
    filled: Sequence[Case],
    target_c2w: Sequence[np.ndarray],
    num_targets: np.ndarray,
    sampling: Sampling,
) -> np.ndarray:
    return pipe.generate_batch(
        np.stack([case.reference_images for case in filled]) / np.float32(255),
        Cameras(np.stack([case.reference_c2w for case in filled])),
        Cameras(np.stack(target_c2w)),
        sampling,
        num_targets=num_targets.tolist(),
        seeds=[case_seed(sampling.seed, case) for case in filled],
    )


def case_seed(seed: int, case: Case) -> int:
    """The seed of a case's noise, from the seed of the evaluation, the scene's name and N.

    The noise of each view follows from it and the view's number, so that it depends neither on the
    batch nor on what was drawn before. In [0, 2^31).
    """
    name = f"{seed}\0{case.scene_id}\0{case.num_references}".encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:4], "big") >> 1
