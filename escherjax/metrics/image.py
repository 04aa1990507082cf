"""Image quality against a reference image: PSNR and SSIM, computed as their references do."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from escherjax.errors import UserError

# What cv2.PSNR gives for equal pictures: 20 log10(255 / (0 + eps)), eps of a double.
PSNR_OF_EQUAL_UINT8 = 20.0 * float(np.log10(255.0 / np.finfo(np.float64).eps))  # 361.202 dB

K1, K2 = 0.01, 0.03  # Wang et al., "Image Quality Assessment", IEEE TIP 13(4), 2004
_UNIFORM_SIZE = 7
_GAUSSIAN_SIZE, _GAUSSIAN_SIGMA = 11, 1.5


def check_pair(images: jax.Array, references: jax.Array, metric: str, smallest: int = 1) -> None:
    """Raises UserError unless both are [..., H, W, 3] of one shape, uint8 or floating.

    metric: the name to use in the message; smallest: least height and width that it works on.
    """
    problems = []
    if images.shape != references.shape:
        problems.append(
            f"images {images.shape} and references {references.shape} must have the same "
            "shape, one reference for each image."
        )
    for name, array in (("images", images), ("references", references)):
        if array.ndim < 3 or array.shape[-1] != 3:
            problems.append(f"{name} must be [..., H, W, 3], got shape {array.shape}.")
        elif min(array.shape[-3:-1]) < smallest:
            problems.append(
                f"{name} must be at least {smallest} x {smallest} pixels, got {array.shape[-3]} x "
                f"{array.shape[-2]}."
            )
    kinds = [array.dtype for array in (images, references)]
    both_uint8 = all(kind == jnp.uint8 for kind in kinds)
    if not both_uint8 and not all(jnp.issubdtype(kind, jnp.floating) for kind in kinds):
        problems.append(
            "images and references must both be uint8 in 0..255, or both floating point in "
            f"[0, 1], got {kinds[0]} and {kinds[1]}."
        )
    if problems:
        raise UserError(f"{metric}: {' '.join(problems)}")


@jax.jit
def psnr(images: jax.Array, references: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio in dB of each image, over all pixels and channels.

    images, references: [..., H, W, 3], both uint8 (peak 255) or both floating point in [0, 1]
    (peak 1). Returns [...] float32.
    uint8 is cv2.PSNR, of equal images 361.202 dB; squares are added as integers, row by row.
    Floating point is 10 log10(1 / mean squared difference), of equal images inf.
    Raises UserError for other shapes and types.
    """
    check_pair(images, references, "psnr")
    if images.dtype != jnp.uint8:
        difference = images.astype(jnp.float32) - references.astype(jnp.float32)
        return -10.0 * jnp.log10(jnp.mean(jnp.square(difference), axis=(-3, -2, -1)))
    height, width, channels = images.shape[-3:]
    difference = images.astype(jnp.int32) - references.astype(jnp.int32)
    rows = jnp.sum(jnp.square(difference), axis=(-2, -1), dtype=jnp.uint32)  # [..., H], exact
    total = jnp.sum(rows.astype(jnp.float32), axis=-1)
    peak = 255.0**2 * height * width * channels
    return jnp.where(total == 0, PSNR_OF_EQUAL_UINT8, 10.0 * jnp.log10(peak / total))


@functools.partial(jax.jit, static_argnames="window")
def ssim(images: jax.Array, references: jax.Array, window: str = "uniform") -> jax.Array:
    """Structural similarity of each image, averaged over channels and the inner pixels.

    images, references: [..., H, W, 3], both uint8 (data range 255) or both floating point in
    [0, 1] (data range 1). window: what local means, variances and covariance are taken over.
      "uniform": 7 x 7, sample covariance (n - 1); scikit-image's structural_similarity with
        channel_axis=-1 and nothing else set, the convention of EscherNet.
      "gaussian": 11 x 11, sigma 1.5, covariance with the weights themselves; Wang et al. 2004
        (IEEE TIP 13(4)), tf.image.ssim, dm_pix, and torchmetrics until September 2024.
    Only pixels whose whole window lies inside the image count; torchmetrics counts all since its
    pull request 2721, which is this function of pictures padded by 5 pixels, mirrored. Numbers of
    two windows cannot be compared, so say which one it is. Returns [...] float32, at most 1.
    Raises UserError for other shapes and types, images smaller than the window, other windows.
    """
    if window == "uniform":
        weights = np.full(_UNIFORM_SIZE, 1 / _UNIFORM_SIZE)
        covariance_scale = _UNIFORM_SIZE**2 / (_UNIFORM_SIZE**2 - 1)
    elif window == "gaussian":
        offsets = np.arange(_GAUSSIAN_SIZE) - _GAUSSIAN_SIZE // 2
        weights = np.exp(-0.5 * np.square(offsets / _GAUSSIAN_SIGMA))
        weights, covariance_scale = weights / weights.sum(), 1.0
    else:
        raise UserError(f"ssim: window must be 'uniform' or 'gaussian', got {window!r}.")
    check_pair(images, references, "ssim", smallest=len(weights))
    scale = 1 / 255 if images.dtype == jnp.uint8 else 1.0
    x, y = (scale * array.astype(jnp.float32) for array in (images, references))
    mean_x, mean_y, var_x, var_y, cov = _window_moments(x, y, jnp.asarray(weights, jnp.float32))
    c1, c2 = K1**2, K2**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance_scale * cov + c2) / (covariance_scale * (var_x + var_y) + c2)
    return jnp.mean(luminance * structure, axis=(-3, -2, -1))


def _window_moments(x: jax.Array, y: jax.Array, weights: jax.Array) -> tuple[jax.Array, ...]:
    """Means, variances and covariance of two images in windows of `weights` x `weights`.

    x, y: [..., H, W, C]; weights: [T], of sum 1. Returns (mean x, mean y, var x, var y, cov), each
    [..., H - T + 1, W - T + 1, C]. Separable by the law of total covariance, within columns and
    then between them; E[xy] - E[x]E[y] would cancel in float32 where pictures are flat and bright.
    """
    mean_x, mean_y, *within = _line_moments(x, y, weights, axis=-3)
    means_x, means_y, *between = _line_moments(mean_x, mean_y, weights, axis=-2)
    averaged = _windows(weights, within, -2, lambda *parts: parts)
    return means_x, means_y, *(a + b for a, b in zip(averaged, between, strict=True))


def _line_moments(
    x: jax.Array, y: jax.Array, weights: jax.Array, axis: int
) -> tuple[jax.Array, ...]:
    """(mean x, mean y, var x, var y, cov) in windows along one axis."""
    mean_x, mean_y = _windows(weights, (x, y), axis, lambda x, y: (x, y))

    def products(x: jax.Array, y: jax.Array) -> tuple[jax.Array, ...]:
        x, y = x - mean_x, y - mean_y
        return x * x, y * y, x * y

    return mean_x, mean_y, *_windows(weights, (x, y), axis, products)


def _windows(
    weights: jax.Array,
    arrays: Sequence[jax.Array],
    axis: int,
    terms: Callable[..., tuple[jax.Array, ...]],
) -> tuple[jax.Array, ...]:
    """Sums over t of weights[t] * terms(*arrays moved by t along `axis`), a shorter axis each."""
    length = arrays[0].shape[axis] - len(weights) + 1

    def moved(offset: int | jax.Array) -> Iterator[jax.Array]:
        return (jax.lax.dynamic_slice_in_dim(a, offset, length, axis) for a in arrays)

    def add(
        offset: jax.Array, sums: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, ...]:  # a loop, for unrolled it takes four times as long to compile
        parts = terms(*moved(offset))
        return tuple(s + weights[offset] * part for s, part in zip(sums, parts, strict=True))

    zeros = jax.tree.map(jnp.zeros_like, tuple(terms(*moved(0))))
    return jax.lax.fori_loop(0, len(weights), add, zeros)
