"""Finds the pictures that a file names as a person would find them.

Files come from other machines: with backslashes, with absolute paths, from another folder, with
another suffix or case. A picture counts as missing where its folder is there and holds others, so
that nothing of the same name, such as a mask, is taken for it.
"""

from __future__ import annotations

import collections
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from escherjax.data.images import IMAGE_SUFFIXES
from escherjax.errors import UserError, listed

# Folders whose pictures have the names of others, but show something else.
_NO_COLORS = re.compile(r"(mask|depth|normal|alpha|semantic|segment|thumb|confidence|flow|dispar)")


def find_pictures(
    folder: Path, names: Sequence[str], inside: bool = False
) -> tuple[list[Path | None], list[str]]:
    """(path of each picture, None where it is missing; sentences on those found elsewhere).

    Args:
        folder: that names are relative to.
        names: of pictures, as a file has them.
        inside: take no picture outside the folder.

    Raises:
        UserError: Two pictures fit a name, or two names lead to one picture.
    """
    plain = [name.replace("\\", "/").strip() for name in names]
    paths = [
        _in_place(folder, name, inside) or _in_place(folder, cleaned, inside)
        for name, cleaned in zip(names, plain, strict=True)
    ]
    how: dict[str, list[int]] = collections.defaultdict(list)
    for place, path in enumerate(paths):
        if path is not None and "\\" in names[place] and not os.path.isfile(folder / names[place]):
            how["with slashes in place of backslashes"].append(place)
    siblings: dict[Path, list[Path]] = {}
    for place, path in enumerate(paths):
        if path is None and not (inside and _leads_out(plain[place])):
            parent = (folder / plain[place]).parent
            if parent not in siblings:
                siblings[parent] = sorted(parent.iterdir()) if os.path.isdir(parent) else []
            paths[place] = _alike(PurePosixPath(plain[place]), siblings[parent], names[place])
            if paths[place] is not None:
                how["with another suffix or case"].append(place)
    whole = {PurePosixPath(plain[i]).parent for i, path in enumerate(paths) if path is not None}
    below: list[Path] | None = None
    for place, path in enumerate(paths):
        wanted = PurePosixPath(plain[place])
        if path is None and wanted.parent not in whole:
            below = _pictures_below(folder) if below is None else below
            paths[place] = _alike(wanted, below, names[place])
            if paths[place] is not None:
                how["by name in another folder"].append(place)
    _refuse_repeated(names, paths)
    remarks = [
        f"{len(places)} of {len(names)} pictures were found {way} (such as {names[places[0]]!r}: "
        f"{paths[places[0]]})."
        for way, places in how.items()
    ]
    return paths, remarks


def pictures_below(folder: Path) -> list[Path]:
    """Every picture at or below a folder, but for masks and the like, sorted."""
    return sorted(_pictures_below(folder))


def _leads_out(name: str) -> bool:
    parts = PurePosixPath(name)
    return parts.is_absolute() or ".." in parts.parts


def _in_place(folder: Path, name: str, inside: bool) -> Path | None:
    """The file that the name leads to, which may lack its suffix."""
    if not name or (inside and _leads_out(name)):
        return None
    if os.path.isfile(folder / name):  # not Path's, which raises for names too long to exist
        return folder / name
    return _only(
        [folder / (name + s) for s in IMAGE_SUFFIXES if os.path.isfile(folder / (name + s))], name
    )


def _alike(wanted: PurePosixPath, candidates: Sequence[Path], name: str) -> Path | None:
    """The candidate of the same name but for case, else but for the suffix too; None if none.

    Of several, the one whose folders agree the farthest. UserError if there are two of these.
    """
    base = wanted.name.lower()
    stem = wanted.stem.lower() if wanted.suffix.lower() in IMAGE_SUFFIXES else base
    pictures = [path for path in candidates if path.suffix.lower() in IMAGE_SUFFIXES]
    found = [path for path in pictures if path.name.lower() == base]
    found = found or [path for path in pictures if path.stem.lower() == stem]
    tails = [_shared_tail(wanted, path) for path in found]
    return _only([p for p, tail in zip(found, tails, strict=True) if tail == max(tails)], name)


def _shared_tail(wanted: PurePosixPath, path: Path) -> int:
    """How many folders above the pictures agree."""
    pairs = zip(reversed(wanted.parts[:-1]), reversed(path.parts[:-1]), strict=False)
    count = 0
    for first, second in pairs:
        if first.lower() != second.lower():
            break
        count += 1
    return count


def _only(found: Sequence[Path], name: str) -> Path | None:
    if len(found) > 1:
        raise UserError(
            f"picture {name!r} may be {' or '.join(map(str, found[:3]))}; it must be one. Remove "
            "the others, or name it in full."
        )
    return found[0] if found else None


def _pictures_below(folder: Path) -> list[Path]:
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(
            name for name in folders if name[0] != "." and not _NO_COLORS.search(name.lower())
        )
        found += [
            Path(parent, name)
            for name in sorted(files)
            if name[0] != "." and name.lower().endswith(IMAGE_SUFFIXES)
        ]
    return found


def _refuse_repeated(names: Sequence[str], paths: Sequence[Path | None]) -> None:
    first: dict[str, int] = {}
    problems = []
    for place, path in enumerate(paths):
        if path is None:
            continue
        real = os.path.realpath(path)
        if real in first:
            problems.append(
                f"views {first[real]} and {place} are both of picture {path} "
                f"({names[first[real]]!r}, {names[place]!r})."
            )
        first.setdefault(real, place)
    if problems:
        raise UserError(
            f"{listed(problems)} Each view must have a picture of its own; remove what is wrong."
        )
