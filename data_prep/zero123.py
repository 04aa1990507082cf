"""Imports Zero123-style renders: folders of 000.png with 000.npy (world-to-camera, Blender axes).

    python -m data_prep.zero123 --source views_release --out shards --heldout 0.01
    python -m data_prep.zero123 --source views_release.tar.gz --out shards --released-filter

Pictures become PNG with straight alpha at --resolution. The faithful "zero123" background of the
loader looks for alpha of exactly 0 before it resizes, so to repeat the original training pixel by
pixel import with --resolution 0, which keeps the source's files.

An archive is read without unpacking it. A .tar gives the same bytes as the unpacked folder; of a
compressed one the scenes and splits are the same, in the archive's order.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep.lib import archives, importing, selection
from escherjax.errors import UserError, run_command

RELEASED_VIEWS, RELEASED_EMPTY_VIEWS = 12, 2


def main(argv: Sequence[str]) -> None:
    """Runs the importer; see --help."""
    parser = importing.argument_parser(
        "zero123",
        "Zero123-style render folders to shards; "
        "--source may also be a .tar, .tar.gz or .tgz of them.",
    )
    add_arguments(parser)
    parser.add_argument(
        "--released-filter",
        action="store_true",
        help=f"the filter of the released training set: exactly {RELEASED_VIEWS} views, at most "
        f"{RELEASED_EMPTY_VIEWS} of them empty. Splits are made before it",
    )
    selection.add_arguments(parser)
    args = parser.parse_args(argv)
    importing.check_arguments(args)
    if args.released_filter:
        if (args.num_views or RELEASED_VIEWS) != RELEASED_VIEWS or (
            args.max_empty_views != RELEASED_EMPTY_VIEWS
        ):
            raise UserError(
                "--released-filter excludes other values of --num-views and --max-empty-views."
            )
        args.num_views = RELEASED_VIEWS
    if archives.is_archive(args.source) and not args.source.is_dir():
        _import_archive(args)
        return

    from escherjax.data.formats.folders import find_scene_folders

    found, about = selection.select(args, find_scene_folders(args.source, "zero123"))
    import_renders(args, "zero123", found, about=about)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that say which render folders are left out."""
    parser.add_argument("--num-views", type=int, help="skip scenes with another number of views")
    parser.add_argument(
        "--max-empty-views",
        type=int,
        default=RELEASED_EMPTY_VIEWS,
        help="skip scenes with more fully transparent views than this (default %(default)s)",
    )


def import_renders(
    args: argparse.Namespace,
    command: str,
    found: Sequence[tuple[str, Path]],
    axes: str = "opengl",
    about: Mapping[str, Any] | None = None,
) -> None:
    """Imports render folders given as (scene id, folder), with poses of these camera axes.

    about: see `importing.import_scenes`.
    """
    from escherjax.data.formats.folders import read_scene_folder

    stored = importing.picture_format(args)

    def read_scene(scene_id: str, folder: Path) -> importing.Imported:
        scene = read_scene_folder(
            folder, scene_id, resolution=args.resolution, axes=axes, stored=stored
        )
        return _filtered(args, scene)

    ids = [scene_id for scene_id, _ in found]
    read = importing.SceneReader(read_scene, found, args.workers)
    importing.import_scenes(args, command, ids, read, about)


def _import_archive(args: argparse.Namespace) -> None:
    from escherjax.data.formats.folders import read_zero123, view_number

    importing.check_not_taken(args)
    archive = archives.Archive(
        args.source,
        lambda name: view_number(name) is not None,
        args.out / importing.PROGRESS_FOLDER / "archive.json",
    )
    order: Callable[[Any], Any] | None = archive.order if archive.is_compressed else None
    found, about = selection.select(args, archive.scenes(), order)
    about["refused_members"] = archive.refused
    for name, reason in list(archive.refused.items())[:5]:
        print(f"refused {name}: {reason}")
    stored = importing.picture_format(args)
    fetched: dict[int, archives.MemberFolder | UserError] = {}

    def read_scene(scene_id: str, place: int) -> importing.Imported:
        folder = fetched.pop(place)
        if isinstance(folder, UserError):
            raise folder
        return _filtered(args, read_zero123(folder, scene_id, args.resolution, stored))

    ids = [scene_id for scene_id, _ in found]
    items = [(scene_id, place) for place, scene_id in enumerate(ids)]
    read = importing.SceneReader(read_scene, items, args.workers)

    # An archive is read in one process, forwards, while threads decode what was read
    def read_forward(places):
        def fetch(place):
            return archive.read(found[place][1])

        return read(archives.fetched_in_order(places, fetch, fetched))

    importing.import_scenes(args, "zero123", ids, read_forward, about)


def _filtered(args: argparse.Namespace, scene: Any) -> importing.Imported:
    if args.num_views and scene.num_views != args.num_views:
        raise UserError(f"has {scene.num_views} views; --num-views asks for {args.num_views}.")
    empty = sum(_is_empty(data) for data in scene.images)
    if empty > args.max_empty_views:
        raise UserError(f"{empty} views are empty; --max-empty-views {args.max_empty_views}.")
    return importing.Imported(scene)


def _is_empty(data: bytes) -> bool:
    from escherjax.data.images import decode_image

    picture = decode_image(data, "view")
    return picture.shape[-1] == 4 and not picture[..., 3].any()


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
