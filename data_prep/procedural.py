"""Writes procedural scenes, with exact cameras, as shards or as scene folders.

python -m data_prep.procedural --out shards --limit 1000 --resolution 64 --num-views 12
python -m data_prep.procedural --out scenes --limit 2 --folders
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from data_prep.lib import importing
from escherjax.errors import UserError, run_command

DEFAULT_SCENES = 256
BLOCK = 64  # scenes rendered at once


def main(argv: Sequence[str]) -> None:
    """Runs the generator; see --help."""
    parser = importing.argument_parser(
        "procedural", "Made-up scenes of coloured solids to shards.", needs_source=False
    )
    parser.add_argument("--num-views", type=int, default=12, help="views of each scene")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other scenes")
    parser.add_argument("--first-scene", type=int, default=0, help="number of the first scene")
    parser.add_argument(
        "--folders", action="store_true", help="write pictures with transforms.json, not shards"
    )
    args = parser.parse_args(argv)
    args.limit = DEFAULT_SCENES if args.limit is None else args.limit
    importing.check_arguments(args)
    importing.check_at_least(args, resolution=1, num_views=1, seed=0, first_scene=0)
    if args.folders:
        if args.format or args.runner:
            raise UserError("--folders writes PNG files here, without --format and --runner.")
        _write_folders(args)
        return

    from data_prep.lib.assembling import picture_format
    from escherjax.data.procedural import ProceduralSource, scene_name

    numbers = range(args.first_scene, args.first_scene + args.limit)
    stored = picture_format(args)
    ids = [scene_name(args.seed, number) for number in numbers]

    def encode(_: str, scene: Any) -> importing.Imported:
        encoded = [stored.encode(picture) for picture in scene.images]
        return importing.Imported(dataclasses.replace(scene, images=encoded))

    def read(places: Sequence[int]) -> Iterator[importing.Imported | importing.Skipped]:
        for start in range(0, len(places), BLOCK):
            block = places[start : start + BLOCK]
            source = ProceduralSource(
                args.seed, len(block), args.num_views, args.resolution, numbers[block[0]]
            )
            items = [(ids[place], source[index]) for index, place in enumerate(block)]
            yield from importing.SceneReader(encode, items, args.workers)(range(len(block)))

    importing.import_scenes(args, "procedural", ids, read)


def _write_folders(args: argparse.Namespace) -> None:
    """One folder a scene: 000.png, ... with straight alpha, and transforms.json."""
    from escherjax.data.formats.transforms import write_transforms
    from escherjax.data.images import encode_png
    from escherjax.data.procedural import ProceduralSource

    if args.out.exists() and any(args.out.iterdir()):
        raise UserError(f"--out {args.out} is not empty; name a new folder.")
    source = ProceduralSource(
        args.seed, args.limit, args.num_views, args.resolution, args.first_scene
    )
    for scene in (source[i] for i in range(len(source))):
        folder = args.out / scene.scene_id
        folder.mkdir(parents=True)
        names = [f"{view:03d}.png" for view in range(scene.num_views)]
        for name, picture in zip(names, scene.images, strict=True):
            (folder / name).write_bytes(encode_png(picture))
        write_transforms(folder / "transforms.json", scene.c2w, scene.K[0], args.resolution, names)
    print(args.out)


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
