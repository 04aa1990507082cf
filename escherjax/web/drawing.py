"""Draws what a visitor asked for, with the pipeline that the page was started with."""

from __future__ import annotations

import numpy as np

from escherjax import pictures
from escherjax.cameras import Cameras
from escherjax.pipeline import Pipeline
from escherjax.web.jobs import Job
from escherjax.web.preview import LinearDecoder

_PREVIEWS = 12  # of one drawing, at most


def draw(pipe: Pipeline, job: Job) -> np.ndarray:
    """Views uint8 [M, R, R, 3] of a job's request; reports steps and previews, and stops if told.

    Raises what `Pipeline.generate` does, and `jobs.Cancelled`.
    """
    request, settings = job.request, job.request.settings
    images = request.images.astype(np.float32) / 255
    mean, _ = pipe.encode_latents(images * 2 - 1)
    decoder = LinearDecoder.fit(np.asarray(mean), images)
    every = -(-settings.num_steps // _PREVIEWS)

    def on_step(step: int, num_steps: int, clean_latents: np.ndarray) -> None:
        due = step % every == 0 or step == num_steps
        job.report(step, num_steps, decoder(np.asarray(clean_latents)) if due else None)

    views = pipe.generate(
        images,
        Cameras(request.reference_c2w),
        Cameras(request.target_c2w),
        num_steps=settings.num_steps,
        guidance_scale=settings.guidance_scale,
        seed=settings.seed,
        sampler=settings.sampler,
        on_step=on_step,
    )
    return pictures.to_uint8(views)
