"""Imports COLMAP reconstructions: folders with images/ and sparse/0 (.bin or .txt).

    python -m data_prep.colmap --source captures --out shards

Every camera model but the panoramic one is undistorted to a pinhole of square pixels. COLMAP's
world is arbitrary: its z axis is turned to the cameras' common up, its origin put where their axes
meet, and it is scaled so that the farthest camera stands at radius 1.5.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from data_prep.lib import importing, normalizing
from escherjax.errors import run_command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds where a scene's pictures, model and masks lie, and what becomes of its world."""
    images_help = "pictures of a scene, below its folder; images_4 works too (default %(default)s)"
    parser.add_argument("--images", default="images", metavar="FOLDER", help=images_help)
    model_help = "model of a scene, below its folder (default: that with the most pictures in "
    model_help += "sparse/0, sparse/1, ..., sparse or colmap/sparse/0, ...)"
    parser.add_argument("--model", metavar="FOLDER", help=model_help)
    masks_help = "masks of a scene, below its folder, to become alpha: NAME.jpg.png or NAME.png"
    parser.add_argument("--masks", metavar="FOLDER", help=masks_help)
    normalizing.add_capture_arguments(parser)
    importing.add_min_views(parser)


def scenes(args: argparse.Namespace) -> importing.Scenes:
    """The folders that have a COLMAP model, and what reads one."""
    from data_prep.lib.assembling import Assembler
    from escherjax.data.formats import colmap, folders
    from escherjax.data.formats.findings import Findings

    colmap.load_pycolmap()
    assemble = Assembler(args)
    models = (args.model,) if args.model else colmap.MODEL_FOLDERS

    def is_scene(folder: Path, _: list[str]) -> bool:
        if args.model:
            return colmap.model_suffix(folder / args.model) is not None
        return colmap.find_model(folder) is not None

    def read(scene_id: str, folder: Path) -> importing.Imported:
        masks = folder / args.masks if args.masks else None
        findings = Findings()
        if args.model:
            model = folder / args.model
        else:
            model = colmap.largest_model(folder, findings) or folder
        views = colmap.read_views(model, folder / args.images, masks, findings)
        views = findings.present(views, args.min_views)
        return assemble(scene_id, "colmap", views, findings=findings)

    needed = f"folders with a COLMAP model in {' or '.join(models)}"
    return folders.find_folders(args.source, is_scene, needed), read


main = importing.command(
    "colmap", "COLMAP reconstructions to shards.", scenes, add_arguments, modules=("pycolmap",)
)

if __name__ == "__main__":
    run_command(main, sys.argv[1:])
