"""Reference views as people have them: a scene folder, or photos with cameras named by hand.

`read_inputs` does all at once. `open_views` reads pictures and cameras, before a network is loaded;
its `fit` shows them as that network was trained to see them. What is done to a picture is listed in
`Inputs.notes`.

Photos have no measured cameras. Their object stands at the origin, upright along +z, its front
towards +x. A camera at azimuth 0 sees the front; azimuth grows as the camera walks to its right,
counter-clockwise seen from above:

                 back (180)
                    |
    left (270) --- object --- right (90)      as the photographer in front sees it:
                    |                         `right` is the side at the photo's right
                 front (0)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from escherjax import cameras as cameras_lib
from escherjax import cape
from escherjax.cameras import PUBLISHED_FOV_DEG, Cameras
from escherjax.data.formats import folders
from escherjax.data.images import Photo
from escherjax.data.photos import windows
from escherjax.data.photos.framing import frame_pictures
from escherjax.data.photos.reading import Cutouts, Picture, photo_views, photos_in, scene_views
from escherjax.errors import UserError, for_each, listed

SIDES = {"front": 0.0, "right": 90.0, "back": 180.0, "left": 270.0}  # azimuth in degrees
# EscherNet's protocols with pictures from elsewhere place them so (arXiv 2402.03908, section 4)
DEFAULT_ELEVATION_DEG = 0.0
DEFAULT_RADIUS = 1.5

_MOST_REFERENCES = 3  # of a scene, where none are chosen
_FAR_OUTSIDE = 1.5  # factor beyond the distances of training that is worth a warning


class TrainedWith(Protocol):
    """What warnings need to know of a network; its model card has these fields."""

    @property
    def cape(self) -> str: ...

    @property
    def camera_radius(self) -> tuple[float, float] | None: ...


@dataclasses.dataclass(frozen=True)
class Note:
    """Something done to a picture, or something that may be wrong with it."""

    text: str
    is_warning: bool = False  # whether somebody should read it

    def __str__(self) -> str:
        return f"warning: {self.text}" if self.is_warning else self.text


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Reference views as `Pipeline.generate` takes them."""

    images: np.ndarray  # float32 [N, R, R, 3] in [0, 1], on white
    cameras: Cameras  # c2w [N, 4, 4] and K [N, 3, 3] of these images
    notes: list[Note]  # of each picture what was done to it, its warnings; then the scene's


@dataclasses.dataclass(frozen=True)
class InputViews:
    """Pictures with cameras, before they are fitted to a network."""

    c2w: np.ndarray  # [V, 4, 4] float32 of all views, in the scene's own units
    references: np.ndarray  # indices [N] of the views to start from
    pictures: Mapping[int, Picture]  # of the references, read already
    read: Callable[[int], Picture]  # reads the picture of any view
    recenter: bool = True  # see `fit`
    notes: tuple[Note, ...] = ()  # on the scene as a whole

    @property
    def num_views(self) -> int:
        """Number of views, references or not."""
        return len(self.c2w)

    def fit(
        self,
        resolution: int,
        fov_deg: float | None = PUBLISHED_FOV_DEG,
        views: np.ndarray | None = None,
        scale: float = 1.0,
    ) -> Inputs:
        """The views as a network was trained to see them.

        A picture with intrinsics gets exactly this field of view about its principal point: what is
        beyond it is white, what is too much is cut off. Before a background that is neither white
        nor transparent nothing can be added: such a picture becomes its central square, and a note
        says what differs. A picture without intrinsics whose object can be told from the background
        is framed so that the object is in the middle and as large as in training views
        (`windows.object_windows`), or with `recenter` False padded to a square; any other is cut to
        its central square. K of these is that of the training views, or of the published networks'
        where fov_deg is None.

        Args:
            resolution: side of the images in pixels.
            fov_deg: field of view of training views; None where unknown: pictures keep theirs.
            views: indices of the views; None for the references.
            scale: of the world (see `cameras.normalize_scene`).

        Returns:
            Images, cameras and notes of the views.

        Raises:
            UserError: A picture cannot be used, or the field of view is no camera's.
        """
        windows.check_fov(fov_deg)
        indices = self.references if views is None else np.asarray(views, int)
        chosen = [self.pictures.get(i) or self.read(i) for i in indices.tolist()]
        c2w = self.c2w[indices]
        c2w[:, :3, 3] *= scale
        radii = np.linalg.norm(c2w[:, :3, 3], axis=-1)
        images = np.empty((len(chosen), resolution, resolution, 3), np.float32)
        K = np.empty((len(chosen), 3, 3), np.float32)
        notes = []
        framed = frame_pictures(chosen, radii.tolist(), fov_deg, self.recenter)
        for row, (picture, frame) in enumerate(zip(chosen, framed, strict=True)):
            square, K[row] = windows.resample(picture.pixels, frame.window, resolution, frame.K)
            images[row] = square / np.float32(255)
            height, width = picture.size
            steps = (f"{width} x {height} pixels", *picture.steps, frame.step)
            notes.append(Note(f"{picture.name}: {'; '.join(steps)}"))
            notes += [Note(f"{picture.name} {text}", True) for text in frame.warnings]
        return Inputs(images, Cameras(c2w, K), [*notes, *self.notes])


def read_inputs(
    views: str | Path | Sequence[Photo],
    resolution: int,
    fov_deg: float | None = PUBLISHED_FOV_DEG,
    *,
    max_radius: float | None = None,
    facts: TrainedWith | None = None,
    **options: Any,
) -> Inputs:
    """Reads reference views for `Pipeline.generate`.

    Args:
        views: a scene folder, or photos; see `open_views`.
        resolution: side of the images in pixels.
        fov_deg: field of view of training views in degrees, see `InputViews.fit`.
        max_radius: scales the scene so that its farthest camera stands there; None keeps its units.
        facts: of the network (`pipe.facts`), for warnings about distances that it was not trained
            at.
        **options: further arguments of `open_views`, such as cameras and masks.

    Returns:
        Images float32 [N, resolution, resolution, 3] in [0, 1], their cameras, and notes.

    Raises:
        UserError: Lists what is wrong; see `open_views`.
    """
    opened = open_views(views, **options)
    scale = 1.0
    if max_radius is not None:
        _, scale, _ = cameras_lib.normalize_scene(opened.c2w, max_radius)
    inputs = opened.fit(resolution, fov_deg, scale=scale)
    warnings = [] if facts is None else radius_notes(inputs.cameras.c2w, "references", facts)
    return dataclasses.replace(inputs, notes=inputs.notes + warnings)


def open_views(
    views: str | Path | Sequence[Photo],
    *,
    references: Sequence[int] | None = None,
    cameras: Sequence[str] | Cameras | None = None,
    elevation_deg: float = DEFAULT_ELEVATION_DEG,
    radius: float = DEFAULT_RADIUS,
    photo_fov_deg: float | None = None,
    masks: Sequence[str | Path] = (),
    matting: str | None = None,
    recenter: bool = True,
) -> InputViews:
    """Reads reference pictures and their cameras.

    Args:
        views: a scene folder (transforms.json, Zero123, COLMAP); or photos: a file, a folder in
            order of its names, or a list of files, encoded bytes, uint8 arrays [H, W, 3 or 4] and
            PIL images. Photos are turned upright as their EXIF orientation says; pictures of scenes
            are not.
        references: views to start from; None: the first three of a scene, all photos.
        cameras: of photos, one each: texts (see `named_cameras`), or Cameras, whose K, if any, is
            in pixels of upright photos.
        elevation_deg: of named cameras that do not state theirs, -90 to 90.
        radius: of named cameras that do not state theirs, above 0.
        photo_fov_deg: field of view over the width of each photo, in degrees. With it, or K,
            objects stay where they are.
        masks: a file for each picture, or one folder with NAME.png for each NAME.jpg; they find the
            objects of opaque pictures.
        matting: a model that does so instead, see `matting.open_matting`.
        recenter: see `InputViews.fit`.

    Returns:
        The views; only the references' pictures are read.

    Raises:
        UserError: Lists what is wrong: no cameras, broken or empty pictures, bad poses.
    """
    given: list[Any] = list(views) if isinstance(views, (list, tuple)) else [views]
    folder = _single_folder(given)
    cutouts, K = Cutouts(masks, matting), None
    notes: tuple[Note, ...] = ()
    if folder is not None and cameras is None:
        _check_has_cameras(folder)
        if photo_fov_deg is not None:
            raise UserError(
                f"a field of view of photos is given, but the views of {folder} have intrinsics "
                "of their own; leave it out."
            )
        c2w, read, findings = scene_views(folder, cutouts)
        notes = tuple(Note(f"{folder}: {text}", True) for text in findings.sentences(len(c2w)))
        with_picture = [view for view in range(len(c2w)) if view not in findings.missing]
        first = with_picture[:_MOST_REFERENCES]
    else:
        photos = given if folder is None else photos_in(folder)
        if not photos:
            raise UserError(
                f"{folder or 'views'} holds no pictures; expected PNG, JPEG or WebP files."
            )
        names, read = photo_views(photos, cutouts)
        c2w, K = _photo_cameras(names, cameras, elevation_deg, radius)
        first = list(range(len(c2w)))
    windows.check_fov(photo_fov_deg)

    def read_posed(index: int) -> Picture:
        picture = read(index)
        if K is not None:
            return dataclasses.replace(picture, K=K[index])
        if photo_fov_deg is not None:
            height, width = picture.size
            lens = cameras_lib.intrinsics_from_fov(np.radians(photo_fov_deg), width, height)
            return dataclasses.replace(picture, K=lens)
        return picture

    chosen = _indices(first if references is None else references, len(c2w))
    pictures = dict(zip(chosen.tolist(), for_each(read_posed, chosen.tolist()), strict=True))
    return InputViews(c2w.astype(np.float32), chosen, pictures, read_posed, recenter, notes)


def radius_notes(c2w: np.ndarray, name: str, facts: TrainedWith) -> list[Note]:
    """Warns of cameras [V, 4, 4] far from where those of a network's training stood.

    name: of the cameras. No warning where facts do not state the distances of training.
    """
    if not len(c2w):
        return []
    radii = np.linalg.norm(c2w[:, :3, 3], axis=-1)
    stand = f"{name} stand {radii.min():.3g} to {radii.max():.3g} from the origin"
    advice = ""
    if radii.max() > cape.MAX_RADIUS:
        advice = " --max-radius 1.5 (max_radius=1.5) scales a scene."
    clipped = (radii < cape.MIN_RADIUS - 1e-3) | (radii > cape.MAX_RADIUS + 1e-3)
    if facts.cape.startswith("4dof") and clipped.any():
        limits = f"[{cape.MIN_RADIUS}, {cape.MAX_RADIUS}]"
        effect = f"{clipped.sum()} of {len(radii)} count as standing there"
        return [Note(f"{stand}; 4DoF clips distances to {limits}, so that {effect}.{advice}", True)]
    low, high = facts.camera_radius or (0.0, math.inf)
    if radii.min() < low / _FAR_OUTSIDE or radii.max() > high * _FAR_OUTSIDE:
        return [Note(f"{stand}; the network was trained with {low:g} to {high:g}.{advice}", True)]
    return []


def named_cameras(
    texts: Sequence[str],
    elevation_deg: float = DEFAULT_ELEVATION_DEG,
    radius: float = DEFAULT_RADIUS,
) -> np.ndarray:
    """Poses that look at the origin, from texts.

    Args:
        texts: each AZIMUTH[:ELEVATION[:RADIUS]], azimuth in degrees or one of `SIDES`.
        elevation_deg: of cameras that do not state theirs, -90 to 90.
        radius: of cameras that do not state theirs, above 0.

    Returns:
        c2w float32 [N, 4, 4], OpenCV axes.

    Raises:
        UserError: Lists every text that names no camera.
    """
    problems, placed = [], []
    for text in texts:
        azimuth, *rest = text.strip().lower().split(":")
        try:
            values = [float(SIDES.get(azimuth, azimuth)), *map(float, rest)]
        except ValueError:
            values = []
        if not 1 <= len(values) <= 3 or not all(map(math.isfinite, values)):
            problems.append(
                f"camera {text!r} must be {', '.join(SIDES)} or an azimuth in degrees, then "
                ":elevation and :radius if wanted, such as right or 45:20:1.8."
            )
            continue
        values += [elevation_deg, radius][len(values) - 1 :]
        if not -90 <= values[1] <= 90:
            problems.append(
                f"camera {text!r} has elevation {values[1]:g}; it must be -90 to 90 degrees above "
                "the horizon."
            )
        if not 0 < values[2] < math.inf:
            problems.append(f"camera {text!r} has radius {values[2]:g}; it must be above 0.")
        placed.append(values)
    if problems:
        raise UserError(listed(problems))
    if not placed:
        raise UserError("no cameras are named; name one for each photo, such as front.")
    azimuth_deg, elevations_deg, radii = np.array(placed, np.float64).T
    polar_rad = np.radians(90.0 - elevations_deg)
    return cameras_lib.from_spherical(polar_rad, np.radians(azimuth_deg), radii)


def _single_folder(views: list[Any]) -> Path | None:
    """The folder that is named alone, or None where photos are."""
    if len(views) != 1 or not isinstance(views[0], (str, Path)) or Path(views[0]).is_file():
        return None
    folder = Path(views[0])
    if not folder.is_dir():
        raise UserError(f"{folder} not found; it is neither a folder nor a picture that exists.")
    return folder


def _check_has_cameras(folder: Path) -> None:
    """Raises UserError with advice for a folder of pictures that has no cameras."""
    layout = folders.layout_of(folder)
    is_numbered_photos = layout == "zero123" and not any(folder.glob("*.npy"))
    photos = photos_in(folder)
    if photos and (layout is None or is_numbered_photos):
        raise UserError(
            f"{folder} holds {len(photos)} pictures but no cameras; expected transforms.json, "
            "000.npy beside 000.png, or a COLMAP model in sparse/0. Name cameras, one for each in "
            "order of the names: --cameras front,right,... or 0,45:20,... in degrees; or have them "
            f"found, where photos overlap: python -m data_prep.image_folder --source {folder} "
            "--out SHARDS --scenes SCENES, then --views SCENES/NAME."
        )


def _photo_cameras(
    names: Sequence[str],
    cameras: Sequence[str] | Cameras | None,
    elevation_deg: float,
    radius: float,
) -> tuple[np.ndarray, np.ndarray | None]:
    """(c2w [N, 4, 4], K [N, 3, 3] or None) of photos."""
    if cameras is None:
        raise UserError(
            f"{', '.join(Path(name).name for name in names[:3])}{' ...' if len(names) > 3 else ''} "
            "came without a camera, and each photo must have one. Name where it was taken from: "
            "--camera front, or --cameras front,right,... or 0,45:20,... in degrees."
        )
    K = None
    if isinstance(cameras, Cameras):
        c2w = np.asarray(cameras.c2w, np.float64)
        K = None if cameras.K is None else np.asarray(cameras.K, np.float64)
        cameras_lib.check_poses(c2w, "cameras of photos")
    else:
        c2w = named_cameras(cameras, elevation_deg, radius)
    if c2w.shape != (len(names), 4, 4):
        raise UserError(
            f"{len(names)} photos but {len(c2w)} cameras; give one camera for each photo, in "
            "their order."
        )
    if K is not None:
        if K.shape != (len(names), 3, 3):
            raise UserError(f"K of photos must have shape {(len(names), 3, 3)}, got {K.shape}.")
        if faults := cameras_lib.intrinsics_faults(K):
            raise UserError(f"photos: {listed([text for _, text in faults])}")
    return c2w, K


def _indices(references: Sequence[int], count: int) -> np.ndarray:
    indices = np.asarray(references, int)
    if not len(indices):
        raise UserError("no references are chosen; choose one view at least to start from.")
    if indices.min() < 0 or indices.max() >= count:
        raise UserError(
            f"references {indices.tolist()}: there are views 0 to {count - 1}; choose of these."
        )
    if len(set(indices.tolist())) < len(indices):
        raise UserError(f"references {indices.tolist()} name a view more than once.")
    return indices
