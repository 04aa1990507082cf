"""Imports MVImgNet and MVImgNet 2: CLASS/INSTANCE/ folders with images/ and sparse/0.

    python -m data_prep.mvimgnet --source MVImgNet --out shards --masks masks

Cameras, undistortion and the choice of a world are those of data_prep.colmap. Instances without a
COLMAP model are skipped and reported.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from data_prep.colmap import read_model
from data_prep.lib import importing, normalizing
from escherjax.errors import UserError, run_command


def main(argv: Sequence[str]) -> None:
    """Runs the importer; see --help."""
    parser = importing.argument_parser("mvimgnet", "MVImgNet folders to shards.")
    parser.add_argument(
        "--masks",
        metavar="FOLDER",
        help="turn masks to alpha: the name of a folder inside each instance (MVImgNet 2: masks), "
        "or a path to a folder of CLASS/INSTANCE/ (MVImgNet's own download)",
    )
    parser.add_argument("--classes", metavar="A,B,...", help="only these class folders")
    normalizing.add_arguments(parser, recenter=True, up="cameras")
    args = parser.parse_args(argv)
    importing.check_arguments(args)
    normalizing.check_arguments(args)

    from escherjax.data.formats import colmap

    colmap.load_pycolmap()
    ids = _instances(args.source, args.classes)[: args.limit]

    def read_scene(scene_id: str) -> importing.Imported:
        folder = args.source / scene_id
        model = colmap.find_model(folder)
        if model is None:
            raise UserError(f"{folder} has no COLMAP model in {colmap.MODEL_FOLDERS[0]}.")
        masks = None
        if args.masks:
            inside = "/" not in args.masks and (folder / args.masks).is_dir()
            masks = folder / args.masks if inside else Path(args.masks) / scene_id
        return read_model(args, "mvimgnet", scene_id, model, folder / "images", masks)

    read = importing.SceneReader(read_scene, [(name,) for name in ids], args.workers)
    importing.import_scenes(args, "mvimgnet", ids, read)


def _instances(source: Path, classes: str | None) -> list[str]:
    """CLASS/INSTANCE of every instance folder, sorted."""
    if not source.is_dir():
        raise UserError(f"--source {source} is no folder.")
    present = sorted(path.name for path in source.iterdir() if path.is_dir())
    chosen = present if classes is None else sorted(set(classes.split(",")))
    missing = [name for name in chosen if name not in present]
    if missing:
        raise UserError(f"--classes: {source} has no folder {', '.join(missing)}.")
    ids = sorted(
        f"{name}/{path.name}"
        for name in chosen
        for path in (source / name).iterdir()
        if path.is_dir()
    )
    if not ids:
        raise UserError(f"no instances in {source}; needed CLASS/INSTANCE/ folders.")
    return ids


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
