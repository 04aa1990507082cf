"""Imports RealEstate10K (and ACID): a text file of cameras for each clip, frames in folders.

    python -m data_prep.re10k --source RealEstate10K --frames frames --max-views 24 --out shards

The pictures of a clip are FRAMES/CLIP/TIMESTAMP.png or .jpg. Videos vanish: frames without a
picture are left out and named in report.json, a clip without any is skipped. The world keeps its
scale, and is turned upright.
"""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path

from data_prep.lib import importing, normalizing
from escherjax.errors import UserError, run_command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds where frames lie, how many are read, and what becomes of a clip's world."""
    frames_help = "folder of CLIP/TIMESTAMP.png or .jpg"
    parser.add_argument("--frames", type=Path, required=True, help=frames_help)
    normalizing.add_arguments(parser, normalize="none", up="cameras")
    importing.add_max_views(parser)


def scenes(args: argparse.Namespace) -> importing.Scenes:
    """The clips, and what reads one."""
    from data_prep.lib import re10k_clips
    from data_prep.lib.assembling import Assembler
    from escherjax.data.images import View

    if not args.frames.is_dir():
        raise UserError(
            f"--frames {args.frames} is not a directory; expected CLIP/TIMESTAMP.png in it."
        )
    assemble = Assembler(args)

    def read(scene_id: str, file: Path) -> importing.Imported:
        pictures = re10k_clips.find_pictures(args.frames, scene_id)
        frames = re10k_clips.read_clip(file)
        missing = [timestamp for timestamp, _, _ in frames if timestamp not in pictures]
        if len(missing) == len(frames):
            raise UserError(
                f"none of its {len(frames)} frames is in {args.frames / scene_id}; expected "
                f"{missing[0]}.png or .jpg there, and so on."
            )
        views = [
            View(pictures[timestamp], c2w, functools.partial(re10k_clips.pinhole, K))
            for timestamp, K, c2w in frames
            if timestamp in pictures
        ]
        chosen = importing.evenly_spaced(views, args.max_views)
        imported = assemble(scene_id, "re10k", chosen)
        if missing:
            imported.notes["missing_frames"] = {"count": len(missing), "timestamps": missing}
        return imported

    return re10k_clips.find_clips(args.source), read


main = importing.command("re10k", "RealEstate10K clips to shards.", scenes, add_arguments)

if __name__ == "__main__":
    run_command(main, sys.argv[1:])
