"""Imports photos without cameras: a folder of photos is a scene, COLMAP finds where they stood.

    python -m data_prep.image_folder --source photos --out shards

Then everything is as in data_prep.colmap: undistorted, upright, centred and scaled. Photos are
turned as their EXIF orientation says; its focal length is a first guess. COLMAP runs in one thread
for each scene and from a fixed seed: one machine with one version of pycolmap gives the same bytes
again, another processor or version may not. --scenes FOLDER also keeps each scene as a COLMAP
folder, which escherjax.sample --views reads.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from data_prep.lib import importing, normalizing
from escherjax.errors import run_command

# Photos that cannot be read here; they are named in the report instead of being passed over.
OTHER_PHOTOS = (".heic", ".heif", ".avif", ".tif", ".tiff", ".bmp", ".gif", ".dng")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds how photos are matched, where models are kept, and what becomes of the world."""
    parser.add_argument(
        "--matcher",
        choices=("exhaustive", "sequential"),
        default="exhaustive",
        help="compare all photos with each other, or neighbours in order of their names, for the "
        "frames of a video (default %(default)s)",
    )
    scenes_help = "also write COLMAP scene folders, FOLDER/SCENE/images and sparse/0"
    parser.add_argument("--scenes", type=Path, metavar="FOLDER", help=scenes_help)
    normalizing.add_capture_arguments(parser)


def scenes(args: argparse.Namespace) -> importing.Scenes:
    """The folders of photos, and what finds the cameras of one."""
    from data_prep.lib.assembling import Assembler
    from data_prep.lib.output import PROGRESS_FOLDER
    from escherjax.data.formats import colmap, folders
    from escherjax.data.images import IMAGE_SUFFIXES
    from escherjax.files import is_remote

    colmap.load_pycolmap()
    from data_prep.lib import structure_from_motion

    assemble = Assembler(args)
    suffixes = (*IMAGE_SUFFIXES, *OTHER_PHOTOS)
    # Below --out, which has room for pictures; what a kill leaves there goes with the folder
    progress = None if is_remote(args.out) else args.out / PROGRESS_FOLDER

    def is_photo(name: str) -> bool:
        return name.lower().endswith(suffixes) and not name.startswith(".")

    def read(scene_id: str, folder: Path) -> importing.Imported:
        photos = sorted(path for path in folder.iterdir() if is_photo(path.name))
        with tempfile.TemporaryDirectory(dir=progress, prefix="colmap-") as temporary:
            model = structure_from_motion.reconstruct(photos, Path(temporary), args.matcher)
            if args.scenes is not None:
                scene = args.scenes / scene_id
                shutil.copytree(model.pictures, scene / "images", dirs_exist_ok=True)
                shutil.copytree(model.model, scene / "sparse" / "0", dirs_exist_ok=True)
            views = colmap.read_views(model.model, model.pictures)
            imported = assemble(scene_id, "image_folder", views)
        imported.notes.update(photos=len(photos), left_out=model.left_out)
        return imported

    needed = f"folders with photos ({', '.join(IMAGE_SUFFIXES)})"
    return folders.find_folders(
        args.source, lambda _, files: any(map(is_photo, files)), needed
    ), read


main = importing.command(
    "image_folder",
    "Photos without cameras to shards. The same photos give the same bytes with one processor "
    "and version of pycolmap; others may round differently.",
    scenes,
    add_arguments,
    modules=("pycolmap",),
)

if __name__ == "__main__":
    run_command(main, sys.argv[1:])
