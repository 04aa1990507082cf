"""One object to one scene: cameras and lights of its own, rendered by Blender, written as files."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.lib.assembling import check_empty, picture_format
from data_prep.lib.tasks import Imported
from data_prep.render_meshes import environment, random_views
from escherjax import cameras
from escherjax.data.formats.transforms import write_transforms
from escherjax.data.images import decode_image, encode_png
from escherjax.data.shards import Scene


class ObjectRenderer:
    """Renders objects as the command's arguments ask, each in a process of its own.

    Args:
        args: of the command; its workers share the cores.
        python: that has bpy.
    """

    def __init__(self, args: argparse.Namespace, python: Path):
        self.args, self.python, self.stored = args, python, picture_format(args)
        self.threads = max(1, (os.cpu_count() or 1) // args.workers)

    def __call__(self, scene_id: str, model: Path) -> Imported:
        """Renders one object. Raises UserError if it cannot be used."""
        args, seed = self.args, (self.args.seed, scene_id)
        ranges = tuple(args.radius), tuple(args.focal_mm)
        poses, focal_mm = random_views.random_cameras(
            *seed, args.num_views, args.resolution, *ranges
        )
        views = zip(cameras.opengl_from_opencv(poses.c2w), focal_mm.tolist(), strict=True)
        job = {
            "model": str(model.resolve()),
            "resolution": args.resolution,
            "samples": args.samples,
            "denoise": not args.no_denoise,
            "device": args.device,
            "threads": self.threads,
            "seed": int(random_views.generator(*seed, "rays").integers(2**31)),
            "view_transform": args.view_transform,
            "sensor_mm": random_views.SENSOR_MM,
            "depth": args.depth,
            "views": [{"c2w": c2w.tolist(), "focal_mm": focal} for c2w, focal in views],
            **random_views.random_lighting(*seed, args.light),
        }
        with tempfile.TemporaryDirectory(prefix="escherjax-render-") as folder:
            notes = environment.render_object(self.python, job, Path(folder), args.timeout)
            files = [Path(folder) / f"{view:03d}.png" for view in range(args.num_views)]
            pictures = [decode_image(path.read_bytes(), path.name) for path in files]
            depth_files = [path.with_name(f"{path.stem}_depth.npy") for path in files]
            depths = [np.load(path) for path in depth_files] if args.depth else []
        check_empty(pictures, args.max_empty_views)
        encoded = [self.stored.encode(picture) for picture in pictures]
        scene = Scene(
            scene_id=scene_id,
            source="render_meshes",
            images=encoded,
            c2w=poses.c2w,
            K=np.asarray(poses.K),
            height=args.resolution,
            width=args.resolution,
        )
        if args.views_folder is not None:
            masks = [picture[..., 3] for picture in pictures] if args.mask else []
            _write_views(args.views_folder / scene_id, scene, pictures, masks, depths)
        return Imported(scene, notes)


def _write_views(
    folder: Path, scene: Any, pictures: Sequence, masks: Sequence, depths: Sequence
) -> None:
    """Writes one object's files, PNG, under a temporary name, then renames the folder."""
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
