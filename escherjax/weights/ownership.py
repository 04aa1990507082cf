"""Decides whether a checkpoint belongs to the run whose work directory it lies in.

Each run has an id of its own in `run_id.txt`, and each checkpoint's record names it, beside the
config it was saved under and the hash of that. Checkpoints of older versions name no run: those
are recognised by their config alone.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from escherjax import config as config_lib
from escherjax.weights import integrity

FILE_NAME = "run_id.txt"
_RUN, _CONFIG_HASH = "run_id", "config_sha256"  # of a record


def identity(workdir: Path, config_json: str) -> dict[str, str]:
    """The fields by which a record says to which run and config it belongs."""
    return {_RUN: run_id(workdir), _CONFIG_HASH: _hash(config_json)}


def run_id(workdir: Path) -> str:
    """The id of a work directory's run, or what its oldest checkpoint says; "" if none does."""
    with suppress(OSError, ValueError):
        return (workdir / FILE_NAME).read_text().strip()
    named = (_record(workdir, step).get(_RUN, "") for step in integrity.steps(workdir))
    return next(filter(None, named), "")


def keep_id(workdir: Path) -> None:
    """Writes `run_id.txt`: a new id for a run without checkpoints, else the one it has."""
    known = run_id(workdir) if integrity.steps(workdir) else ""
    partial = workdir / f"{FILE_NAME}.tmp"
    partial.write_text((known or uuid.uuid4().hex) + "\n")
    partial.replace(workdir / FILE_NAME)


def of_other_run(workdir: Path, step: int) -> str:
    """Why a checkpoint is of another run, by the id it names; "" if it is not, or names none."""
    mine, found = run_id(workdir), _record(workdir, step).get(_RUN)
    if not (mine and found) or mine == found:
        return ""
    folder = workdir / "checkpoints" / str(step)
    return f"{folder}: of the run {found}, expected {mine} ({workdir / FILE_NAME})"


def foreign(workdir: Path, steps: Iterable[int], config: ConfigDict) -> list[str]:
    """Problems of the checkpoints that a run of `config` cannot have saved, one line each.

    What cannot be read is no matter of this check.
    """
    problems = []
    for step in steps:
        record, folder = _record(workdir, step), workdir / "checkpoints" / str(step)
        if problem := of_other_run(workdir, step):
            problems.append(problem)
            continue
        text = record.get("config")
        if not isinstance(text, str):
            continue
        if record.get(_CONFIG_HASH, _hash(text)) != _hash(text):
            problems.append(f"{folder}: its config has not the hash that its record names")
            continue
        with suppress(ValueError, TypeError, RecursionError):
            changes = config_lib.differences(config_lib.from_json(text), config)
            if changes:
                problems.append(f"{folder}: saved under another config ({'; '.join(changes)})")
    return problems


def _record(workdir: Path, step: int) -> dict[str, Any]:
    """The record of a checkpoint, {} where it cannot be read."""
    with suppress(OSError, ValueError, RecursionError):
        return integrity.read_record(workdir / "checkpoints" / str(step))
    return {}


def _hash(config_json: str) -> str:
    return hashlib.sha256(config_json.encode()).hexdigest()
