"""What all importers share: arguments, shards that survive a kill, progress bar, report.

An import is a list of scene ids in a fixed order and a function that reads some of them. Shard i
holds a fixed part of the list; see `data_prep.lib.tasks`. Started again with the same arguments, an
import keeps finished shards and goes on, and what it makes is byte for byte what an undisturbed run
makes, on however many processes or machines.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.lib import reporting
from data_prep.lib.tasks import (
    PROGRESS_FOLDER,
    Imported,
    ReadScenes,
    SceneReader,
    ShardTask,
    Skipped,
    no_room_stops,
    run_in_processes,
    write_json,
)
from escherjax.errors import UserError

__all__ = ["Imported", "SceneReader", "Skipped"]  # what importers need besides what is below

SCENES_PER_SHARD = 1024
# Of one process: reading was seen to hold Python's lock for 9 to 19% of its time, so that about
# five to ten threads would wait for it.
THREADS = 4
ADDRESSES = ("gs://", "s3://", "az://")  # that etils.epath reads and writes
# Arguments that do not change what is written.
WAYS = ("out", "overwrite", "workers", "runner", "beam_flags")


class _Parser(argparse.ArgumentParser):
    """Leaves the flags that it does not know to Beam, where --runner is given."""

    def parse_args(self, args=None, namespace=None):  # type: ignore[override]
        known, rest = self.parse_known_args(args, namespace)
        if rest and not known.runner:
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        known.beam_flags = rest
        return known


def argument_parser(
    command: str, description: str, needs_source: bool = True
) -> argparse.ArgumentParser:
    """An argparse parser with the arguments of every importer."""
    parser = _Parser(
        prog=f"python -m data_prep.{command}", description=description, allow_abbrev=False
    )
    parser.add_argument(
        "--source",
        type=Path,
        required=needs_source,
        help="a scene folder, or a folder with scene folders at any depth"
        if needs_source
        else "not used: these scenes are made, not read",
    )
    parser.add_argument(
        "--out",
        type=folder,
        required=True,
        help="folder of shards to make; or an address, gs://... or s3://...",
    )
    parser.add_argument("--limit", type=int, help="only the first so many scenes")
    parser.add_argument(
        "--resolution",
        type=int,
        default=256,
        help="shrink pictures whose shorter side is longer than this, and K with them; 0 leaves "
        "their size, as the faithful zero123 background needs (default %(default)s)",
    )
    parser.add_argument(
        "--format",
        choices=("png", "jpeg", "webp"),
        help="of every picture; JPEG cannot hold transparent pixels: scenes that have them are "
        "skipped (default: files that need no change keep their bytes, others become png)",
    )
    parser.add_argument(
        "--quality",
        type=int,
        metavar="1..100",
        help="of jpeg and webp; a webp of 100 is lossless (default 92)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count(),
        help=f"threads; where there are several shards, in processes of {THREADS} (default: number "
        "of cores, %(default)s)",
    )
    parser.add_argument(
        "--runner",
        metavar="DirectRunner|DataflowRunner|FlinkRunner|SparkRunner|...",
        help="write the shards by an Apache Beam pipeline on this runner, to which all flags that "
        "are not listed here go; --source and --out must be the same on all its machines "
        "(default: this machine alone, without Beam)",
    )
    parser.add_argument(
        "--shards", type=int, help=f"files to write (default: one for {SCENES_PER_SHARD} scenes)"
    )
    parser.add_argument("--split", default="train", help="name of the split (default %(default)s)")
    parser.add_argument(
        "--heldout",
        type=float,
        default=0,
        help="move the last scenes to a split 'heldout': a fraction below 1, or a number of scenes",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what --out holds")
    return parser


def add_max_views(parser: argparse.ArgumentParser) -> None:
    """Adds --max-views, for formats that are videos; see `evenly_spaced`."""
    parser.add_argument(
        "--max-views",
        type=int,
        help="keep at most so many frames of a scene, evenly spaced, first and last among them",
    )


def evenly_spaced(items: Sequence[Any], count: int | None) -> Sequence[Any]:
    """At most `count` of the items, evenly spaced, first and last among them; None keeps all."""
    if count is None or count >= len(items):
        return items
    step = (len(items) - 1) / max(count - 1, 1)
    return [items[round(place * step)] for place in range(count)]


def check_arguments(args: argparse.Namespace) -> None:
    """Raises UserError naming the first of the shared arguments that is out of range."""
    from escherjax.data.shards import check_split_name

    check_split_name(args.split)
    for name in ("limit", "resolution", "workers", "shards", "max_views", "first_views"):
        value, lowest = getattr(args, name, None), 0 if name == "resolution" else 1
        if value is not None and value < lowest:
            option = name.replace("_", "-")
            raise UserError(f"--{option} {value}: needed at least {lowest}.")
    if args.quality is not None:
        if args.format not in ("jpeg", "webp"):
            raise UserError(f"--quality {args.quality} needs --format jpeg or webp.")
        if not 1 <= args.quality <= 100:
            raise UserError(f"--quality {args.quality}: needed 1 to 100.")
    if args.heldout < 0 or (args.heldout > 1 and args.heldout != int(args.heldout)):
        raise UserError(f"--heldout {args.heldout}: needed a fraction below 1 or a whole number.")
    if args.heldout and args.split == "heldout":
        raise UserError("--heldout needs a --split of another name than 'heldout'.")
    if args.runner:
        from data_prep.lib import beam

        beam.check_runner(args.runner, args.beam_flags)


def picture_format(args: argparse.Namespace) -> Any:
    """The images.PictureFormat that --format and --quality ask for."""
    from escherjax.data.images import PictureFormat

    return PictureFormat(args.format, args.quality or PictureFormat.quality)


def folder(text: str) -> Path:
    """--out as a path: local, or an etils.epath.Path of an address."""
    if "://" not in text:
        return Path(text)
    if not text.startswith(ADDRESSES):
        raise argparse.ArgumentTypeError(f"'{text}'; needed a folder, or {', '.join(ADDRESSES)}")
    from etils import epath

    return epath.Path(text)


def import_scenes(
    args: argparse.Namespace,
    command: str,
    scene_ids: Sequence[str],
    read: ReadScenes,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Writes scenes as a data set with a report, going on from an earlier try. Returns the folder.

    scene_ids: of every candidate, sorted, before --limit. read: a SceneReader of as many items; or
    any function of places, which is called in this process alone, or pickled whole for Beam.
    about: further entries of the report, on the import as a whole.
    Raises UserError if --out is taken, ids repeat, or no scene at all can be used; StoppedError if
    shards could not be written.
    """
    from tqdm import tqdm

    from escherjax.data import shards as records

    scene_ids = list(scene_ids)[: args.limit]
    records.check_unique(scene_ids)
    shards = _plan_shards(args, len(scene_ids))
    out = args.out
    options = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in sorted(vars(args).items())
        if name not in WAYS
    }
    plan = {
        "command": command,
        "options": options,
        "scenes_sha256": hashlib.sha256("\n".join(scene_ids).encode()).hexdigest(),
    }
    open_folder(out, plan, args.overwrite)
    tasks = [
        _make_task(out, split, shard, parts, scene_ids, read)
        for split, parts in shards.items()
        for shard in range(len(parts))
    ]
    pending = [task for task in tasks if not (task.note_file.exists() and task.path.exists())]
    with tqdm(total=len(scene_ids), desc=f"{command} -> {out}", unit="scene", mininterval=1) as bar:
        bar.update(len(scene_ids) - sum(len(task.places) for task in pending))
        _run_tasks(args, pending, bar.update)
    finish_folder(out, plan, tasks, str(options["source"]), about)
    return out


def finish_folder(
    out: Path,
    plan: dict[str, Any],
    tasks: Sequence[ShardTask],
    source: str,
    about: Mapping[str, Any] | None = None,
    with_moments: bool = False,
) -> None:
    """Makes a folder of which all shards are written a data set with a report, and prints that.

    plan: as given to `open_folder`. source: what the scenes were read from, left out of reasons.
    about: further entries of the report. with_moments: see `records.write_metadata`.
    Raises UserError if no scene at all could be used.
    """
    from escherjax.data import shards as records

    notes = [json.loads(task.note_file.read_text()) for task in tasks]
    skipped = [entry for note in notes for entry in note["skipped"]]
    if not any(note["scenes"] for note in notes):
        first = skipped[0]
        _remove_progress(out / PROGRESS_FOLDER)
        _remove_data(out)
        raise UserError(
            f"none of {len(skipped)} scenes can be used. The first, '{first['scene_id']}': "
            f"{first['reason']}"
        )
    lengths: dict[str, list[int]] = {task.split: [] for task in tasks}
    for task, note in zip(tasks, notes, strict=True):
        lengths[task.split].append(note["scenes"])
    report = {**reporting.make_report(plan, source, lengths, notes), **(about or {})}
    with no_room_stops(out):
        write_json(out / reporting.REPORT_FILE, report)
        description = f"Made by data_prep.{plan['command']}"
        records.write_metadata(out, lengths, description, with_moments)
    _remove_progress(out / PROGRESS_FOLDER)
    reporting.print_summary(report, out)


def _make_task(
    out: Path,
    split: str,
    shard: int,
    parts: Sequence[range],
    scene_ids: Sequence[str],
    read: ReadScenes,
) -> ShardTask:
    places: Sequence[int] = parts[shard]
    ids = [scene_ids[place] for place in places]
    if isinstance(read, SceneReader):
        read, places = read.part(places), range(len(places))
    return ShardTask(out, split, shard, len(parts), ids, read, places)


def _run_tasks(
    args: argparse.Namespace, tasks: Sequence[ShardTask], tick: Callable[[int], Any]
) -> None:
    """Runs tasks where the arguments say: by Beam, in several processes, or here."""
    if not tasks:
        return
    if args.runner:
        from data_prep.lib import beam

        beam.run_tasks(tasks, args.runner, args.beam_flags)
        tick(sum(len(task.places) for task in tasks))
        return
    readers = [task.read for task in tasks if isinstance(task.read, SceneReader)]
    processes = min(len(readers), args.workers // THREADS)
    if processes > 1:
        for reader in readers:
            reader.workers = args.workers // processes
        run_in_processes(tasks, processes, tick)
        return
    for task in tasks:
        task.run(tick)


def heldout_count(heldout: float, count: int) -> int:
    """How many of `count` scenes --heldout means."""
    return int(heldout) if heldout >= 1 else math.ceil(heldout * count)


def _plan_shards(args: argparse.Namespace, count: int) -> dict[str, list[range]]:
    """Places in the list of ids that each shard of each split holds."""
    heldout = heldout_count(args.heldout, count)
    if heldout >= count:
        raise UserError(f"--heldout {args.heldout:g} leaves none of {count} scenes to train on.")
    first = count - heldout
    number = args.shards or math.ceil(first / SCENES_PER_SHARD)
    plan = {args.split: _cut(0, first, number)}
    if heldout:
        plan["heldout"] = _cut(first, count, math.ceil(number * heldout / first))
    return plan


def _cut(start: int, stop: int, parts: int) -> list[range]:
    bounds = [start + (stop - start) * i // parts for i in range(parts + 1)]
    return [range(a, b) for a, b in zip(bounds, bounds[1:], strict=False)]


def open_folder(out: Path, plan: dict[str, Any], overwrite: bool) -> None:
    """Makes `out` ready to write shards to, or to go on with the same plan.

    plan: "command", "options" and whatever else the shards follow from, as JSON. Raises UserError
    if `out` cannot be reached or holds something else.
    """
    with no_room_stops(out):
        _open_folder(out, plan, overwrite)


def _open_folder(out: Path, plan: dict[str, Any], overwrite: bool) -> None:
    from escherjax.data.metadata import COMPLETE_FILE

    try:
        out.exists()
    except Exception as error:  # of any class, by the address's library
        raise UserError(
            f"--out {out} cannot be reached ({type(error).__name__}: {str(error)[:300]}). "
            "Addresses need fsspec's package for them: gcsfs, s3fs or adlfs."
        ) from error
    progress = out / PROGRESS_FOLDER
    plan_file = progress / "plan.json"
    if overwrite and out.is_dir():
        _remove_progress(progress)
        _remove_data(out)
    if (out / COMPLETE_FILE).exists() and not plan_file.exists():
        raise _taken(out)
    if plan_file.exists():
        if json.loads(plan_file.read_text()) != plan:
            raise UserError(
                f"{out} holds an unfinished import with other arguments or another source; give "
                "the same again to finish it, or --overwrite to start anew."
            )
    else:
        if out.exists() and (not out.is_dir() or any(p != progress for p in out.iterdir())):
            raise UserError(f"{out} is not an empty folder; choose another --out.")
        progress.mkdir(parents=True, exist_ok=True)
        write_json(plan_file, plan)
    for leftover in (*out.glob("*.tmp"), *progress.glob("*.tmp")):
        leftover.unlink(missing_ok=True)


def _remove_progress(progress: Path) -> None:
    from etils import epath

    if progress.exists():
        epath.Path(progress).rmtree()


def check_not_taken(args: argparse.Namespace) -> None:
    """Raises UserError if --out holds a whole data set, before anything slow is done."""
    from escherjax.data.metadata import COMPLETE_FILE

    plan_file = args.out / PROGRESS_FOLDER / "plan.json"
    if (args.out / COMPLETE_FILE).exists() and not plan_file.exists() and not args.overwrite:
        raise _taken(args.out)
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"{args.out} is not an empty folder; choose another --out.")


def _taken(out: Path) -> UserError:
    return UserError(f"{out} holds a data set already; choose another --out or --overwrite it.")


def _remove_data(out: Path) -> None:
    """Removes what an import writes to a folder, and nothing else."""
    from escherjax.data import moments
    from escherjax.data.metadata import COMPLETE_FILE, FEATURES_FILE
    from escherjax.data.shards import DATASET_NAME

    names = (COMPLETE_FILE, FEATURES_FILE, reporting.REPORT_FILE, moments.FILE_NAME)
    for path in (*(out / name for name in names), *out.glob(f"{DATASET_NAME}-*.array_record-*")):
        path.unlink(missing_ok=True)
