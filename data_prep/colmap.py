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

from data_prep import importing
from escherjax.errors import run_command


def main(argv: Sequence[str]) -> None:
    """Runs the importer; see --help."""
    parser = importing.argument_parser("colmap", "COLMAP reconstructions to shards.")
    parser.add_argument(
        "--images", default="images", metavar="FOLDER",
        help="pictures of a scene, below its folder; images_4 works too (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--model", metavar="FOLDER",
        help="model of a scene, below its folder (default: sparse/0, sparse or colmap/sparse/0)",
    )  # fmt: skip
    parser.add_argument(
        "--masks", metavar="FOLDER",
        help="masks of a scene, below its folder, to become alpha: NAME.jpg.png or NAME.png",
    )  # fmt: skip
    add_world_arguments(parser)
    args = parser.parse_args(argv)
    importing.check_arguments(args)

    from escherjax.data import colmap, scenes

    colmap.load_pycolmap()
    models = (args.model,) if args.model else colmap.MODEL_FOLDERS
    found = scenes.find_folders(
        args.source,
        lambda folder, _: colmap.find_model(folder, models) is not None,
        f"folders with a COLMAP model in {' or '.join(models)}",
    )[: args.limit]

    def read_scene(place: int) -> importing.Imported:
        scene_id, folder = found[place]
        masks = folder / args.masks if args.masks else None
        model = colmap.find_model(folder, models)
        return read_model(args, "colmap", scene_id, model, folder / args.images, masks)

    ids = [scene_id for scene_id, _ in found]
    read = importing.read_in_threads(read_scene, ids, args.workers)
    importing.import_scenes(args, "colmap", ids, read)


def add_world_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what is to be done with the arbitrary world of a COLMAP model."""
    importing.add_normalize_argument(parser)
    parser.add_argument(
        "--recenter", action=argparse.BooleanOptionalAction, default=True,
        help="first move the point nearest to all optical axes to the origin (with --normalize)",
    )  # fmt: skip
    parser.add_argument(
        "--up", choices=("cameras", "file"), default="cameras",
        help="turn the cameras' common up to +z, or keep the file's z (default %(default)s)",
    )  # fmt: skip


def read_model(
    args: argparse.Namespace,
    source: str,
    scene_id: str,
    model: Path,
    pictures: Path,
    masks: Path | None,
) -> importing.Imported:
    """Reads one COLMAP model as a scene, noting how its world was moved.

    args: of `importing.argument_parser` and `add_world_arguments`; the rest as in
    `escherjax.data.colmap.read_views`.
    """
    import numpy as np

    from escherjax.data import colmap, scenes

    views = colmap.read_views(model, pictures, masks)
    c2w = np.stack([pose for _, pose, _ in views])
    c2w, notes = colmap.normalize_poses(c2w, args.normalize, args.recenter, args.up == "cameras")
    views = [(path, pose, lens) for (path, _, lens), pose in zip(views, c2w, strict=True)]
    return importing.Imported(
        scenes.assemble_scene(scene_id, source, views, args.resolution), notes
    )


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
