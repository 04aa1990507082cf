"""Imports scenes with transforms.json: NeRF-synthetic, nerfstudio, instant-ngp, DL3DV.

    python -m data_prep.nerf_json --source nerf_synthetic --out shards --split train

A scene is a folder with transforms_SPLIT.json or transforms.json. Cameras are scaled about the
origin so that the farthest stands at radius 1.5, the nearest radius of the training renders.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from data_prep import importing
from escherjax.errors import UserError, run_command


def main(argv: Sequence[str]) -> None:
    """Runs the importer; see --help."""
    parser = importing.argument_parser("nerf_json", "Folders with transforms.json to shards.")
    parser.add_argument(
        "--normalize", default="max_radius=1.5", type=_max_radius, metavar="max_radius=R|none",
        help="scale each scene so that its farthest camera is R from the origin; none keeps the "
        "file's scale (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--recenter", action="store_true",
        help="first move the point nearest to all optical axes to the origin",
    )  # fmt: skip
    args = parser.parse_args(argv)
    importing.check_arguments(args)
    if args.recenter and args.normalize is None:
        raise UserError("--recenter needs --normalize max_radius=R.")

    from escherjax.cameras import normalize_scene
    from escherjax.data.scenes import find_scene_folders, read_scene_folder

    found = find_scene_folders(args.source, "transforms", args.split)[: args.limit]

    def read_scene(place: int) -> importing.Imported:
        scene_id, folder = found[place]
        scene = read_scene_folder(folder, scene_id, args.split, args.resolution)
        if args.normalize is None:
            return importing.Imported(scene, {"scale": 1.0, "center": [0.0, 0.0, 0.0]})
        c2w, scale, center = normalize_scene(scene.c2w, args.normalize, args.recenter)
        scene = dataclasses.replace(scene, c2w=c2w)
        return importing.Imported(scene, {"scale": scale, "center": center.tolist()})

    ids = [scene_id for scene_id, _ in found]
    read = importing.read_in_threads(read_scene, ids, args.workers)
    importing.import_scenes(args, "nerf_json", ids, read)


def _max_radius(text: str) -> float | None:
    if text == "none":
        return None
    name, _, value = text.partition("=")
    try:
        radius = float(value)
    except ValueError:
        radius = 0.0
    if name != "max_radius" or not 0 < radius < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}'; needed max_radius=R with R > 0, or none")
    return radius


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
