"""Cameras of photos without any: COLMAP's structure from motion, run by pycolmap on the CPU.

Every step runs in one thread from a fixed seed: the same photos give the same model. COLMAP is
given plain RGB copies of the photos, turned upright, since it ends the whole process on some files
and takes no notice of orientation tags.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from escherjax.data import images
from escherjax.data.formats import colmap
from escherjax.errors import UserError

MIN_REGISTERED = 3
SEED = 0
# Tags that COLMAP takes the focal length and the kind of camera from
CAMERA_TAGS = (ExifTags.Base.Make, ExifTags.Base.Model)
LENS_TAGS = (
    ExifTags.Base.FocalLength,
    ExifTags.Base.FocalLengthIn35mmFilm,
    ExifTags.Base.FocalPlaneXResolution,
    ExifTags.Base.FocalPlaneResolutionUnit,
)


@dataclasses.dataclass(frozen=True)
class Model:
    """A COLMAP model of a folder of photos.

    model: folder of cameras.bin and images.bin; pictures: folder of the copies that it names.
    left_out: photos without a camera, by name, with the reason.
    """

    model: Path
    pictures: Path
    left_out: dict[str, str]


def reconstruct(photos: Sequence[Path], working: Path, matcher: str) -> Model:
    """Finds the cameras of photos of one place; the largest model counts.

    working: an empty folder for copies, database and model. matcher: "exhaustive", or "sequential"
    for the frames of a walk, in order of their names.
    Photos of one size, camera and focal length share one lens.
    Raises UserError if fewer than 3 photos can be read or registered.
    """
    pycolmap = colmap.load_pycolmap()
    pictures, database, models = working / "images", working / "database.db", working / "sparse"
    pycolmap.logging.minloglevel = int(pycolmap.logging.ERROR)
    pictures.mkdir()
    models.mkdir()
    lenses, left_out = _copy(photos, pictures)
    copied = sum(map(len, lenses.values()))
    if copied < MIN_REGISTERED:
        reasons = "; ".join(left_out.values())
        raise UserError(
            f"{copied} photos can be read; at least {MIN_REGISTERED} are needed. {reasons}"
        )
    extraction = pycolmap.FeatureExtractionOptions(num_threads=1, use_gpu=False)
    matching = pycolmap.FeatureMatchingOptions(num_threads=1, use_gpu=False)
    verification = pycolmap.TwoViewGeometryOptions()
    verification.ransac.random_seed = SEED
    mapping = pycolmap.IncrementalPipelineOptions(
        num_threads=1, random_seed=SEED, min_model_size=MIN_REGISTERED, extract_colors=False
    )
    mapping.mapper.num_threads = 1
    mapping.mapper.random_seed = mapping.triangulation.random_seed = SEED
    for names in lenses.values():
        pycolmap.extract_features(
            database,
            pictures,
            image_names=names,
            camera_mode=pycolmap.CameraMode.SINGLE,
            extraction_options=extraction,
            device=pycolmap.Device.cpu,
        )
    match = {"exhaustive": pycolmap.match_exhaustive, "sequential": pycolmap.match_sequential}
    match[matcher](
        database,
        matching_options=matching,
        verification_options=verification,
        device=pycolmap.Device.cpu,
    )
    found = pycolmap.incremental_mapping(database, pictures, models, mapping)
    sizes = {number: model.num_reg_images() for number, model in found.items()}
    best = max(sizes, key=lambda number: (sizes[number], -number), default=None)
    if best is None or sizes[best] < MIN_REGISTERED:
        raise UserError(
            f"COLMAP registered {sizes.get(best, 0)} of {copied} photos; at least "
            f"{MIN_REGISTERED} are needed. "
            "Take more photos, sharp and overlapping, of something with texture."
        )
    registered = {image.name for image in found[best].images.values() if image.has_pose}
    for names in lenses.values():
        for name in sorted(set(names) - registered):
            left_out[name.removesuffix(".png")] = "COLMAP could not register it"
    return Model(models / str(best), pictures, dict(sorted(left_out.items())))


def _copy(photos: Sequence[Path], folder: Path) -> tuple[dict[tuple, list[str]], dict[str, str]]:
    """Writes NAME.png for each photo NAME that can be read.

    Returns (names of the copies that share a lens, by what they share; photos left out).
    """
    lenses: dict[tuple, list[str]] = {}
    left_out = {}
    for path in photos:
        try:
            picture, _ = images.load_picture(path, str(path))
        except UserError as error:
            left_out[path.name] = str(error)
            continue
        picture = images.on_background(picture, images.WHITE)
        exif, key = _lens(path)
        name = f"{path.name}.png"
        Image.fromarray(np.ascontiguousarray(picture)).save(
            folder / name, compress_level=1, exif=exif
        )
        lenses.setdefault((picture.shape[:2], key), []).append(name)
    return lenses, left_out


def _lens(path: Path) -> tuple[Image.Exif, tuple[str, ...]]:
    """(the tags about its lens alone, what photos of the same lens share)."""
    kept = Image.Exif()
    with Image.open(path) as image:
        exif = image.getexif()
        lens = exif.get_ifd(ExifTags.IFD.Exif)
    kept.update({tag: exif[tag] for tag in CAMERA_TAGS if tag in exif})
    kept.get_ifd(ExifTags.IFD.Exif).update({tag: lens[tag] for tag in LENS_TAGS if tag in lens})
    values = [exif.get(tag) for tag in CAMERA_TAGS] + [lens.get(tag) for tag in LENS_TAGS]
    return kept, tuple(map(str, values))
