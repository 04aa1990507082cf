"""The panel on the left: settings, a button and progress; the views that come, and their files."""

from __future__ import annotations

import dataclasses
import io
import json
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from escherjax.data import images
from escherjax.data.formats.transforms import write_transforms
from escherjax.demo import widgets
from escherjax.demo.jobs import Job, JobQueue
from escherjax.demo.scene_view import SceneView, Wrap
from escherjax.demo.session import MAX_SEED, Request, Session
from escherjax.errors import UserError
from escherjax.models.diffusion.sampling import SAMPLERS
from escherjax.reports import sheets
from escherjax.weights.facts import package_version

ADVICE = (
    "No network is loaded, so no views can be generated yet. Train a small one in about six "
    "minutes with `make demo`, then start this page with `--weights runs/demo`; or give it a "
    "pipeline folder with `--weights FOLDER`."
)
_FRAME_SEC = 0.12  # between the views of a result that plays
_PICTURES, _VIDEO, _CAMERAS = _FILES = ("PNG (zip)", "MP4", "transforms.json")


class GeneratePanel:
    """The fourth step: settings, a button, a place in the queue, progress; below it the result.

    lock: of the page, for what the queue calls; wrap: as in `SceneView`; on_start: called when the
    pictures were framed anew for a request. queue: None if no network is loaded: the button then
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
        with panel.add_tab("4 · Generate, 5 · Result"):
            self._build(client.gui)
            self.result = ResultPanel(client, scene, wrap)
        panel.dock_left()
        panel.set_width(360)

    def close(self) -> None:
        """Cancels the visitor's job and shows nothing any more."""
        self._closed = True
        self.result.close()
        if self._job is not None and self._queue is not None:
            self._queue.cancel(self._job)

    def show_button(self) -> None:
        """Shows how many views the button would generate, and whether it can."""
        count = len(self._session.targets().c2w)
        self._generate.label = f"Generate {count} view{'s' if count != 1 else ''}"
        self._generate.disabled = self._queue is None or self._is_busy()

    def _build(self, gui: Any) -> None:
        sampling = self._session.sampling
        self._generate = gui.add_button("Generate", icon="player-play")
        self._cancel = gui.add_button("Cancel", icon="x", color="gray", visible=False)
        self._bar = gui.add_progress_bar(0.0, visible=False)
        self._status = gui.add_html("")
        hint = "1 for none; it starts at what this network was judged at"
        with gui.add_folder("Settings", expand_by_default=False):
            self._settings = {  # by field of Sampling
                "num_steps": gui.add_slider(
                    "Steps", 1, self._session.limits.steps, 1, sampling.num_steps
                ),
                "guidance_scale": gui.add_slider(
                    "Guidance", 0.0, 10.0, 0.1, sampling.guidance_scale, hint=hint
                ),
                "sampler": gui.add_dropdown("Sampler", SAMPLERS, initial_value=sampling.sampler),
                "seed": gui.add_number("Seed", sampling.seed, min=0, max=MAX_SEED, step=1),
            }
        if self._queue is None:
            self._status.content = widgets.line(ADVICE, widgets.RED)
        self._generate.on_click(self._wrap(lambda _: self._start()))
        self._cancel.on_click(self._wrap(lambda _: self._cancel_job()))

    def _start(self) -> None:
        if self._queue is None:
            raise UserError(ADVICE)
        if self._is_busy():
            raise UserError("a request of yours is running; cancel it first.")
        self._session.set_sampling(**{name: w.value for name, w in self._settings.items()})
        self._first_step_time, self._shown = 0.0, None
        request = self._session.request()
        self._on_start()
        self._job = self._queue.submit(request, self._on_job_change)

    def _cancel_job(self) -> None:
        if self._job is not None and self._queue is not None:
            self._queue.cancel(self._job)
            if self._is_busy():
                self._status.content = widgets.line("Stopping at the next step ...")

    def _is_busy(self) -> bool:
        return self._job is not None and self._job.is_active

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
                c2w = job.request.targets.c2w
                if np.array_equal(c2w, self._session.targets().c2w):
                    self._scene.show_views(c2w, pictures)

    def _show_progress(self, job: Job) -> None:
        self._cancel.visible = self._bar.visible = job.is_active
        self.show_button()
        has_begun = job.step > 0
        self._bar.animated = job.is_active and not has_begun
        share = job.step / job.num_steps if has_begun else float(job.is_active)
        self._bar.value = 100.0 * share
        color = widgets.RED if job.status == "failed" else widgets.GREY
        self._status.content = widgets.line(self._progress_text(job), color)

    def _progress_text(self, job: Job) -> str:
        if job.status == "waiting":
            return "Next in line." if job.ahead == 0 else f"Waiting: {job.ahead} before yours."
        if job.status == "running" and job.step == 0:
            return "Starting; the first request of a size also compiles its program ..."
        if job.status == "running":
            now = time.monotonic()
            if job.step == 1 or not self._first_step_time:
                self._first_step_time = now
                return f"Step {job.step} of {job.num_steps}"
            left = (now - self._first_step_time) / (job.step - 1) * (job.num_steps - job.step)
            return f"Step {job.step} of {job.num_steps}, about {max(1, round(left))} s left"
        if job.status == "done":
            return f"Generated in {job.seconds:.0f} s."
        if job.status == "cancelled":
            return f"Stopped: {job.message}."
        return f"Failed: {job.message}"


class ResultPanel:
    """The fifth step: one large view to scrub through, all as thumbnails, files to download.

    Made where its widgets are to be, inside a viser container; empty until the first preview.
    wrap: as in `SceneView`.
    """

    def __init__(self, client: Any, scene: SceneView, wrap: Wrap):
        self._client, self._scene, self._wrap = client, scene, wrap
        self._request: Request | None = None
        self._views: np.ndarray | None = None
        self._is_final = False
        self._stop_playing = threading.Event()
        self._stop_playing.set()
        gui, hidden = client.gui, {"visible": False}
        blank = np.full((384, 384, 3), 255, np.uint8)
        self._caption = gui.add_html("", **hidden)
        self._image = gui.add_image(blank, format="png", **hidden)
        self._view = gui.add_slider("View", 0, 1, 1, 0, **hidden)
        self._play = gui.add_button("Play", icon="player-play", color="gray", **hidden)
        self._fly = gui.add_checkbox("Fly along", False, hint="the 3D view too", **hidden)
        self._files = gui.add_button_group("Download", _FILES, **hidden)
        self._thumbnails = gui.add_html("", **hidden)
        self._view.on_update(wrap(lambda _: self._show_view()))
        self._fly.on_update(wrap(lambda _: self._show_view()))
        self._play.on_click(wrap(lambda _: self._toggle_playing()))
        self._files.on_click(wrap(lambda event: self._send(event.target.value)))

    def close(self) -> None:
        """Ends what plays."""
        self._stop_playing.set()

    def show(self, request: Request, views: np.ndarray, is_final: bool) -> None:
        """Shows views uint8 [M, R, R, 3] of a request, finished or on their way."""
        self._stop_playing.set()
        for widget in (self._caption, self._image, self._thumbnails, self._fly):
            widget.visible = True
        self._request, self._views, self._is_final = request, views, is_final
        if self._view.value >= len(views):
            self._view.value = 0
        self._view.max = max(1, len(views) - 1)
        self._view.visible = len(views) > 1
        self._play.visible = self._files.visible = is_final
        self._show_view()
        labels = [f"view {i}" for i in range(len(views))]
        self._thumbnails.content = widgets.thumbnails(list(views), labels)

    def select(self, index: int) -> None:
        """Shows one of the views large; nothing where there is none of that number."""
        if self._views is not None and index < len(self._views):
            self._view.value = index
            self._show_view()

    def _show_view(self) -> None:
        if self._views is None or self._request is None:
            return
        index = min(max(0, int(self._view.value)), len(self._views) - 1)
        c2w, image = self._request.targets.c2w[index], self._views[index]
        self._image.image = widgets.enlarged(image, 384)
        state = "" if self._is_final else ", on its way"
        side = image.shape[0]
        self._caption.content = widgets.line(
            f"{index:03d}.png of {len(self._views)}, {side} x {side} pixels{state}"
        )
        self._scene.show_current(c2w, image)
        if self._fly.value:
            with self._client.atomic():
                self._client.camera.position = c2w[:3, 3] * 1.45  # behind the view's camera
                self._client.camera.look_at = np.zeros(3)

    def _toggle_playing(self) -> None:
        if not self._stop_playing.is_set():
            self._stop_playing.set()
            return
        self._stop_playing = threading.Event()
        self._play.label = "Stop"
        threading.Thread(target=self._run, args=(self._stop_playing,), daemon=True).start()

    def _advance(self) -> None:
        if self._views is not None:
            self.select((self._view.value + 1) % len(self._views))

    def _run(self, stop: threading.Event) -> None:
        """Steps through the views until `stop` is set."""
        step = self._wrap(lambda _: self._advance())
        tick = _Tick(self._client)
        while not stop.wait(_FRAME_SEC):
            step(tick)
        self._wrap(lambda _: setattr(self._play, "label", "Play"))(tick)

    def _send(self, kind: str) -> None:
        if self._request is None or self._views is None or not self._is_final:
            return
        if kind == _PICTURES:
            name, content = "views.zip", pictures_zip(self._request, self._views)
        elif kind == _CAMERAS:
            name = "transforms.json"
            content = transforms_json(self._request, self._views.shape[1])
        else:
            name, content = animation(self._views, self._request.targets.closed)
            if not name.endswith(".mp4"):
                self._client.add_notification(
                    "A GIF instead",
                    "MP4 needs imageio-ffmpeg on the server: pip install 'escherjax[demo]'.",
                    color="orange",
                )
        self._client.send_file_download(name, content, save_immediately=True)


@dataclasses.dataclass(frozen=True)
class _Tick:
    """Stands in for viser's events where a timer calls instead of the visitor."""

    client: Any


def transforms_json(request: Request, resolution: int) -> bytes:
    """Cameras of the views as transforms.json (nerfstudio) of pictures 000.png, 001.png, ..."""
    c2w = request.targets.c2w
    names = [f"{i:03d}.png" for i in range(len(c2w))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "transforms.json"
        write_transforms(path, c2w, request.K(resolution), resolution, names)
        return path.read_bytes()


def pictures_zip(request: Request, views: np.ndarray) -> bytes:
    """A zip of 000.png ..., references/, transforms.json and run.json.

    views: uint8 [M, R, R, 3].
    """
    run = {
        "escherjax": package_version(),
        **dataclasses.asdict(request.sampling),
        "reference_c2w": request.reference_c2w.tolist(),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # PNG is compressed already
        for folder, pictures in (("", views), ("references/", request.images)):
            for i, picture in enumerate(pictures):
                archive.writestr(f"{folder}{i:03d}.png", images.encode_png(picture))
        archive.writestr("transforms.json", transforms_json(request, views.shape[1]))
        archive.writestr("run.json", json.dumps(run, indent=2) + "\n")
    return buffer.getvalue()


def animation(views: np.ndarray, closed: bool) -> tuple[str, bytes]:
    """(file name, bytes) of the views one after the other: MP4, or GIF without imageio-ffmpeg.

    views: uint8 [M, R, R, 3]; those under 256 pixels are enlarged by a whole number. closed: as in
    `sheets.save_animation`.
    """
    with tempfile.TemporaryDirectory() as folder:
        large = widgets.enlarged(views, 256)
        path = sheets.save_animation(Path(folder), large, closed)[-1]
        return "views" + path.suffix, path.read_bytes()
