"""Whether a checkpoint can be trusted: by its parts, its checksums and the step of its record."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from escherjax.weights import integrity

WEIGHTS, OPTIMIZER, RECORD = ITEMS = ("weights", "optimizer", "record")  # folders of a checkpoint
UNFINISHED = ".orbax-checkpoint-tmp"  # Orbax puts it behind the step until the checkpoint is whole


def step_of(name: str) -> int | None:
    """The step that a checkpoint's folder of that name holds, None for any other name: "006" too,
    since a step has one name."""
    return int(name) if re.fullmatch("0|[1-9][0-9]*", name) else None


def steps(workdir: Path) -> list[int]:
    """Steps of the checkpoints of a work directory, rising; a folder takes that name when whole."""
    folders = [path for path in (workdir / "checkpoints").glob("*") if path.is_dir()]
    return sorted(step for f in folders if (step := step_of(f.name)) is not None)


def look(folder: Path, items: Sequence[str] = ITEMS) -> list[str]:
    """Problems that show at a glance: items, files, bytes or the manifest of the checkpoint are
    missing, or its record (if among the items) is of another step than the folder's name."""
    missing = [f"{folder / item}: missing" for item in items if not (folder / item).is_dir()]
    if missing and (folder / "state").is_dir():
        return [
            f"{folder}: saved by an older version, whose layout this one does not read; use that "
            "version to export it"
        ]
    if not integrity.exists(folder):
        missing.append(f"{folder / integrity.FILE_NAME}: missing, and no whole checkpoint lacks it")
    if missing:
        return missing
    problems = integrity.damage(folder, items, sizes_only=True)
    return problems or (_other_step(folder) if RECORD in items else [])


def verify(folder: Path, items: Sequence[str] = ITEMS) -> list[str]:
    """Problems of those items of the checkpoint `folder`, one line each, none if it can be used.

    Every byte of the items is read; nothing else of it, and nothing is changed.
    """
    return look(folder, items) or integrity.damage(folder, items)


def newest_whole(workdir: Path) -> int | None:
    """The newest step of a work directory whose checkpoint `verify` finds whole, None for none."""
    whole = (s for s in reversed(steps(workdir)) if not verify(workdir / "checkpoints" / str(s)))
    return next(whole, None)


def read_record(folder: Path) -> dict:
    """The JSON record of the checkpoint `folder`. Raises OSError or ValueError if it is damaged."""
    record = json.loads((folder / RECORD / "metadata").read_text())
    if not isinstance(record, dict) or not {"step", "config"} <= record.keys():
        raise ValueError("no step or config in it")
    return record


def _other_step(folder: Path) -> list[str]:
    """What speaks against the record being of the step in the folder's name (set aside or not)."""
    try:
        found = read_record(folder)["step"]
    except (OSError, ValueError) as error:
        return [f"{folder / RECORD}: {error}"]
    if found == step_of(folder.name.split(".")[0]):
        return []
    return [f"{folder}: its record is of step {found}, so it was renamed; needed that step's name"]
