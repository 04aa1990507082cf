"""The 3D view: cameras around the place of the object, with their pictures, to be dragged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

REFERENCE_COLOR, TARGET_COLOR = (214, 96, 31), (31, 105, 196)  # as in contact sheets
_VIEWPOINT_COLOR, _SELECTED_REFERENCE = (20, 140, 90), (255, 150, 60)
_LINE_COLOR = (150, 160, 175)
_SCALE, _LARGE = 0.2, 0.28
_PICTURE_PIXELS = 160  # side of the pictures that cameras carry

Color = tuple[int, int, int]
# (index of the camera, its new position [3])
Moved = Callable[[int, np.ndarray], None]
# what viser calls -> what may safely be called
Wrap = Callable[[Callable[[Any], None]], Callable[[Any], None]]
# what the mouse does to the cameras of one group: a click, a drag
Mouse = tuple[Callable[[int], None], Moved]


class SceneView:
    """What one visitor sees in 3D. Every method may be called from any thread that holds his lock.

    fov_deg: of all cameras. wrap: makes a callback safe. The rest: what the mouse does to the
    cameras of pictures, of new views, and of the visitor's own path.
    """

    def __init__(
        self,
        scene: Any,
        fov_deg: float,
        wrap: Wrap,
        on_references: Mouse,
        on_targets: Mouse,
        on_viewpoints: Mouse,
    ):
        self._scene, self._fov_rad = scene, float(np.radians(fov_deg))
        add, group = self._add_frustum, _CameraGroup
        self._references = group(add, "/references", REFERENCE_COLOR, _SCALE, wrap, on_references)
        self._targets = group(add, "/targets", TARGET_COLOR, _SCALE, wrap, on_targets)
        self._viewpoints = group(add, "/viewpoints", _VIEWPOINT_COLOR, _LARGE, wrap, on_viewpoints)
        self._path: Any = None
        self._current: Any = None
        scene.add_grid(
            "/ground", 6.0, 6.0, position=(0, 0, -0.55), cell_size=0.5, section_size=1.0,
            cell_color=(228, 232, 238), section_color=(206, 213, 223), shadow_opacity=0.0,
        )  # fmt: skip
        corners = np.array(np.meshgrid([-0.5, 0.5], [-0.5, 0.5], [-0.5, 0.5])).reshape(3, -1).T
        edges = [(a, b) for a in corners for b in corners if np.isclose(np.abs(a - b).sum(), 1)]
        front = [[[0.5, 0, -0.54], [0.95, 0, -0.54]]]
        for name, segments, thickness in (("/object", edges, 0.006), ("/front", front, 0.012)):
            points = np.array(segments, np.float32)
            scene.add_line_segments(name, points, _LINE_COLOR, thickness=thickness)
        scene.add_label("/front/name", "front", position=(1.0, 0.0, -0.54))

    def show_references(
        self, images: Sequence[np.ndarray], c2w: Sequence[np.ndarray], selected: int
    ) -> None:
        """Shows the visitor's pictures, uint8 [R, R, 3], at their cameras [4, 4]."""
        self._references.show(c2w, images)
        self.select_reference(selected)

    def move_reference(self, index: int, c2w: np.ndarray) -> None:
        """Moves one picture's camera."""
        _place(self._references.handles[index], c2w)

    def select_reference(self, selected: int) -> None:
        """Marks one picture."""
        for i, handle in enumerate(self._references.handles):
            handle.color = _SELECTED_REFERENCE if i == selected else REFERENCE_COLOR
            handle.scale = _LARGE if i == selected else _SCALE

    def show_targets(self, c2w: np.ndarray, closed: bool) -> None:
        """Shows the cameras of a path, [M, 4, 4], without pictures, and the line along them."""
        self._targets.show(c2w)
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
        """Shows the cameras [4, 4] that the visitor's own path leads through."""
        self._viewpoints.show(c2w)

    def show_views(self, c2w: np.ndarray, images: np.ndarray) -> None:
        """Puts pictures uint8 [M, R, R, 3] on the path's cameras, if it still is that path."""
        if len(c2w) == len(self._targets.handles):
            for handle, image in zip(self._targets.handles, images, strict=True):
                handle.image = _small(image)

    def show_current(self, c2w: np.ndarray, image: np.ndarray) -> None:
        """Shows one of the generated views large at its camera."""
        if self._current is None:
            self._current = self._add_frustum("/current", TARGET_COLOR, 1.5 * _SCALE, 0.02)
        _place(self._current, c2w)
        self._current.image = _small(image)

    def _add_frustum(self, name: str, color: Color, scale: float, thickness: float = 0.012) -> Any:
        """Adds a camera without a picture; returns viser's handle of it."""
        return self._scene.add_camera_frustum(
            name,
            self._fov_rad,
            1.0,
            scale=scale,
            thickness=thickness,
            color=color,
            cast_shadow=False,
            receive_shadow=False,
        )


class _CameraGroup:
    """Cameras of one colour, which the mouse clicks and drags."""

    def __init__(
        self,
        add: Callable[[str, Color, float], Any],
        name: str,
        color: Color,
        scale: float,
        wrap: Wrap,
        mouse: Mouse,
    ):
        self._add, self._name, self._color, self._scale = add, name, color, scale
        self._wrap, (self._clicked, self._moved) = wrap, mouse
        self.handles: list[Any] = []

    def show(
        self, c2w: Sequence[np.ndarray] | np.ndarray, images: Sequence[np.ndarray] = ()
    ) -> None:
        """Shows these cameras [4, 4] and no others, with pictures uint8 [R, R, 3] or without."""
        for handle in self.handles[len(c2w) :]:
            handle.remove()
        del self.handles[len(c2w) :]
        for i, pose in enumerate(c2w):
            if i == len(self.handles):
                self.handles.append(self._added(i))
            _place(self.handles[i], pose)
            if images or self.handles[i].image is not None:
                self.handles[i].image = _small(images[i]) if images else None

    def _added(self, index: int) -> Any:
        handle = self._add(f"{self._name}/{index}", self._color, self._scale)

        def on_drag(event: Any) -> None:
            grabbed, pointer = np.array(event.start_position), np.array(event.end_position)
            self._moved(index, np.array(handle.position) + pointer - grabbed)

        handle.on_click(self._wrap(lambda _: self._clicked(index)))
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
