"""Image quality against a reference image."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def psnr(images: jax.Array, references: jax.Array) -> jax.Array:
    """Peak signal-to-noise ratio in dB of each image, over all pixels and channels.

    images, references: [..., H, W, 3] in [0, 1]. Returns [...] float32; equal images give inf.
    """
    difference = images.astype(jnp.float32) - references.astype(jnp.float32)
    return -10.0 * jnp.log10(jnp.mean(jnp.square(difference), axis=(-3, -2, -1)))
