"""The activation of both networks against its definition in double precision."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from escherjax.models.convnextv2 import gelu

X = np.linspace(-12, 12, 241)
EXACT = np.array([0.5 * x * math.erfc(-x / math.sqrt(2)) for x in X])


def test_gelu_is_its_definition_to_rounding():
    # 1 + erf cancels far below zero: the error there is that of 1, times x.
    np.testing.assert_allclose(gelu(jnp.asarray(X, jnp.float32)), EXACT, rtol=1e-6, atol=2e-6)


def test_gelu_of_bfloat16_is_rounded_once():
    x = jnp.asarray(X, jnp.bfloat16)
    wide = gelu(x.astype(jnp.float32))
    assert gelu(x).dtype == jnp.bfloat16
    np.testing.assert_array_equal(gelu(x), wide.astype(jnp.bfloat16))


def test_gradient_of_gelu_is_its_derivative():
    density = np.exp(-(X**2) / 2) / math.sqrt(2 * math.pi)
    derivative = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in X]) + X * density
    gradient = jax.vmap(jax.grad(gelu))(jnp.asarray(X, jnp.float32))
    np.testing.assert_allclose(gradient, derivative, atol=3e-6)
