"""EscherNet's renders of Google Scanned Objects: OBJECT/RENDERS/model/000.png and 000.npy.

Each object has up to three sets of renders, laid out as Zero123's; a set on a fixed path may hold
poses alone.
"""

from __future__ import annotations

from pathlib import Path

from escherjax.errors import UserError

# Camera axes of the poses in each set.
AXES = {
    "render_mvs_25": "opengl",  # 25 views about the object, as those trained on
    "render_sync_36_single": "opencv",  # 12 azimuths at 3 elevations
    "render_spiral_100": "opencv",
}


def find_objects(source: Path, renders: str) -> list[tuple[str, Path]]:
    """(object name, folder of its renders) at or below `source`, sorted by name.

    renders: a key of AXES. Raises UserError if no object has such renders.
    """
    from escherjax.data.formats.folders import find_scene_folders

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
