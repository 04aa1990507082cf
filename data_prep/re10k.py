"""Imports RealEstate10K (and ACID): a text file of cameras for each clip, frames in folders.

    python -m data_prep.re10k --source RealEstate10K --frames frames --max-views 24 --out shards

A clip is a text file whose first line is the video's address; each further line is a frame:
timestamp in microseconds, fx fy cx cy in units of the picture's width and height, two zeros, and a
3x4 world-to-camera matrix, row by row, with OpenCV axes. Its pictures are
FRAMES/CLIP/TIMESTAMP.png or .jpg. Videos vanish: frames without a picture are left out and named in
report.json, a clip without any is skipped. The world keeps its scale, and is turned upright.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.lib import importing, normalizing
from escherjax.errors import UserError, run_command

if TYPE_CHECKING:
    import numpy as np

NUMBERS = 19  # in the line of a frame


def main(argv: Sequence[str]) -> None:
    """Runs the importer; see --help."""
    parser = importing.argument_parser("re10k", "RealEstate10K clips to shards.")
    parser.add_argument(
        "--frames", type=Path, required=True, help="folder of CLIP/TIMESTAMP.png or .jpg"
    )
    normalizing.add_arguments(parser, normalize="none", up="cameras")
    importing.add_max_views(parser)
    args = parser.parse_args(argv)
    importing.check_arguments(args)
    normalizing.check_arguments(args)
    if not args.frames.is_dir():
        raise UserError(f"--frames {args.frames} is no folder; needed CLIP/TIMESTAMP.png in it.")

    from escherjax.data.formats.folders import assemble_scene

    found = find_clips(args.source)[: args.limit]

    stored = importing.picture_format(args)

    def read_scene(scene_id: str, file: Path) -> importing.Imported:
        pictures = _find_pictures(args.frames, scene_id)
        frames = read_clip(file)
        missing = [timestamp for timestamp, _, _ in frames if timestamp not in pictures]
        if len(missing) == len(frames):
            raise UserError(
                f"none of its {len(frames)} frames is in {args.frames / scene_id}; needed "
                f"{missing[0]}.png or .jpg there, and so on."
            )
        views = [
            (pictures[timestamp], c2w, functools.partial(_pinhole, K))
            for timestamp, K, c2w in frames
            if timestamp in pictures
        ]
        chosen = importing.evenly_spaced(views, args.max_views)
        scene = assemble_scene(scene_id, "re10k", chosen, args.resolution, stored)
        imported = normalizing.normalize(scene, args)
        if missing:
            imported.notes["missing_frames"] = {"count": len(missing), "timestamps": missing}
        return imported

    ids = [scene_id for scene_id, _ in found]
    read = importing.SceneReader(read_scene, found, args.workers)
    importing.import_scenes(args, "re10k", ids, read)


def find_clips(source: Path) -> list[tuple[str, Path]]:
    """(scene id, file) of every .txt at or below `source`, sorted; ids are paths without suffix.

    Raises UserError if there is none.
    """
    if source.is_file():
        return [(source.stem, source)]
    if not source.is_dir():
        raise UserError(f"--source {source} does not exist.")
    found = []
    for parent, _, names in os.walk(source):
        for name in names:
            path = Path(parent) / name
            if path.suffix == ".txt":
                found.append((path.relative_to(source).with_suffix("").as_posix(), path))
    if not found:
        raise UserError(f"no .txt in {source} or below; needed RealEstate10K's camera files.")
    return sorted(found)


def read_clip(file: Path) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """(timestamp in microseconds, K [3, 3] for a picture of size 1, c2w [4, 4]) of each frame.

    Raises UserError naming every line that is no frame.
    """
    import numpy as np

    from escherjax.cameras import c2w_from_w2c

    try:
        lines = file.read_text().split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}).") from error
    if not lines[0].strip().startswith("http"):
        raise UserError(f"{file} is no clip: needed the video's address in its first line.")
    frames, problems = [], []
    for number, line in enumerate(lines[1:], start=2):
        words = line.split()
        if not words:
            continue
        try:
            timestamp, values = int(words[0]), np.array([float(word) for word in words[1:]])
        except ValueError:
            problems.append(f"line {number} holds what is no number")
            continue
        if len(words) != NUMBERS:
            problems.append(f"line {number} has {len(words)} numbers, not {NUMBERS}")
        elif values[4:6].any():
            problems.append(f"line {number} has {values[4:6].tolist()} where zeros belong")
        elif timestamp in [known for known, _, _ in frames[-1:]]:
            problems.append(f"line {number} repeats timestamp {timestamp}")
        else:
            fx, fy, cx, cy = values[:4]
            K = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
            frames.append((timestamp, K, c2w_from_w2c(values[6:].reshape(3, 4))))
    if problems or not frames:
        listed = "; ".join(problems or ["it has no frames"])
        raise UserError(f"{file}: {listed}. Needed timestamp, 4 intrinsics, 2 zeros, 3x4 matrix.")
    return frames


def _pinhole(unit_K: np.ndarray, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A picture with its K, from that of a picture of size 1."""
    height, width = picture.shape[:2]
    return picture, unit_K * [[width], [height], [1]]


def _find_pictures(folder: Path, scene_id: str) -> dict[int, Path]:
    """Pictures of a clip by timestamp, from FOLDER/ID or, below splits, FOLDER/NAME."""
    from escherjax.data.images import IMAGE_SUFFIXES

    for clip in (folder / scene_id, folder / Path(scene_id).name):
        if clip.is_dir():
            return {
                int(path.stem): path
                for path in sorted(clip.iterdir())
                if path.suffix.lower() in IMAGE_SUFFIXES and path.stem.isdecimal()
            }
    return {}


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
