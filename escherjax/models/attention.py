"""Attention over the tokens of all views of a scene, with cameras in queries and keys.

EscherNet (arXiv 2402.03908), section 3.2: self-attention is joint over all target views, and
cross-attention lets every target token see every reference token. Views are distinguished by their
cameras (`escherjax.cape`) and by nothing else, so their number and order are free.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from escherjax import cape
from escherjax.cape import Poses
from escherjax.devices.spread import Spread
from escherjax.errors import UserError

IMPLEMENTATIONS = ("auto", "xla", "cudnn", "splash")

CACHE = "reference_cache"  # the collection of keys and values that were computed before

# Below this many queries XLA's plain attention is as fast as the fused kernel (H200, width 160).
_MIN_CUDNN_QUERIES = 128

# Below this many queries the logits are small, and the kernel would pad more than it saves.
_MIN_SPLASH_QUERIES = 512
_LANES = 128  # lengths are padded to multiples of a vector register's width
_BLOCKS = (512, 384, 256, 128)  # rows of queries or keys held at once, the largest that divides


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    impl: str = "auto",
    key_lengths: jax.Array | None = None,
) -> jax.Array:
    """Softmax attention with logit scale head_dim^-0.5.

    q: [B, Lq, heads, head_dim]; k, v: [B, Lk, heads, head_dim].
    key_lengths: int32 [B], only the first key_lengths[b] >= 1 keys of row b are seen; None = all.
    impl: "xla" runs everywhere; "cudnn" is the fused kernel of NVIDIA GPUs for bfloat16 and
    float16; "splash" that of TPUs, on one device or inside `jax.shard_map`; "auto" takes the one
    for the device at hand that can run. The softmax is float32 in all.
    Returns [B, Lq, heads, head_dim] in q's dtype.
    """
    kernel: Any = resolve_implementation(impl, q)
    if kernel == "splash":
        return splash_attention(q, k, v, key_lengths)
    if kernel == "cudnn":
        k, v, key_lengths = pad_keys_to_even(k, v, key_lengths)
    return jax.nn.dot_product_attention(
        q, k, v, key_value_seq_lengths=key_lengths, implementation=kernel
    )


def resolve_implementation(impl: str, q: jax.Array | jax.ShapeDtypeStruct) -> str:
    """Turns "auto" into a kernel's name for queries q [B, Lq, heads, head_dim] (trace time)."""
    if impl not in IMPLEMENTATIONS:
        raise UserError(
            f"attention_impl must be one of {', '.join(IMPLEMENTATIONS)}, got {impl!r}."
        )
    if impl != "auto":
        return impl
    if _on_one_tpu():
        return "splash" if q.shape[1] >= _MIN_SPLASH_QUERIES else "xla"
    head_dim = q.shape[-1]
    fits = (
        q.dtype in (jnp.bfloat16, jnp.float16)
        and q.shape[1] >= _MIN_CUDNN_QUERIES
        and head_dim % 8 == 0
        and head_dim <= _max_cudnn_head_dim()
    )
    return "cudnn" if fits else "xla"


def _on_one_tpu() -> bool:
    """Whether what is traced here runs on a TPU, each device by itself.

    A mesh in context is what the program is for, be it another machine's; without one it is for
    this machine.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.abstract_device is None:
        return jax.default_backend() == "tpu" and jax.device_count() == 1
    by_compiler = [a for a in mesh.axis_names if a not in mesh.manual_axes and mesh.shape[a] > 1]
    return mesh.abstract_device.platform == "tpu" and not by_compiler


def _max_cudnn_head_dim() -> int:
    """The widest head cuDNN's kernel takes on the default device; 0 where there is no cuDNN."""
    device = jax.local_devices()[0]
    if device.platform != "gpu" or "cuda" not in device.client.platform_version:
        return 0
    return 256 if float(device.compute_capability) >= 9.0 else 128


def pad_keys_to_even(
    k: jax.Array, v: jax.Array, key_lengths: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Adds one masked key where the number of keys is odd.

    cuDNN's backward pass refuses odd key lengths, and 3 references of 49 tokens make 147.
    k, v: [B, Lk, heads, head_dim]; key_lengths: int32 [B] or None. Returns (k, v, key_lengths)
    with even Lk; unchanged where Lk is even already.
    """
    batch, num_keys = k.shape[:2]
    if num_keys % 2 == 0:
        return k, v, key_lengths
    if key_lengths is None:
        key_lengths = jnp.full((batch,), num_keys, jnp.int32)
    padding = ((0, 0), (0, 1), (0, 0), (0, 0))
    return jnp.pad(k, padding), jnp.pad(v, padding), key_lengths


def splash_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    key_lengths: jax.Array | None = None,
    interpret: bool = False,
) -> jax.Array:
    """`attend` by the splash kernel of TPUs, which never writes the logits to memory.

    The kernel is the online softmax of FlashAttention (arXiv 2205.14135) in Pallas. It runs on one
    device: over several, call it inside `jax.shard_map`, since the compiler cannot split it.

    Shapes as in `attend`. Queries are scaled before the product and rounded to their dtype once
    more. interpret: run without a TPU, slowly.
    Returns [B, Lq, heads, head_dim] in q's dtype.
    """
    # Inside, because importing Pallas takes seconds and only TPUs need it.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    batch, num_queries, num_heads, head_dim = q.shape
    num_keys = k.shape[1]
    q = (q.astype(jnp.float32) * head_dim**-0.5).astype(q.dtype)
    q, k, v = (_padded(x) for x in (q, k, v))  # [B, heads, L, head_dim]
    query_block, key_block = _block(q.shape[2]), _block(k.shape[2])
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([masks.FullMask((q.shape[2], k.shape[2]))] * num_heads),
        block_sizes=splash.BlockSizes(
            block_q=query_block,
            block_kv=key_block,
            block_q_dkv=query_block,
            block_kv_dkv=key_block,
            block_q_dq=query_block,
            block_kv_dq=key_block,
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    if key_lengths is None and k.shape[2] == num_keys:
        out = jax.vmap(kernel)(q, k, v)
    else:
        if key_lengths is None:
            key_lengths = jnp.full((batch,), num_keys, jnp.int32)
        # Queries see the keys of their own segment, 0; the others are segment 1.
        hidden = jnp.arange(k.shape[2])[None] >= key_lengths[:, None]  # [B, Lk]
        segments = splash.SegmentIds(
            jnp.zeros((batch, q.shape[2]), jnp.int32), hidden.astype(jnp.int32)
        )
        out = jax.vmap(kernel)(q, k, v, segments)
    return jnp.swapaxes(out, 1, 2)[:, :num_queries]


def _padded(x: jax.Array) -> jax.Array:
    """[B, L, heads, head_dim] -> [B, heads, L', head_dim], zeros up to a multiple of the lanes."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % _LANES), (0, 0), (0, 0)))
    return jnp.swapaxes(x, 1, 2)


def _block(length: int) -> int:
    return next(size for size in _BLOCKS if length % size == 0)


class Attention(nn.Module):
    """Multi-head attention whose queries and keys carry their views' cameras; values do not.

    width: of queries and outputs. cape: a variant of `escherjax.cape`. spread: the devices that
    share a scene, if several do; keys_are_views: whether the context is split over them as x is.
    Parameters: to_q, to_k, to_v without bias, to_out_0 with.
    """

    width: int
    num_heads: int
    cape: str = "6dof"
    attention_impl: str = "auto"
    spread: Spread | None = None
    keys_are_views: bool = False
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        dense = functools.partial(
            nn.Dense, self.width, dtype=self.dtype, param_dtype=self.param_dtype
        )
        self.to_q = dense(use_bias=False)
        self.to_k = dense(use_bias=False)
        self.to_v = dense(use_bias=False)
        self.to_out_0 = dense()

    def __call__(
        self,
        x: jax.Array,
        context: jax.Array,
        query_poses: Poses,
        key_poses: Poses,
        key_lengths: jax.Array | None = None,
    ) -> jax.Array:
        """Attends from x to context.

        x: [B, Vq*Tq, C]; context: [B, Vk*Tk, D], both view-major. query_poses, key_poses: from
        `cape.poses`, of the Vq and Vk views. key_lengths: see `attend`. Returns [B, Vq*Tq, C].
        If the variable CACHE/keys_values is given, it stands for the context and its poses.
        """
        q = cape.rotate_queries(self.cape, self._heads(self.to_q(x)), query_poses)
        if self.has_variable(CACHE, "keys_values"):
            keys_values: Any = self.get_variable(CACHE, "keys_values")
        else:
            keys_values = self.keys_values(context, key_poses)
        k, v = keys_values
        kernel = functools.partial(attend, impl=self.attention_impl)
        if self.spread is None:
            out = kernel(q, k, v, key_lengths=key_lengths)
        else:
            out = self.spread.attend(kernel, q, k, v, key_lengths, self.keys_are_views)
        return self.to_out_0(out.reshape(x.shape))

    def keys_values(self, context: jax.Array, key_poses: Poses) -> tuple[jax.Array, jax.Array]:
        """All that attention takes from a context: keys, turned, and values, [B, L, heads, hd]."""
        k = cape.rotate_keys(self.cape, self._heads(self.to_k(context)), key_poses)
        return k, self._heads(self.to_v(context))

    def of_zeros(self) -> jax.Array:
        """What a context of zeros gives every query, [1, 1, C]: its values are zero too."""
        return self.to_out_0(jnp.zeros((1, 1, self.width), self.dtype))

    def _heads(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], self.num_heads, -1)
