"""CO3D's annotations: viewpoints of frames, as PyTorch3D has them, with their pictures and masks.

Row vectors, x_camera = x_world R + T, camera axes x left, y up, z forward; focal length and
principal point in normalised device coordinates of one of two scales, which each annotation names.
Layout and meaning are those of the repository facebookresearch/co3d and of PyTorch3D's
`implicitron.dataset.types`.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import threading
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from escherjax import cameras
from escherjax.data.formats.folders import ReadPicture, read_picture
from escherjax.data.formats.lenses import pinhole_intrinsics
from escherjax.data.images import View
from escherjax.errors import UserError, listed

ANNOTATION_FILE = r"frame_annotations\w*\.(jgz|json|json\.gz)"
NDC_FORMATS = ("ndc_norm_image_bounds", "ndc_isotropic")

Sequences = dict[str, list[dict[str, Any]]]  # frame annotations by name of their sequence


class Annotations:
    """Annotation files by sequence; keeps the file read last, since a category's are large."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._file: Path | None = None
        self._sequences: Sequences = {}

    def __reduce__(self) -> tuple[type[Annotations], tuple[()]]:
        return Annotations, ()  # another process reads for itself

    def of(self, file: Path) -> Sequences:
        """Frame annotations of each sequence in a file, in the order of frame numbers.

        Raises UserError if it cannot be read or its entries are not frame annotations.
        """
        with self._lock:
            if self._file != file:
                self._file, self._sequences = None, {}  # room for the next
                self._sequences = _read_annotations(file)
                self._file = file
            return self._sequences


def find_sequences(source: Path, annotations: Annotations) -> list[tuple[str, Path, str]]:
    """(scene id, annotation file, sequence name) of every sequence, sorted by id.

    Ids are CATEGORY/SEQUENCE below CO3D's folder, SEQUENCE in a category's own. A file that cannot
    be read stands for its sequences, with its own name as id and no sequence name.
    Raises UserError if there is no annotation file, or a folder has several.
    """
    if source.is_file():
        files = [source]
    elif source.is_dir():
        files = [
            Path(parent) / name
            for parent, _, names in os.walk(source)
            for name in names
            if re.fullmatch(ANNOTATION_FILE, name)
        ]
    else:
        raise UserError(f"--source {source} does not exist.")
    if not files:
        raise UserError(f"no frame_annotations.jgz in {source} or below; expected CO3D's folder.")
    folders = [file.parent for file in files]
    twice = sorted({str(folder) for folder in folders if folders.count(folder) > 1})
    if twice:
        raise UserError(
            f"several annotation files in {', '.join(twice)}; name the one to read as --source."
        )
    found = []
    for file in sorted(files):
        category = Path() if source.is_file() else file.parent.relative_to(source)
        try:
            names = list(annotations.of(file))
        except UserError:  # which reading it meets again, so that the file is skipped by name
            found.append(((category / file.name).as_posix(), file, ""))
            continue
        found += [((category / name).as_posix(), file, name) for name in names]
    return sorted(found)


def read_frames(
    file: Path, frames: Sequence[dict[str, Any]], masks: bool
) -> tuple[list[View], ReadPicture]:
    """Views of annotated frames, and what reads their pictures (with masks as alpha, if asked).

    Raises UserError naming every frame that lacks a picture, a mask or a whole viewpoint.
    """
    views, mask_of, problems = [], {}, []
    for frame in frames:
        where = f"{file}: frame {frame.get('frame_number')}"
        try:
            path = _find_file(file, frame.get("image"), f"{where}: picture")
            if masks:
                mask_of[path] = _find_file(file, frame.get("mask"), f"{where}: mask")
            c2w, intrinsics = read_viewpoint(frame, where)
        except UserError as error:
            problems.append(str(error))
            continue
        views.append(View(path, c2w, pinhole_intrinsics(intrinsics, where)))
    if problems:
        raise UserError(listed(problems))
    if not masks:
        return views, read_picture

    def read_with_mask(path: Path) -> tuple[None, np.ndarray]:
        return None, _with_alpha(path, mask_of[path])

    return views, read_with_mask


def read_viewpoint(frame: dict[str, Any], where: str) -> tuple[np.ndarray, dict[str, float]]:
    """(c2w [4, 4] with OpenCV axes, nerfstudio's intrinsics fields in pixels) of an annotation.

    Raises UserError, starting with `where`, if a field is missing, misshapen or unknown.
    """
    viewpoint = frame.get("viewpoint")
    if not isinstance(viewpoint, dict):
        raise UserError(f"{where} has no viewpoint.")
    fields = {}
    sizes = {"R": (3, 3), "T": (3,), "focal_length": (2,), "principal_point": (2,)}
    for name, shape in sizes.items():
        try:
            fields[name] = np.asarray(viewpoint.get(name), np.float64)
        except (TypeError, ValueError):
            fields[name] = np.empty(0)
        if fields[name].shape != shape:
            raise UserError(f"{where}: viewpoint's {name} is not an array of shape {shape}.")
    kind = viewpoint.get("intrinsics_format", NDC_FORMATS[0])
    if kind not in NDC_FORMATS:
        raise UserError(f"{where}: intrinsics_format must be one of {NDC_FORMATS}, got '{kind}'.")
    try:
        height, width = (float(side) for side in frame["image"]["size"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{where}: image has no size [height, width].") from error
    if not min(height, width) > 0:
        raise UserError(f"{where}: image has size [{height:g}, {width:g}].")

    # Rows of w2c are the camera's axes: left and up become right and down.
    w2c = np.concatenate([fields["R"].T, fields["T"][:, None]], axis=1)
    w2c[:2] *= -1
    half = np.array([width, height]) / 2
    unit = half if kind == "ndc_norm_image_bounds" else np.full(2, half.min())
    focal = fields["focal_length"] * unit
    center = half - fields["principal_point"] * unit  # NDC grow to the left and up
    intrinsics = {
        "w": width,
        "h": height,
        "fl_x": focal[0],
        "fl_y": focal[1],
        "cx": center[0],
        "cy": center[1],
    }
    return cameras.c2w_from_w2c(w2c), intrinsics


def _read_annotations(file: Path) -> Sequences:
    try:
        data = file.read_bytes()
        entries = json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(
            f"{file} cannot be read ({error}); expected gzipped JSON or JSON."
        ) from error
    sequences: Sequences = {}
    for number, entry in enumerate(entries if isinstance(entries, list) else [None]):
        name = entry.get("sequence_name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not isinstance(entry.get("frame_number"), int):
            raise UserError(
                f"{file}: entry {number} is not a frame annotation; expected a list of "
                "objects with sequence_name, frame_number, image and viewpoint."
            )
        sequences.setdefault(name, []).append(entry)
    for frames in sequences.values():
        frames.sort(key=lambda frame: frame["frame_number"])
    return sequences


def _find_file(annotation_file: Path, entry: Any, what: str) -> Path:
    """The file that an annotation names, relative to CO3D's folder or to the category's own."""
    name = entry.get("path") if isinstance(entry, dict) else None
    if not isinstance(name, str):
        raise UserError(f"{what} is not named.")
    category = annotation_file.parent
    for folder in (category.parent, category):
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{what} {name} is missing below {category.parent} and {category}.")


def _with_alpha(path: Path, mask_path: Path) -> np.ndarray:
    """uint8 [H, W, 4]: a photograph with its mask as alpha."""
    picture, mask = read_picture(path)[1], read_picture(mask_path)[1]
    if picture.shape[:2] != mask.shape[:2]:
        raise UserError(
            f"{mask_path} has {mask.shape[:2]} pixels, {path} {picture.shape[:2]}; expected one "
            "size."
        )
    return np.concatenate([picture[..., :3], mask[..., :1]], axis=-1)
