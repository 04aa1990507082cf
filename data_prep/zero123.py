"""Imports Zero123-style renders: folders of 000.png with 000.npy (world-to-camera, Blender axes).

    python -m data_prep.zero123 --source views_release --out shards --heldout 0.01

Pictures become PNG with straight alpha at --resolution. The faithful "zero123" background of the
loader looks for alpha of exactly 0 before it resizes, so to repeat the original training pixel by
pixel import with --resolution 0, which keeps the source's files.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from data_prep import importing
from escherjax.errors import UserError, run_command


def main(argv: Sequence[str]) -> None:
    """Runs the importer; see --help."""
    parser = importing.argument_parser("zero123", "Zero123-style render folders to shards.")
    add_arguments(parser)
    args = parser.parse_args(argv)
    importing.check_arguments(args)

    from escherjax.data.scenes import find_scene_folders

    import_renders(args, "zero123", find_scene_folders(args.source, "zero123")[: args.limit])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that say which render folders are left out."""
    parser.add_argument(
        "--num-views", type=int, help="skip scenes with another number of views (original: 12)"
    )
    parser.add_argument(
        "--max-empty-views", type=int, default=2,
        help="skip scenes with more fully transparent views than this (default %(default)s)",
    )  # fmt: skip


def import_renders(
    args: argparse.Namespace, command: str, found: Sequence[tuple[str, Path]], axes: str = "opengl"
) -> None:
    """Imports render folders given as (scene id, folder), with poses of these camera axes."""
    from escherjax.data.scenes import read_scene_folder

    stored = importing.picture_format(args)

    def read_scene(scene_id: str, folder: Path) -> importing.Imported:
        scene = read_scene_folder(
            folder, scene_id, resolution=args.resolution, axes=axes, stored=stored
        )
        if args.num_views and scene.num_views != args.num_views:
            raise UserError(f"has {scene.num_views} views; --num-views asks for {args.num_views}.")
        empty = sum(_is_empty(data) for data in scene.images)
        if empty > args.max_empty_views:
            raise UserError(f"{empty} views are empty; --max-empty-views {args.max_empty_views}.")
        return importing.Imported(scene)

    ids = [scene_id for scene_id, _ in found]
    read = importing.SceneReader(read_scene, found, args.workers)
    importing.import_scenes(args, command, ids, read)


def _is_empty(data: bytes) -> bool:
    from escherjax.data.images import decode_image

    picture = decode_image(data, "view")
    return picture.shape[-1] == 4 and not picture[..., 3].any()


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
