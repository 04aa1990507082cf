"""RealEstate10K's clips: text files of cameras, and the frames that belong to them.

A clip is a text file whose first line is the video's address; each further line is a frame:
timestamp in microseconds, fx fy cx cy in units of the picture's width and height, two zeros, and a
3x4 world-to-camera matrix, row by row, with OpenCV axes.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from escherjax.cameras import c2w_from_w2c
from escherjax.data.images import IMAGE_SUFFIXES
from escherjax.errors import UserError

NUMBERS = 19  # in the line of a frame

Frame = tuple[int, np.ndarray, np.ndarray]  # timestamp in microseconds, K [3, 3], c2w [4, 4]


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
        raise UserError(f"no .txt in {source} or below; expected RealEstate10K's camera files.")
    return sorted(found)


def read_clip(file: Path) -> list[Frame]:
    """(timestamp in microseconds, K [3, 3] for a picture of size 1, c2w [4, 4]) of each frame.

    Raises UserError naming every line that is not a frame.
    """
    try:
        lines = file.read_text().split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({error}).") from error
    if not lines[0].strip().startswith("http"):
        raise UserError(f"{file} is not a clip: expected the video's address in its first line.")
    frames: list[Frame] = []
    problems = []
    for number, line in enumerate(lines[1:], start=2):
        words = line.split()
        if not words:
            continue
        try:
            timestamp, values = int(words[0]), np.array([float(word) for word in words[1:]])
        except ValueError:
            problems.append(f"line {number} holds something that is not a number")
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
        raise UserError(f"{file}: {listed}. Expected timestamp, 4 intrinsics, 2 zeros, 3x4 matrix.")
    return frames


def pinhole(unit_K: np.ndarray, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A picture with its K, from that of a picture of size 1."""
    height, width = picture.shape[:2]
    return picture, unit_K * [[width], [height], [1]]


def find_pictures(folder: Path, scene_id: str) -> dict[int, Path]:
    """Pictures of a clip by timestamp, from FOLDER/ID or, below splits, FOLDER/NAME."""
    for clip in (folder / scene_id, folder / Path(scene_id).name):
        if clip.is_dir():
            return {
                int(path.stem): path
                for path in sorted(clip.iterdir())
                if path.suffix.lower() in IMAGE_SUFFIXES and path.stem.isdecimal()
            }
    return {}
