"""The paper's figures."""

import pytest

from escherjax.evaluate import published
from escherjax.evaluate.protocols import gso, nerf, rtmv


@pytest.mark.parametrize(
    ("protocol", "counts"),
    [("gso25", gso.COUNTS), ("gso3d", gso.COUNTS), ("rtmv", rtmv.COUNTS), ("nerf", nerf.COUNTS)],
)
@pytest.mark.parametrize("cape", ["4dof", "6dof"])
def test_every_count_of_a_protocol_has_figures_and_more_references_help(protocol, counts, cape):
    rows = published.figures(protocol, cape)
    assert tuple(row.num_references for row in rows) == counts
    assert all(row.method == f"EscherNet {cape[0]}DoF" for row in rows)
    up, down = ("volume_iou", "chamfer_distance") if protocol == "gso3d" else ("psnr", "lpips")
    values = [(row.metrics[up], -row.metrics[down]) for row in rows]
    for column in zip(*values, strict=True):
        steps = [after - before for before, after in zip(column, column[1:], strict=False)]
        assert min(steps) > 0


@pytest.mark.parametrize(
    ("protocol", "method", "count", "metrics"),
    [
        ("gso25", "EscherNet 6DoF", 10, {"psnr": 27.75, "ssim": 0.947, "lpips": 0.030}),
        ("gso25", "Zero-1-to-3-XL", 1, {"psnr": 18.93, "ssim": 0.856, "lpips": 0.124}),
        ("rtmv", "EscherNet 4DoF", 3, {"psnr": 13.59, "ssim": 0.611, "lpips": 0.258}),
        ("nerf", "3D Gaussian Splatting", 20, {"psnr": 25.34, "ssim": 0.919, "lpips": 0.054}),
        ("nerf", "EscherNet 6DoF", 100, {"psnr": 19.28, "ssim": 0.796, "lpips": 0.084}),
        ("gso3d", "EscherNet 6DoF", 1, {"chamfer_distance": 0.0274, "volume_iou": 0.6382}),
    ],
)
def test_figures_are_those_of_the_tables(protocol, method, count, metrics):
    found = [
        row.metrics
        for row in published.figures(protocol)
        if (row.method, row.num_references) == (method, count)
    ]
    assert found == [metrics]


def test_protocols_of_ones_own_have_none():
    assert published.figures("heldout") == []
