"""Requests wait in a queue: one runs at a time, visitors see their place and may cancel."""

from __future__ import annotations

import collections
import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from escherjax import cameras
from escherjax.cameras import Cameras
from escherjax.demo.limits import Limits
from escherjax.demo.session import Request
from escherjax.errors import UserError
from escherjax.reports import sheets
from escherjax.sample.pipeline import Pipeline

log = logging.getLogger("escherjax.demo")

Status = Literal["waiting", "running", "done", "failed", "cancelled"]

_PREVIEWS = 12  # of one request, at most


class Cancelled(Exception):
    """Raised inside a job that is to stop; the message says why."""


@dataclasses.dataclass(eq=False)
class Job:
    """One request and its progress; changed by the queue alone, read by anyone."""

    request: Request
    on_change: Callable[[Job], None]
    status: Status = "waiting"
    ahead: int = 0  # jobs before it
    step: int = 0  # of num_steps
    num_steps: int = 0
    preview: np.ndarray | None = None  # unfinished views, uint8 [M, R, R, 3]
    views: np.ndarray | None = None  # finished views, uint8 [M, R, R, 3]
    message: str = ""  # why it was cancelled or failed
    seconds: float = 0.0  # from its start to its end
    stop: threading.Event = dataclasses.field(default_factory=threading.Event)
    deadline: float = float("inf")  # on the monotonic clock

    @property
    def is_active(self) -> bool:
        """Whether it waits or runs."""
        return self.status in ("waiting", "running")

    def check(self) -> None:
        """Raises Cancelled if the visitor cancelled it, or its time is over."""
        if self.stop.is_set():
            raise Cancelled("cancelled")
        if time.monotonic() > self.deadline:
            raise Cancelled("it took longer than this page allows; ask for fewer views or steps")

    def report(self, step: int, num_steps: int, preview: np.ndarray | None = None) -> None:
        """Reports that `step` of `num_steps` are done; raises Cancelled as `check` does."""
        self.check()
        self.step, self.num_steps = step, num_steps
        if preview is not None:
            self.preview = preview
        self.announce()

    def announce(self) -> None:
        """Calls on_change; an exception there is logged and does not stop the job."""
        try:
            self.on_change(self)
        except Exception:
            log.exception("showing a job's progress failed")


class JobQueue:
    """Runs jobs one after the other on a thread of its own.

    run(job) returns the views, uint8 [M, R, R, 3], calling `job.report` as it goes.
    """

    def __init__(self, run: Callable[[Job], np.ndarray], limits: Limits):
        self._run_job, self._limits = run, limits
        self._waiting: collections.deque[Job] = collections.deque()
        self._running: Job | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="escherjax-jobs", daemon=True)
        self._thread.start()

    def submit(self, request: Request, on_change: Callable[[Job], None]) -> Job:
        """Puts a request in line. on_change(job) is called, from any thread, at every change.

        Raises UserError if too many wait.
        """
        job = Job(request, on_change)
        with self._changed:
            if self._closed:
                raise UserError("the page is shutting down.")
            if len(self._waiting) >= self._limits.waiting:
                raise UserError(
                    f"{len(self._waiting)} requests are waiting already; try again in a while."
                )
            job.ahead = len(self._waiting) + (self._running is not None)
            self._waiting.append(job)
            self._changed.notify_all()
        job.announce()
        return job

    def cancel(self, job: Job) -> None:
        """Stops a job: one that waits leaves the line, one that runs ends at its next step."""
        with self._changed:
            job.stop.set()
            waited = job in self._waiting
            if waited:
                self._waiting.remove(job)
                job.status, job.message = "cancelled", "cancelled"
        if waited:
            job.announce()
            self._announce_places()

    def close(self, timeout_sec: float = 10.0) -> None:
        """Cancels everything and waits for the thread to end."""
        with self._changed:
            self._closed = True
            jobs = [*self._waiting, *([self._running] if self._running else [])]
            self._changed.notify_all()
        for job in jobs:
            self.cancel(job)
        self._thread.join(timeout_sec)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                job = self._running = self._waiting.popleft()
                job.status, job.ahead = "running", 0
            job.announce()
            self._announce_places()
            started = time.monotonic()
            job.deadline = started + self._limits.job_sec
            outcome = self._outcome(job)
            with self._changed:
                self._running = None
                job.seconds = time.monotonic() - started
                for name, value in outcome.items():
                    setattr(job, name, value)
            job.announce()

    def _outcome(self, job: Job) -> dict[str, Any]:
        """Runs a job; returns the fields that change with its end."""
        try:
            views = self._run_job(job)
            job.check()
            return {"views": views, "status": "done"}
        except Cancelled as stop:
            return {"status": "cancelled", "message": str(stop)}
        except UserError as error:
            return {"status": "failed", "message": str(error)}
        except Exception:
            log.exception("a job failed")
            return {
                "status": "failed",
                "message": "an unexpected error; the log of the page's server has it.",
            }

    def _announce_places(self) -> None:
        with self._changed:
            moved = list(self._waiting)
            for place, job in enumerate(moved):
                job.ahead = place + (self._running is not None)
        for job in moved:
            job.announce()


def generate(pipe: Pipeline, job: Job) -> np.ndarray:
    """Returns the views uint8 [M, R, R, 3] of a job's request, reporting steps and previews.

    More views than memory holds are generated in several passes, whose steps are counted together.
    Raises what `Pipeline.generate` does, and `Cancelled`.
    """
    request = job.request
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
        Cameras(request.targets.c2w),
        **dataclasses.asdict(request.sampling),
        on_step=on_step,
        plan="auto",
    )
    return _enlarged(request, sheets.to_uint8(views))


def _enlarged(request: Request, views: np.ndarray) -> np.ndarray:
    """Views uint8 [M, R, R, 3] as they are shown, given those that the network generated."""
    size = views.shape[1]
    K = cameras.intrinsics_from_fov(np.radians(request.fov_deg), size, size)
    return sheets.zoom_center(views, np.tile(K, (len(views), 1, 1)), request.targets.zoom)[0]


@dataclasses.dataclass(frozen=True)
class LinearDecoder:
    """Previews latents without the decoder, whose device is busy: the best affine map to pixels.

    It maps a latent pixel to its p x p block of the picture: exact for latents that are rearranged
    pixels, a blurred likeness for those of a VAE, which mostly hold their block's colour.
    """

    weights: np.ndarray  # [C + 1, p * p * 3], the last row the offset, to values in [0, 1]
    block: int  # p

    @classmethod
    def fit(cls, latents: np.ndarray, images: np.ndarray) -> LinearDecoder:
        """Fits by least squares over all positions.

        latents: [N, h, w, C], as the decoder takes them; images: [N, p h, p w, 3] in [0, 1].
        """
        count, height, width, channels = latents.shape
        block = images.shape[1] // height
        blocks = images.reshape(count, height, block, width, block, 3).swapaxes(2, 3)
        flat = latents.reshape(-1, channels).astype(np.float64)
        inputs = np.concatenate([flat, np.ones((len(flat), 1))], axis=1)
        outputs = blocks.reshape(len(flat), -1).astype(np.float64)
        # A corner that is white in all pictures says nothing about other colours: its small
        # singular values are noise
        weights = np.linalg.lstsq(inputs, outputs, rcond=1e-4)[0]
        return cls(weights.astype(np.float32), block)

    def __call__(self, latents: np.ndarray) -> np.ndarray:
        """Returns pictures uint8 [M, p h, p w, 3] of latents [M, h, w, C]."""
        count, height, width, _ = latents.shape
        p = self.block
        blocks = latents.astype(np.float32) @ self.weights[:-1] + self.weights[-1]
        pictures = blocks.reshape(count, height, width, p, p, 3).swapaxes(2, 3)
        return sheets.to_uint8(pictures.reshape(count, height * p, width * p, 3))
