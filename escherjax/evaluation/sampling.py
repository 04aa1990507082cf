"""Draws the views of cases, several at a time, from noise that belongs to each case alone."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence

import jax
import numpy as np

from escherjax.cameras import Cameras
from escherjax.errors import StoppedError
from escherjax.evaluation.protocol import Case
from escherjax.pipeline import Pipeline


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How views are drawn. Samplers that add noise on the way are left out: what they draw would
    depend on how cases are batched."""

    num_steps: int = 50
    guidance_scale: float = 3.0
    guidance_rescale: float = 0.0
    sampler: str = "ddim"
    seed: int = 0


def sample_cases(
    pipe: Pipeline, cases: Sequence[Case], sampling: Sampling, batch_size: int
) -> list[np.ndarray]:
    """Views [M, R, R, 3] float32 in [0, 1] of each case; all targets of a case jointly.

    cases: up to `batch_size`, of one number of references; fewer are filled up, so that one
    program serves all. Raises StoppedError, naming the case, if a view is not finite.
    """
    drawn = [
        pipe.generate(
            case.reference_images / np.float32(255),
            Cameras(case.reference_c2w),
            Cameras(case.target_c2w),
            num_steps=sampling.num_steps,
            guidance_scale=sampling.guidance_scale,
            initial_latents=noise(case, sampling.seed, pipe.model.latent_shape(pipe.resolution)),
            sampler=sampling.sampler,
            guidance_rescale=sampling.guidance_rescale,
        )
        for case in cases
    ]
    for case, views in zip(cases, drawn, strict=True):
        if not np.isfinite(views).all():
            raise StoppedError(
                f"scene {case.scene_id!r} with N = {case.num_references} gave views that are not "
                "finite. The weights are broken, or too large for the compute type; try "
                "--dtype float32."
            )
    return drawn


def noise(case: Case, seed: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Initial latents [M, h, w, C], standard normal, of a case.

    Each view's follow from the seed, the name of the scene, N and the view's number alone.
    shape: (h, w, C).
    """
    name = f"{case.scene_id}\0{case.num_references}".encode()
    words = np.frombuffer(hashlib.sha256(name).digest()[:8], ">u4").astype(np.uint32)
    return np.asarray(_draw(seed, words, len(case.target_c2w), shape))


@functools.partial(jax.jit, static_argnames=("num_views", "shape"))
def _draw(
    seed: int, words: jax.Array, num_views: int, shape: tuple[int, int, int]
) -> jax.Array:
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), words[0]), words[1])

    def draw(view: jax.Array) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(key, view), shape)

    return jax.vmap(draw)(jax.numpy.arange(num_views))
