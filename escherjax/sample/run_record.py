"""run.json: how a folder of views was made, and how to make it again."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from escherjax.errors import UserError, in_words

FILE_NAME = "run.json"
COMMAND = ["python", "-m", "escherjax.sample"]


def write_record(folder: Path, argv: Sequence[str], facts: Mapping[str, Any]) -> None:
    """Writes the record: the command `argv` that ran, and what it came to."""
    record = {"command": [*COMMAND, *argv], **facts}
    (folder / FILE_NAME).write_text(json.dumps(record, indent=2) + "\n")


def repeated(argv: Sequence[str]) -> list[str]:
    """`--repeat FILE ...` as the arguments of the run that wrote FILE, then the others.

    Of what is given twice the last counts, so the others change the run; --out must be among them.
    Unless --weights is, they are those that FILE names, of a work directory the same checkpoint,
    and --weights-hash refuses others that have taken their place.
    Raises UserError for a file that is no such record.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--repeat", type=Path)
    known, rest = parser.parse_known_args(argv)
    if known.repeat is None:
        return list(argv)
    try:
        record = json.loads(known.repeat.read_text())
        command = record["command"]
        if command[: len(COMMAND)] != COMMAND or not all(isinstance(x, str) for x in command):
            raise ValueError(f"its command is {command!r}")
        weights = record.get("weights")
        pinned = (
            []
            if weights is None
            else ["--weights", str(weights["path"]), "--weights-hash", str(weights["hash"])]
        )
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"--repeat {known.repeat}: {in_words(error)}; needed the {FILE_NAME} that a run of "
            f"'{' '.join(COMMAND)}' wrote."
        ) from error
    again = _without(command[len(COMMAND) :], ("--out", "--weights-hash"))
    if pinned and not any(part.split("=")[0] == "--weights" for part in rest):
        again = [*pinned, *_without(again, ("--weights",))]
    return [*again, *rest]


def check_weights(expected: str | None, weights: Mapping[str, Any]) -> None:
    """Raises UserError if a hash is expected and these weights have another."""
    if expected not in (None, weights["hash"]):
        raise UserError(
            f"the weights in {weights['path']} have the hash {weights['hash']}; needed those of "
            f"--weights-hash {expected}. Name with --weights where they are now, or others."
        )


def _without(arguments: Sequence[str], options: Sequence[str]) -> list[str]:
    """The arguments less these options, each of which has one value."""
    kept, is_value = [], False
    for part in arguments:
        if is_value or part in options:
            is_value = not is_value
        elif part.split("=")[0] not in options:
            kept.append(part)
    return kept
