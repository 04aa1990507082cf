"""Imports MVImgNet and MVImgNet 2: CLASS/INSTANCE/ folders with images/ and sparse/0.

    python -m data_prep.mvimgnet --source MVImgNet --out shards --masks masks

Cameras, undistortion and the choice of a world are those of data_prep.colmap. Instances without a
COLMAP model are skipped and reported.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from data_prep.lib import importing, normalizing
from escherjax.errors import UserError, run_command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds masks, classes, and what becomes of a scene's world."""
    parser.add_argument(
        "--masks",
        metavar="FOLDER",
        help="turn masks to alpha: the name of a folder inside each instance (MVImgNet 2: masks), "
        "or a path to a folder of CLASS/INSTANCE/ (MVImgNet's own download)",
    )
    parser.add_argument("--classes", metavar="A,B,...", help="only these class folders")
    normalizing.add_capture_arguments(parser)
    importing.add_min_views(parser)


def scenes(args: argparse.Namespace) -> importing.Scenes:
    """The instances, and what reads one."""
    from data_prep.lib.assembling import Assembler
    from escherjax.data.formats import colmap
    from escherjax.data.formats.findings import Findings

    colmap.load_pycolmap()
    assemble = Assembler(args)

    def read(scene_id: str, folder: Path) -> importing.Imported:
        findings = Findings()
        model = colmap.largest_model(folder, findings)
        if model is None:
            raise UserError(f"{folder} has no COLMAP model in {colmap.MODEL_FOLDERS[0]}.")
        masks = None
        if args.masks:
            inside = "/" not in args.masks and (folder / args.masks).is_dir()
            masks = folder / args.masks if inside else Path(args.masks) / scene_id
        views = colmap.read_views(model, folder / "images", masks, findings)
        views = findings.present(views, args.min_views)
        return assemble(scene_id, "mvimgnet", views, findings=findings)

    return _instances(args.source, args.classes), read


def _instances(source: Path, classes: str | None) -> list[tuple[str, Path]]:
    """(CLASS/INSTANCE, folder) of every instance, sorted."""
    if not source.is_dir():
        raise UserError(f"--source {source} is not a directory.")
    present = sorted(path.name for path in source.iterdir() if path.is_dir())
    chosen = present if classes is None else sorted(set(classes.split(",")))
    missing = [name for name in chosen if name not in present]
    if missing:
        raise UserError(f"--classes: {source} has no folder {', '.join(missing)}.")
    instances = sorted(
        (f"{name}/{path.name}", path)
        for name in chosen
        for path in (source / name).iterdir()
        if path.is_dir()
    )
    if not instances:
        raise UserError(f"no instances in {source}; expected CLASS/INSTANCE/ folders.")
    return instances


main = importing.command(
    "mvimgnet", "MVImgNet folders to shards.", scenes, add_arguments, modules=("pycolmap",)
)

if __name__ == "__main__":
    run_command(main, sys.argv[1:])
