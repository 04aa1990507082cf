"""Figures of the paper, to stand beside one's own: EscherNet, arXiv 2402.03908, tables 1 to 4.

They were made by the published evaluation, so they belong beside the mode `faithful` alone.
"""

from __future__ import annotations

import dataclasses

SOURCE = "EscherNet, arXiv 2402.03908, tables 1-4"


@dataclasses.dataclass(frozen=True)
class Figures:
    """Figures of a method with N references; by the metric's name.

    psnr in dB, ssim and lpips; or chamfer_distance and volume_iou of a reconstruction.
    cape: the camera encoding of an EscherNet, None for other methods.
    """

    protocol: str
    method: str
    num_references: int
    metrics: dict[str, float]
    cape: str | None = None


def figures(protocol: str, cape: str | None = None) -> list[Figures]:
    """The paper's figures for a protocol, those of EscherNet with this encoding only if given.

    protocol: a name of `escherjax.evaluate.protocol.PROTOCOLS`; one without figures gives none.
    """
    return [
        entry
        for entry in _FIGURES
        if entry.protocol == protocol and (cape is None or entry.cape == cape)
    ]


def _rows(
    protocol: str,
    method: str,
    metrics: tuple[str, ...],
    table: dict[int, tuple[float, ...]],
    cape: str | None = None,
) -> list[Figures]:
    return [
        Figures(protocol, method, count, dict(zip(metrics, values, strict=True)), cape)
        for count, values in table.items()
    ]


_VIEWS = ("psnr", "ssim", "lpips")
_SHAPE = ("chamfer_distance", "volume_iou")
_4DOF, _6DOF = "EscherNet 4DoF", "EscherNet 6DoF"

_FIGURES = [
    *_rows("gso25", "RealFusion", _VIEWS, {1: (12.76, 0.758, 0.382)}),
    *_rows("gso25", "Zero-1-to-3", _VIEWS, {1: (18.51, 0.856, 0.127)}),
    *_rows("gso25", "Zero-1-to-3-XL", _VIEWS, {1: (18.93, 0.856, 0.124)}),
    *_rows("gso25", _4DOF, _VIEWS, {
        1: (20.24, 0.884, 0.095), 2: (22.91, 0.908, 0.064), 3: (24.09, 0.918, 0.052),
        5: (25.09, 0.927, 0.043), 10: (25.90, 0.935, 0.036),
    }, "4dof"),
    *_rows("gso25", _6DOF, _VIEWS, {
        1: (20.89, 0.886, 0.093), 2: (23.92, 0.917, 0.057), 3: (25.21, 0.927, 0.045),
        5: (26.59, 0.937, 0.036), 10: (27.75, 0.947, 0.030),
    }, "6dof"),
    *_rows("rtmv", "Zero-1-to-3", _VIEWS, {1: (10.16, 0.505, 0.418)}),
    *_rows("rtmv", "Zero-1-to-3-XL", _VIEWS, {1: (10.59, 0.520, 0.401)}),
    *_rows("rtmv", _4DOF, _VIEWS, {
        1: (10.56, 0.518, 0.410), 2: (12.66, 0.585, 0.301), 3: (13.59, 0.611, 0.258),
        5: (14.52, 0.633, 0.222), 10: (15.55, 0.657, 0.185),
    }, "4dof"),
    *_rows("rtmv", _6DOF, _VIEWS, {
        1: (12.30, 0.569, 0.332), 2: (14.18, 0.618, 0.252), 3: (15.06, 0.643, 0.217),
        5: (15.71, 0.663, 0.190), 10: (16.58, 0.688, 0.160),
    }, "6dof"),
    *_rows("nerf", "InstantNGP", _VIEWS, {
        1: (10.92, 0.449, 0.627), 2: (12.42, 0.521, 0.499), 3: (14.27, 0.618, 0.391),
        5: (18.17, 0.761, 0.228), 10: (22.96, 0.881, 0.091), 20: (24.99, 0.917, 0.058),
        50: (26.86, 0.946, 0.034), 100: (27.30, 0.953, 0.031),
    }),
    *_rows("nerf", "3D Gaussian Splatting", _VIEWS, {
        1: (9.44, 0.391, 0.610), 2: (10.78, 0.432, 0.541), 3: (12.87, 0.546, 0.441),
        5: (17.09, 0.732, 0.243), 10: (23.04, 0.876, 0.085), 20: (25.34, 0.919, 0.054),
        50: (26.98, 0.942, 0.041), 100: (27.11, 0.944, 0.041),
    }),
    *_rows("nerf", _4DOF, _VIEWS, {
        1: (13.36, 0.659, 0.291), 2: (14.95, 0.700, 0.208), 3: (16.19, 0.729, 0.161),
        5: (17.16, 0.748, 0.127), 10: (17.74, 0.761, 0.114), 20: (17.91, 0.765, 0.106),
        50: (18.05, 0.769, 0.099), 100: (18.15, 0.771, 0.097),
    }, "4dof"),
    *_rows("nerf", _6DOF, _VIEWS, {
        1: (13.73, 0.664, 0.294), 2: (15.66, 0.712, 0.197), 3: (16.91, 0.745, 0.149),
        5: (17.72, 0.762, 0.120), 10: (18.47, 0.779, 0.103), 20: (18.77, 0.786, 0.095),
        50: (19.24, 0.795, 0.085), 100: (19.28, 0.796, 0.084),
    }, "6dof"),
    *_rows("gso3d", "Point-E", _SHAPE, {1: (0.0447, 0.2503)}),
    *_rows("gso3d", "Shap-E", _SHAPE, {1: (0.0448, 0.3762)}),
    *_rows("gso3d", "One-2-3-45", _SHAPE, {1: (0.0632, 0.4209)}),
    *_rows("gso3d", "One-2-3-45-XL", _SHAPE, {1: (0.0667, 0.4016)}),
    *_rows("gso3d", "DreamGaussian", _SHAPE, {1: (0.0605, 0.3757)}),
    *_rows("gso3d", "DreamGaussian-XL", _SHAPE, {1: (0.0459, 0.4531)}),
    *_rows("gso3d", "SyncDreamer", _SHAPE, {1: (0.0400, 0.5220)}),
    *_rows("gso3d", "NeuS on the references", _SHAPE, {
        3: (0.0366, 0.5352), 5: (0.0245, 0.6742), 10: (0.0195, 0.7264),
    }),
    *_rows("gso3d", _4DOF, _SHAPE, {
        1: (0.0314, 0.5974), 2: (0.0215, 0.6868), 3: (0.0190, 0.7189), 5: (0.0175, 0.7423),
        10: (0.0167, 0.7478),
    }, "4dof"),
    *_rows("gso3d", _6DOF, _SHAPE, {
        1: (0.0274, 0.6382), 2: (0.0196, 0.7100), 3: (0.0180, 0.7348), 5: (0.0176, 0.7392),
        10: (0.0160, 0.7628),
    }, "6dof"),
]  # fmt: skip
