"""Distances between two sets of feature vectors: what FID and KID are, for features of any network.

They become FID and KID with features of the InceptionV3 that those numbers are made with (2048 a
picture); that network is not part of escherjax. Name the network and the number of pictures with
every number: the Fréchet distance of few pictures is too large, and by how much depends on both.
"""

from __future__ import annotations

import numpy as np

from escherjax.errors import UserError


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Squared Fréchet distance between Gaussians fitted to two sets of features.

    a: [N, D], b: [M, D], each at least two vectors. |mean_a - mean_b|^2 +
    tr(S_a + S_b - 2 (S_a S_b)^(1/2)) with sample covariances S (Heusel et al., arXiv 1706.08500,
    equation 6), in float64. Raises UserError for shapes that do not fit and values not finite.
    """
    a, b = _checked("frechet_distance", a, b)
    cov_a, cov_b = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (a, b))
    # S_a S_b has the eigenvalues of R S_b R, R R = S_a, which is symmetric: no complex root
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ cov_b @ root)
    traces = np.trace(cov_a) + np.trace(cov_b) - 2 * np.sqrt(np.maximum(product, 0)).sum()
    return float(np.sum((a.mean(0) - b.mean(0)) ** 2) + traces)


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy with kernel (x.y / D + 1)^3.

    a: [N, D], b: [M, D], each at least two vectors. Binkowski et al., arXiv 1801.01401, section 4;
    all pairs at once in float64, where KID programs often average over random subsets, which has
    the same expectation. May be below 0. Memory N M, N^2 and M^2 numbers. Raises UserError as
    `frechet_distance`.
    """
    a, b = _checked("kernel_distance", a, b)
    within = 0.0
    for x in (a, b):
        kernel = _kernel(x, x)
        within += (kernel.sum() - np.trace(kernel)) / (len(x) * (len(x) - 1))
    return float(within - 2 * _kernel(a, b).mean())


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _checked(name: str, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    shapes = f"shapes {a.shape} and {b.shape}"
    if a.ndim != 2 or b.ndim != 2 or a.shape[1:] != b.shape[1:] or min(len(a), len(b)) < 2:
        raise UserError(
            f"{name}: features must be [N, D] and [M, D] with N and M at least 2, got {shapes}."
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise UserError(f"{name}: features hold NaN or infinity; find out which picture they are.")
    return a, b
