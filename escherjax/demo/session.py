"""One visitor's work: pictures with their cameras, a path, settings. No page, no files."""

from __future__ import annotations

import dataclasses
import math
import os
import re

import numpy as np

from escherjax import cameras
from escherjax.cameras import PUBLISHED_FOV_DEG, paths, splines
from escherjax.data.formats import transforms
from escherjax.demo import photos
from escherjax.demo.labels import safe_label
from escherjax.demo.limits import Limits
from escherjax.demo.photos import Photo
from escherjax.errors import UserError, listed
from escherjax.models.diffusion.sampling import SAMPLERS

RADIUS_RANGE = (1.0, 3.0)  # of the sliders; the published networks saw 1.5 to 2.2
ELEVATION_RANGE_DEG = (-85.0, 85.0)
DEFAULT_RADIUS = 1.8
CUSTOM_PATH = "through my viewpoints"
PATHS = (*paths.PRESETS, CUSTOM_PATH)


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """A picture to start from.

    image: uint8 [R, R, 3] as the network sees it; c2w: [4, 4] float32, OpenCV axes; notes: what was
    done to the picture, and warnings. photo: what it is made from, None for one that came so.
    """

    label: str
    image: np.ndarray
    c2w: np.ndarray
    notes: tuple[str, ...] = ()
    photo: Photo | None = None


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
        return self.closed if self.name == CUSTOM_PATH else paths.is_closed(self.name)


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
    whether the last of these leads on to the first. fov_deg: of all views as they are drawn; zoom:
    [M] >= 1, how much each is enlarged then.
    """

    images: np.ndarray
    reference_c2w: np.ndarray
    target_c2w: np.ndarray
    zoom: np.ndarray
    settings: Settings
    closed: bool = True
    fov_deg: float = PUBLISHED_FOV_DEG

    def K(self, resolution: int) -> np.ndarray:
        """Intrinsics [M, 3, 3] of the enlarged views, of `resolution` pixels."""
        K = cameras.intrinsics_from_fov(math.radians(self.fov_deg), resolution, resolution)
        K = np.tile(K, (len(self.zoom), 1, 1))
        K[:, [0, 1], [0, 1]] *= self.zoom[:, None]
        return K


class Session:
    """Pictures, cameras and path of one visitor; every method checks what it is given.

    resolution: side of the pictures that the network takes, in pixels; fov_deg: their field of
    view. Not safe for threads: whoever shares a session locks it.
    """

    def __init__(
        self,
        resolution: int,
        limits: Limits,
        settings: Settings,
        fov_deg: float = PUBLISHED_FOV_DEG,
    ):
        self.resolution, self.limits, self.settings = resolution, limits, settings
        self.fov_deg = fov_deg
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
        photo = photos.read_photo(label, data, self.limits)
        c2w = _on_sphere(math.fmod(90.0 * len(self.references), 360.0), 0.0, DEFAULT_RADIUS)
        nothing = np.zeros((0, 0, 3), np.uint8)
        self._set_references([*self.references, Reference(label, nothing, c2w, photo=photo)])
        return self.references[-1]

    def add_posed(self, label: str, image: np.ndarray, c2w: np.ndarray) -> None:
        """Adds a picture uint8 [R, R, 3] whose camera [4, 4] is known."""
        self.references.append(Reference(label, image, c2w.astype(np.float32)))

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
            raise UserError(
                f"transforms.json has {len(data)} bytes; needed at most {self.limits.upload_bytes}."
            )
        views = transforms.parse_views(data, "transforms.json")
        by_stem = {_stem(name): (c2w, lens) for name, c2w, lens in views}
        matches = {
            index: by_stem[_stem(reference.label)]
            for index, reference in enumerate(self.references)
            if reference.photo is not None and _stem(reference.label) in by_stem
        }
        if not matches:
            names = ", ".join(safe_label(name) for name, _, _ in views[:3])
            raise UserError(
                f"transforms.json names {names}{', ...' if len(views) > 3 else ''}, none of which "
                "is here; drop the pictures first, then the file."
            )
        c2w, said = _to_training_scale(np.stack([pose for pose, _ in matches.values()]))
        references = list(self.references)
        for (index, (_, lens)), pose in zip(matches.items(), c2w, strict=True):
            old = references[index]
            assert old.photo is not None  # only such are among the matches
            photo = dataclasses.replace(old.photo, lens=lens)
            references[index] = dataclasses.replace(old, c2w=pose, photo=photo)
        self._set_references(references)
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
        return paths.trajectory(
            path.name,
            path.num_views,
            path.radius,
            math.radians(path.elevation_deg),
            math.radians(path.start_azimuth_deg),
        )

    def target_zoom(self, c2w: np.ndarray) -> np.ndarray:
        """How much each of the views [M] is enlarged; 1 but on a dolly zoom."""
        return paths.dolly_zoom(c2w) if self.path.name == "dolly" else np.ones(len(c2w))

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
        self._set_references(self.references)  # objects look smaller from farther away
        return Request(
            images=np.stack([reference.image for reference in self.references]),
            reference_c2w=np.stack([reference.c2w for reference in self.references]),
            target_c2w=targets,
            zoom=self.target_zoom(targets),
            settings=self.settings,
            closed=self.path.leads_back,
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
