"""Imports COLMAP reconstructions: folders with images/ and sparse/0 (.bin or .txt).

    python -m data_prep.colmap --source captures --out shards

Every camera model but the panoramic one is undistorted to a pinhole of square pixels. COLMAP's
world is arbitrary: its z axis is turned to the cameras' common up, its origin put where their axes
meet, and it is scaled so that the farthest camera stands at radius 1.5.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from data_prep.lib import importing, normalizing
from escherjax.errors import run_command


def main(argv: Sequence[str]) -> None:
    """Runs the importer; see --help."""
    parser = importing.argument_parser("colmap", "COLMAP reconstructions to shards.")
    parser.add_argument(
        "--images",
        default="images",
        metavar="FOLDER",
        help="pictures of a scene, below its folder; images_4 works too (default %(default)s)",
    )
    parser.add_argument(
        "--model",
        metavar="FOLDER",
        help="model of a scene, below its folder (default: sparse/0, sparse or colmap/sparse/0)",
    )
    parser.add_argument(
        "--masks",
        metavar="FOLDER",
        help="masks of a scene, below its folder, to become alpha: NAME.jpg.png or NAME.png",
    )
    normalizing.add_arguments(parser, recenter=True, up="cameras")
    args = parser.parse_args(argv)
    importing.check_arguments(args)
    normalizing.check_arguments(args)

    from escherjax.data.formats import colmap, folders

    colmap.load_pycolmap()
    models = (args.model,) if args.model else colmap.MODEL_FOLDERS
    found = folders.find_folders(
        args.source,
        lambda folder, _: colmap.find_model(folder, models) is not None,
        f"folders with a COLMAP model in {' or '.join(models)}",
    )[: args.limit]

    def read_scene(scene_id: str, folder: Path) -> importing.Imported:
        masks = folder / args.masks if args.masks else None
        model = colmap.find_model(folder, models)
        return read_model(args, "colmap", scene_id, model, folder / args.images, masks)

    ids = [scene_id for scene_id, _ in found]
    read = importing.SceneReader(read_scene, found, args.workers)
    importing.import_scenes(args, "colmap", ids, read)


def read_model(
    args: argparse.Namespace,
    source: str,
    scene_id: str,
    model: Path,
    pictures: Path,
    masks: Path | None,
) -> importing.Imported:
    """Reads one COLMAP model as a scene, noting how its world was moved.

    args: of `importing.argument_parser` and `normalizing.add_arguments`; the rest as in
    `escherjax.data.formats.colmap.read_views`.
    """
    import numpy as np

    from escherjax.data.formats import colmap, folders

    views = colmap.read_views(model, pictures, masks)
    c2w = np.stack([pose for _, pose, _ in views])
    c2w, notes = normalizing.normalize_poses(c2w, args)
    views = [(path, pose, lens) for (path, _, lens), pose in zip(views, c2w, strict=True)]
    return importing.Imported(
        folders.assemble_scene(
            scene_id, source, views, args.resolution, importing.picture_format(args)
        ),
        notes,
    )


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
