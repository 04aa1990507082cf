"""Imports RTMV: folders of 00000.exr (linear colours) with 00000.json (camera).

    python -m data_prep.rtmv --source google_scanned --color tonemapped --out shards
    python -m data_prep.rtmv --source google_scanned --color faithful --first-views 20 --out shards

Scenes are read by escherjax/data/formats/rtmv.py. There are two ways from linear colours to 8 bits:
`tonemapped` clips to [0, 1] and applies the sRGB curve; `faithful` repeats what the published
evaluation does, value * 255 cast to an 8-bit integer: no curve, and values above 1 wrap around
modulo 256. Alpha is not read. Needs the extra `prep`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.lib import importing, normalizing
from escherjax.errors import run_command

if TYPE_CHECKING:
    import numpy as np


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of RTMV's scenes."""
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


def scenes(args: argparse.Namespace) -> importing.Scenes:
    """The folders of EXR files, and what reads one."""
    from data_prep.lib.assembling import Assembler
    from escherjax.data.formats import rtmv

    rtmv.check_openexr()
    assemble = Assembler(args)
    to_bytes = rtmv.wrap_to_bytes if args.color == "faithful" else rtmv.tonemap

    def read_picture(path: Path) -> tuple[None, np.ndarray]:
        return None, to_bytes(rtmv.read_exr(path))

    def read(scene_id: str, folder: Path) -> importing.Imported:
        views = rtmv.read_cameras(folder, args.first_views)
        return assemble(scene_id, "rtmv", views, read_picture)

    return rtmv.find_scenes(args.source), read


main = importing.command(
    "rtmv", "RTMV scenes (EXR with JSON) to shards.", scenes, add_arguments, modules=("OpenEXR",)
)

if __name__ == "__main__":
    run_command(main, sys.argv[1:])
