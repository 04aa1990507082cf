"""The 3D view: cameras around the place of the object, with their pictures, to be dragged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

REFERENCE_COLOR, TARGET_COLOR = (214, 96, 31), (31, 105, 196)  # as in contact sheets
_VIEWPOINT_COLOR = (20, 140, 90)
_SELECTED_REFERENCE = (255, 150, 60)
_SCALE, _LARGE = 0.2, 0.28
_PICTURE_PIXELS = 160  # side of the pictures that cameras carry

# (index of the camera, its new position [3])
Moved = Callable[[int, np.ndarray], None]
# what viser calls -> what may safely be called
Wrap = Callable[[Callable[[Any], None]], Callable[[Any], None]]


class SceneView:
    """What one visitor sees in 3D. Every method may be called from any thread that holds his lock.

    fov_deg: of all cameras. wrap: makes a callback safe. on_reference_click(i), on_reference_moved,
    on_target_click(i), on_target_moved, on_viewpoint_moved: what the mouse did.
    """

    def __init__(
        self,
        scene: Any,
        fov_deg: float,
        wrap: Wrap,
        on_reference_click: Callable[[int], None],
        on_reference_moved: Moved,
        on_target_click: Callable[[int], None],
        on_target_moved: Moved,
        on_viewpoint_moved: Moved,
    ):
        self._scene, self._wrap = scene, wrap
        self._fov_rad = float(np.radians(fov_deg))
        self._reference_calls = on_reference_click, on_reference_moved
        self._target_calls = on_target_click, on_target_moved
        self._viewpoint_calls = lambda _: None, on_viewpoint_moved
        self._references: list[Any] = []
        self._targets: list[Any] = []
        self._viewpoints: list[Any] = []
        self._path: Any = None
        self._current: Any = None
        scene.add_grid(
            "/ground", 6.0, 6.0, position=(0, 0, -0.55), cell_size=0.5, section_size=1.0,
            cell_color=(228, 232, 238), section_color=(206, 213, 223), shadow_opacity=0.0,
        )  # fmt: skip
        corners = np.array(np.meshgrid([-0.5, 0.5], [-0.5, 0.5], [-0.5, 0.5])).reshape(3, -1).T
        edges = [(a, b) for a in corners for b in corners if np.isclose(np.abs(a - b).sum(), 1)]
        scene.add_line_segments(
            "/object", np.array(edges, np.float32), (150, 160, 175), thickness=0.006
        )
        scene.add_line_segments(
            "/front",
            np.array([[[0.5, 0, -0.54], [0.95, 0, -0.54]]], np.float32),
            (150, 160, 175),
            thickness=0.012,
        )
        scene.add_label("/front/name", "front", position=(1.0, 0.0, -0.54))

    def show_references(
        self, images: Sequence[np.ndarray], c2w: Sequence[np.ndarray], selected: int
    ) -> None:
        """Draws the pictures given, uint8 [R, R, 3], at their cameras [4, 4], anew."""
        for handle in self._references:
            handle.remove()
        self._references = [
            self._frustum(
                f"/references/{i}", pose, REFERENCE_COLOR, self._reference_calls, i, image
            )
            for i, (image, pose) in enumerate(zip(images, c2w, strict=True))
        ]
        self.select_reference(selected)

    def move_reference(self, index: int, c2w: np.ndarray) -> None:
        """Moves one picture's camera."""
        _place(self._references[index], c2w)

    def select_reference(self, selected: int) -> None:
        """Marks one picture."""
        for i, handle in enumerate(self._references):
            handle.color = _SELECTED_REFERENCE if i == selected else REFERENCE_COLOR
            handle.scale = _LARGE if i == selected else _SCALE

    def show_targets(self, c2w: np.ndarray, closed: bool) -> None:
        """Draws the cameras of a path, [M, 4, 4], without pictures, and the line along them."""
        for handle in self._targets[len(c2w) :]:
            handle.remove()
        del self._targets[len(c2w) :]
        for handle, pose in zip(self._targets, c2w, strict=False):
            _place(handle, pose)
            if handle.image is not None:
                handle.image = None
        for i in range(len(self._targets), len(c2w)):
            self._targets.append(
                self._frustum(f"/targets/{i}", c2w[i], TARGET_COLOR, self._target_calls, i)
            )
        if self._path is not None:
            self._path.remove()
            self._path = None
        if len(c2w) > 1:
            self._path = self._scene.add_spline_catmull_rom(
                "/path",
                c2w[:, :3, 3],
                closed=closed and len(c2w) > 2,
                color=TARGET_COLOR,
                thickness=0.006,
            )

    def show_viewpoints(self, c2w: Sequence[np.ndarray]) -> None:
        """Draws the cameras [4, 4] that the visitor's own path leads through."""
        for handle in self._viewpoints[len(c2w) :]:
            handle.remove()
        del self._viewpoints[len(c2w) :]
        for handle, pose in zip(self._viewpoints, c2w, strict=False):
            _place(handle, pose)
        for i in range(len(self._viewpoints), len(c2w)):
            handle = self._frustum(
                f"/viewpoints/{i}", c2w[i], _VIEWPOINT_COLOR, self._viewpoint_calls, i
            )
            handle.scale = _LARGE
            self._viewpoints.append(handle)

    def show_views(self, c2w: np.ndarray, images: np.ndarray) -> None:
        """Puts pictures uint8 [M, R, R, 3] on the path's cameras, if it still is that path."""
        if len(c2w) != len(self._targets):
            return
        for handle, image in zip(self._targets, images, strict=True):
            handle.image = _small(image)

    def show_current(self, c2w: np.ndarray, image: np.ndarray) -> None:
        """Shows one of the drawn views large at its camera."""
        if self._current is None:
            self._current = self._scene.add_camera_frustum(
                "/current",
                self._fov_rad,
                1.0,
                scale=1.5 * _SCALE,
                thickness=0.02,
                color=TARGET_COLOR,
                cast_shadow=False,
                receive_shadow=False,
            )
        _place(self._current, c2w)
        self._current.image = _small(image)

    def _frustum(
        self,
        name: str,
        c2w: np.ndarray,
        color: tuple[int, int, int],
        calls: tuple[Callable[[int], None], Moved],
        index: int,
        image: np.ndarray | None = None,
    ) -> Any:
        handle = self._scene.add_camera_frustum(
            name,
            self._fov_rad,
            1.0,
            scale=_SCALE,
            thickness=0.012,
            color=color,
            image=None if image is None else _small(image),
            cast_shadow=False,
            receive_shadow=False,
        )
        _place(handle, c2w)
        clicked, moved = calls

        def on_drag(event: Any) -> None:
            grabbed, pointer = np.array(event.start_position), np.array(event.end_position)
            moved(index, np.array(handle.position) + pointer - grabbed)

        handle.on_click(self._wrap(lambda _: clicked(index)))
        handle.on_drag(self._wrap(on_drag))
        return handle


def _place(handle: Any, c2w: np.ndarray) -> None:
    from viser import transforms

    handle.wxyz = transforms.SO3.from_matrix(c2w[:3, :3].astype(np.float64)).wxyz
    handle.position = c2w[:3, 3]


def _small(image: np.ndarray) -> np.ndarray:
    side = min(_PICTURE_PIXELS, 4 * image.shape[0])
    resample = Image.Resampling.NEAREST if side > image.shape[0] else Image.Resampling.BOX
    return np.asarray(Image.fromarray(image).resize((side, side), resample))
