"""Draws what a visitor asked for, with the pipeline that the page was started with."""

from __future__ import annotations

import numpy as np

from escherjax import cameras
from escherjax.cameras import Cameras
from escherjax.demo.jobs import Job
from escherjax.demo.preview import LinearDecoder
from escherjax.demo.session import Request
from escherjax.reports import sheets
from escherjax.sample.pipeline import Pipeline

_PREVIEWS = 12  # of one drawing, at most


def draw(pipe: Pipeline, job: Job) -> np.ndarray:
    """Views uint8 [M, R, R, 3] of a job's request; reports steps and previews, and stops if told.

    More views than memory holds are drawn in several passes, whose steps are counted together.
    Raises what `Pipeline.generate` does, and `jobs.Cancelled`.
    """
    request, settings = job.request, job.request.settings
    images = request.images.astype(np.float32) / 255
    mean, _ = pipe.encode_latents(images * 2 - 1)
    decoder = LinearDecoder.fit(np.asarray(mean), images)

    def on_step(step: int, num_steps: int, clean_latents: np.ndarray) -> None:
        every = -(-num_steps // _PREVIEWS)
        preview = None
        if step % every == 0 or step == num_steps:
            preview = _enlarged(request, decoder(np.asarray(clean_latents)))
        job.report(step, num_steps, preview)

    views = pipe.generate(
        images,
        Cameras(request.reference_c2w),
        Cameras(request.target_c2w),
        num_steps=settings.num_steps,
        guidance_scale=settings.guidance_scale,
        seed=settings.seed,
        sampler=settings.sampler,
        on_step=on_step,
        plan="auto",
    )
    return _enlarged(request, sheets.to_uint8(views))


def _enlarged(request: Request, views: np.ndarray) -> np.ndarray:
    """Views uint8 [M, R, R, 3] as they are shown, of those that the network drew."""
    size = views.shape[1]
    K = cameras.intrinsics_from_fov(np.radians(request.fov_deg), size, size)
    return sheets.zoom_center(views, np.tile(K, (len(views), 1, 1)), request.zoom)[0]
