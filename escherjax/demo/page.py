"""The page of one visitor: five steps in a panel, the 3D view beside it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from escherjax.cameras import paths
from escherjax.data.inputs import WARNING
from escherjax.demo import fragments, guard
from escherjax.demo.draw_panel import DrawPanel
from escherjax.demo.jobs import JobQueue
from escherjax.demo.labels import safe_label
from escherjax.demo.scene_view import REFERENCE_COLOR, SceneView
from escherjax.demo.session import (
    CUSTOM_PATH,
    ELEVATION_RANGE_DEG,
    PATHS,
    RADIUS_RANGE,
    Session,
    spherical_of,
)
from escherjax.errors import UserError

log = logging.getLogger("escherjax.demo")


class Page:
    """Furnishes one visitor's browser and answers it.

    client: viser's handle of the browser. queue: where drawings wait, None if no network is
    loaded. example: () -> (pictures uint8 [N, R, R, 3], c2w [N, 4, 4]). about: what the network is.
    """

    def __init__(
        self,
        client: Any,
        session: Session,
        queue: JobQueue | None,
        example: Callable[[], tuple[np.ndarray, np.ndarray]],
        about: str,
    ):
        self._client, self._session = client, session
        self._example, self._about = example, about
        self._lock = threading.RLock()
        self._selected = 0
        self._closed = False
        guard.limit_uploads(client, session.limits.upload_bytes, self.refuse_upload)
        with self._lock:
            self._scene = SceneView(
                client.scene,
                session.fov_deg,
                self._safe,
                self._select,
                self._drag_reference,
                self._view_target,
                self._drag_target,
                self._drag_viewpoint,
            )
            self._add_pictures_step()
            self._add_cameras_step()
            self._add_path_step()
            self._draw = DrawPanel(
                client, session, queue, self._scene, self._lock, self._safe, self._show_references
            )
            self._show_references()
            self._show_path()

    def close(self) -> None:
        """The visitor has gone: stops his drawing and forgets his work."""
        with self._lock:
            self._closed = True
            self._draw.close()
            self._session.clear()

    def tell(self, title: str, text: str, color: str = "red") -> None:
        """Shows a message for a while, the longer the worse; a click closes it."""
        seconds = {"green": 8.0, "orange": 30.0, "red": 60.0}.get(color)
        self._client.add_notification(title, text, color=color, auto_close_seconds=seconds)

    def refuse_upload(self, name: str, size: int) -> None:
        """Says why a file is not taken."""
        most = self._session.limits.upload_bytes / 2**20
        self.tell(
            "File not taken",
            f"{safe_label(name)} has {size / 2**20:.1f} MB; needed at most {most:.1f} MB in one "
            "file. Shrink it first.",
        )

    def _safe(self, callback: Callable[[Any], None]) -> Callable[[Any], None]:
        """What viser may call: one at a time, failures said in words, our own changes ignored."""

        def called(event: Any) -> None:
            if event.client is None:  # we set the value ourselves
                return
            try:
                with self._lock:
                    if not self._closed:
                        callback(event)
            except UserError as error:
                self.tell("That does not work", str(error))
            except Exception:
                log.exception("a page's callback failed")
                self.tell("Something went wrong", "The log of this page's server says what.")

        return called

    # ---- 1 pictures

    def _add_pictures_step(self) -> None:
        gui = self._client.gui
        if self._about:
            gui.add_html(fragments.line(self._about))
        with gui.add_folder("1 · Pictures"):
            gui.add_html(fragments.drop_zone())
            upload = gui.add_upload_button("Choose a picture", mime_type=fragments.ACCEPT)
            self._pictures = gui.add_html("")
            self._example_button = gui.add_button("Try the example", icon="cube", color="gray")
        upload.on_upload(self._safe(lambda event: self._take_file(event.target.value)))
        self._example_button.on_click(self._safe(lambda _: self._take_example()))

    def _take_file(self, file: Any) -> None:
        label = safe_label(file.name)
        if label.lower().endswith(".json"):
            said = self._session.read_cameras(file.content)
            self._show_references()
            self.tell("Cameras", said, "green")
            return
        reference = self._session.add_picture(file.name, file.content)
        self._selected = len(self._session.references) - 1
        self._show_references()
        for note in reference.notes:
            if note.startswith(WARNING):
                self.tell("Careful", note.removeprefix(WARNING), "orange")

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
        self._draw.show_button()

    # ---- 2 cameras

    def _add_cameras_step(self) -> None:
        gui = self._client.gui
        with gui.add_folder("2 · Cameras"):
            self._camera_text = gui.add_html("")
            self._picture = gui.add_dropdown("Picture", ("-",))
            self._azimuth = gui.add_slider(
                "Azimuth °", -180.0, 180.0, 1.0, 0.0, hint="0 the front, 90 the object's left side"
            )
            self._elevation = gui.add_slider(
                "Elevation °", *ELEVATION_RANGE_DEG, 1.0, 0.0, hint="above the horizon"
            )
            self._radius = gui.add_slider(
                "Distance", *RADIUS_RANGE, 0.05, 1.8, hint="the object has size 1"
            )
            self._remove = gui.add_button("Remove this picture", icon="trash", color="gray")
        self._picture.on_update(self._safe(lambda _: self._select(self._picture_index())))
        for slider in (self._azimuth, self._elevation, self._radius):
            slider.on_update(self._safe(lambda _: self._set_camera()))
        self._remove.on_click(self._safe(lambda _: self._remove_picture()))

    def _picture_index(self) -> int:
        return self._picture.options.index(self._picture.value)

    def _select(self, index: int) -> None:
        self._selected = index
        self._scene.select_reference(index)
        self._show_selected()

    def _set_camera(self) -> None:
        self._session.set_camera(
            self._selected, self._azimuth.value, self._elevation.value, self._radius.value
        )
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
        widgets = (self._picture, self._azimuth, self._elevation, self._radius, self._remove)
        for widget in widgets:
            widget.visible = bool(references)
        if not references:
            self._pictures.content = ""
            self._camera_text.content = fragments.line("The cameras of your pictures come here.")
            return
        labels = [f"{i + 1}: {r.label}" for i, r in enumerate(references)]
        self._pictures.content = fragments.thumbnails(
            [r.image for r in references], labels, REFERENCE_COLOR, selected
        )
        notes = [note.removeprefix(WARNING) for note in references[selected].notes]
        self._camera_text.content = "".join(
            map(
                fragments.line,
                [*notes, "Where was each picture taken from? Drag the orange cameras, or set:"],
            )
        )
        if self._picture.options != tuple(labels):
            self._picture.options = tuple(labels)
        self._picture.value = labels[selected]
        azimuth, elevation, radius = spherical_of(references[selected].c2w[:3, 3])
        self._azimuth.value, self._elevation.value = round(azimuth), round(elevation)
        self._radius.value = round(radius, 2)

    # ---- 3 path

    def _add_path_step(self) -> None:
        gui, path, limits = self._client.gui, self._session.path, self._session.limits
        with gui.add_folder("3 · Path of the new views"):
            self._path_name = gui.add_dropdown("Path", PATHS, initial_value=path.name)
            self._num_views = gui.add_slider("Views", 1, limits.targets, 1, path.num_views)
            self._path_elevation = gui.add_slider(
                "Elevation °", *ELEVATION_RANGE_DEG, 1.0, path.elevation_deg
            )
            self._start_azimuth = gui.add_slider(
                "Start °", -180.0, 180.0, 1.0, path.start_azimuth_deg
            )
            self._path_radius = gui.add_slider("Distance", *RADIUS_RANGE, 0.05, path.radius)
            self._viewpoints_text = gui.add_html(
                fragments.line("Turn the 3D view, add where you are, drag the green cameras.")
            )
            self._closed_path = gui.add_checkbox("Closed loop", path.closed)
            self._add_viewpoint = gui.add_button("Add this viewpoint", icon="camera-plus")
            self._clear_viewpoints = gui.add_button("Remove all", icon="trash", color="gray")
        for widget in (
            self._path_name,
            self._num_views,
            self._path_elevation,
            self._start_azimuth,
            self._path_radius,
            self._closed_path,
        ):
            widget.on_update(self._safe(lambda _: self._set_path()))
        self._add_viewpoint.on_click(self._safe(lambda _: self._take_viewpoint()))
        self._clear_viewpoints.on_click(self._safe(lambda _: self._forget_viewpoints()))

    def _set_path(self) -> None:
        self._session.set_path(
            name=self._path_name.value,
            num_views=self._num_views.value,
            elevation_deg=self._path_elevation.value,
            start_azimuth_deg=self._start_azimuth.value,
            radius=self._path_radius.value,
            closed=self._closed_path.value,
        )
        self._show_path()

    def _take_viewpoint(self) -> None:
        self._session.add_viewpoint(self._client.camera.position)
        self._show_path()

    def _forget_viewpoints(self) -> None:
        self._session.viewpoints.clear()
        self._show_path()

    def _drag_viewpoint(self, index: int, position: np.ndarray) -> None:
        self._session.move_viewpoint(index, position)
        self._show_path()

    def _drag_target(self, index: int, position: np.ndarray) -> None:
        """Turns and lifts a whole path with one of its cameras."""
        path = self._session.path
        if path.name == CUSTOM_PATH:
            return
        before = spherical_of(self._session.target_c2w()[index, :3, 3])
        azimuth, elevation, _ = spherical_of(position)
        low, high = ELEVATION_RANGE_DEG
        turned = path.start_azimuth_deg + azimuth - before[0]
        lifted = float(np.clip(path.elevation_deg + elevation - before[1], low, high))
        self._session.set_path(start_azimuth_deg=turned, elevation_deg=lifted)
        self._start_azimuth.value = round(self._session.path.start_azimuth_deg)
        self._path_elevation.value = round(lifted)
        self._show_path()

    def _show_path(self) -> None:
        session = self._session
        name = session.path.name
        own = name == CUSTOM_PATH
        own_widgets = (
            self._viewpoints_text,
            self._closed_path,
            self._add_viewpoint,
            self._clear_viewpoints,
        )
        for widget in own_widgets:
            widget.visible = own
        self._start_azimuth.visible = self._path_radius.visible = not own
        self._path_elevation.visible = name in paths.WITH_ELEVATION
        self._scene.show_viewpoints(session.viewpoints if own else [])
        self._scene.show_targets(session.target_c2w(), session.path.leads_back)
        self._draw.show_button()

    def _view_target(self, index: int) -> None:
        self._draw.result.select(index)
