"""One visitor's work: pictures with cameras, a path, sampling settings. No page, no files."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from typing import Any

import numpy as np

from escherjax import cameras
from escherjax.cameras import PUBLISHED_FOV_DEG, paths
from escherjax.data.formats import transforms
from escherjax.data.inputs import Note
from escherjax.demo import photos
from escherjax.demo.limits import Limits, safe_label
from escherjax.demo.photos import Photo
from escherjax.errors import UserError, listed
from escherjax.models.diffusion.sampling import Sampling
from escherjax.sample import targets
from escherjax.sample.targets import PathOptions, Targets

RADIUS_RANGE = (1.0, 3.0)  # of the sliders; the published networks saw 1.5 to 2.2
ELEVATION_RANGE_DEG = (-85.0, 85.0)
DEFAULT_RADIUS = 1.8
MAX_GUIDANCE, MAX_SEED = 20.0, 2**31 - 1
CUSTOM_PATH = "through my viewpoints"
PATHS = (*paths.PRESETS, CUSTOM_PATH)


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """A picture to start from."""

    label: str
    image: np.ndarray  # uint8 [R, R, 3] as the network sees it
    c2w: np.ndarray  # [4, 4] float32, OpenCV axes
    notes: tuple[Note, ...] = ()  # what was done to the picture, and warnings
    photo: Photo | None = None  # what it is made from; None for one that came framed


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """Everything that generating views needs; unchanged by what the visitor does afterwards."""

    images: np.ndarray  # uint8 [N, R, R, 3]
    reference_c2w: np.ndarray  # [N, 4, 4] float32
    targets: Targets  # cameras and zoom of the M views
    sampling: Sampling
    fov_deg: float = PUBLISHED_FOV_DEG  # of all views as they are generated, before the zoom

    def K(self, resolution: int) -> np.ndarray:
        """Intrinsics [M, 3, 3] of the enlarged views, for `resolution` pixels."""
        K = cameras.intrinsics_from_fov(math.radians(self.fov_deg), resolution, resolution)
        K = np.tile(K, (len(self.targets.zoom), 1, 1))
        K[:, [0, 1], [0, 1]] *= self.targets.zoom[:, None]
        return K


class Session:
    """Pictures, cameras and path of one visitor; every method checks what it is given.

    Not safe for threads: whoever shares a session locks it.
    """

    def __init__(
        self,
        resolution: int,
        limits: Limits,
        sampling: Sampling,
        fov_deg: float = PUBLISHED_FOV_DEG,
    ):
        """resolution, fov_deg: of the pictures that the network takes, in pixels and degrees."""
        self.resolution, self.limits, self.sampling = resolution, limits, sampling
        self.fov_deg = fov_deg
        self.references: list[Reference] = []
        self.viewpoints: list[np.ndarray] = []  # c2w of the visitor's own path
        self.path_name = PATHS[0]
        self.path = PathOptions(
            min(12, limits.targets), DEFAULT_RADIUS, elevation_deg=20.0, start_azimuth_deg=0.0
        )

    def add_picture(self, name: str, data: bytes) -> Reference:
        """Reads a picture and gives it the next free side of the object as its camera.

        name: of the visitor's file; it is shown, never opened. data: the file's bytes.
        Raises UserError for too many, too large or broken pictures.
        """
        if len(self.references) >= self.limits.references:
            raise UserError(
                f"{len(self.references)} pictures are here already, the most that this page takes; "
                "remove one first."
            )
        label = safe_label(name)
        photo = photos.read_photo(label, data, self.limits)
        c2w = _on_sphere(math.fmod(90.0 * len(self.references), 360.0), 0.0, DEFAULT_RADIUS)
        nothing = np.zeros((0, 0, 3), np.uint8)
        self._set_references([*self.references, Reference(label, nothing, c2w, photo=photo)])
        return self.references[-1]

    def add_posed(self, label: str, image: np.ndarray, c2w: np.ndarray) -> None:
        """Adds a framed picture uint8 [R, R, 3] whose camera [4, 4] is known."""
        self.references.append(Reference(label, image, c2w.astype(np.float32)))

    def clear(self) -> None:
        """Removes all pictures."""
        self.references.clear()

    def remove(self, index: int) -> None:
        """Removes one picture."""
        self._check_index(index)
        del self.references[index]

    def set_camera(
        self, index: int, azimuth_deg: float, elevation_deg: float, radius: float
    ) -> None:
        """Puts a picture's camera on a sphere, looking at the object; azimuth 0 is its front."""
        self._check_index(index)
        c2w = _on_sphere(*checked_spherical(azimuth_deg, elevation_deg, radius))
        self.references[index] = dataclasses.replace(self.references[index], c2w=c2w)

    def read_cameras(self, data: bytes) -> str:
        """Takes the cameras of a transforms.json for the pictures that it names.

        data: the file's bytes. Pictures are matched by file name without folder and suffix; no name
        in the file is opened. A world of another scale is scaled so that the farthest camera stands
        at the far end of what networks are trained on. Returns what was done, for the visitor.
        Raises UserError if the file cannot be used or names none of the pictures.
        """
        if len(data) > self.limits.upload_bytes:
            raise UserError(
                f"transforms.json must have at most {self.limits.upload_bytes} bytes, got "
                f"{len(data)}."
            )
        views = transforms.parse_views(data, "transforms.json")
        by_stem = {_stem(name): (c2w, lens) for name, c2w, lens in views}
        references = list(self.references)
        matches = {
            row: by_stem[_stem(reference.label)]
            for row, reference in enumerate(references)
            if reference.photo is not None and _stem(reference.label) in by_stem
        }
        if not matches:
            names = ", ".join(safe_label(name) for name, _, _ in views[:3])
            raise UserError(
                f"transforms.json names {names}{', ...' if len(views) > 3 else ''}, none of which "
                "is here; drop the pictures first, then the file."
            )
        c2w, scaling = _to_training_scale(np.stack([pose for pose, _ in matches.values()]))
        for (row, (_, lens)), pose in zip(matches.items(), c2w, strict=True):
            photo = references[row].photo
            assert photo is not None  # only such are among the matches
            photo = dataclasses.replace(photo, lens=lens)
            references[row] = dataclasses.replace(references[row], c2w=pose, photo=photo)
        self._set_references(references)
        left = len(references) - len(matches)
        rest = f" {left} pictures are not in it and keep their cameras." if left else ""
        return f"Cameras of {len(matches)} pictures read.{scaling}{rest}"

    def set_path(self, name: str | None = None, **changes: Any) -> None:
        """Changes the path, one of `PATHS`, or fields of its `PathOptions`.

        Raises UserError listing every value out of range.
        """
        name, path = name or self.path_name, dataclasses.replace(self.path, **changes)
        problems = []
        if name not in PATHS:
            problems.append(f"the path must be one of {', '.join(PATHS)}, got {safe_label(name)}.")
        if not 1 <= path.num_views <= self.limits.targets:
            problems.append(f"views must be 1 to {self.limits.targets}, got {path.num_views}.")
        if problems:
            raise UserError(listed(problems))
        azimuth, elevation, radius = checked_spherical(
            path.start_azimuth_deg or 0.0, path.elevation_deg or 0.0, path.radius or 0.0
        )
        self.path_name = name
        self.path = dataclasses.replace(
            path, start_azimuth_deg=azimuth, elevation_deg=elevation, radius=radius
        )

    def set_sampling(self, **changes: Any) -> None:
        """Changes how views are sampled. Raises UserError listing every value out of range."""
        values = dataclasses.asdict(self.sampling) | changes
        limits = {
            "num_steps": self.limits.steps,
            "guidance_scale": MAX_GUIDANCE,
            "seed": MAX_SEED,
        }
        problems = [
            f"{name} must be at most {most}, got {values[name]}."
            for name, most in limits.items()
            if values[name] > most
        ]
        try:
            sampling = Sampling(**values)
        except UserError as error:
            problems.append(str(error))
        if problems:
            raise UserError(listed(problems))
        self.sampling = sampling

    def add_viewpoint(self, position: np.ndarray) -> None:
        """Adds a camera at `position` [3], looking at the object, to the visitor's own path."""
        if len(self.viewpoints) >= self.limits.viewpoints:
            raise UserError(f"{len(self.viewpoints)} viewpoints are the most; remove some first.")
        c2w = _on_sphere(*spherical_of(position))
        if self.viewpoints and np.allclose(self.viewpoints[-1], c2w, atol=1e-3):
            raise UserError("that is the last viewpoint again; turn the 3D view first.")
        self.viewpoints.append(c2w)

    def move_viewpoint(self, index: int, position: np.ndarray) -> None:
        """Moves a camera of the visitor's own path; it goes on looking at the object."""
        if not 0 <= index < len(self.viewpoints):
            raise UserError(f"there is no viewpoint {index + 1}.")
        self.viewpoints[index] = _on_sphere(*spherical_of(position))

    def targets(self) -> Targets:
        """Cameras of the M new views; of the visitor's own path none before it has viewpoints."""
        path, is_own = self.path, self.path_name == CUSTOM_PATH
        through = np.array(self.viewpoints, np.float32).reshape(-1, 4, 4)
        if is_own and len(through) < 2:
            return Targets(through, np.ones(len(through)), is_path=True, closed=False, settings={})
        if is_own:
            options = PathOptions(path.num_views, closed=path.closed and len(through) > 2)
            name = targets.SPLINE
        else:
            name, through = self.path_name, _on_sphere(0.0, 0.0, DEFAULT_RADIUS)[None]
            known = ("radius", "elevation_deg", "start_azimuth_deg")
            chosen = {
                field: getattr(path, field) for field in known if targets.accepts(name, field)
            }
            options = PathOptions(path.num_views, **chosen)
        return targets.choose(name, options, through, np.arange(len(through)))

    def request(self) -> Request:
        """What is to be generated now. Raises UserError naming everything that is missing."""
        chosen = self.targets()
        problems = []
        if not self.references:
            problems.append("There is no picture yet: drop one, or take the example.")
        if not len(chosen.c2w):
            problems.append("The path has no viewpoint yet: add some, or choose another path.")
        if problems:
            raise UserError(listed(problems))
        self._set_references(self.references)  # objects look smaller from farther away
        return Request(
            images=np.stack([reference.image for reference in self.references]),
            reference_c2w=np.stack([reference.c2w for reference in self.references]),
            targets=chosen,
            sampling=self.sampling,
            fov_deg=self.fov_deg,
        )

    def _set_references(self, references: list[Reference]) -> None:
        """Takes these references, all or none, their photos framed together for their cameras."""
        framed = list(references)
        uploaded = {row: r.photo for row, r in enumerate(references) if r.photo is not None}
        pictures = photos.frame_photos(
            [(references[i].label, photo, references[i].c2w) for i, photo in uploaded.items()],
            self.resolution,
            self.fov_deg,
        )
        for row, (image, notes) in zip(uploaded, pictures, strict=True):
            framed[row] = dataclasses.replace(references[row], image=image, notes=notes)
        self.references = framed

    def _check_index(self, index: int) -> None:
        if not 0 <= index < len(self.references):
            raise UserError(f"there is no picture {index + 1}; there are {len(self.references)}.")


def spherical_of(position: np.ndarray) -> tuple[float, float, float]:
    """Returns the (azimuth_deg, elevation_deg, radius) nearest to `position` [3] within ranges."""
    place = np.asarray(position, np.float64)
    if place.shape != (3,) or not np.isfinite(place).all():
        raise UserError("a camera's position must be three finite numbers.")
    radius = float(np.linalg.norm(place))
    azimuth = math.degrees(math.atan2(place[1], place[0]))
    elevation = math.degrees(math.asin(place[2] / radius)) if radius > 0 else 0.0
    low, high = ELEVATION_RANGE_DEG
    return azimuth, float(np.clip(elevation, low, high)), float(np.clip(radius, *RADIUS_RANGE))


def checked_spherical(
    azimuth_deg: float, elevation_deg: float, radius: float
) -> tuple[float, float, float]:
    """Returns the same, azimuth in [-180, 180]; raises UserError listing values out of range."""
    problems = []
    if not math.isfinite(azimuth_deg):
        problems.append(f"azimuth must be degrees, got {azimuth_deg}.")
    for name, value, (low, high) in (
        ("elevation", elevation_deg, ELEVATION_RANGE_DEG),
        ("radius", radius, RADIUS_RANGE),
    ):
        if not low <= value <= high:  # also NaN
            problems.append(f"{name} must be {low:g} to {high:g}, got {value}.")
    if problems:
        raise UserError(listed(problems))
    return math.remainder(azimuth_deg, 360.0), float(elevation_deg), float(radius)


def _on_sphere(azimuth_deg: float, elevation_deg: float, radius: float) -> np.ndarray:
    polar = np.float32(math.radians(90.0 - elevation_deg))
    return cameras.from_spherical(polar, np.float32(math.radians(azimuth_deg)), np.float32(radius))


def _to_training_scale(c2w: np.ndarray) -> tuple[np.ndarray, str]:
    """Returns poses at distances that networks know, and a sentence on what was done."""
    radius = np.linalg.norm(c2w[:, :3, 3], axis=-1)
    low, high = RADIUS_RANGE
    if low <= radius.min() and radius.max() <= high:
        return c2w, ""
    scaled, scale, _ = cameras.normalize_scene(c2w, 2.2)
    return scaled, (
        f" They stand {radius.min():.3g} to {radius.max():.3g} from the origin; the world was "
        f"scaled by {scale:.3g}, so that the farthest stands at 2.2."
    )


def _stem(name: str) -> str:
    return os.path.splitext(re.split(r"[/\\]", name)[-1])[0].lower()
