"""Imports EscherNet's renders of Google Scanned Objects: OBJECT/RENDERS/model/000.png and 000.npy.

    python -m data_prep.gso --source GSO30 --out shards
    python -m data_prep.gso --source GSO30 --renders render_sync_36_single --out shards

Each object has up to three sets of renders. All are laid out as Zero123's; poses of
render_mvs_25 have Blender axes, those of the two sets on fixed paths OpenCV's. A set without
pictures is skipped, as some of them hold poses alone. Render folders that lie in no such layout are
for data_prep.zero123.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from data_prep import importing, zero123
from escherjax.errors import UserError, run_command

AXES = {
    "render_mvs_25": "opengl",  # 25 views about the object, as those trained on
    "render_sync_36_single": "opencv",  # 12 azimuths at 3 elevations
    "render_spiral_100": "opencv",
}


def main(argv: Sequence[str]) -> None:
    """Runs the importer; see --help."""
    parser = importing.argument_parser("gso", "EscherNet's renders of GSO objects to shards.")
    parser.add_argument(
        "--renders", choices=AXES, default="render_mvs_25",
        help="which set of every object (default %(default)s)",
    )  # fmt: skip
    zero123.add_arguments(parser)
    args = parser.parse_args(argv)
    importing.check_arguments(args)
    found = find_objects(args.source, args.renders)[: args.limit]
    zero123.import_renders(args, "gso", found, AXES[args.renders])


def find_objects(source: Path, renders: str) -> list[tuple[str, Path]]:
    """(object name, folder of its renders) at or below `source`, sorted by name.

    renders: a key of AXES. Raises UserError if no object has such renders.
    """
    from escherjax.data.scenes import find_scene_folders

    found = []
    for name, folder in find_scene_folders(source, "zero123"):
        # The source's own name stands for what lies above it: an object, or its renders.
        parts = folder.resolve().parts
        if parts[-2:] == (renders, "model"):
            relative = Path(name).parent.parent.as_posix()
            found.append((parts[-3] if relative == "." else relative, folder))
    if not found:
        raise UserError(f"no object in {source} has renders in OBJECT/{renders}/model.")
    return sorted(found)


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
