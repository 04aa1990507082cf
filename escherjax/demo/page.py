"""The page of one visitor: five steps in two panels, the 3D view between them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from escherjax.cameras import paths
from escherjax.demo import guard, widgets
from escherjax.demo.jobs import JobQueue
from escherjax.demo.limits import safe_label
from escherjax.demo.panels import GeneratePanel
from escherjax.demo.scene_view import REFERENCE_COLOR, SceneView
from escherjax.demo.session import (
    CUSTOM_PATH,
    DEFAULT_RADIUS,
    ELEVATION_RANGE_DEG,
    PATHS,
    RADIUS_RANGE,
    Session,
    spherical_of,
)
from escherjax.errors import UserError

log = logging.getLogger("escherjax.demo")

_SHOWN_SEC = {"green": 8.0, "orange": 30.0, "red": 60.0}  # of messages, the longer the worse


class Page:
    """Builds one visitor's page and answers what he does there.

    client: viser's handle of the browser. queue: where requests wait, None if no network is loaded.
    example: () -> (pictures uint8 [N, R, R, 3], c2w [N, 4, 4]). about: what the network is.
    """

    def __init__(
        self,
        client: Any,
        session: Session,
        queue: JobQueue | None,
        example: Callable[[], tuple[np.ndarray, np.ndarray]],
        about: str,
    ):
        self._client, self._session, self._example = client, session, example
        self._lock = threading.RLock()
        self._selected = 0
        self._closed = False
        guard.limit_uploads(client, session.limits.upload_bytes, self.refuse_upload)
        with self._lock:
            self._scene = SceneView(
                client.scene,
                session.fov_deg,
                self._safe,
                (self._select, self._drag_reference),
                (lambda index: self._generate.result.select(index), self._drag_target),
                (lambda index: None, self._drag_viewpoint),
            )
            if about:
                client.gui.add_html(widgets.line(about))
            self._add_pictures_step()
            self._add_cameras_step()
            self._add_path_step()
            self._generate = GeneratePanel(
                client, session, queue, self._scene, self._lock, self._safe, self._show_references
            )
            self._show_references()
            self._show_path()

    def close(self) -> None:
        """Cancels the job of a visitor who has gone, and forgets his work."""
        with self._lock:
            self._closed = True
            self._generate.close()
            self._session.clear()

    def notify(self, title: str, text: str, color: str = "red") -> None:
        """Shows a message for a while; a click closes it."""
        seconds = _SHOWN_SEC.get(color)
        self._client.add_notification(title, text, color=color, auto_close_seconds=seconds)

    def refuse_upload(self, name: str, size: int) -> None:
        """Shows why a file is not taken."""
        most = self._session.limits.upload_bytes / 2**20
        self.notify(
            "File not taken",
            f"{safe_label(name)} must have at most {most:.1f} MB, got {size / 2**20:.1f} MB. "
            "Shrink it first.",
        )

    def _safe(self, callback: Callable[[Any], None]) -> Callable[[Any], None]:
        """What viser may call: one at a time, failures shown, our own changes ignored."""

        def called(event: Any) -> None:
            if event.client is None:  # we set the value ourselves
                return
            try:
                with self._lock:
                    if not self._closed:
                        callback(event)
            except UserError as error:
                self.notify("That does not work", str(error))
            except Exception:
                log.exception("a page's callback failed")
                self.notify("Something went wrong", "The log of this page's server has the error.")

        return called

    # ---- 1 pictures

    def _add_pictures_step(self) -> None:
        gui = self._client.gui
        with gui.add_folder("1 · Pictures"):
            gui.add_html(widgets.drop_zone())
            upload = gui.add_upload_button("Choose a picture", mime_type=widgets.ACCEPT)
            self._pictures = gui.add_html("")
            example = gui.add_button("Try the example", icon="cube", color="gray")
        upload.on_upload(self._safe(lambda event: self._take_file(event.target.value)))
        example.on_click(self._safe(lambda _: self._take_example()))

    def _take_file(self, file: Any) -> None:
        if safe_label(file.name).lower().endswith(".json"):
            outcome = self._session.read_cameras(file.content)
            self._show_references()
            self.notify("Cameras", outcome, "green")
            return
        reference = self._session.add_picture(file.name, file.content)
        self._selected = len(self._session.references) - 1
        self._show_references()
        for note in reference.notes:
            if note.is_warning:
                self.notify("Careful", note.text, "orange")

    def _take_example(self) -> None:
        pictures, c2w = self._example()
        self._session.clear()
        for i, (picture, pose) in enumerate(zip(pictures, c2w, strict=True)):
            self._session.add_posed(f"example {i + 1}", picture, pose)
        self._selected = 0
        self._show_references()

    def _show_references(self) -> None:
        references = self._session.references
        self._selected = max(0, min(self._selected, len(references) - 1))
        self._scene.show_references(
            [r.image for r in references], [r.c2w for r in references], self._selected
        )
        self._show_selected()
        self._generate.show_button()

    # ---- 2 cameras

    def _add_cameras_step(self) -> None:
        gui = self._client.gui
        with gui.add_folder("2 · Cameras"):
            self._camera_text = gui.add_html("")
            self._picture = gui.add_dropdown("Picture", ("-",))
            azimuth_hint = "0 the front, 90 the object's left side"
            self._camera = (  # azimuth, elevation, distance
                gui.add_slider("Azimuth °", -180.0, 180.0, 1.0, 0.0, hint=azimuth_hint),
                gui.add_slider(
                    "Elevation °", *ELEVATION_RANGE_DEG, 1.0, 0.0, hint="above the horizon"
                ),
                gui.add_slider(
                    "Distance", *RADIUS_RANGE, 0.05, DEFAULT_RADIUS, hint="the object has size 1"
                ),
            )
            self._remove = gui.add_button("Remove this picture", icon="trash", color="gray")
        self._picture.on_update(
            self._safe(lambda _: self._select(self._picture.options.index(self._picture.value)))
        )
        for slider in self._camera:
            slider.on_update(self._safe(lambda _: self._set_camera()))
        self._remove.on_click(self._safe(lambda _: self._remove_picture()))

    def _select(self, index: int) -> None:
        self._selected = index
        self._scene.select_reference(index)
        self._show_selected()

    def _set_camera(self) -> None:
        self._session.set_camera(self._selected, *(slider.value for slider in self._camera))
        self._scene.move_reference(self._selected, self._session.references[self._selected].c2w)

    def _drag_reference(self, index: int, position: np.ndarray) -> None:
        radius = spherical_of(self._session.references[index].c2w[:3, 3])[2]
        azimuth, elevation, _ = spherical_of(position)
        self._session.set_camera(index, azimuth, elevation, radius)
        self._scene.move_reference(index, self._session.references[index].c2w)
        if index != self._selected:
            self._select(index)
        self._show_selected()

    def _remove_picture(self) -> None:
        self._session.remove(self._selected)
        self._show_references()

    def _show_selected(self) -> None:
        references, selected = self._session.references, self._selected
        for widget in (self._picture, *self._camera, self._remove):
            widget.visible = bool(references)
        if not references:
            self._pictures.content = ""
            self._camera_text.content = widgets.line("The cameras of your pictures come here.")
            return
        labels = [f"{i + 1}: {r.label}" for i, r in enumerate(references)]
        self._pictures.content = widgets.thumbnails(
            [r.image for r in references], labels, REFERENCE_COLOR, selected
        )
        lines = [note.text for note in references[selected].notes]
        lines.append("Where was each picture taken from? Drag the orange cameras, or set:")
        self._camera_text.content = "".join(map(widgets.line, lines))
        if self._picture.options != tuple(labels):
            self._picture.options = tuple(labels)
        self._picture.value = labels[selected]
        place = spherical_of(references[selected].c2w[:3, 3])
        for slider, value, digits in zip(self._camera, place, (0, 0, 2), strict=True):
            slider.value = round(value, digits)

    # ---- 3 path

    def _add_path_step(self) -> None:
        gui, session = self._client.gui, self._session
        path, most = session.path, session.limits.targets
        with gui.add_folder("3 · Path of the new views"):
            self._path = {  # by argument of Session.set_path
                "name": gui.add_dropdown("Path", PATHS, initial_value=session.path_name),
                "num_views": gui.add_slider("Views", 1, most, 1, path.num_views),
                "elevation_deg": gui.add_slider(
                    "Elevation °", *ELEVATION_RANGE_DEG, 1.0, path.elevation_deg
                ),
                "start_azimuth_deg": gui.add_slider(
                    "Start °", -180.0, 180.0, 1.0, path.start_azimuth_deg
                ),
                "radius": gui.add_slider("Distance", *RADIUS_RANGE, 0.05, path.radius),
            }
            text = gui.add_html(
                widgets.line("Turn the 3D view, add where you are, drag the green cameras.")
            )
            self._path["closed"] = gui.add_checkbox("Closed loop", path.closed)
            add = gui.add_button("Add this viewpoint", icon="camera-plus")
            clear = gui.add_button("Remove all", icon="trash", color="gray")
        self._own_path = (text, self._path["closed"], add, clear)  # shown for CUSTOM_PATH alone
        for widget in self._path.values():
            widget.on_update(self._safe(lambda _: self._set_path()))
        add.on_click(self._safe(lambda _: self._add_viewpoint()))
        clear.on_click(self._safe(lambda _: self._clear_viewpoints()))

    def _set_path(self) -> None:
        self._session.set_path(**{name: widget.value for name, widget in self._path.items()})
        self._show_path()

    def _add_viewpoint(self) -> None:
        self._session.add_viewpoint(self._client.camera.position)
        self._show_path()

    def _clear_viewpoints(self) -> None:
        self._session.viewpoints.clear()
        self._show_path()

    def _drag_viewpoint(self, index: int, position: np.ndarray) -> None:
        self._session.move_viewpoint(index, position)
        self._show_path()

    def _drag_target(self, index: int, position: np.ndarray) -> None:
        """Turns and lifts a whole path with one of its cameras."""
        session, path = self._session, self._session.path
        if session.path_name == CUSTOM_PATH:
            return
        before = spherical_of(session.targets().c2w[index, :3, 3])
        azimuth, elevation, _ = spherical_of(position)
        turned = (path.start_azimuth_deg or 0.0) + azimuth - before[0]
        lifted = (path.elevation_deg or 0.0) + elevation - before[1]
        lifted = float(np.clip(lifted, *ELEVATION_RANGE_DEG))
        session.set_path(start_azimuth_deg=turned, elevation_deg=lifted)
        for name in ("start_azimuth_deg", "elevation_deg"):
            self._path[name].value = round(getattr(session.path, name))
        self._show_path()

    def _show_path(self) -> None:
        session, name = self._session, self._session.path_name
        is_own = name == CUSTOM_PATH
        for widget in self._own_path:
            widget.visible = is_own
        self._path["start_azimuth_deg"].visible = self._path["radius"].visible = not is_own
        self._path["elevation_deg"].visible = name in paths.WITH_ELEVATION
        self._scene.show_viewpoints(session.viewpoints if is_own else [])
        chosen = session.targets()
        self._scene.show_targets(chosen.c2w, chosen.closed)
        self._generate.show_button()
