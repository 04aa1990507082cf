"""COLMAP's text files as people leave them, made what pycolmap reads whole.

pycolmap ends a picture's name at its first space, takes the line after a picture for its 2D points
whatever stands there, and says nothing of pictures that it loses so.
"""

from __future__ import annotations

from pathlib import Path

from escherjax.errors import UserError

_POSE_WORDS = 9  # id, quaternion, translation, camera id; then the name, which may have spaces


def model_suffix(model: Path) -> str | None:
    """ ".bin" or ".txt", of the files of a model in this folder; None where there is none."""
    for suffix in (".bin", ".txt"):
        if all((model / f"{name}{suffix}").is_file() for name in ("cameras", "images")):
            return suffix
    return None


def count_images(model: Path) -> int:
    """How many pictures a model lists; 0 where it cannot be read."""
    try:
        if model_suffix(model) == ".bin":
            with (model / "images.bin").open("rb") as file:
                return int.from_bytes(file.read(8), "little")
        return len(_read_images(model / "images.txt"))
    except (OSError, UserError):
        return 0


def copy_model(model: Path, folder: Path) -> dict[int, str]:
    """Writes cameras.txt and images.txt to a folder, without points and spaces in names.

    Returns the name of each picture by its id. Raises UserError for what is no such file.
    """
    (folder / "cameras.txt").write_text("\n".join(_lines(model / "cameras.txt")) + "\n")
    listed = _read_images(model / "images.txt")
    entries = [f"{pose} picture-{number}\n\n" for number, (pose, _) in listed.items()]
    (folder / "images.txt").write_text("".join(entries))
    return {number: name for number, (_, name) in listed.items()}


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error}).") from error
    return [line.strip() for line in text.splitlines() if not line.lstrip().startswith("#")]


def _read_images(path: Path) -> dict[int, tuple[str, str]]:
    """Id -> (text of the pose with id and camera, name) of every picture of an images.txt."""
    found: dict[int, tuple[str, str]] = {}
    names: set[str] = set()
    problems = []
    awaits_points, without_points = False, 0
    for line in _lines(path):
        words = line.split(maxsplit=_POSE_WORDS)
        if len(words) == _POSE_WORDS + 1 and not _is_number(*words[-1].split()):
            without_points += awaits_points
            awaits_points = True
            if not (_is_number(*words[:-1]) and words[0].isdecimal()):
                problems.append(f"{line[:80]!r} is no picture's pose")
                continue
            number, name = int(words[0]), words[-1]
            if number in found or name in names:
                problems.append(f"picture {number} {name!r} is listed twice")
            found[number] = (" ".join(words[:-1]), name)
            names.add(name)
        elif not line or (awaits_points and not without_points and _is_points(line)):
            awaits_points = False
        else:
            problems.append(f"{line[:80]!r} is neither a picture nor the 2D points of one")
    if problems:
        raise UserError(
            f"{path}: {'; '.join(problems[:5])}. A picture has two lines: id, pose, camera and "
            "name; then its 2D points, which may be empty. Export it anew."
        )
    return found


def _is_points(line: str) -> bool:
    """Whether a line is x, y and the id of a 3D point, repeated."""
    words = line.split()
    return len(words) % 3 == 0 and _is_number(*words)


def _is_number(*words: str) -> bool:
    try:
        [float(word) for word in words]
    except ValueError:
        return False
    return True
