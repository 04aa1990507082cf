"""Imports scenes with transforms.json: NeRF-synthetic, nerfstudio, instant-ngp, DL3DV.

    python -m data_prep.nerf_json --source nerf_synthetic --out shards --split train

A scene is a folder with transforms_SPLIT.json or transforms.json. Cameras are scaled about the
origin so that the farthest stands at radius 1.5, the nearest radius of the training renders.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from data_prep.lib import importing, normalizing
from escherjax.errors import run_command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what becomes of a scene's world, and of one with missing pictures."""
    normalizing.add_arguments(parser)
    importing.add_min_views(parser)


def scenes(args: argparse.Namespace) -> importing.Scenes:
    """The folders that have a transforms file, and what reads one."""
    from data_prep.lib.assembling import Assembler
    from escherjax.data.formats import folders
    from escherjax.data.formats.findings import Findings

    assemble = Assembler(args)

    def read(scene_id: str, folder: Path) -> importing.Imported:
        findings = Findings()
        views, layout = folders.find_views(folder, args.split, findings=findings)
        views = findings.present(views, args.min_views)
        return assemble(scene_id, layout, views, findings=findings)

    return folders.find_scene_folders(args.source, "transforms", args.split), read


main = importing.command(
    "nerf_json", "Folders with transforms.json to shards.", scenes, add_arguments
)

if __name__ == "__main__":
    run_command(main, sys.argv[1:])
