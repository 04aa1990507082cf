"""Small scene folders that show known points, written by other code than what reads them."""

import itertools
import json

import numpy as np
from PIL import Image

from escherjax import cameras
from escherjax.data import images, procedural, raytrace, shards

SIZE = 64
CENTERS = np.array([[0.35, 0.1, 0.0], [-0.1, 0.3, 0.25], [0.05, -0.2, -0.35]], np.float32)
VIEWS = 5


def render_balls():
    """(pictures, c2w, K) of a red, a green and a blue ball, seen by known cameras."""
    balls = [
        raytrace.make_solid(center, (0.07,) * 3, quadric=raytrace.BALL, colors=(color,) * 6)
        for center, color in zip(CENTERS, np.eye(3), strict=True)
    ]
    views = procedural.random_cameras(3, np.array([0]), VIEWS, SIZE)
    world = raytrace.make_world(balls)
    batched = raytrace.World(
        raytrace.Solids(*(field[None] for field in world.solids)), *(x[None] for x in world[1:])
    )
    pictures = np.asarray(raytrace.render(batched, views.c2w, views.K, SIZE))[0]
    return pictures, views.c2w[0], views.K[0]


def blender_pose(c2w):
    """Camera-to-world with Blender axes (x right, y up, z back), by naming each axis."""
    pose = np.eye(4)
    pose[:3, 0], pose[:3, 1], pose[:3, 2] = c2w[:3, 0], -c2w[:3, 1], -c2w[:3, 2]
    pose[:3, 3] = c2w[:3, 3]
    return pose


def write_zero123(folder, rendered):
    folder.mkdir(parents=True)
    for view, (picture, c2w) in enumerate(zip(*rendered[:2], strict=True)):
        Image.fromarray(picture).save(folder / f"{view:03d}.png")
        np.save(folder / f"{view:03d}.npy", np.linalg.inv(blender_pose(c2w))[:3])
    return folder


def write_transforms(folder, rendered, name="transforms.json", suffix=".png", **fields):
    (folder / "images").mkdir(parents=True, exist_ok=True)
    frames = []
    for view, (picture, c2w) in enumerate(zip(*rendered[:2], strict=True)):
        Image.fromarray(picture).save(folder / "images" / f"r_{view}.png")
        pose = blender_pose(c2w).tolist()
        frames.append({"file_path": f"./images/r_{view}{suffix}", "transform_matrix": pose})
    (folder / name).write_text(json.dumps({**fields, "frames": frames}))
    return folder


def assert_balls_where_projected(scene, points=CENTERS, tolerance=0.35):
    """Each ball's pixels must lie about the projection of its centre in every view."""
    v, u = np.mgrid[: scene.height, : scene.width] + 0.5
    pixels, depth = cameras.project(points[None].repeat(scene.num_views, 0), scene.c2w, scene.K)
    assert (depth > 0).all()
    for view, channel in itertools.product(range(scene.num_views), range(len(points))):
        picture = images.decode_image(scene.images[view], "view").astype(float)
        assert picture.shape[:2] == (scene.height, scene.width)
        weight = picture[..., 3] * picture[..., channel]
        seen = [(weight * u).sum() / weight.sum(), (weight * v).sum() / weight.sum()]
        np.testing.assert_allclose(seen, pixels[view, channel], atol=tolerance)


def run(module, source, out, *more):
    """Runs an importer; (the shards it made, its report)."""
    module.main(["--source", str(source), "--out", str(out), "--workers", "2", *more])
    return shards.open_shards(out), json.loads((out / "report.json").read_text())
