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
    rotation = np.array(note.get("rotation", np.eye(3)))
    return note["scale"] * (points - note["center"]) @ rotation.T


def median_epipolar_distance(scene):
    """(median symmetric distance in pixels of SIFT matches to their epipolar lines, matches), over
    every view and the one whose direction is nearest. Needs OpenCV; the caller skips without it."""
    import cv2

    sift, distances = cv2.SIFT_create(), []
    pictures = [images.decode_image(data, "view") for data in scene.images]
    flat = [np.ascontiguousarray(images.on_background(p, images.WHITE)) for p in pictures]
    features = [sift.detectAndCompute(picture, None) for picture in flat]
    closeness = scene.c2w[:, :3, 2] @ scene.c2w[:, :3, 2].T - 3 * np.eye(scene.num_views)
    pairs = {tuple(sorted((a, int(b)))) for a, b in enumerate(closeness.argmax(1))}
    w2c = np.linalg.inv(scene.c2w.astype(np.float64))
    K = scene.K.astype(np.float64)
    for a, b in sorted(pairs):
        matches = cv2.BFMatcher().knnMatch(features[a][1], features[b][1], k=2)
        good = [best for best, second in matches if best.distance < 0.7 * second.distance]
        if not good:
            continue
        # OpenCV's keypoints count from the middle of the first pixel.
        x = np.array([(*features[a][0][m.queryIdx].pt, 1) for m in good]) + [0.5, 0.5, 0]
        y = np.array([(*features[b][0][m.trainIdx].pt, 1) for m in good]) + [0.5, 0.5, 0]
        relative = w2c[b] @ np.linalg.inv(w2c[a])
        t = relative[:3, 3]
        cross = np.array([[0, -t[2], t[1]], [t[2], 0, -t[0]], [-t[1], t[0], 0]])
        F = np.linalg.inv(K[b]).T @ cross @ relative[:3, :3] @ np.linalg.inv(K[a])
        in_b, in_a = x @ F.T, y @ F
        error = np.abs((y * in_b).sum(1))
        distances += list(
            0.5 * (error / np.hypot(*in_b[:, :2].T) + error / np.hypot(*in_a[:, :2].T))
        )
    return np.median(distances), len(distances)
