"""The folder that an import writes: opened or gone on with, finished, and reported on."""

from __future__ import annotations

import collections
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.lib.tasks import PROGRESS_FOLDER, ShardTask, no_room_stops, write_json
from escherjax.errors import UserError

REPORT_FILE = "report.json"
PLAN_FILE = "plan.json"

# The command, its options and whatever else the shards follow from, as JSON.
Plan = dict[str, Any]


def open_folder(out: Path, plan: Plan, overwrite: bool) -> None:
    """Makes `out` ready to write shards to, or to go on with the same plan.

    Raises UserError if `out` cannot be reached or holds something else.
    """
    progress = out / PROGRESS_FOLDER
    plan_file = progress / PLAN_FILE
    with no_room_stops(out):
        check_not_taken(out, overwrite)
        if overwrite and out.is_dir():
            _remove_progress(out)
            _remove_data(out)
        if plan_file.exists():
            if json.loads(plan_file.read_text()) != plan:
                raise UserError(
                    f"{out} holds an unfinished import with other arguments or another source; "
                    "give the same again to finish it, or --overwrite to start anew."
                )
        else:
            if out.exists() and any(path != progress for path in out.iterdir()):
                raise _not_empty(out)
            progress.mkdir(parents=True, exist_ok=True)
            write_json(plan_file, plan)
        for leftover in (*out.glob("*.tmp"), *progress.glob("*.tmp")):
            leftover.unlink(missing_ok=True)


def check_not_taken(out: Path, overwrite: bool) -> None:
    """Raises UserError if `out` cannot be reached, is a file, or holds a whole data set."""
    from escherjax.data.shards import COMPLETE_FILE

    try:
        out.exists()
    except Exception as error:  # of any class, by the address's library
        raise UserError(
            f"--out {out} cannot be reached ({type(error).__name__}: {str(error)[:300]}). "
            "Addresses need fsspec's package for them: gcsfs, s3fs or adlfs."
        ) from error
    is_unfinished = (out / PROGRESS_FOLDER / PLAN_FILE).exists()
    if (out / COMPLETE_FILE).exists() and not is_unfinished and not overwrite:
        raise UserError(f"{out} holds a data set already; choose another --out or --overwrite it.")
    if out.exists() and not out.is_dir():
        raise _not_empty(out)


def finish_folder(
    out: Path,
    plan: Plan,
    tasks: Sequence[ShardTask],
    source: str,
    about: Mapping[str, Any] | None = None,
    with_moments: bool = False,
) -> None:
    """Makes a folder of which all shards are written a data set with a report, and prints that.

    Args:
        out: the folder.
        plan: as given to `open_folder`; its command and options are kept in the report.
        tasks: of all shards.
        source: what the scenes were read from, left out of reasons to skip scenes.
        about: further entries of the report.
        with_moments: see `shards.write_metadata`.

    Raises:
        UserError: if no scene at all could be used.
    """
    from escherjax.data import shards

    notes = [json.loads(task.note_file.read_text()) for task in tasks]
    skipped = [entry for note in notes for entry in note["skipped"]]
    if not any(note["scenes"] for note in notes):
        _remove_progress(out)
        _remove_data(out)
        raise UserError(
            f"none of {len(skipped)} scenes can be used. The first, '{skipped[0]['scene_id']}': "
            f"{skipped[0]['reason']}"
        )
    lengths: dict[str, list[int]] = collections.defaultdict(list)
    for task, note in zip(tasks, notes, strict=True):
        lengths[task.split].append(note["scenes"])
    scene_notes = {key: value for note in notes for key, value in note["notes"].items()}
    report = {
        "command": plan["command"],
        "options": plan["options"],
        "scenes": sum(map(sum, lengths.values())),
        "views": sum(note["views"] for note in notes),
        "bytes": sum(note["bytes"] for note in notes),
        "splits": {split: sum(counts) for split, counts in lengths.items()},
        "num_skipped": len(skipped),
        "skipped_by_reason": _count_reasons(skipped, source),
        "skipped": skipped,
        "views_left_out": sum(len(_left_out(note)) for note in scene_notes.values()),
        "notes": scene_notes,
        **(about or {}),
    }
    with no_room_stops(out):
        write_json(out / REPORT_FILE, report)
        description = f"Made by data_prep.{plan['command']}"
        shards.write_metadata(out, lengths, description, with_moments)
    _remove_progress(out)
    _print_summary(report, out)


def _print_summary(report: Mapping[str, Any], out: Path) -> None:
    """Prints the first skipped scenes, and last what was read and what was left out, and why."""
    remarks = [
        f"  note on {scene_id}: {remark}"
        for scene_id, note in report["notes"].items()
        for remark in note.get("remarks", ())
    ]
    print(*remarks[:5], sep="\n", end="\n" if remarks else "")
    if len(remarks) > 5:
        print(f"  ... and {len(remarks) - 5} more notes, all in {out / REPORT_FILE}")
    for entry in report["skipped"][:5]:
        print(f"  skipped {entry['scene_id']}: {entry['reason']}")
    if report["num_skipped"] > 5:
        print(f"  ... and {report['num_skipped'] - 5} more, all in {out / REPORT_FILE}")
    splits = ", ".join(f"{name} {count}" for name, count in report["splits"].items())
    text = f"{report['scenes']} scenes ({splits}), {report['views']} views, "
    text += f"{report['bytes'] / 1e6:.1f} MB, {report['num_skipped']} skipped"
    reasons = [f"{count}: {kind}" for kind, count in report["skipped_by_reason"].items()]
    text += f" ({'; '.join(reasons)})" if reasons else ""
    if report["views_left_out"]:
        left_out = [
            {"scene_id": scene_id, "reason": reason}
            for scene_id, note in report["notes"].items()
            for reason in _left_out(note).values()
        ]
        kinds = _count_reasons(left_out, report["options"]["source"]).items()
        text += f", {len(left_out)} views of the others left out "
        text += f"({'; '.join(f'{count}: {kind}' for kind, count in kinds)})"
    print(f"{out}: {text}")


def _left_out(note: Mapping[str, Any]) -> dict[Any, str]:
    """Picture -> why it could not be used, of a scene that was read, by the importer's note."""
    timestamps = note.get("missing_frames", {}).get("timestamps", ())
    return {**note.get("left_out", {}), **dict.fromkeys(timestamps, "frame without a picture")}


def _count_reasons(skipped: Sequence[Mapping[str, str]], source: str) -> dict[str, int]:
    """How often scenes were skipped for each reason, most often first.

    A reason's kind is its first sentence, without names of files and scenes, and numbers.
    """
    kinds: collections.Counter[str] = collections.Counter()
    for entry in skipped:
        text = entry["reason"]
        for name in (source, entry["scene_id"]):
            text = text.replace(name, "/") if " " in name else text  # else it is one word below
        sentence = re.split(r"[;.](?:\s|$)", text, maxsplit=1)[0]
        words = ["..." if re.search("[/']", word) else word for word in sentence.split()]
        kinds[re.sub(r"-?\d+(\.\d+)?(e[+-]?\d+)?", "#", " ".join(words))] += 1
    return dict(kinds.most_common())


def _not_empty(out: Path) -> UserError:
    return UserError(f"{out} is not an empty folder; choose another --out.")


def _remove_progress(out: Path) -> None:
    from etils import epath

    progress = out / PROGRESS_FOLDER
    if progress.exists():
        epath.Path(progress).rmtree()


def _remove_data(out: Path) -> None:
    """Removes what an import writes to a folder, and nothing else."""
    from escherjax.data import moments
    from escherjax.data.shards import COMPLETE_FILE, DATASET_NAME, FEATURES_FILE

    names = (COMPLETE_FILE, FEATURES_FILE, REPORT_FILE, moments.FILE_NAME)
    for path in (*(out / name for name in names), *out.glob(f"{DATASET_NAME}-*.array_record-*")):
        path.unlink(missing_ok=True)
