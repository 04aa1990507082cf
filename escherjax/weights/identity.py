"""Says which weights a result was made with, wherever they lie: pinned, hashed and described."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from escherjax.weights import hub, integrity, run_params, runs
from escherjax.weights.facts import ModelCard


def pin(weights: str | Path) -> tuple[str | Path, Path]:
    """Fixes which weights a name stands for, since training may save another checkpoint meanwhile.

    Args:
        weights: a training work directory, one of its checkpoints, a pipeline folder or a hub id.

    Returns:
        (what `escherjax.load` is to be given, the folder that holds the weights). Of a work
        directory both are its newest checkpoint. A hub id stays one, since it and not its folder
        names the camera encoding.

    Raises:
        UserError: the work directory has no checkpoint.
    """
    folder = hub.resolve(weights)
    place = runs.locate(folder)
    if place is None:
        return weights, folder
    workdir, step = place
    newest = workdir / "checkpoints" / str(run_params.find_step(workdir, step))
    return newest, newest


def hash_weights(folder: Path) -> str:
    """The first 16 hex digits of a SHA-256 over the weights in `folder`, wherever it lies.

    Of a checkpoint it is taken over the sizes and checksums in its manifest, without which, and of
    a pipeline folder, over the bytes of its files.
    """
    digest = hashlib.sha256()
    if integrity.has_manifest(folder):
        listed = integrity.read_manifest(folder)
        of_weights = {n: e for n, e in listed.items() if n.split("/")[0] == integrity.WEIGHTS}
        digest.update(json.dumps(of_weights, sort_keys=True).encode())
        return digest.hexdigest()[:16]
    inner = folder / integrity.WEIGHTS
    root = inner if inner.is_dir() else folder
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def describe(card: ModelCard, folder: Path) -> dict[str, Any]:
    """A JSON record of which weights they are and what they were made for.

    Args:
        card: of the loaded weights.
        folder: that holds them, as `pin` gives it.
    """
    return {
        "path": str(folder),
        "hash": hash_weights(folder),
        "params": card.weights,
        "trained_steps": card.trained_steps,
        "cape": card.cape,
        "resolution": card.resolution,
    }
