"""Drawn views as files: `views/SCENE/N3/000.png`, ... of all targets, with `transforms.json`."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from escherjax.data.formats.transforms import write_transforms
from escherjax.evaluate.pictures import safe_name
from escherjax.evaluate.protocol import Case
from escherjax.files import whole_file
from escherjax.reports import sheets
from escherjax.reports.results import CaseName

FOLDER = "views"
_CAMERAS = "transforms.json"  # written last: where it is, all pictures are
_PLAIN = re.compile(r"(?!\.)[A-Za-z0-9._-]{1,100}")


def save(out: Path, case: Case, views: np.ndarray, K: np.ndarray) -> None:
    """Writes all targets of a case; views: [M, R, R, 3] uint8, K: [M, 3, 3] in their pixels."""
    folder = folder_of(out, CaseName(case.scene_id, case.num_references))
    paths = sheets.save_images(folder, views)
    with whole_file(folder / _CAMERAS) as file:
        write_transforms(file, case.target_c2w, K, views.shape[1], [path.name for path in paths])


def is_complete(out: Path, name: CaseName) -> bool:
    """Whether all of a case's views are there."""
    return (folder_of(out, name) / _CAMERAS).exists()


def folder_of(out: Path, name: CaseName) -> Path:
    """Where a case's views are: below the scene's name, if that is a plain relative path."""
    is_plain = all(_PLAIN.fullmatch(part) for part in name.scene_id.split("/"))
    scene = name.scene_id if is_plain else safe_name(name.scene_id)
    return out / FOLDER / scene / f"N{name.num_references}"
