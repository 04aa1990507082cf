"""The fifth step: one large view to scrub through, all as thumbnails, files to take home."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from escherjax.demo import downloads, fragments
from escherjax.demo.scene_view import SceneView, Wrap
from escherjax.demo.session import Request

_FRAME_SEC = 0.12
_PICTURES, _VIDEO, _CAMERAS = _FILES = ("PNG (zip)", "MP4", "transforms.json")


class ResultPanel:
    """The lower part of the panel on the left; empty until the first preview.

    Made where its widgets are to be, inside a viser container. wrap: as in `SceneView`.
    """

    def __init__(self, client: Any, scene: SceneView, wrap: Wrap):
        self._client, self._scene, self._wrap = client, scene, wrap
        self._request: Request | None = None
        self._views: np.ndarray | None = None
        self._is_final = False
        self._stop_playing = threading.Event()
        self._stop_playing.set()
        self._build()

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
        self._thumbnails.content = fragments.thumbnails(list(views), labels)

    def select(self, index: int) -> None:
        """Shows one of the views large; nothing where there is none of that number."""
        if self._views is not None and index < len(self._views):
            self._view.value = index
            self._show_view()

    def _build(self) -> None:
        gui = self._client.gui
        hidden = {"visible": False}
        blank = np.full((384, 384, 3), 255, np.uint8)
        self._caption = gui.add_html("", **hidden)
        self._image = gui.add_image(blank, format="png", **hidden)
        self._view = gui.add_slider("View", 0, 1, 1, 0, **hidden)
        self._play = gui.add_button("Play", icon="player-play", color="gray", **hidden)
        self._fly = gui.add_checkbox("Fly along", False, hint="the 3D view too", **hidden)
        self._files = gui.add_button_group("Download", _FILES, **hidden)
        self._thumbnails = gui.add_html("", **hidden)
        self._view.on_update(self._wrap(lambda _: self._show_view()))
        self._fly.on_update(self._wrap(lambda _: self._show_view()))
        self._play.on_click(self._wrap(lambda _: self._toggle_playing()))
        self._files.on_click(self._wrap(lambda event: self._send(event.target.value)))

    def _show_view(self) -> None:
        if self._views is None or self._request is None:
            return
        index = min(max(0, int(self._view.value)), len(self._views) - 1)
        c2w, image = self._request.target_c2w[index], self._views[index]
        self._image.image = fragments.enlarged(image)
        state = "" if self._is_final else ", on its way"
        side = image.shape[0]
        self._caption.content = fragments.line(
            f"{index:03d}.png of {len(self._views)}, {side} x {side} pixels{state}"
        )
        self._scene.show_current(c2w, image)
        if self._fly.value:
            behind = c2w[:3, 3] * 1.45
            with self._client.atomic():
                self._client.camera.position = behind
                self._client.camera.look_at = np.zeros(3)

    def _toggle_playing(self) -> None:
        if not self._stop_playing.is_set():
            self._stop_playing.set()
            return
        self._stop_playing = threading.Event()
        self._play.label = "Stop"
        threading.Thread(target=self._run, args=(self._stop_playing,), daemon=True).start()

    def _run(self, stop: threading.Event) -> None:
        """Steps through the views until told to stop."""
        step = self._wrap(lambda _: self.select((self._view.value + 1) % len(self._views)))
        event = _Tick(self._client)
        while not stop.wait(_FRAME_SEC):
            step(event)
        self._wrap(lambda _: setattr(self._play, "label", "Play"))(event)

    def _send(self, kind: str) -> None:
        if self._request is None or self._views is None or not self._is_final:
            return
        if kind == _PICTURES:
            name, content = "views.zip", downloads.pictures_zip(self._request, self._views)
        elif kind == _CAMERAS:
            name = "transforms.json"
            content = downloads.transforms_json(self._request, self._views.shape[1])
        else:
            name, content = downloads.animation(self._views, self._request.closed)
            if not name.endswith(".mp4"):
                self._client.add_notification(
                    "A GIF instead",
                    "MP4 needs imageio-ffmpeg on the server: pip install 'escherjax[demo]'.",
                    color="orange",
                )
        self._client.send_file_download(name, content, save_immediately=True)


class _Tick:
    """Stands in for viser's events where time calls instead of the visitor."""

    def __init__(self, client: Any):
        self.client = client
