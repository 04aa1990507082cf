"""The TPU kernel, interpreted on a CPU, against plain attention; and when it is chosen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from escherjax.models.attention import attend, resolve_implementation, splash_attention

interpreted = functools.partial(splash_attention, interpret=True)


def random_qkv(rng, num_queries, num_keys):
    shapes = [(2, n, 2, 40) for n in (num_queries, num_keys, num_keys)]
    return [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]


def test_equals_plain_attention(rng):
    qkv = random_qkv(rng, 128, 384)
    # Float32 in both, over up to 384 keys: sums in another order.
    np.testing.assert_allclose(interpreted(*qkv), attend(*qkv, "xla"), atol=3e-6)


def test_padding_and_hidden_keys_change_neither_outputs_nor_gradients(rng):
    qkv, lengths = random_qkv(rng, 100, 147), jnp.array([49, 147], jnp.int32)

    def both(attention):
        def loss(*qkv):
            out = attention(*qkv)
            return jnp.sum(jnp.sin(out)), out

        grads, out = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(*qkv)
        return out, *grads

    ours = both(lambda *qkv: interpreted(*qkv, lengths))
    plain = both(lambda *qkv: attend(*qkv, "xla", lengths))
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)  # the same sums in another order, float32


def tpu_mesh(**axes):
    return AbstractMesh(
        tuple(axes.values()),
        tuple(axes),
        axis_types=(AxisType.Auto,) * len(axes),
        abstract_device=AbstractDevice("TPU v5 lite", 1, "tpu"),
    )


def test_auto_takes_the_kernel_on_tpus_for_long_sequences_of_one_device():
    def chosen(length, mesh):
        with jax.sharding.use_abstract_mesh(mesh):
            return resolve_implementation("auto", jnp.zeros((1, length, 2, 40), jnp.bfloat16))

    assert chosen(3072, tpu_mesh(fsdp=1)) == "splash"
    assert chosen(192, tpu_mesh(fsdp=1)) == "xla"
    assert chosen(3072, tpu_mesh(fsdp=4)) == "xla"  # the compiler cannot split the kernel
    assert resolve_implementation("auto", jnp.zeros((1, 3072, 2, 40), jnp.bfloat16)) == "xla"
