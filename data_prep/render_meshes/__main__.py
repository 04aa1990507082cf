"""Renders meshes (GLB, glTF, OBJ) with Blender's Cycles to shards.

    python -m data_prep.render_meshes --source models --out shards --num-views 12 --samples 64

By default as Zero-1-to-3 did: the object's longest side is 1, centred at the origin; cameras at
radius 1.5 to 2.2 look at it through a 35 mm lens on a 32 mm sensor; transparent film. Blender runs
in an environment of its own, made at the first use, with one process for each object: an object
that is broken, hangs or crashes Blender is left out and reported. Skinned objects stand in their
rest position; the file's own lights and cameras are not used. An object's cameras and lights
depend on --seed and its id alone.
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.lib import importing
from data_prep.render_meshes import environment
from escherjax.errors import UserError, run_command

FORMATS = ("glb", "gltf", "obj")
# Numbers that must be at least so large.
LOWEST = {"num_views": 1, "resolution": 1, "samples": 1, "seed": 0, "max_empty_views": 0}


def main(argv: Sequence[str]) -> None:
    """Runs the renderer; see --help."""
    args = _parser().parse_args(argv)
    if args.workers is None:
        args.workers = 2 if args.device == "gpu" else os.cpu_count() or 1
    _check_arguments(args)
    found = find_models(args.source, args.formats)
    python = environment.blender_python(args.blender_python)
    blender = environment.probe(python)
    if args.device == "gpu" and not blender["gpus"]:
        raise UserError(
            "--device gpu: Cycles finds no GPU (OptiX, CUDA, HIP, Metal, oneAPI); check the "
            "driver, or use --device cpu."
        )
    args.blender_version = blender["version"]  # another makes other pictures: no going on then
    threads = max(1, (os.cpu_count() or 1) // args.workers)

    read_scene = functools.partial(_render, args, python=python, threads=threads)
    read = importing.SceneReader(read_scene, found, args.workers)
    ids = [scene_id for scene_id, _ in found]
    importing.import_scenes(args, "render_meshes", ids, read)


def _parser() -> argparse.ArgumentParser:
    parser = importing.argument_parser("render_meshes", "Meshes, rendered by Blender, to shards.")
    add = parser.add_argument
    add("--num-views", type=int, default=12, help="views of each object (default %(default)s)")
    add("--samples", type=int, default=64, help="rays for each pixel (default %(default)s)")
    add("--no-denoise", action="store_true", help="no OpenImageDenoise after rendering")
    add("--device", choices=("cpu", "gpu"), default="cpu", help="where Cycles runs")
    add("--seed", type=int, default=0, help="another seed, other cameras and lights")
    add(
        "--radius",
        type=float,
        nargs=2,
        default=[1.5, 2.2],
        metavar=("LOW", "HIGH"),
        help="distances of cameras from the centre of the unit cube (default 1.5 2.2)",
    )
    add(
        "--focal-mm",
        type=float,
        nargs=2,
        default=[35.0, 35.0],
        metavar=("LOW", "HIGH"),
        help="focal lengths on a 32 mm sensor, one drawn for each view (default 35 35)",
    )
    add(
        "--light",
        choices=("area", "environment"),
        default="area",
        help="area: Zero-1-to-3's one wide lamp; environment: a random sky with sun and two lamps",
    )
    add(
        "--view-transform",
        choices=("Filmic", "Standard", "AgX"),
        default="Filmic",
        help="from light to sRGB; Zero-1-to-3 has Filmic, Standard keeps a texture's own colours",
    )
    add(
        "--views-folder",
        type=Path,
        help="also write each object to FOLDER/ID: 000.png ... and transforms.json",
    )
    add(
        "--depth",
        action="store_true",
        help="with --views-folder, 000_depth.npz: 'depth' float32 [H, W] along the optical axis, "
        "longest side of the object = 1, 0 where there is nothing",
    )
    add("--mask", action="store_true", help="with --views-folder, 000_mask.png: alpha, 8 bits")
    add(
        "--formats",
        nargs="+",
        choices=FORMATS,
        default=list(FORMATS),
        metavar="FORMAT",
        help="which files are models: glb, gltf, obj (default: all)",
    )
    add("--timeout", type=float, default=600, help="seconds for one object (default %(default)s)")
    add(
        "--max-empty-views",
        type=int,
        default=2,
        help="skip objects with more fully transparent views than this (default %(default)s)",
    )
    add(
        "--blender-python",
        type=Path,
        help="a Python that has bpy; without it, one is made in ~/.cache/escherjax",
    )
    parser.set_defaults(workers=None)
    return parser


def _check_arguments(args: argparse.Namespace) -> None:
    importing.check_arguments(args)
    faults = [
        f"--{name.replace('_', '-')} {getattr(args, name)}: needed at least {lowest}."
        for name, lowest in LOWEST.items()
        if getattr(args, name) < lowest
    ]
    for name, lowest in (("radius", 0.87), ("focal_mm", 1.0)):  # 0.87: outside the unit cube
        low, high = getattr(args, name)
        if not lowest <= low <= high < float("inf"):
            faults.append(
                f"--{name.replace('_', '-')} {low:g} {high:g}: needed {lowest:g} <= LOW <= HIGH."
            )
    if not 0 < args.timeout < float("inf"):
        faults.append(f"--timeout {args.timeout:g}: needed a positive number of seconds.")
    if (args.depth or args.mask) and args.views_folder is None:
        faults.append("--depth and --mask are written to --views-folder; give one.")
    if faults:
        raise UserError(" ".join(faults))


def find_models(source: Path, formats: Sequence[str] = FORMATS) -> list[tuple[str, Path]]:
    """(id, file) of every model at or below `source`, or `source` itself, sorted by id.

    An id is the path relative to `source` without its suffix. Raises UserError if there is none,
    or two files (chair.glb, chair.obj) would share an id.
    """
    suffixes = {f".{name}" for name in formats}
    if source.is_file():
        source, files = source.parent, [source]
    elif source.is_dir():
        files = [Path(parent) / name for parent, _, names in os.walk(source) for name in names]
    else:
        raise UserError(f"--source {source} is no folder and no file.")
    found = sorted(
        (path.relative_to(source).with_suffix("").as_posix(), path)
        for path in files
        if path.suffix.lower() in suffixes
    )
    if not found:
        raise UserError(f"no models in {source}; needed files {', '.join(sorted(suffixes))}.")
    same = [
        f"{one} and {other}"
        for (first, one), (second, other) in zip(found, found[1:], strict=False)
        if first == second
    ]
    if same:
        raise UserError(
            f"{len(same)} pairs of files share an id, the first {same[0]}; choose one kind with "
            "--formats."
        )
    return found


def _render(
    args: argparse.Namespace, scene_id: str, model: Path, python: Path, threads: int
) -> importing.Imported:
    """Renders one object. Raises UserError if it cannot be used."""
    import numpy as np

    from data_prep.render_meshes import random_views
    from escherjax import cameras
    from escherjax.data.images import decode_image
    from escherjax.data.shards import Scene

    poses, focal_mm = random_views.random_cameras(
        args.seed,
        scene_id,
        args.num_views,
        args.resolution,
        tuple(args.radius),
        tuple(args.focal_mm),
    )
    views = [
        {"c2w": c2w.tolist(), "focal_mm": focal}
        for c2w, focal in zip(cameras.opengl_from_opencv(poses.c2w), focal_mm.tolist(), strict=True)
    ]
    job = {
        "model": str(model.resolve()),
        "resolution": args.resolution,
        "samples": args.samples,
        "denoise": not args.no_denoise,
        "device": args.device,
        "threads": threads,
        "seed": int(random_views.generator(args.seed, scene_id, "rays").integers(2**31)),
        "view_transform": args.view_transform,
        "sensor_mm": random_views.SENSOR_MM,
        "depth": args.depth,
        "views": views,
        **random_views.random_lighting(args.seed, scene_id, args.light),
    }
    with tempfile.TemporaryDirectory(prefix="escherjax-render-") as folder:
        notes = environment.render_object(python, job, Path(folder), args.timeout)
        files = [Path(folder) / f"{view:03d}.png" for view in range(args.num_views)]
        pictures = [decode_image(path.read_bytes(), path.name) for path in files]
        depths = []
        if args.depth:
            depths = [np.load(path.with_name(f"{path.stem}_depth.npy")) for path in files]
    empty = sum(not picture[..., 3].any() for picture in pictures)
    if empty > args.max_empty_views:
        raise UserError(f"{empty} views are empty; --max-empty-views {args.max_empty_views}.")
    scene = Scene(
        scene_id=scene_id,
        source="render_meshes",
        images=[importing.picture_format(args).encode(picture) for picture in pictures],
        c2w=poses.c2w,
        K=poses.K,
        height=args.resolution,
        width=args.resolution,
    )
    if args.views_folder is not None:
        masks = [picture[..., 3] for picture in pictures] if args.mask else []
        _write_views(args.views_folder / scene_id, scene, pictures, masks, depths)
    return importing.Imported(scene, notes)


def _write_views(
    folder: Path, scene: Any, pictures: Sequence, masks: Sequence, depths: Sequence
) -> None:
    """Writes one object's files, PNG, under a temporary name, then renames the folder."""
    import numpy as np

    from escherjax.data.formats.transforms import write_transforms
    from escherjax.data.images import encode_png

    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    names = [f"{view:03d}.png" for view in range(scene.num_views)]
    for name, picture in zip(names, pictures, strict=True):
        (partial / name).write_bytes(encode_png(picture))
    for view, mask in enumerate(masks):
        (partial / f"{view:03d}_mask.png").write_bytes(encode_png(mask))
    for view, depth in enumerate(depths):
        np.savez_compressed(partial / f"{view:03d}_depth.npz", depth=depth)
    write_transforms(partial / "transforms.json", scene.c2w, scene.K, scene.height, names)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
