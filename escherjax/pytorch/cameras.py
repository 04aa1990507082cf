"""From camera matrices to what Camera Positional Encoding (CaPE) reads of them.

Cameras come in as camera-to-world matrices with OpenCV axes (x right, y down, z forward) in a world
whose z axis points up. The network was trained on world-to-camera matrices P with OpenGL axes
(x right, y up, z backwards): x_cam = P x_world. Inverses and angles are computed in float64 and
rounded once to float32.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch

from escherjax.errors import UserError

CAPE_VARIANTS = ("6dof", "4dof", "4dof_paper", "none")

# Camera distances that the radius angle of 4DoF spans, in lengths of the object's longest side.
NEAREST, FARTHEST = 1.5, 2.2

# On |R R^T - I|, elementwise: float32 matrices and rounded camera files pass, scale does not.
RIGIDITY_TOLERANCE = 1e-3


class ViewPoses(NamedTuple):
    """What attention needs of B scenes with V views each: how queries and how keys are turned.

    Float32. 6dof: query = P^-T and key = P, [B, V, 4, 4]. 4dof and 4dof_paper: both the same angles
    [B, V, 4], radians. none: both empty, [B, V, 0].
    A tuple, so that tools which move nested tensors between devices see its parts.
    """

    query: torch.Tensor
    key: torch.Tensor

    @property
    def num_views(self) -> int:
        return self.query.shape[1]

    def repeat_scenes(self, times: int) -> ViewPoses:
        """The B scenes `times` over: [B, V, ...] -> [times * B, V, ...]."""
        return ViewPoses(*(part.repeat(times, *[1] * (part.ndim - 1)) for part in self))


def check_cape(cape: str) -> str:
    """Returns `cape` if it is a known variant; raises UserError listing them otherwise."""
    if cape not in CAPE_VARIANTS:
        raise UserError(f"cape = {cape!r} is unknown; needed one of {', '.join(CAPE_VARIANTS)}.")
    return cape


def view_poses(cape: str, c2w: Any, device: Any = None) -> ViewPoses:
    """What CaPE reads of cameras.

    cape: one of CAPE_VARIANTS. c2w: [B, V, 4, 4] camera-to-world, OpenCV axes, array or tensor.
    Returns float32 tensors on `device`. Raises UserError for matrices that are not rigid.
    """
    check_cape(cape)
    c2w = checked_c2w(c2w, "cameras")
    if c2w.ndim != 4:
        raise UserError(f"cameras have shape {tuple(c2w.shape)}; needed [scenes, views, 4, 4].")
    if cape == "none":
        empty = torch.empty(*c2w.shape[:2], 0, device=device)
        return ViewPoses(empty, empty)
    if cape == "6dof":
        # Turning the camera's axes scales columns of c2w; scaling rows would turn the world.
        opengl = c2w * torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
        w2c = torch.linalg.inv(opengl)
        return ViewPoses(
            opengl.mT.contiguous().to(device, torch.float32),  # P^-T, as P^-1 is c2w
            w2c.to(device, torch.float32),
        )
    angles = spherical_angles(c2w[..., :3, 3]).to(device, torch.float32)
    return ViewPoses(angles, angles)


def spherical_angles(centres: torch.Tensor) -> torch.Tensor:
    """The four angles of 4DoF CaPE (arXiv 2402.03908, section 3.2) of camera centres.

    centres: [..., 3] float64. Returns [..., 4] radians: polar angle from the z axis in [0, pi],
    azimuth from the x axis in [-pi, pi], log radius spread over [0, pi] from NEAREST to FARTHEST
    and clipped there, and 0.
    """
    x, y, z = centres.unbind(-1)
    polar = torch.atan2(torch.hypot(x, y), z)
    azimuth = torch.atan2(y, x)
    radius = torch.linalg.vector_norm(centres, dim=-1).clamp(NEAREST, FARTHEST)
    span = math.log(FARTHEST / NEAREST)
    log_radius = math.pi * torch.log(radius / NEAREST) / span
    return torch.stack([polar, azimuth, log_radius, torch.zeros_like(polar)], dim=-1)


def checked_c2w(cameras: Any, name: str) -> torch.Tensor:
    """Camera-to-world matrices [..., 4, 4] as float64 on the CPU.

    cameras: an array or tensor, or anything that has one as `c2w`. name: whose they are, for the
    message. Raises UserError that lists every matrix which is no rigid, right-handed transform.
    """
    matrices = getattr(cameras, "c2w", cameras)
    if isinstance(matrices, torch.Tensor):
        matrices = matrices.detach().cpu()
    try:
        c2w = torch.as_tensor(np.asarray(matrices, np.float64))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{name} are a {type(matrices).__name__} that is no array of numbers ({error}); needed "
            "camera-to-world matrices [..., 4, 4]."
        ) from error
    if c2w.ndim < 2 or c2w.shape[-2:] != (4, 4) or c2w.numel() == 0:
        raise UserError(
            f"{name} have shape {tuple(c2w.shape)}; needed camera-to-world matrices [..., 4, 4] of "
            "a view at least."
        )
    problems = [
        f"\n  - view {view}: {problem}"
        for view, matrix in enumerate(c2w.reshape(-1, 4, 4))
        if (problem := _not_rigid(matrix))
    ]
    if problems:
        raise UserError(
            f"{name}: needed rotation and translation only, det R = +1 and last row [0, 0, 0, 1]; "
            f"found{''.join(problems)}\nMend these poses or leave the views out."
        )
    return c2w


def _not_rigid(matrix: torch.Tensor) -> str:
    """What keeps a float64 [4, 4] matrix from being a rigid transform; empty if nothing does."""
    if not torch.isfinite(matrix).all():
        return "NaN or infinity"
    rotation = matrix[:3, :3]
    error = (rotation @ rotation.T - torch.eye(3, dtype=matrix.dtype)).abs().max().item()
    if error > RIGIDITY_TOLERANCE:
        return f"|R R^T - I| = {error:.3g}"
    determinant = torch.linalg.det(rotation).item()
    if determinant < 0:
        return f"det R = {determinant:.3g}, a mirrored camera (one axis flipped alone?)"
    if matrix[3].tolist() != [0, 0, 0, 1]:
        return f"last row {matrix[3].tolist()}"
    return ""
