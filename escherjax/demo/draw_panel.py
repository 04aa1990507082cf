"""The fourth step: settings, a button, a place in the line, progress; below it the result."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from escherjax.demo import fragments
from escherjax.demo.jobs import Job, JobQueue
from escherjax.demo.result_panel import ResultPanel
from escherjax.demo.scene_view import SceneView, Wrap
from escherjax.demo.session import SAMPLERS, Session
from escherjax.errors import UserError

ADVICE = (
    "No network is loaded, so nothing can be drawn yet. Train a small one in about six minutes "
    "with `make demo`, then start this page with `--weights runs/demo`; or give it a pipeline "
    "folder with `--weights FOLDER`."
)


class DrawPanel:
    """The panel on the left.

    lock: of the page, for what the queue calls; wrap: as in `SceneView`; on_start: called when the
    pictures were framed anew for a drawing. queue: None if no network is loaded: the button then
    does nothing.
    """

    def __init__(
        self,
        client: Any,
        session: Session,
        queue: JobQueue | None,
        scene: SceneView,
        lock: threading.RLock,
        wrap: Wrap,
        on_start: Callable[[], None],
    ):
        self._session, self._queue, self._scene = session, queue, scene
        self._lock, self._wrap, self._on_start = lock, wrap, on_start
        self._job: Job | None = None
        self._first_step_time = 0.0
        self._shown: np.ndarray | None = None
        self._closed = False
        panel = client.gui.add_panel()
        with panel.add_tab("4 · Draw, 5 · Result"):
            self._build(client.gui)
            self.result = ResultPanel(client, scene, wrap)
        panel.dock_left()
        panel.set_width(360)

    def close(self) -> None:
        """Cancels the visitor's drawing and shows nothing any more."""
        self._closed = True
        self.result.close()
        if self._job is not None and self._queue is not None:
            self._queue.cancel(self._job)

    def show_button(self) -> None:
        """Says how many views the button would draw, and whether it can."""
        count = len(self._session.target_c2w())
        self._draw.label = f"Draw {count} view{'s' if count != 1 else ''}"
        self._draw.disabled = self._queue is None or self._is_drawing()

    def _build(self, gui: Any) -> None:
        settings = self._session.settings
        self._draw = gui.add_button("Draw", icon="player-play")
        self._cancel = gui.add_button("Cancel", icon="x", color="gray", visible=False)
        self._bar = gui.add_progress_bar(0.0, visible=False)
        self._status = gui.add_html("")
        with gui.add_folder("Settings", expand_by_default=False):
            self._steps = gui.add_slider(
                "Steps", 1, self._session.limits.steps, 1, settings.num_steps
            )
            self._guidance = gui.add_slider(
                "Guidance",
                0.0,
                10.0,
                0.1,
                settings.guidance_scale,
                hint="1 for none; it starts at what this network was judged at",
            )
            self._sampler = gui.add_dropdown("Sampler", SAMPLERS, initial_value=settings.sampler)
            self._seed = gui.add_number("Seed", settings.seed, min=0, max=2**31 - 1, step=1)
        if self._queue is None:
            self._status.content = fragments.line(ADVICE, "#b02a1a")
        self._draw.on_click(self._wrap(lambda _: self._start()))
        self._cancel.on_click(self._wrap(lambda _: self._cancel_job()))

    def _start(self) -> None:
        if self._queue is None:
            raise UserError(ADVICE)
        if self._is_drawing():
            raise UserError("a drawing of yours is under way; cancel it first.")
        self._session.set_settings(
            num_steps=self._steps.value,
            guidance_scale=self._guidance.value,
            sampler=self._sampler.value,
            seed=self._seed.value,
        )
        self._first_step_time, self._shown = 0.0, None
        request = self._session.request()
        self._on_start()
        self._job = self._queue.submit(request, self._on_job_change)

    def _cancel_job(self) -> None:
        if self._job is not None and self._queue is not None:
            self._queue.cancel(self._job)
            if self._is_drawing():
                self._status.content = fragments.line("Stopping at the next step ...")

    def _is_drawing(self) -> bool:
        return self._job is not None and self._job.status in ("waiting", "running")

    def _on_job_change(self, job: Job) -> None:
        """Called by the queue, from its thread or from that of whoever moved the line."""
        with self._lock:
            if self._closed:
                return
            self._job = job
            self._show_progress(job)
            pictures = job.views if job.views is not None else job.preview
            if pictures is not None and pictures is not self._shown:
                self._shown = pictures
                self.result.show(job.request, pictures, is_final=job.views is not None)
                if np.array_equal(job.request.target_c2w, self._session.target_c2w()):
                    self._scene.show_views(job.request.target_c2w, pictures)

    def _show_progress(self, job: Job) -> None:
        busy = self._is_drawing()
        self._cancel.visible = self._bar.visible = busy
        self.show_button()
        self._bar.animated = busy and job.step == 0
        self._bar.value = 100.0 * job.step / job.num_steps if job.step else (100.0 if busy else 0.0)
        color = "#b02a1a" if job.status == "failed" else "#44546a"
        self._status.content = fragments.line(self._progress_text(job), color)

    def _progress_text(self, job: Job) -> str:
        if job.status == "waiting":
            return "Next in line." if job.ahead == 0 else f"Waiting: {job.ahead} before yours."
        if job.status == "running" and job.step == 0:
            return "Starting; the first drawing of a size also compiles its program ..."
        if job.status == "running":
            now = time.monotonic()
            if job.step == 1 or not self._first_step_time:
                self._first_step_time = now
                return f"Step {job.step} of {job.num_steps}"
            left = (now - self._first_step_time) / (job.step - 1) * (job.num_steps - job.step)
            return f"Step {job.step} of {job.num_steps}, about {max(1, round(left))} s left"
        if job.status == "done":
            return f"Drawn in {job.seconds:.0f} s."
        if job.status == "cancelled":
            return f"Stopped: {job.message}."
        return f"Failed: {job.message}"
