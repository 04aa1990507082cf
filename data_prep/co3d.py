"""Imports CO3D (version 2): sequences of photographs with frame_annotations.jgz.

    python -m data_prep.co3d --source co3d --masks --max-views 24 --out shards

--source is CO3D's folder, one category's folder, or an annotation file. The world is turned
upright, since CO3D's has no common up.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from data_prep.lib import importing, normalizing
from escherjax.errors import run_command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds masks, the number of frames, and what becomes of a sequence's world."""
    normalizing.add_capture_arguments(parser)
    importing.add_max_views(parser)
    masks_help = "make the foreground masks the pictures' alpha"
    parser.add_argument("--masks", action="store_true", help=masks_help)


def scenes(args: argparse.Namespace) -> importing.Scenes:
    """The sequences, and what reads one."""
    from data_prep.lib import co3d_annotations
    from data_prep.lib.assembling import Assembler

    annotations = co3d_annotations.Annotations()
    assemble = Assembler(args)

    def read(scene_id: str, file: Path, sequence: str) -> importing.Imported:
        frames = importing.evenly_spaced(annotations.of(file)[sequence], args.max_views)
        views, read_picture = co3d_annotations.read_frames(file, frames, args.masks)
        return assemble(scene_id, "co3d", views, read_picture)

    return co3d_annotations.find_sequences(args.source, annotations), read


main = importing.command("co3d", "CO3D sequences to shards.", scenes, add_arguments)

if __name__ == "__main__":
    run_command(main, sys.argv[1:])
