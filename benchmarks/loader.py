"""Times the loader on this machine, beside plain PyTorch over PNG folders; prints one JSON object.

    python -m benchmarks.loader --source views_release --cores 1

--source holds scene folders as Zero-1-to-3 renders them (000.png with alpha, 000.npy, ..., 512
pixels); without it, scenes are rendered. From them come folders and shards of both sizes in a
temporary place. All contenders give batches of 256-pixel views; each runs on the same --cores,
in turns with the others, --repeats times, files cached by the system. Ours gives uint8, to be
converted on the device; PyTorch gives normalised float32, as its training code expects.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from escherjax.errors import UserError, run_command

VIEWS_PER_SCENE = 12
RESOLUTION = 256
SIZES = (512, 256)
# Encodings of pictures in shards, and how Pillow writes them. JPEG has no alpha: white behind.
ENCODINGS: dict[str, dict[str, Any]] = {
    "png": {"compress_level": 6},
    "jpeg": {"quality": 95},
    "webp": {"quality": 95},
}


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--source", type=Path, help="Zero-1-to-3 render folders")
    parser.add_argument("--cores", type=int, default=1, help="cores that every contender gets")
    parser.add_argument("--scenes", type=int, default=32, help="scenes, of 12 views each")
    parser.add_argument("--batch", type=int, default=8, help="scenes in a batch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of every repeat")
    arguments = parser.parse_args(argv)
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
                print(f"{name}: {rates[name][-1]['wall']:.0f} views/s", file=sys.stderr)
        sizes = {
            name: sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
            // (arguments.scenes * VIEWS_PER_SCENE)
            for name, place in contenders.items()
        }
    print(json.dumps(report(rates, sizes, arguments), indent=2))
    return 0


def write_inputs(root: Path, arguments: argparse.Namespace) -> dict[str, Path]:
    """Contender -> folder of its files: 'pytorch_512', ..., 'png_256', ..."""
    import numpy as np

    from escherjax import cameras
    from escherjax.data.images import decode_image, encode_png
    from escherjax.data.records import Scene, write_scenes

    places = {}
    for size in SIZES:
        scenes = list(read_sources(arguments, size))
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

            def encoded(scene: Scene, encoding: str = encoding) -> Scene:
                if encoding == "png":
                    return scene
                pictures = [decode_image(data, scene.scene_id) for data in scene.images]
                return dataclasses.replace(scene, images=[encode(p, encoding) for p in pictures])

            write_scenes(folder, [encoded(scene) for scene in scenes])
    assert encode_png  # the importers' own PNG, which `read_sources` gives
    return places


def encode(picture: Any, encoding: str) -> bytes:
    """A uint8 picture [H, W, 4] as the bytes of an encoding."""
    import io

    from PIL import Image

    from escherjax.data import images

    if encoding == "jpeg":
        picture = images.on_binary_white(picture)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, encoding, **ENCODINGS[encoding])
    return buffer.getvalue()


def read_sources(arguments: argparse.Namespace, size: int) -> Iterator[Any]:
    """`--scenes` scenes of 12 PNG views; those of --source come again as often as needed."""
    raise NotImplementedError
