"""Scene folders of smooth noise: pictures that no network can guess, made in no time."""

import numpy as np
from PIL import Image

from escherjax.cameras import from_spherical
from escherjax.data.formats.transforms import write_transforms

SIDE, NUM_VIEWS = 16, 5


def write_scene(folder, seed):
    """A scene folder of smooth noise seen from around; the pictures do not fit together."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    names = [f"{view:03d}.png" for view in range(NUM_VIEWS)]
    for name in names:
        small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
        small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / name)
    angles = rng.uniform(0.5, 2.5, NUM_VIEWS)
    c2w = np.asarray(from_spherical(angles, 2 * angles, np.full(NUM_VIEWS, 1.8)), np.float32)
    K = np.array([[17.5, 0, 8], [0, 17.5, 8], [0, 0, 1]], np.float32)
    write_transforms(folder / "transforms.json", c2w, K, SIDE, names)
