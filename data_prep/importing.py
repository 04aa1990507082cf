"""What all importers share: arguments, shards that survive a kill, progress bar, report.

An import is a list of scene ids in a fixed order and a function that reads some of them. Shard i
holds a fixed part of the list and is written whole, under a temporary name first; a finished shard
is noted in OUT/.import. Started again with the same arguments, an import keeps finished shards and
goes on, and what it makes is byte for byte what an undisturbed run makes.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import dataclasses
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from escherjax.errors import UserError

PROGRESS_FOLDER = ".import"
REPORT_FILE = "report.json"
SCENES_PER_SHARD = 1024


@dataclasses.dataclass(frozen=True)
class Imported:
    """A scene, and what the report should say about it."""

    scene: Any  # escherjax.data.records.Scene
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A scene that cannot be used, and why."""

    scene_id: str
    reason: str


# Reads the scenes at these places of the list of ids, and yields them in that order.
ReadScenes = Callable[[Sequence[int]], Iterator[Imported | Skipped]]


def argument_parser(
    command: str, description: str, needs_source: bool = True
) -> argparse.ArgumentParser:
    """An argparse parser with the arguments of every importer."""
    parser = argparse.ArgumentParser(prog=f"python -m data_prep.{command}", description=description)
    parser.add_argument(
        "--source",
        type=Path,
        required=needs_source,
        help="a scene folder, or a folder with scene folders at any depth"
        if needs_source
        else "not used: these scenes are made, not read",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of shards to make")
    parser.add_argument("--limit", type=int, help="only the first so many scenes")
    parser.add_argument(
        "--resolution", type=int, default=256,
        help="shrink pictures whose shorter side is longer than this, and K with them, to PNG with "
        "straight alpha; 0 keeps the files' own bytes, as the faithful zero123 background needs "
        "(default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="threads")
    parser.add_argument(
        "--shards", type=int, help=f"files to write (default: one for {SCENES_PER_SHARD} scenes)"
    )
    parser.add_argument("--split", default="train", help="name of the split (default %(default)s)")
    parser.add_argument(
        "--heldout", type=float, default=0,
        help="move the last scenes to a split 'heldout': a fraction below 1, or a number of scenes",
    )  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace what --out holds")
    return parser


def add_normalize_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --normalize; its value is a radius, or None to keep the file's scale."""
    parser.add_argument(
        "--normalize", default="max_radius=1.5", type=_max_radius, metavar="max_radius=R|none",
        help="scale each scene so that its farthest camera is R from the origin; none keeps the "
        "file's scale (default %(default)s)",
    )  # fmt: skip


def _max_radius(text: str) -> float | None:
    if text == "none":
        return None
    name, _, value = text.partition("=")
    try:
        radius = float(value)
    except ValueError:
        radius = 0.0
    if name != "max_radius" or not 0 < radius < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}'; needed max_radius=R with R > 0, or none")
    return radius


def check_arguments(args: argparse.Namespace) -> None:
    """Raises UserError naming the first of the shared arguments that is out of range."""
    from escherjax.data.records import check_split_name

    check_split_name(args.split)
    for name, lowest in (("limit", 1), ("resolution", 0), ("workers", 1), ("shards", 1)):
        value = getattr(args, name)
        if value is not None and value < lowest:
            raise UserError(f"--{name} {value}: needed at least {lowest}.")
    if args.heldout < 0 or (args.heldout > 1 and args.heldout != int(args.heldout)):
        raise UserError(f"--heldout {args.heldout}: needed a fraction below 1 or a whole number.")
    if args.heldout and args.split == "heldout":
        raise UserError("--heldout needs a --split of another name than 'heldout'.")


def read_in_threads(
    read_scene: Callable[[int], Imported], scene_ids: Sequence[str], workers: int
) -> ReadScenes:
    """Reads scenes one by one in threads, in order; a UserError skips its scene.

    Decoding and resizing run outside Python's lock. At most 2 * workers scenes are kept waiting.
    """

    def read_one(place: int) -> Imported | Skipped:
        try:
            return read_scene(place)
        except UserError as error:
            return Skipped(scene_ids[place], str(error))

    def read(places: Sequence[int]) -> Iterator[Imported | Skipped]:
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            waiting = collections.deque()
            for place in places:
                waiting.append(pool.submit(read_one, place))
                if len(waiting) >= 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    return read


def import_scenes(
    args: argparse.Namespace,
    command: str,
    scene_ids: Sequence[str],
    read: ReadScenes,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Writes scenes as a data set with a report, going on from an earlier try. Returns the folder.

    scene_ids: of every candidate, sorted, before --limit. about: further entries of the report,
    on the import as a whole. Raises UserError if --out is taken, ids
    repeat, or no scene at all can be used.
    """
    from tqdm import tqdm

    from escherjax.data import records

    scene_ids = list(scene_ids)[: args.limit]
    records.check_unique(scene_ids)
    shards = _plan_shards(args, len(scene_ids))
    out = args.out
    options = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in sorted(vars(args).items())
        if name not in ("out", "workers", "overwrite")
    }
    plan = {
        "command": command,
        "options": options,
        "scenes_sha256": hashlib.sha256("\n".join(scene_ids).encode()).hexdigest(),
    }
    progress = _open_folder(out, plan, args.overwrite)

    notes: dict[str, list] = {}
    with tqdm(total=len(scene_ids), desc=f"{command} -> {out}", unit="scene", mininterval=1) as bar:
        for split, parts in shards.items():
            notes[split] = []
            for shard, places in enumerate(parts):
                note_file = progress / f"{split}-{shard:05d}.json"
                if not note_file.exists():
                    path = records.shard_path(out, split, shard, len(parts))
                    note = _write_shard(path, read(places), bar)
                    _write_json(note_file, note)
                else:
                    bar.update(len(places))
                notes[split].append(json.loads(note_file.read_text()))

    every = [note for parts in notes.values() for note in parts]
    skipped = [entry for note in every for entry in note["skipped"]]
    if not any(note["scenes"] for note in every):
        first = skipped[0]
        shutil.rmtree(progress)
        _remove_data(out)
        raise UserError(
            f"none of {len(skipped)} scenes can be used. The first, '{first['scene_id']}': "
            f"{first['reason']}"
        )
    lengths = {split: [note["scenes"] for note in parts] for split, parts in notes.items()}
    report = {
        "command": command,
        "options": options,
        "scenes": sum(map(sum, lengths.values())),
        "views": sum(note["views"] for note in every),
        "splits": {split: sum(counts) for split, counts in lengths.items()},
        "num_skipped": len(skipped),
        "skipped": skipped,
        "notes": {key: value for note in every for key, value in note["notes"].items()},
        **(about or {}),
    }
    _write_json(out / REPORT_FILE, report)
    records.write_metadata(out, lengths, f"Made by data_prep.{command}")
    shutil.rmtree(progress)
    for entry in skipped[:5]:
        print(f"skipped {entry['scene_id']}: {entry['reason']}")
    if len(skipped) > 5:
        print(f"... and {len(skipped) - 5} more, all in {out / REPORT_FILE}")
    counts = ", ".join(f"{name} {count}" for name, count in report["splits"].items())
    print(f"{report['scenes']} scenes ({counts}), {report['views']} views, {len(skipped)} skipped")
    print(out)
    return out


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


def _open_folder(out: Path, plan: dict[str, Any], overwrite: bool) -> Path:
    """Makes --out ready to write or to go on, and returns the folder of progress notes."""
    from escherjax.data.records import COMPLETE_FILE

    progress = out / PROGRESS_FOLDER
    plan_file = progress / "plan.json"
    if overwrite and out.is_dir():
        shutil.rmtree(progress, ignore_errors=True)
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
        _write_json(plan_file, plan)
    for leftover in (*out.glob("*.tmp"), *out.glob(".metadata-*")):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    return progress


def check_not_taken(args: argparse.Namespace) -> None:
    """Raises UserError if --out holds a whole data set, before anything slow is done."""
    from escherjax.data.records import COMPLETE_FILE

    plan_file = args.out / PROGRESS_FOLDER / "plan.json"
    if (args.out / COMPLETE_FILE).exists() and not plan_file.exists() and not args.overwrite:
        raise _taken(args.out)
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"{args.out} is not an empty folder; choose another --out.")


def _taken(out: Path) -> UserError:
    return UserError(f"{out} holds a data set already; choose another --out or --overwrite it.")


def _remove_data(out: Path) -> None:
    """Removes what an import writes to a folder, and nothing else."""
    from escherjax.data.records import COMPLETE_FILE, DATASET_NAME

    names = (COMPLETE_FILE, "features.json", REPORT_FILE)
    for path in (*(out / name for name in names), *out.glob(f"{DATASET_NAME}-*.array_record-*")):
        path.unlink(missing_ok=True)


def _write_shard(path: Path, results: Iterator[Imported | Skipped], bar) -> dict[str, Any]:
    """Writes one shard and returns its note: numbers of scenes and views, skipped, notes."""
    from escherjax.data import records

    note: dict[str, Any] = {"scenes": 0, "views": 0, "skipped": [], "notes": {}}

    def usable():
        for result in results:
            bar.update()
            if isinstance(result, Skipped):
                note["skipped"].append(dataclasses.asdict(result))
                continue
            note["views"] += result.scene.num_views
            if result.notes:
                note["notes"][result.scene.scene_id] = result.notes
            yield result.scene

    note["scenes"] = records.write_shard(path, usable())
    return note


def _write_json(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    os.replace(temporary, path)
