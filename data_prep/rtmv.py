"""Imports RTMV: folders of 00000.exr (linear colours) with 00000.json (camera).

    python -m data_prep.rtmv --source google_scanned --color tonemapped --out shards
    python -m data_prep.rtmv --source google_scanned --color faithful --first-views 20 --out shards

Scenes are read by escherjax/data/formats/rtmv.py. There are two ways from linear colours to 8 bits:
`tonemapped` clips to [0, 1] and applies the sRGB curve; `faithful` repeats what the published
evaluation does, value * 255 cast to an 8-bit integer: no curve, and values above 1 wrap around
modulo 256. Alpha is not read. Needs the extra `prep`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.lib import importing, normalizing
from escherjax.errors import run_command

if TYPE_CHECKING:
    import numpy as np


def main(argv: Sequence[str]) -> None:
    """Runs the importer; see --help."""
    parser = importing.argument_parser("rtmv", "RTMV scenes (EXR with JSON) to shards.")
    normalizing.add_arguments(parser, normalize="none")
    parser.add_argument(
        "--color",
        choices=("tonemapped", "faithful"),
        default="tonemapped",
        help="from linear colours to 8 bits: clipped and with the sRGB curve, or as the published "
        "evaluation has it: times 255, modulo 256 (default %(default)s)",
    )
    parser.add_argument(
        "--first-views", type=int, help="only the first so many frames (published evaluation: 20)"
    )
    args = parser.parse_args(argv)
    importing.check_arguments(args)
    normalizing.check_arguments(args)

    from escherjax.data.formats import rtmv
    from escherjax.data.formats.folders import assemble_scene

    rtmv.check_openexr()
    found = rtmv.find_scenes(args.source)[: args.limit]
    to_bytes = rtmv.wrap_to_bytes if args.color == "faithful" else rtmv.tonemap

    def read_picture(path: Path) -> tuple[None, np.ndarray]:
        return None, to_bytes(rtmv.read_exr(path))

    stored = importing.picture_format(args)

    def read_scene(scene_id: str, folder: Path) -> importing.Imported:
        views = rtmv.read_cameras(folder, args.first_views)
        scene = assemble_scene(scene_id, "rtmv", views, args.resolution, stored, read_picture)
        return normalizing.normalize(scene, args)

    ids = [scene_id for scene_id, _ in found]
    read = importing.SceneReader(read_scene, found, args.workers)
    importing.import_scenes(args, "rtmv", ids, read)


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
