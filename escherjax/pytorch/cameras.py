"""Converts camera matrices to what Camera Positional Encoding (CaPE) reads of them.

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

from escherjax.cameras import pose_faults
from escherjax.errors import UserError

CAPE_VARIANTS = ("6dof", "4dof", "4dof_paper", "none")

# Camera distances that the radius angle of 4DoF spans, in lengths of the object's longest side.
NEAREST, FARTHEST = 1.5, 2.2


class ViewPoses(NamedTuple):
    """How attention turns the queries and keys of B scenes with V views each, in float32.

    A tuple, so that tools which move nested tensors between devices see its parts.
    """

    # 6dof: P^-T and P, [B, V, 4, 4]. 4dof and 4dof_paper: both the same angles [B, V, 4], radians.
    # none: both empty, [B, V, 0].
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
        raise UserError(f"cape must be one of {', '.join(CAPE_VARIANTS)}, got {cape!r}.")
    return cape


def view_poses(cape: str, c2w: Any, device: Any = None) -> ViewPoses:
    """What CaPE reads of cameras.

    Args:
        cape: one of CAPE_VARIANTS.
        c2w: [B, V, 4, 4] camera-to-world, OpenCV axes, array or tensor.
        device: of the result.

    Returns:
        Float32 tensors.

    Raises:
        UserError: matrices are not rigid.
    """
    check_cape(cape)
    c2w = checked_c2w(c2w, "cameras")
    if c2w.ndim != 4:
        raise UserError(f"cameras must be [scenes, views, 4, 4], got shape {tuple(c2w.shape)}.")
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

    Args:
        cameras: an array or tensor, or anything that has one as `c2w`.
        name: whose they are, for the message.

    Raises:
        UserError: lists every matrix that is not a rigid, right-handed transform.
    """
    matrices = getattr(cameras, "c2w", cameras)
    if isinstance(matrices, torch.Tensor):
        matrices = matrices.detach().cpu()
    try:
        c2w = np.asarray(matrices, np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{name} must be an array of camera-to-world matrices [..., 4, 4], got a "
            f"{type(matrices).__name__} ({error})."
        ) from error
    if c2w.ndim < 2 or c2w.shape[-2:] != (4, 4) or c2w.size == 0:
        raise UserError(
            f"{name} must be camera-to-world matrices [..., 4, 4] of one view at least, got shape "
            f"{c2w.shape}."
        )
    problems = [f"\n  - {text}" for _, _, text in pose_faults(c2w.reshape(-1, 4, 4))]
    if problems:
        raise UserError(f"{name} must be rotations and translations:{''.join(problems)}")
    return torch.as_tensor(c2w)
