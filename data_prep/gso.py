"""Imports EscherNet's renders of Google Scanned Objects: OBJECT/RENDERS/model/000.png and 000.npy.

    python -m data_prep.gso --source GSO30 --out shards
    python -m data_prep.gso --source GSO30 --renders render_sync_36_single --out shards

Each object has up to three sets of renders. All are laid out as Zero123's; poses of
render_mvs_25 have Blender axes, those of the two sets on fixed paths OpenCV's. A set without
pictures is skipped, as some of them hold poses alone. Render folders that lie in no such layout are
for data_prep.zero123.
"""

from __future__ import annotations

import argparse
import sys

from data_prep import zero123
from data_prep.lib import importing
from escherjax.data.formats.folders import GSO_AXES, find_gso_objects
from escherjax.errors import run_command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds which of an object's renders are read."""
    renders_help = "which set of every object (default %(default)s)"
    parser.add_argument("--renders", choices=GSO_AXES, default="render_mvs_25", help=renders_help)
    zero123.add_arguments(parser)


def scenes(args: argparse.Namespace) -> importing.Scenes:
    """The objects that have such renders, and what reads one."""
    found = find_gso_objects(args.source, args.renders)
    return found, zero123.render_reader(args, GSO_AXES[args.renders])


main = importing.command(
    "gso", "EscherNet's renders of GSO objects to shards.", scenes, add_arguments
)

if __name__ == "__main__":
    run_command(main, sys.argv[1:])
