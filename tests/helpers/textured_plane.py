"""A textured plane seen by known cameras, for checks of matched points."""

import numpy as np
import pytest

from escherjax import cameras
from escherjax.data import images, shards

SIZE = 128
K = cameras.intrinsics_from_fov(0.9, SIZE, SIZE)


def textured_scene(views=8, seed=1):
    """A textured plane z = 0, seen from above by warping the texture, without a renderer."""
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(seed)
    side, half = 400, 1.2  # texture pixels, half extent in the world
    texture = cv2.GaussianBlur(rng.integers(0, 256, (side, side, 3), np.uint8), (0, 0), 3.0)
    texture = cv2.normalize(texture, None, 0, 255, cv2.NORM_MINMAX)
    azimuth = np.linspace(0, 1.2, views)
    c2w = cameras.from_spherical(np.linspace(0.3, 0.6, views), azimuth, 2.0)
    # texture pixel index -> world; half a pixel, for OpenCV counts from pixel centres
    scale = 2 * half / side
    world = np.array([[scale, 0, 0.5 * scale - half], [0, scale, 0.5 * scale - half], [0, 0, 1]])
    to_index = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]])
    pictures = []
    for pose in c2w.astype(np.float64):
        w2c = np.linalg.inv(pose)
        homography = to_index @ K @ w2c[:3, [0, 1, 3]] @ world
        warped = cv2.warpPerspective(texture, homography, (SIZE, SIZE))
        pictures.append(images.encode_png(warped))
    return shards.Scene("plane", "made", pictures, c2w, np.repeat(K[None], views, 0), SIZE, SIZE)
