"""A random batch of training, as the loader makes them."""

import numpy as np

from escherjax import cameras as cameras_lib
from escherjax.data.batch import Batch


def make_batch(rng, size=8, num_views=4, resolution=16):
    c2w = cameras_lib.from_spherical(
        rng.uniform(0.3, 2.8, (size, num_views)),
        rng.uniform(-3, 3, (size, num_views)),
        rng.uniform(1.5, 2.2, (size, num_views)),
    )
    shape = (size, num_views, resolution, resolution, 3)
    images = rng.integers(0, 256, shape).astype(np.uint8)
    return Batch(
        ref_images=images[:, :2],
        target_images=images[:, 2:],
        ref_c2w=c2w[:, :2],
        target_c2w=c2w[:, 2:],
        num_references=np.full(size, 2, np.int32),
        valid=np.ones(size, np.float32),
    )


def entries(batch):
    """The arrays of a batch, by name."""
    return {name: value for name, value in vars(batch).items() if value is not None}
