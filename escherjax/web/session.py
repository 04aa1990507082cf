"""One visitor's work: pictures with their cameras, a path, settings. No page, no files."""

from __future__ import annotations

import dataclasses
import io
import math
import os
import re
import unicodedata

import numpy as np

from escherjax import cameras, splines, trajectories
from escherjax.data import images, transforms
from escherjax.errors import UserError, listed
from escherjax.web.limits import Limits

RADIUS_RANGE = (1.0, 3.0)  # of the sliders; the published networks saw 1.5 to 2.2
ELEVATION_RANGE_DEG = (-85.0, 85.0)
DEFAULT_RADIUS = 1.8
SAMPLERS = ("ddim", "dpmpp_2m", "unipc")
CUSTOM_PATH = "through my viewpoints"
PATHS = (*trajectories.PRESETS, CUSTOM_PATH)


@dataclasses.dataclass(frozen=True)
class Reference:
    """A picture to start from. image: uint8 [R, R, 3]; c2w: [4, 4] float32, OpenCV axes."""

    label: str
    image: np.ndarray
    c2w: np.ndarray
    note: str


@dataclasses.dataclass(frozen=True)
class Path:
    """Where the new views are taken from. Angles in degrees; name: one of `PATHS`.

    closed: whether a path through viewpoints leads back to its first.
    """

    name: str = "orbit"
    num_views: int = 12
    elevation_deg: float = 20.0
    start_azimuth_deg: float = 0.0
    radius: float = DEFAULT_RADIUS
    closed: bool = False

    @property
    def leads_back(self) -> bool:
        """Whether the last view leads on to the first."""
        return self.closed if self.name == CUSTOM_PATH else trajectories.is_closed(self.name)


@dataclasses.dataclass(frozen=True)
class Settings:
    """How views are drawn; see `Pipeline.generate`."""

    num_steps: int = 25
    guidance_scale: float = 3.0
    seed: int = 0
    sampler: str = "ddim"


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """All that a drawing needs; nothing in it changes when the visitor goes on.

    images: uint8 [N, R, R, 3]; reference_c2w: [N, 4, 4]; target_c2w: [M, 4, 4], float32; closed:
    whether the last of these leads on to the first.
    """

    images: np.ndarray
    reference_c2w: np.ndarray
    target_c2w: np.ndarray
    settings: Settings
    closed: bool = True


class Session:
    """Pictures, cameras and path of one visitor; every method checks what it is given.

    resolution: side of the pictures that the network takes, in pixels. Not safe for threads:
    whoever shares a session locks it.
    """

    def __init__(self, resolution: int, limits: Limits, settings: Settings):
        self.resolution, self.limits, self.settings = resolution, limits, settings
        self.references: list[Reference] = []
        self.viewpoints: list[np.ndarray] = []  # c2w of the visitor's own path
        self.path = Path(num_views=min(Path.num_views, limits.targets))

    def add_picture(self, name: str, data: bytes) -> Reference:
        """Reads a picture and gives it the next free side of the object as its camera.

        name: as the visitor's file is called; it is shown, never opened. data: the file's bytes.
        Raises UserError for too many, too large or broken pictures.
        """
        if len(self.references) >= self.limits.references:
            raise UserError(
                f"{len(self.references)} pictures are here already, the most that this page takes; "
                "remove one first."
            )
        label = safe_label(name)
        image, note = _read_picture(label, data, self.resolution, self.limits)
        azimuth = 90.0 * len(self.references)
        c2w = _on_sphere(math.fmod(azimuth, 360.0), 0.0, DEFAULT_RADIUS)
        reference = Reference(label, image, c2w, note)
        self.references.append(reference)
        return reference

    def add_posed(self, label: str, image: np.ndarray, c2w: np.ndarray) -> None:
        """Adds a picture uint8 [R, R, 3] whose camera [4, 4] is known."""
        self.references.append(Reference(label, image, c2w.astype(np.float32), ""))

    def clear(self) -> None:
        """Forgets all pictures."""
        self.references.clear()

    def remove(self, index: int) -> None:
        """Forgets one picture."""
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

        data: the file's bytes. Pictures are found by their file names without folder and suffix;
        no name in the file is opened. A world of another scale is scaled so that the farthest
        camera stands at the far end of what networks are trained on. Returns what was done.
        Raises UserError if the file cannot be used or names none of the pictures.
        """
        if len(data) > self.limits.upload_bytes:
            raise UserError(f"transforms.json has {len(data)} bytes; needed at most "
                            f"{self.limits.upload_bytes}.")  # fmt: skip
        poses = transforms.parse_cameras(data, "transforms.json")
        by_stem = {_stem(name): c2w for name, c2w in poses}
        matches = {
            index: by_stem[_stem(reference.label)]
            for index, reference in enumerate(self.references)
            if _stem(reference.label) in by_stem
        }
        if not matches:
            names = ", ".join(safe_label(name) for name, _ in poses[:3])
            raise UserError(
                f"transforms.json names {names}{', ...' if len(poses) > 3 else ''}, none of which "
                "is here; drop the pictures first, then the file."
            )
        c2w, said = _to_training_scale(np.stack(list(matches.values())))
        for index, pose in zip(matches, c2w, strict=True):
            self.references[index] = dataclasses.replace(self.references[index], c2w=pose)
        left = len(self.references) - len(matches)
        rest = f" {left} pictures are not in it and keep their cameras." if left else ""
        return f"Cameras of {len(matches)} pictures read.{said}{rest}"

    def set_path(self, **changes: str | float) -> None:
        """Changes fields of the path. Raises UserError listing every value out of range."""
        path = dataclasses.replace(self.path, **changes)  # type: ignore[arg-type]
        problems = []
        if path.name not in PATHS:
            problems.append(f"path '{safe_label(str(path.name))}'; needed one of {PATHS}.")
        if not 1 <= path.num_views <= self.limits.targets:
            problems.append(f"{path.num_views} views; needed 1 to {self.limits.targets}.")
        if problems:
            raise UserError(listed(problems))
        spherical = checked_spherical(path.start_azimuth_deg, path.elevation_deg, path.radius)
        azimuth, elevation, radius = spherical
        self.path = dataclasses.replace(
            path, start_azimuth_deg=azimuth, elevation_deg=elevation, radius=radius
        )

    def set_settings(self, **changes: str | float) -> None:
        """Changes how views are drawn. Raises UserError listing every value out of range."""
        settings = dataclasses.replace(self.settings, **changes)  # type: ignore[arg-type]
        problems = []
        if not 1 <= settings.num_steps <= self.limits.steps:
            problems.append(f"{settings.num_steps} steps; needed 1 to {self.limits.steps}.")
        if not 0 <= settings.guidance_scale <= 20:
            problems.append(f"guidance {settings.guidance_scale}; needed 0 to 20.")
        if not 0 <= settings.seed < 2**31:
            problems.append(f"seed {settings.seed}; needed 0 to {2**31 - 1}.")
        if settings.sampler not in SAMPLERS:
            problems.append(f"sampler '{safe_label(str(settings.sampler))}'; needed {SAMPLERS}.")
        if problems:
            raise UserError(listed(problems))
        self.settings = settings

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

    def target_c2w(self) -> np.ndarray:
        """Cameras of the new views, [M, 4, 4] float32; none of a path without viewpoints."""
        path = self.path
        if path.name == CUSTOM_PATH and len(self.viewpoints) < 2:
            return np.array(self.viewpoints, np.float32).reshape(-1, 4, 4)
        if path.name == CUSTOM_PATH:
            closed = path.closed and len(self.viewpoints) > 2
            return splines.spline(np.stack(self.viewpoints), path.num_views, closed)
        return trajectories.trajectory(
            path.name, path.num_views, path.radius, math.radians(path.elevation_deg),
            math.radians(path.start_azimuth_deg),
        )  # fmt: skip

    def request(self) -> Request:
        """What is to be drawn now. Raises UserError naming everything that is missing."""
        targets = self.target_c2w()
        problems = []
        if not self.references:
            problems.append("There is no picture yet: drop one, or take the example.")
        if not len(targets):
            problems.append("The path has no viewpoint yet: add some, or choose another path.")
        if problems:
            raise UserError(listed(problems))
        return Request(
            images=np.stack([reference.image for reference in self.references]),
            reference_c2w=np.stack([reference.c2w for reference in self.references]),
            target_c2w=targets,
            settings=self.settings,
            closed=self.path.leads_back,
        )

    def _check_index(self, index: int) -> None:
        if not 0 <= index < len(self.references):
            raise UserError(f"there is no picture {index + 1}; there are {len(self.references)}.")


def safe_label(name: str, most: int = 40) -> str:
    """A client's file name as text to show: no folders, no control characters, not long."""
    base = re.split(r"[/\\]", name)[-1]
    kept = "".join(c for c in base if unicodedata.category(c)[0] not in "CZ" or c == " ").strip()
    if len(kept) > most:
        stem, suffix = os.path.splitext(kept)
        suffix = suffix[:8]
        kept = stem[: most - 1 - len(suffix)] + "…" + suffix
    return kept or "unnamed"


def spherical_of(position: np.ndarray) -> tuple[float, float, float]:
    """(azimuth_deg, elevation_deg, radius) nearest to `position` [3] that the sliders can say."""
    place = np.asarray(position, np.float64)
    if place.shape != (3,) or not np.isfinite(place).all():
        raise UserError("a camera's position is no three finite numbers.")
    radius = float(np.linalg.norm(place))
    azimuth = math.degrees(math.atan2(place[1], place[0]))
    elevation = math.degrees(math.asin(place[2] / radius)) if radius > 0 else 0.0
    low, high = ELEVATION_RANGE_DEG
    return azimuth, float(np.clip(elevation, low, high)), float(np.clip(radius, *RADIUS_RANGE))


def checked_spherical(
    azimuth_deg: float, elevation_deg: float, radius: float
) -> tuple[float, float, float]:
    """The same with azimuth in [-180, 180]; UserError listing every value out of range."""
    problems = []
    if not math.isfinite(azimuth_deg):
        problems.append(f"azimuth {azimuth_deg}; needed degrees.")
    for name, value, (low, high) in (
        ("elevation", elevation_deg, ELEVATION_RANGE_DEG),
        ("radius", radius, RADIUS_RANGE),
    ):
        if not low <= value <= high:  # also NaN
            problems.append(f"{name} {value}; needed {low:g} to {high:g}.")
    if problems:
        raise UserError(listed(problems))
    return math.remainder(azimuth_deg, 360.0), float(elevation_deg), float(radius)


def _on_sphere(azimuth_deg: float, elevation_deg: float, radius: float) -> np.ndarray:
    polar = np.float32(math.radians(90.0 - elevation_deg))
    return cameras.from_spherical(polar, np.float32(math.radians(azimuth_deg)), np.float32(radius))


def _to_training_scale(c2w: np.ndarray) -> tuple[np.ndarray, str]:
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


def _read_picture(
    label: str, data: bytes, resolution: int, limits: Limits
) -> tuple[np.ndarray, str]:
    """(uint8 [R, R, 3] on white, what was done)."""
    if len(data) > limits.upload_bytes:
        raise UserError(
            f"{label} has {len(data) / 2**20:.1f} MB; needed at most "
            f"{limits.upload_bytes / 2**20:.0f} MB. Shrink it first."
        )
    height, width = images.picture_size(io.BytesIO(data), label)
    if height * width > limits.picture_pixels:
        raise UserError(
            f"{label} has {width} x {height} pixels; needed at most "
            f"{limits.picture_pixels / 1e6:.0f} million in all. Shrink it first."
        )
    picture, orientation = images.decode_tagged(data, label)
    picture = images.turn_upright(picture, orientation)
    if picture.shape[-1] == 4 and picture[..., 3].max() == 0:
        raise UserError(f"{label} is transparent everywhere; needed a picture of something.")
    square, _ = images.square_crop(picture, np.eye(3))
    flat = images.on_background(square, images.WHITE)
    note = f"{width} x {height}"
    if square.shape[0] != max(picture.shape[:2]):
        note += ", cut to its central square"
    if picture.shape[-1] == 4:
        note += ", transparency on white"
    return images.resize_image(flat, resolution, resolution), note
