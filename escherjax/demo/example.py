"""An example to start with, made here: one procedural object, three pictures with cameras."""

from __future__ import annotations

import numpy as np

from escherjax.data import images, procedural

_SEED = 5  # scene 0 of it is what configs/demo.py learns
_NUM_VIEWS, _SHOWN = 9, 3


def example_views(resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """(pictures uint8 [3, R, R, 3] on white, c2w float32 [3, 4, 4])."""
    scene = procedural.render_scenes(_SEED, [0], _NUM_VIEWS, resolution)
    pictures = images.on_background(scene["images"][0, :_SHOWN], images.WHITE)
    return pictures, scene["c2w"][0, :_SHOWN]
