"""What `escherjax.sample` leaves in its folder, but for its record."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from escherjax.cameras import Cameras
from escherjax.data.formats.transforms import write_transforms
from escherjax.reports import sheets
from escherjax.sample import nerf_folder
from escherjax.sample.targets import Targets

SHEET_NAME = "contact_sheet.png"


def write_views(
    folder: Path,
    references: np.ndarray,
    views: np.ndarray,
    targets: Targets,
    K: np.ndarray,
    true_views: np.ndarray | None = None,
) -> None:
    """Writes pictures, contact sheet, transforms.json, and of a path an animation.

    references: [N, R, R, 3] uint8; views: [M, R, R, 3] uint8, as they were drawn, which are zoomed
    here as `targets` say; K: [3, 3] of the network's views; true_views: as views, where known.
    """
    every_K = np.broadcast_to(K, (len(views), 3, 3))
    views, every_K = sheets.zoom_center(views, every_K, targets.zoom)
    names = [path.name for path in sheets.save_images(folder, views)]
    sheets.contact_sheet(folder / SHEET_NAME, references, views, true_views)
    if targets.is_path:
        sheets.save_animation(folder, views, targets.closed)
    write_transforms(folder / "transforms.json", targets.c2w, every_K, views.shape[1], names)


def write_nerf_folder(
    folder: Path,
    references: np.ndarray,
    reference_cameras: Cameras,
    views: np.ndarray,
    target_c2w: np.ndarray,
    alpha: bool,
) -> None:
    """Writes references and views, both [V, R, R, 3] uint8, for a trainer of radiance fields.

    Views are those that the network drew, before any zoom, with the first reference's intrinsics.
    Where one has the camera of a reference, the reference alone is written: it is the true picture.
    """
    known = np.asarray(reference_cameras.c2w)
    K = np.asarray(reference_cameras.K)
    distance = np.abs(target_c2w[:, None] - known[None]).max((2, 3))  # [M, N]
    new = distance.min(axis=1) > 1e-5
    nerf_folder.write_nerf_folder(
        folder,
        np.concatenate([references, views[new]]),
        np.concatenate([known, target_c2w[new]]),
        np.concatenate([K, np.broadcast_to(K[0], (int(new.sum()), 3, 3))]),
        alpha,
    )
