"""Times the loader on this machine, beside plain PyTorch over PNG folders; prints one JSON object.

    python -m benchmarks.loader --source views_release --cores 1

--source holds scene folders as Zero-1-to-3 renders them (000.png with alpha, 000.npy, ..., 512
pixels); without it, scenes are rendered. From them come folders and shards of both sizes in a
temporary place. All contenders give batches of 256-pixel views; each runs on the same --cores,
in turns with the others, --repeats times, files cached by the system. Ours gives uint8, to be
converted on the device; PyTorch gives normalised float32, as its training code expects.

    python -m benchmarks.loader --workers 0,4,14 --shards SHARDS

times only our loader, with these numbers of processes (0: threads, one a core), beside a thread
that hands a step to the device every 20 ms and lets go of its old state of 4,000 arrays, as
training does: the views fed, and what the steps take.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import io
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness
from escherjax.errors import UserError, run_command

VIEWS_PER_SCENE = 12
RESOLUTION = 256
MOMENTS_SHAPE = (32, 32, 8)  # of Stable Diffusion's VAE at that resolution
SIZES = (512, 256)
ENCODINGS = ("png", "jpeg", "webp")  # of pictures in shards; JPEG has no alpha: white behind
QUALITY = 95


def main(argv: Sequence[str]) -> int:
    parser = harness.argument_parser(__doc__)
    parser.add_argument("--source", type=Path, help="Zero-1-to-3 render folders")
    parser.add_argument("--cores", type=int, default=1, help="cores that every contender gets")
    parser.add_argument("--scenes", type=int, default=32, help="scenes, of 12 views each")
    parser.add_argument("--batch", type=int, default=8, help="scenes in a batch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--latents",
        action="store_true",
        help="also shards with moments of the targets, which are not decoded",
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="of every repeat")
    parser.add_argument("--workers", help="numbers of reading processes, such as 0,4,14")
    parser.add_argument("--shards", type=Path, help="with --workers: a data set that is there")
    parser.add_argument("--step-ms", type=float, default=20.0, help="with --workers")
    parser.add_argument("--leaves", type=int, default=4000, help="with --workers: arrays of state")
    arguments = parser.parse_args(argv)
    if arguments.workers:
        from benchmarks.loader_beside_training import measure_beside

        with tempfile.TemporaryDirectory() as temporary:
            folder = arguments.shards or write_shards(Path(temporary) / "shards", arguments)
            measure_beside(arguments, folder, RESOLUTION)
        return 0
    available = sorted(os.sched_getaffinity(0))
    if not 1 <= arguments.cores <= len(available):
        raise UserError(f"--cores {arguments.cores}: this process may use {len(available)}.")
    if not 1 <= arguments.batch <= arguments.scenes:
        raise UserError(f"--batch {arguments.batch}: needed 1 to --scenes {arguments.scenes}.")

    from escherjax.data.loader_config import LoaderConfig

    config = LoaderConfig(RESOLUTION, num_references=3, num_targets=3, background="zero123")
    with tempfile.TemporaryDirectory() as temporary:
        contenders = write_inputs(Path(temporary), arguments)
        os.sched_setaffinity(0, available[: arguments.cores])
        rates: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
        for _ in range(arguments.repeats):
            for name, place in contenders.items():
                rates[name].append(measure(place, config, arguments))
                harness.note(f"{name}: {rates[name][-1]['wall']:.0f} views/s")
        sizes = {
            name: sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
            // (arguments.scenes * VIEWS_PER_SCENE)
            for name, place in contenders.items()
        }
    harness.print_result("loader", report(rates, sizes, arguments))
    return 0


def write_shards(folder: Path, arguments: argparse.Namespace) -> Path:
    """Writes shards of PNG pictures; returns `folder`."""
    from escherjax.data.shards import write_scenes

    write_scenes(folder, read_scenes(arguments, RESOLUTION))
    return folder


def write_inputs(root: Path, arguments: argparse.Namespace) -> dict[str, Path]:
    """Contender -> folder of its files: 'pytorch_512', 'png_512', ..., 'webp_256'."""
    import numpy as np

    from escherjax import cameras
    from escherjax.data.shards import write_scenes

    places = {}
    for size in SIZES:
        scenes = read_scenes(arguments, size)
        folder = places[f"pytorch_{size}"] = root / f"pytorch_{size}"
        for scene in scenes:
            (folder / scene.scene_id).mkdir(parents=True)
            for view, (data, c2w) in enumerate(zip(scene.images, scene.c2w, strict=True)):
                stem = folder / scene.scene_id / f"{view:03d}"
                stem.with_suffix(".png").write_bytes(data)
                w2c = np.linalg.inv(cameras.opengl_from_opencv(c2w.astype(np.float64)))
                np.save(stem.with_suffix(".npy"), w2c[:3])
        for encoding in ENCODINGS:
            folder = places[f"{encoding}_{size}"] = root / f"{encoding}_{size}"
            write_scenes(folder, [encode(scene, encoding) for scene in scenes])
        if arguments.latents:
            folder = places[f"latents_{size}"] = root / f"latents_{size}"
            write_with_moments(folder, scenes)
    return places


def write_with_moments(folder: Path, scenes: Sequence[Any]) -> None:
    """Shards of PNG pictures with moments of 256-pixel views; any numbers are read as fast."""
    import ml_dtypes
    import numpy as np

    from escherjax.data import shards

    rng = np.random.default_rng(0)
    shape = (VIEWS_PER_SCENE, *MOMENTS_SHAPE)
    with_moments = [
        dataclasses.replace(scene, moments=rng.normal(size=shape).astype(ml_dtypes.bfloat16))
        for scene in scenes
    ]
    folder.mkdir()
    count = shards.write_shard(shards.shard_path(folder, "train", 0, 1), with_moments)
    shards.write_metadata(folder, {"train": [count]}, with_moments=True)


def read_scenes(arguments: argparse.Namespace, size: int) -> list[Any]:
    """`--scenes` scenes of 12 PNG views each; those there are come again with other views."""
    from escherjax.data.formats.folders import find_scene_folders, read_scene_folder
    from escherjax.data.images import encode_png, resize_image
    from escherjax.data.procedural import ProceduralSource

    if arguments.source is None:
        source = ProceduralSource(0, 2, VIEWS_PER_SCENE, SIZES[0])
        found = [
            dataclasses.replace(
                scene,
                images=[encode_png(resize_image(view, size, size)) for view in scene.images],
                height=size,
                width=size,
            )
            for scene in (source[0], source[1])
        ]
    else:
        folders = find_scene_folders(arguments.source, "zero123")[: arguments.scenes]
        found = [read_scene_folder(folder, resolution=size) for _, folder in folders]
    scenes = []
    for number in range(arguments.scenes):
        scene = found[number % len(found)]
        first = number // len(found) * VIEWS_PER_SCENE
        views = [view % scene.num_views for view in range(first, first + VIEWS_PER_SCENE)]
        scenes.append(
            dataclasses.replace(
                scene,
                scene_id=f"{number:05d}",
                images=[scene.images[view] for view in views],
                c2w=scene.c2w[views],
                K=scene.K[views],
            )
        )
    return scenes


def encode(scene: Any, encoding: str) -> Any:
    """A scene of PNG pictures with its pictures in another encoding."""
    from PIL import Image

    from escherjax.data import images

    if encoding == "png":
        return scene
    encoded = []
    for data in scene.images:
        picture = images.decode_image(data, scene.scene_id)
        if encoding == "jpeg":
            picture = images.on_binary_white(picture)
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, encoding, quality=QUALITY)
        encoded.append(buffer.getvalue())
    return dataclasses.replace(scene, images=encoded)


def measure(place: Path, config: Any, arguments: argparse.Namespace) -> dict[str, float]:
    """Views per second by the clock, and by the processor time of this process."""
    batches = open_batches(place, config, arguments)
    for _ in range(2):
        next(batches)
    count, started, cpu_started = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - started < arguments.seconds:
        next(batches)
        count += arguments.batch * 6
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu_started
    batches.close()
    return {"wall": count / wall, "cpu": count / cpu}


def open_batches(place: Path, config: Any, arguments: argparse.Namespace) -> Any:
    """An endless iterator of batches, with close()."""
    if place.name.startswith("pytorch"):
        from benchmarks.pytorch_loader import endless_batches

        workers = arguments.cores if arguments.cores > 1 else 0  # one core: no copies between two
        folders = sorted(place.iterdir())
        return endless_batches(folders, 6, config.resolution, arguments.batch, workers)
    from escherjax.data.loader import make_loader
    from escherjax.data.shards import open_shards

    if place.name.startswith("latents"):
        config = dataclasses.replace(config, moments_shape=MOMENTS_SHAPE)
    return make_loader(
        open_shards(place), config, arguments.batch, num_threads=arguments.cores, prefetch=2
    )


def report(
    rates: dict[str, list[dict[str, float]]], sizes: dict[str, int], arguments: argparse.Namespace
) -> dict[str, Any]:
    """What is printed. Rates are views per second and core; ratios are over PyTorch's medians."""

    def spread(name: str, clock: str) -> dict[str, float]:
        values = [rate[clock] for rate in rates[name]]
        if clock == "wall":
            values = [value / arguments.cores for value in values]
        return {
            "median": round(statistics.median(values), 1),
            "min": round(min(values), 1),
            "max": round(max(values), 1),
        }

    rows = {}
    for name in rates:
        rows[name] = {"bytes_per_view": sizes[name], "views_per_sec_per_core": spread(name, "wall")}
        if arguments.cores == 1:  # beyond, PyTorch's time is that of other processes
            rows[name]["views_per_cpu_sec"] = spread(name, "cpu")
    clock = "views_per_cpu_sec" if arguments.cores == 1 else "views_per_sec_per_core"
    for row in rows.values():
        for size in SIZES:
            base = rows[f"pytorch_{size}"][clock]["median"]
            row[f"times_pytorch_{size}"] = round(row[clock]["median"] / base, 2)
    packages = ("grain", "array-record", "pillow", "numpy", "torch")
    return {
        "source": str(arguments.source or "procedural"),
        "cpu": harness.cpu_name(),
        "cores": arguments.cores,
        "batch": arguments.batch,
        "views_per_scene": 6,
        "resolution": RESOLUTION,
        "repeats": arguments.repeats,
        "seconds_per_repeat": arguments.seconds,
        "load_average": os.getloadavg()[0],
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
        "contenders": rows,
    }


if __name__ == "__main__":
    run_command(main, sys.argv[1:])
