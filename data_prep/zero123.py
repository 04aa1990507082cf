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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data_prep.lib import archives, importing, selection
from escherjax.errors import UserError, run_command

RELEASED_VIEWS = 12


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
        f"{importing.MAX_EMPTY_VIEWS} of them empty. Splits are made before it",
    )
    selection.add_arguments(parser)
    args = parser.parse_args(argv)
    importing.check_arguments(args)
    if args.released_filter:
        if (args.num_views or RELEASED_VIEWS) != RELEASED_VIEWS or (
            args.max_empty_views != importing.MAX_EMPTY_VIEWS
        ):
            raise UserError(
                "--released-filter excludes other values of --num-views and --max-empty-views."
            )
        args.num_views = RELEASED_VIEWS

    from escherjax.data.formats.folders import find_scene_folders

    read: importing.ReadScenes
    if archives.is_archive(args.source) and not args.source.is_dir():
        found, about, read = _open_archive(args)
    else:
        found, about = selection.select(args, find_scene_folders(args.source, "zero123"))
        read = importing.SceneReader(render_reader(args), found, args.workers)
    importing.import_scenes(args, "zero123", [scene_id for scene_id, _ in found], read, about)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that say which render folders are left out."""
    parser.add_argument("--num-views", type=int, help="skip scenes with another number of views")
    importing.add_max_empty_views(parser)


def render_reader(
    args: argparse.Namespace, axes: str = "opengl"
) -> Callable[[str, Path], importing.Imported]:
    """A function that reads a render folder, with poses of these camera axes."""
    from escherjax.data.formats import folders

    finish = _finisher(args)

    def read(scene_id: str, folder: Path) -> importing.Imported:
        views, layout = folders.find_views(folder, axes=axes)
        return finish(scene_id, layout, views)

    return read


def _open_archive(
    args: argparse.Namespace,
) -> tuple[selection.Found, dict[str, Any], importing.ReadScenes]:
    """(scenes to import, what the report says of the archive, what reads them)."""
    from data_prep.lib import output
    from escherjax.data.formats import folders

    output.check_not_taken(args.out, args.overwrite)
    archive = archives.Archive(
        args.source,
        lambda name: folders.view_number(name) is not None,
        args.out / output.PROGRESS_FOLDER / "archive.json",
    )
    order: Callable[[Any], Any] | None = archive.order if archive.is_compressed else None
    found, about = selection.select(args, archive.scenes(), order)
    about["refused_members"] = archive.refused
    for name, reason in list(archive.refused.items())[:5]:
        print(f"refused {name}: {reason}")
    finish = _finisher(args)

    def decode(scene_id: str, fetched: archives.MemberFolder | UserError) -> importing.Imported:
        if isinstance(fetched, UserError):
            raise fetched
        return finish(scene_id, "zero123", folders.zero123_views(fetched, fetched.list()))

    # An archive is read in one process, forwards, while threads decode what was read
    def read(places: Sequence[int]) -> Iterator[importing.Imported | importing.Skipped]:
        scenes = (found[place] for place in places)
        fetched = ((scene_id, archive.fetch(folder)) for scene_id, folder in scenes)
        return importing.SceneReader(decode, (), args.workers).read_items(fetched)

    return found, about, read


def _finisher(args: argparse.Namespace) -> Callable[..., importing.Imported]:
    """What makes a scene of views, as `Assembler`, unless too many of them are empty."""
    from data_prep.lib.assembling import Assembler, check_empty
    from escherjax.data.images import decode_image

    assemble = Assembler(args)

    def finish(*views: Any) -> importing.Imported:
        imported = assemble(*views)
        scene = imported.scene
        if args.num_views and scene.num_views != args.num_views:
            raise UserError(f"has {scene.num_views} views; --num-views asks for {args.num_views}.")
        pictures = (decode_image(data, "view") for data in scene.images)
        check_empty(pictures, args.max_empty_views)
        return imported

    return finish


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
