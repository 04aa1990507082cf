"""Imports photos without cameras: a folder of photos is a scene, COLMAP finds where they stood.

    python -m data_prep.image_folder --source photos --out shards

Then everything is as in data_prep.colmap: undistorted, upright, centred and scaled. Photos are
turned as their EXIF orientation says; its focal length is a first guess. COLMAP runs in one thread
for each scene and from a fixed seed: one machine with one version of pycolmap gives the same bytes
again, another processor or version may not. --scenes FOLDER also keeps each scene as a COLMAP
folder, which escherjax.sample --views reads.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from data_prep.colmap import read_model
from data_prep.lib import importing, normalizing
from escherjax.errors import run_command

# Photos that cannot be read here; they are named in the report instead of being passed over.
OTHER_PHOTOS = (".heic", ".heif", ".avif", ".tif", ".tiff", ".bmp", ".gif", ".dng")


def main(argv: Sequence[str]) -> None:
    """Runs the importer; see --help."""
    parser = importing.argument_parser(
        "image_folder",
        "Photos without cameras to shards. The same photos give the same bytes with one processor "
        "and version of pycolmap; others may round differently.",
    )
    parser.add_argument(
        "--matcher",
        choices=("exhaustive", "sequential"),
        default="exhaustive",
        help="compare all photos with each other, or neighbours in order of their names, for the "
        "frames of a video (default %(default)s)",
    )
    parser.add_argument(
        "--scenes",
        type=Path,
        metavar="FOLDER",
        help="also write COLMAP scene folders, FOLDER/SCENE/images and sparse/0",
    )
    normalizing.add_arguments(parser, recenter=True, up="cameras")
    args = parser.parse_args(argv)
    importing.check_arguments(args)
    normalizing.check_arguments(args)

    from escherjax.data.formats import colmap, folders
    from escherjax.data.images import IMAGE_SUFFIXES
    from escherjax.files import is_remote

    colmap.load_pycolmap()
    from data_prep.lib import structure_from_motion

    found = folders.find_folders(
        args.source,
        lambda _, files: any(_is_photo(name) for name in files),
        f"folders with photos ({', '.join(IMAGE_SUFFIXES)})",
    )[: args.limit]

    def read_scene(scene_id: str, folder: Path) -> importing.Imported:
        photos = sorted(path for path in folder.iterdir() if _is_photo(path.name))
        # Below --out, which has room for pictures; what a kill leaves there goes with the folder
        progress = None if is_remote(args.out) else args.out / importing.PROGRESS_FOLDER
        with tempfile.TemporaryDirectory(dir=progress, prefix="colmap-") as temporary:
            model = structure_from_motion.reconstruct(photos, Path(temporary), args.matcher)
            if args.scenes is not None:
                scene = args.scenes / scene_id
                shutil.copytree(model.pictures, scene / "images", dirs_exist_ok=True)
                shutil.copytree(model.model, scene / "sparse" / "0", dirs_exist_ok=True)
            imported = read_model(
                args, "image_folder", scene_id, model.model, model.pictures, masks=None
            )
        notes = {**imported.notes, "photos": len(photos), "left_out": model.left_out}
        return dataclasses.replace(imported, notes=notes)

    ids = [scene_id for scene_id, _ in found]
    read = importing.SceneReader(read_scene, found, args.workers)
    importing.import_scenes(args, "image_folder", ids, read)


def _is_photo(name: str) -> bool:
    from escherjax.data.images import IMAGE_SUFFIXES

    return name.lower().endswith((*IMAGE_SUFFIXES, *OTHER_PHOTOS)) and not name.startswith(".")


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
