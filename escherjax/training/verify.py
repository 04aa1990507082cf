"""Whether a checkpoint can be trusted: by checksums, or, without them, by reading it through."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from escherjax.training import manifest

WEIGHTS, OPTIMIZER, RECORD = ITEMS = ("weights", "optimizer", "record")  # folders of a checkpoint


@dataclasses.dataclass(frozen=True)
class Verdict:
    """problems: one line each, none for a checkpoint that can be used; has_checksums: whether
    there was a manifest to compare with, without which bytes that changed go unseen."""

    problems: list[str]
    has_checksums: bool


def steps(workdir: Path) -> list[int]:
    """Steps of the checkpoints of a work directory, rising; a folder takes that name when whole."""
    folders = (workdir / "checkpoints").glob("*")
    return sorted(int(f.name) for f in folders if f.name.isdigit() and f.is_dir())


def look(folder: Path, items: Sequence[str] = ITEMS) -> list[str]:
    """Problems that show without reading: items, files or bytes of the checkpoint are missing."""
    missing = [f"{folder / item}: missing" for item in items if not (folder / item).is_dir()]
    if missing and (folder / "state").is_dir():
        return [
            f"{folder}: saved by an older version, whose layout this one does not read; use that "
            "version to export it"
        ]
    if missing or not manifest.exists(folder):
        return missing
    return manifest.damage(folder, items, sizes_only=True)


def verify(folder: Path, items: Sequence[str] = ITEMS) -> Verdict:
    """Reads those items of the checkpoint `folder`; nothing else of it, and changes nothing."""
    has_checksums = manifest.exists(folder)
    problems = look(folder, items)
    if not problems and has_checksums:
        problems = manifest.damage(folder, items)
    elif not problems:
        problems = [line for item in items for line in _unreadable(folder, item)]
    return Verdict(problems, has_checksums)


def read_record(folder: Path) -> dict:
    """The JSON record of the checkpoint `folder`. Raises OSError or ValueError if it is damaged."""
    record = json.loads((folder / RECORD / "metadata").read_text())
    if not isinstance(record, dict) or not {"step", "config"} <= record.keys():
        raise ValueError("no step or config in it")
    return record


def _unreadable(folder: Path, item: str) -> list[str]:
    """Why the item cannot be read, if so. Every array of it is read to the memory of this host."""
    place = (folder / item).resolve()
    handler = ocp.PyTreeCheckpointHandler()
    try:
        if item == RECORD:
            read_record(folder)
            return []
        as_numpy = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(place).tree
        )
        handler.restore(place, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    except Exception as error:  # the libraries below raise what they like for a damaged file
        return [f"{place}: {type(error).__name__}: {str(error).splitlines()[0][:300]}"]
    return []
