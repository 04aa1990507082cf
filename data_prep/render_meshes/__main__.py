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
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.lib import importing
from data_prep.render_meshes import environment
from escherjax.errors import UserError, run_command

FORMATS = ("glb", "gltf", "obj")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds how objects are rendered."""
    add = parser.add_argument
    add("--num-views", type=int, default=12, help="views of each object (default %(default)s)")
    add("--samples", type=int, default=64, help="rays for each pixel (default %(default)s)")
    add("--no-denoise", action="store_true", help="no OpenImageDenoise after rendering")
    add("--device", choices=("cpu", "gpu"), default="cpu", help="where Cycles runs")
    add("--seed", type=int, default=0, help="another seed, other cameras and lights")
    ranges: dict[str, Any] = {"type": float, "nargs": 2, "metavar": ("LOW", "HIGH")}
    radius_help = "distances of cameras from the centre of the unit cube (default 1.5 2.2)"
    add("--radius", default=[1.5, 2.2], help=radius_help, **ranges)
    focal_help = "focal lengths on a 32 mm sensor, one drawn for each view (default 35 35)"
    add("--focal-mm", default=[35.0, 35.0], help=focal_help, **ranges)
    light_help = "Zero-1-to-3's one wide lamp (area), or a random sky with sun and two lamps"
    add("--light", choices=("area", "environment"), default="area", help=light_help)
    view_help = (
        "from light to sRGB; Zero-1-to-3's is Filmic, Standard keeps a texture's own colours"
    )
    transforms = ("Filmic", "Standard", "AgX")
    add("--view-transform", choices=transforms, default="Filmic", help=view_help)
    views_help = "also write each object to FOLDER/ID: 000.png ... and transforms.json"
    add("--views-folder", type=Path, help=views_help)
    add(
        "--depth",
        action="store_true",
        help="with --views-folder, 000_depth.npz: 'depth' float32 [H, W] along the optical axis, "
        "longest side of the object = 1, 0 where there is nothing",
    )
    add("--mask", action="store_true", help="with --views-folder, 000_mask.png: alpha, 8 bits")
    formats_help = "which files are models: glb, gltf, obj (default: all)"
    formats: dict[str, Any] = {"choices": FORMATS, "default": list(FORMATS), "metavar": "FORMAT"}
    add("--formats", nargs="+", help=formats_help, **formats)
    add("--timeout", type=float, default=600, help="seconds for one object (default %(default)s)")
    importing.add_max_empty_views(parser)
    python_help = "a Python that has bpy; without it, one is made in ~/.cache/escherjax"
    add("--blender-python", type=Path, help=python_help)
    parser.set_defaults(workers=None)


def scenes(args: argparse.Namespace) -> importing.Scenes:
    """The models, and what renders one. Blender is installed at the first use."""
    _check_ranges(args)
    found = find_models(args.source, args.formats)
    python = environment.blender_python(args.blender_python)
    blender = environment.probe(python)
    if args.device == "gpu" and not blender["gpus"]:
        raise UserError(
            "--device gpu: Cycles finds no GPU (OptiX, CUDA, HIP, Metal, oneAPI); check the "
            "driver, or use --device cpu."
        )
    args.blender_version = blender["version"]  # another makes other pictures: no going on then
    if args.workers is None:
        args.workers = 2 if args.device == "gpu" else os.cpu_count() or 1

    from data_prep.render_meshes.objects import ObjectRenderer

    return found, ObjectRenderer(args, python)


def _check_ranges(args: argparse.Namespace) -> None:
    """Raises UserError naming every argument that is out of range."""
    faults = importing.faults_below(
        args, num_views=1, resolution=1, samples=1, seed=0, max_empty_views=0
    )
    for name, lowest in (("radius", 0.87), ("focal_mm", 1.0)):  # 0.87: outside the unit cube
        low, high = getattr(args, name)
        if not lowest <= low <= high < float("inf"):
            option = name.replace("_", "-")
            faults.append(f"--{option} must be {lowest:g} <= LOW <= HIGH, got {low:g} {high:g}.")
    if not 0 < args.timeout < float("inf"):
        faults.append(f"--timeout must be a positive number of seconds, got {args.timeout:g}.")
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
        raise UserError(f"--source {source} does not exist.")
    found = sorted(
        (path.relative_to(source).with_suffix("").as_posix(), path)
        for path in files
        if path.suffix.lower() in suffixes
    )
    if not found:
        raise UserError(f"no models in {source}; expected files {', '.join(sorted(suffixes))}.")
    pairs = itertools.pairwise(found)
    same = [f"{one} and {other}" for (first, one), (second, other) in pairs if first == second]
    if same:
        raise UserError(
            f"{len(same)} pairs of files share an id, the first {same[0]}; choose one kind with "
            "--formats."
        )
    return found


main = importing.command(
    "render_meshes", "Meshes, rendered by Blender, to shards.", scenes, add_arguments
)

if __name__ == "__main__":
    run_command(main, sys.argv[1:])
