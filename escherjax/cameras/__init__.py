"""Cameras of the whole library: poses, intrinsics and conversions between conventions.

Camera-to-world, OpenCV axes, world z up, intrinsics in pixels of the stated size; `poses` has the
drawing. `paths` and `splines` make trajectories. All of it works without JAX but `Cameras`, which
is a JAX pytree and is loaded on first use.
"""

from typing import TYPE_CHECKING, Any

from escherjax.cameras.normalization import normalize_poses, normalize_scene, upright_scene
from escherjax.cameras.poses import (
    PUBLISHED_FOV_DEG,
    c2w_from_w2c,
    check_poses,
    crop_intrinsics,
    from_spherical,
    intrinsics_faults,
    intrinsics_from_fov,
    look_at,
    nearest_reference,
    opencv_from_opengl,
    opengl_from_opencv,
    pose_faults,
    project,
    resize_intrinsics,
    rigid_inverse,
    to_spherical,
    w2c_from_c2w,
)

if TYPE_CHECKING:
    from escherjax.cameras.pytree import Cameras

__all__ = [
    "PUBLISHED_FOV_DEG",
    "Cameras",
    "c2w_from_w2c",
    "check_poses",
    "crop_intrinsics",
    "from_spherical",
    "intrinsics_faults",
    "intrinsics_from_fov",
    "look_at",
    "nearest_reference",
    "normalize_poses",
    "normalize_scene",
    "opencv_from_opengl",
    "opengl_from_opencv",
    "pose_faults",
    "project",
    "resize_intrinsics",
    "rigid_inverse",
    "to_spherical",
    "upright_scene",
    "w2c_from_c2w",
]


def __getattr__(name: str) -> Any:
    """Loads `Cameras`, and with it JAX, when it is first asked for."""
    if name != "Cameras":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from escherjax.cameras.pytree import Cameras

    globals()[name] = Cameras
    return Cameras
