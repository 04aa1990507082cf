"""Attention by the splash kernel of TPUs, which never writes the logits to memory.

The kernel (jax.experimental.pallas.ops.tpu.splash_attention) is the online softmax of
FlashAttention (arXiv 2205.14135) in Pallas. It runs on one device: over several, call it inside
`jax.shard_map`, since the compiler cannot split it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

_LANES = 128  # lengths are padded to multiples of a vector register's width
_BLOCKS = (512, 384, 256, 128)  # rows of queries or keys held at once, the largest that divides


def splash_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    key_lengths: jax.Array | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Softmax attention with logit scale head_dim^-0.5 and a float32 softmax.

    q: [B, Lq, heads, head_dim]; k, v: [B, Lk, heads, head_dim]; key_lengths: int32 [B], only the
    first key_lengths[b] >= 1 keys of row b are seen, None = all. Queries are scaled before the
    product and rounded to their dtype once more. interpret: run without a TPU, slowly.
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
