"""Scene records of random pictures, and their comparison."""

import dataclasses

import numpy as np

from escherjax import cameras
from escherjax.data import images
from escherjax.data import shards as records


def make_scene(scene_id="a/one", views=3, seed=0):
    rng = np.random.default_rng(seed)
    position = rng.normal(size=(views, 3)).astype(np.float32)
    pictures = rng.integers(0, 256, (views, 8, 10, 4), np.uint8)
    return records.Scene(
        scene_id=scene_id,
        source="test",
        images=[images.encode_png(picture) for picture in pictures],
        c2w=cameras.look_at(position),
        K=np.repeat(cameras.intrinsics_from_fov(0.8, 10, 8)[None], views, 0),
        height=8,
        width=10,
    )


def assert_same_scene(a, b):
    for field in dataclasses.fields(records.Scene):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if isinstance(left, np.ndarray):
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)
        else:
            assert list(left) == list(right) if field.name == "images" else left == right


def write_shards(folder, source, split="train"):
    scenes = [
        dataclasses.replace(scene, images=[images.encode_png(x) for x in scene.images])
        for scene in map(source.__getitem__, range(len(source)))
    ]
    records.write_scenes(folder, scenes, split)
    return folder
