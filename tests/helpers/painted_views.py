"""Pictures with a red, a green and a blue dot at given pixels, to test cameras without a renderer.

A test places known 3D points by its format's own projection formula, paints them, and lets the
importer's cameras find them again.
"""

import itertools

import numpy as np

from escherjax import cameras
from escherjax.data import images

POINTS = np.array([[0.35, 0.1, 0.05], [-0.15, 0.3, 0.25], [0.1, -0.25, -0.3]])
RADIUS = 2.5  # standard deviation of a dot in pixels: wide enough for its centroid to be exact


def camera_positions(count, radius=2.0):
    """[count, 3]: around the z axis, higher and lower, no two alike; all look at the origin."""
    angle = np.linspace(0.3, 5.5, count)
    height = np.linspace(-0.3, 0.6, count)
    level = np.sqrt(1 - height**2)
    return radius * np.stack([level * np.cos(angle), level * np.sin(angle), height], axis=-1)


def camera_axes(position, up):
    """(right, up, forward) unit vectors in the world, of a camera that looks at the origin."""
    forward = -position / np.linalg.norm(position)
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    return right, np.cross(right, forward), forward


def paint(pixels, height, width):
    """uint8 [height, width, 3]: channel c is a soft dot about pixels[c] = (u, v)."""
    v, u = np.mgrid[:height, :width] + 0.5
    squared = [(u - x) ** 2 + (v - y) ** 2 for x, y in pixels]
    dots = np.exp(-np.stack(squared, axis=-1) / (2 * RADIUS**2))
    return np.round(255 * dots).astype(np.uint8)


def assert_points_where_painted(scene, points=POINTS, tolerance=0.15):
    """The dots' centroids must lie on the projections of the points, in every view.

    The tolerance, in pixels, is for rounding to 8 bits and, in shrunk or JPEG pictures, for their
    losses; a wrong axis or half a pixel of K moves dots by far more in some view.
    """
    v, u = np.mgrid[: scene.height, : scene.width] + 0.5
    pixels, depth = cameras.project(
        np.broadcast_to(points, (scene.num_views, *points.shape)), scene.c2w, scene.K
    )
    assert (depth > 0).all()
    for view, channel in itertools.product(range(scene.num_views), range(len(points))):
        picture = images.decode_image(scene.images[view], "view").astype(float)
        assert picture.shape[:2] == (scene.height, scene.width)
        weight = picture[..., channel] * (picture[..., channel] > 20)
        seen = [(weight * u).sum() / weight.sum(), (weight * v).sum() / weight.sum()]
        np.testing.assert_allclose(seen, pixels[view, channel], atol=tolerance)


def moved(points, note):
    """World points after the import that left this note."""
    return note["scale"] * (points @ np.array(note["rotation"]).T - note["center"])
