"""What figures depend on: written before the first of them, compared when it goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from escherjax.errors import UserError, in_words
from escherjax.files import whole_file
from escherjax.reports import results, summary

FILE_NAME = "settings.json"
STEP_PREFIX = "step_"  # of folders that `follow` makes
ELSEWHERE = ("weights.path", "scenes.data")  # where things lie does not change figures


def scenes_hash(scene_ids: Sequence[str]) -> str:
    """The first 16 hex digits of a SHA-256 over the names of scenes."""
    return hashlib.sha256(json.dumps(list(scene_ids)).encode()).hexdigest()[:16]


def check(out: Path, settings: dict[str, Any]) -> None:
    """Checks that an evaluation with these settings may start or go on in `out`; changes nothing.

    Raises UserError, listing every field that differs, if `out` holds another evaluation, or
    something else. What an attempt left that scored nothing is in nobody's way.
    """
    path = out / FILE_NAME
    settings = json.loads(json.dumps(settings))  # as they will be read
    if not path.exists():
        # Looked for again at the end: another process of this job may be writing it just now.
        taken = out.exists() and not (out.is_dir() and _is_unscored(out))
        if taken and not path.exists():
            raise UserError(
                f"--out {out} is not an empty folder and holds no {FILE_NAME}, so it is not an "
                "evaluation to continue; name a new one."
            )
        if not path.exists():
            return
    changes = summary.differences(read(out), settings, ELSEWHERE)
    if changes:
        lines = "\n  ".join(f"{name}: {ours} was {theirs}" for name, theirs, ours in changes)
        raise UserError(
            f"--out {out} holds an evaluation with other settings:\n  {lines}\nName a new --out, "
            "or set these back to continue that one."
        )


def start_or_continue(out: Path, settings: dict[str, Any]) -> None:
    """Writes the settings of an evaluation that is about to write its first record, or `check`s."""
    check(out, settings)
    if not (out / FILE_NAME).exists():
        out.mkdir(parents=True, exist_ok=True)
        with whole_file(out / FILE_NAME) as file:
            file.write_text(json.dumps(settings, indent=2) + "\n")
        check(out, settings)  # another process may have been first


def _is_unscored(folder: Path) -> bool:
    """Whether there is nothing in a folder but what evaluations leave that scored nothing."""

    def scored_nothing(path: Path) -> bool:
        if path.is_dir():
            return path.name.startswith(STEP_PREFIX) and _is_unscored(path)
        if path.name.startswith((results.PER_VIEW, results.CONSISTENCY)):
            return path.stat().st_size == 0
        return path.name.startswith((FILE_NAME, f"{results.SKIPPED}."))

    return all(map(scored_nothing, folder.iterdir()))


def read(out: Path) -> dict[str, Any]:
    """The settings of the evaluation in `out`. Raises UserError if there are none."""
    try:
        return json.loads((out / FILE_NAME).read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{out / FILE_NAME} cannot be read ({in_words(error)}); needed the --out of an "
            "evaluation."
        ) from error
