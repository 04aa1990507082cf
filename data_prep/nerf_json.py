"""Imports scenes with transforms.json: NeRF-synthetic, nerfstudio, instant-ngp, DL3DV.

    python -m data_prep.nerf_json --source nerf_synthetic --out shards --split train

A scene is a folder with transforms_SPLIT.json or transforms.json. Cameras are scaled about the
origin so that the farthest stands at radius 1.5, the nearest radius of the training renders.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from data_prep.lib import importing, normalizing
from escherjax.errors import run_command


def main(argv: Sequence[str]) -> None:
    """Runs the importer; see --help."""
    parser = importing.argument_parser("nerf_json", "Folders with transforms.json to shards.")
    normalizing.add_arguments(parser)
    args = parser.parse_args(argv)
    importing.check_arguments(args)
    normalizing.check_arguments(args)

    from escherjax.data.formats.folders import find_scene_folders, read_scene_folder

    found = find_scene_folders(args.source, "transforms", args.split)[: args.limit]

    stored = importing.picture_format(args)

    def read_scene(scene_id: str, folder: Path) -> importing.Imported:
        scene = read_scene_folder(folder, scene_id, args.split, args.resolution, stored=stored)
        return normalizing.normalize(scene, args)

    ids = [scene_id for scene_id, _ in found]
    read = importing.SceneReader(read_scene, found, args.workers)
    importing.import_scenes(args, "nerf_json", ids, read)


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
