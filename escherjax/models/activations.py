"""Activations that more than one network uses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def gelu(x: jax.Array) -> jax.Array:
    """x * Phi(x), Phi the normal distribution's (arXiv 1606.08415), in float32, then x's dtype.

    By the error function, which is one operation to XLA; `flax.linen.gelu` takes its complement,
    which becomes polynomials, in half precision rounded after each term.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * np.float32(0.5**0.5)))).astype(x.dtype)
