"""What all importers share: a command line, and shards that survive a kill.

An import is a list of scenes in a fixed order and a function that reads one of them. Shard i
holds a fixed part of the list; see `data_prep.lib.tasks`. Started again with the same arguments, an
import keeps finished shards and goes on, and what it makes is byte for byte what an undisturbed run
makes, on however many processes or machines.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.lib import output, tasks
from data_prep.lib.tasks import Found, Imported, ReadScenes, SceneReader, ShardTask, Skipped, Tick
from escherjax.errors import UserError

__all__ = [
    "Imported",
    "ReadScenes",
    "SceneReader",
    "Skipped",
]  # what importers need besides what is below

SCENES_PER_SHARD = 1024
# Of one process: reading was seen to hold Python's lock for 9 to 19% of its time, so that about
# five to ten threads would wait for it.
THREADS = 4
MAX_EMPTY_VIEWS = 2  # of the released training set
MIN_VIEWS = 3  # of a scene with missing pictures
ADDRESSES = ("gs://", "s3://", "az://")  # that etils.epath reads and writes
# Arguments that do not change what is written.
RUNTIME_ONLY = ("out", "overwrite", "workers", "runner", "beam_flags")

# All scenes, and a function that reads one: (*scene) -> Imported.
Scenes = tuple[Sequence[Found], Callable[..., Imported]]


def command(
    name: str,
    description: str,
    scenes: Callable[[argparse.Namespace], Scenes],
    add_arguments: Callable[[argparse.ArgumentParser], object] | None = None,
    modules: Sequence[str] = (),
) -> Callable[[Sequence[str]], None]:
    """The `main` of an importer, `python -m data_prep.NAME`.

    Args:
        name: of the command.
        description: for --help.
        scenes: finds the scenes that the arguments name. Whatever `scenes` and the function that
            it returns need is imported inside `scenes`: --help stays fast, and threads, which call
            that function, import nothing.
        add_arguments: adds arguments besides those that all importers have.
        modules: see `SceneReader`.
    """

    def main(argv: Sequence[str]) -> None:
        parser = argument_parser(name, description)
        if add_arguments:
            add_arguments(parser)
        args = parser.parse_args(argv)
        check_arguments(args)
        found, read_scene = scenes(args)
        read = SceneReader(read_scene, found[: args.limit], args.workers, modules)
        import_scenes(args, name, [scene_id for scene_id, *_ in read.items], read)

    return main


class _Parser(argparse.ArgumentParser):
    """Leaves the flags that it does not know to Beam, where --runner is given."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]
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
    add = parser.add_argument
    source_help = "a scene folder, or a folder with scene folders at any depth"
    if not needs_source:
        source_help = "not used: these scenes are made, not read"
    add("--source", type=Path, required=needs_source, help=source_help)
    add_output_arguments(parser)
    add(
        "--resolution",
        type=int,
        default=256,
        help="shrink pictures whose shorter side is longer than this, and K with them; 0 leaves "
        "their size, as the faithful zero123 background needs (default %(default)s)",
    )
    add(
        "--format",
        choices=("png", "jpeg", "webp"),
        help="of every picture; JPEG cannot hold transparent pixels: scenes that have them are "
        "skipped (default: files that need no change keep their bytes, others become png)",
    )
    add("--quality", type=int, help="1 to 100, of jpeg and webp; 100 is lossless webp (default 92)")
    add(
        "--workers",
        type=int,
        default=os.cpu_count(),
        help=f"threads; where there are several shards, in processes of {THREADS} (default: number "
        "of cores, %(default)s)",
    )
    add(
        "--runner",
        metavar="DirectRunner|DataflowRunner|FlinkRunner|SparkRunner|...",
        help="write the shards by an Apache Beam pipeline on this runner, to which all flags that "
        "are not listed here go; --source and --out must be the same on all its machines "
        "(default: this machine alone, without Beam)",
    )
    shards_help = f"files to write (default: one for {SCENES_PER_SHARD} scenes)"
    add("--shards", type=int, help=shards_help)
    add("--split", default="train", help="name of the split (default %(default)s)")
    heldout_help = "move the last scenes to a split 'heldout': a fraction below 1, or a number"
    add("--heldout", type=float, default=0, help=heldout_help)
    return parser


def add_output_arguments(
    parser: argparse.ArgumentParser, limit: str = "only the first so many scenes"
) -> None:
    """Adds --out, --overwrite and --limit (with this help), of everything that writes shards."""
    out_help = "folder of shards to make; or an address, gs://... or s3://..."
    parser.add_argument("--out", type=folder, required=True, help=out_help)
    parser.add_argument("--overwrite", action="store_true", help="replace what --out holds")
    parser.add_argument("--limit", type=int, help=limit)


def add_max_views(parser: argparse.ArgumentParser) -> None:
    """Adds --max-views, for formats that are videos; see `evenly_spaced`."""
    views_help = "keep at most so many frames of a scene, evenly spaced, first and last among them"
    parser.add_argument("--max-views", type=int, help=views_help)


def add_max_empty_views(parser: argparse.ArgumentParser) -> None:
    """Adds --max-empty-views, for renders; see `assembling.check_empty`."""
    empty_help = "skip scenes with more fully transparent views than this (default %(default)s)"
    parser.add_argument("--max-empty-views", type=int, default=MAX_EMPTY_VIEWS, help=empty_help)


def add_min_views(parser: argparse.ArgumentParser) -> None:
    """Adds --min-views, for captures; see `Findings.present`."""
    views_help = "skip scenes with missing pictures that leave fewer views (default %(default)s)"
    parser.add_argument("--min-views", type=int, default=MIN_VIEWS, help=views_help)


def evenly_spaced(items: Sequence[Any], count: int | None) -> Sequence[Any]:
    """At most `count` of the items, evenly spaced, first and last among them; None keeps all."""
    if count is None or count >= len(items):
        return items
    step = (len(items) - 1) / max(count - 1, 1)
    return [items[round(place * step)] for place in range(count)]


def faults_below(args: argparse.Namespace, **lowest: int) -> list[str]:
    """What is wrong with the arguments that are there and below their lowest value."""
    return [
        f"--{name.replace('_', '-')} must be at least {least}, got {value}."
        for name, least in lowest.items()
        if (value := getattr(args, name, None)) is not None and value < least
    ]


def check_at_least(args: argparse.Namespace, **lowest: int) -> None:
    """Raises UserError naming the arguments that are there and below their lowest value."""
    if faults := faults_below(args, **lowest):
        raise UserError(" ".join(faults))


def check_arguments(args: argparse.Namespace) -> None:
    """Raises UserError if one of the shared arguments is out of range, or two contradict."""
    from escherjax.data.shards import check_split_name

    check_split_name(args.split)
    check_at_least(
        args, limit=1, resolution=0, workers=1, shards=1, max_views=1, min_views=1, first_views=1
    )
    if args.quality is not None:
        if args.format not in ("jpeg", "webp"):
            raise UserError(f"--quality {args.quality} needs --format jpeg or webp.")
        if not 1 <= args.quality <= 100:
            raise UserError(f"--quality must be 1 to 100, got {args.quality}.")
    if args.heldout < 0 or (args.heldout > 1 and args.heldout != int(args.heldout)):
        raise UserError(
            f"--heldout must be a fraction below 1 or a whole number, got {args.heldout}."
        )
    if args.heldout and args.split == "heldout":
        raise UserError("--heldout needs a --split of another name than 'heldout'.")
    if getattr(args, "recenter", None) is True and args.normalize is None:
        raise UserError("--recenter needs --normalize max_radius=R.")
    if args.runner:
        from data_prep.lib import beam

        beam.check_runner(args.runner, args.beam_flags)


def folder(text: str) -> Path:
    """--out as a path: local, or an etils.epath.Path of an address."""
    if "://" not in text:
        return Path(text)
    if not text.startswith(ADDRESSES):
        raise argparse.ArgumentTypeError(
            f"must be a folder, or an address that starts with {', '.join(ADDRESSES)}, got '{text}'"
        )
    from etils import epath

    return epath.Path(text)


def import_scenes(
    args: argparse.Namespace,
    command: str,
    scene_ids: Sequence[str],
    read: ReadScenes,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Writes scenes as a data set with a report, going on from an earlier try.

    Args:
        args: of an `argument_parser`.
        command: name of the importer.
        scene_ids: of every candidate, in the order in which they are written.
        read: a SceneReader of as many items; or any function of places, which is called in this
            process alone, or pickled whole for Beam.
        about: further entries of the report, on the import as a whole.

    Returns:
        The folder.

    Raises:
        UserError: if --out is taken, ids repeat, or no scene at all can be used.
        StoppedError: if shards could not be written.
    """
    from escherjax.data import shards

    scene_ids = list(scene_ids)[: args.limit]
    shards.check_unique(scene_ids)
    parts = _plan_shards(args, len(scene_ids))
    options = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in sorted(vars(args).items())
        if name not in RUNTIME_ONLY
    }
    plan = {
        "command": command,
        "options": options,
        "scenes_sha256": hashlib.sha256("\n".join(scene_ids).encode()).hexdigest(),
    }
    output.open_folder(args.out, plan, args.overwrite)
    to_write = [
        _make_task(args.out, split, shard, places, scene_ids, read)
        for split, places in parts.items()
        for shard in range(len(places))
    ]
    tasks.run_pending(to_write, f"{command} -> {args.out}", functools.partial(_run_tasks, args))
    output.finish_folder(args.out, plan, to_write, str(options["source"]), about)
    return args.out


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


def _run_tasks(args: argparse.Namespace, to_write: Sequence[ShardTask], tick: Tick) -> None:
    """Runs tasks where the arguments say: by Beam, in several processes, or here."""
    if args.runner and to_write:
        from data_prep.lib import beam

        beam.run_tasks(to_write, args.runner, args.beam_flags)
        tick(sum(len(task.places) for task in to_write))
        return
    readers = [task.read for task in to_write if isinstance(task.read, SceneReader)]
    processes = min(len(readers), args.workers // THREADS)
    if processes > 1:
        for reader in readers:
            reader.workers = args.workers // processes
        tasks.run_in_processes(to_write, processes, tick)
    else:
        tasks.run_here(to_write, tick)


def heldout_count(heldout: float, count: int) -> int:
    """How many of `count` scenes --heldout means."""
    return int(heldout) if heldout >= 1 else math.ceil(heldout * count)


def _plan_shards(args: argparse.Namespace, count: int) -> dict[str, list[range]]:
    """Places in the list of ids that each shard of each split holds."""
    if not count:
        raise UserError(f"there are no scenes in {args.source}.")
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
