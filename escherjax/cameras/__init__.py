"""Cameras of the whole library: poses, intrinsics and the moves between conventions.

Camera-to-world, OpenCV axes, world z up, intrinsics in pixels of the stated size; `poses` has the
drawing. `paths` and `splines` make trajectories.
"""

from escherjax.cameras.poses import (
    Cameras,
    c2w_from_w2c,
    check_poses,
    crop_intrinsics,
    from_spherical,
    intrinsics_from_fov,
    look_at,
    nearest_reference,
    normalize_poses,
    normalize_scene,
    opencv_from_opengl,
    opengl_from_opencv,
    pose_faults,
    project,
    resize_intrinsics,
    rigid_inverse,
    to_spherical,
    upright_scene,
    w2c_from_c2w,
)

__all__ = [
    "Cameras",
    "c2w_from_w2c",
    "check_poses",
    "crop_intrinsics",
    "from_spherical",
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
