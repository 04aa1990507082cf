"""Which scenes to import, and which of them to hold out: lists of ids."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from escherjax.errors import UserError

Found = list[tuple[str, Any]]  # (scene id, where it lies), sorted by id


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds --ids and --heldout-ids."""
    ids_help = "only these scenes: a JSON list of ids, or one id a line"
    parser.add_argument("--ids", type=Path, metavar="FILE", help=ids_help)
    heldout_help = "move these scenes to a split 'heldout', instead of the last ones"
    parser.add_argument("--heldout-ids", type=Path, metavar="FILE", help=heldout_help)


def select(
    args: argparse.Namespace, found: Found, order: Callable[[Any], Any] | None = None
) -> tuple[Found, dict[str, Any]]:
    """(scenes to import, those held out last; what the report says of ids that name no scene).

    args: with `add_arguments`; its `heldout` becomes a number of scenes. Splits are made by sorted
    ids, after --ids and --limit; order: sorts the places within each split, where reading them
    sorted by id is slow. Raises UserError for a damaged list or one without any scene.
    """
    from data_prep.lib.importing import heldout_count

    if args.heldout and args.heldout_ids:
        raise UserError("--heldout and --heldout-ids exclude each other; give one.")
    known = {scene_id for scene_id, _ in found}
    notes = {}
    chosen = found
    if args.ids:
        wanted = _read_ids(args.ids)
        notes["ids"] = _unknown("--ids", args.ids, wanted, known)
        chosen = [scene for scene in found if scene[0] in wanted]
    chosen = chosen[: args.limit]
    if args.heldout_ids:
        wanted = _read_ids(args.heldout_ids)
        notes["heldout_ids"] = _unknown("--heldout-ids", args.heldout_ids, wanted, known)
        heldout = [scene for scene in chosen if scene[0] in wanted]
        chosen = [scene for scene in chosen if scene[0] not in wanted]
    else:
        first = max(0, len(chosen) - heldout_count(args.heldout, len(chosen)))
        chosen, heldout = chosen[:first], chosen[first:]
    if order is not None:
        for part in (chosen, heldout):
            part.sort(key=lambda scene: order(scene[1]))
    args.heldout = len(heldout)
    return chosen + heldout, notes


def _read_ids(path: Path) -> set[str]:
    try:
        text = path.read_text()
        ids = json.loads(text) if text.lstrip()[:1] == "[" else text.split("\n")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a list of ids ({error}).") from error
    wrong = [entry for entry in ids if not isinstance(entry, str)]
    if wrong:
        raise UserError(f"{path} lists {wrong[0]!r}; expected ids, which are text.")
    return {entry.strip() for entry in ids} - {""}


def _unknown(option: str, path: Path, wanted: set[str], known: set[str]) -> dict[str, Any]:
    unknown = sorted(wanted - known)
    if len(unknown) == len(wanted):
        raise UserError(
            f"{option} {path}: none of its {len(wanted)} ids is a scene, such as "
            f"{unknown[:3]}; the scenes are {sorted(known)[:3]} ..."
        )
    if unknown:
        print(
            f"{option}: {len(unknown)} of {len(wanted)} ids are not scenes here: {unknown[:5]} ..."
        )
    return {"given": len(wanted), "unknown": unknown}
