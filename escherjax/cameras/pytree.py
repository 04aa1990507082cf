"""`Cameras`: poses and intrinsics that JAX functions take as one argument."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cameras:
    """Posed pinhole cameras with leading batch and view axes, NumPy or JAX arrays.

    Args:
        c2w: [..., 4, 4] float32 camera-to-world, OpenCV axes (x right, y down, z forward), world z
            up.
        K: [..., 3, 3] float32 intrinsics in pixels of the image, or None where they are unknown.
    """

    c2w: Any  # [..., 4, 4] float32, camera-to-world
    K: Any = None  # [..., 3, 3] float32 in pixels, or None

    def __getitem__(self, index: Any) -> Cameras:
        """Selects along the leading axes, as an array would; None adds one."""
        return Cameras(self.c2w[index], None if self.K is None else self.K[index])
