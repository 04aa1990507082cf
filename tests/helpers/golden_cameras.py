"""Our cameras from the pose arrays of the original network's recorded inputs."""

import numpy as np

from escherjax import cameras as cameras_lib
from escherjax.cameras import Cameras


def cameras_from_poses(name: str, poses: np.ndarray) -> Cameras:
    """6dof: world-to-camera [..., 4, 4] in OpenGL axes; 4dof: angles [..., 4]."""
    poses = np.asarray(poses, np.float64)
    if name == "6dof":
        c2w = cameras_lib.opencv_from_opengl(cameras_lib.c2w_from_w2c(poses))
        return Cameras(c2w.astype(np.float32))
    radius = 1.5 * (2.2 / 1.5) ** (poses[..., 2] / np.pi)
    return Cameras(cameras_lib.from_spherical(poses[..., 0], poses[..., 1], radius))
