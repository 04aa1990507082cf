"""One scene over several devices: target views, heads and channels split along axes of a mesh.

Convolutions, norms and cross-attention act on each target view alone, so a device computes them
for its own views. Joint self-attention (arXiv 2402.03908, section 3.2) is where views meet: each
device keeps its queries and sees every device's keys and values, gathered at once or passed round
a ring block by block (arXiv 2310.01889).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

GATHERS = ("all", "ring")
Merged = tuple[jax.Array, jax.Array, jax.Array]  # running maximum, sum and weighted values

_MASKED = -1e30  # finite, so that a block of masked keys alone gives no NaN


@dataclasses.dataclass(frozen=True)
class Spread:
    """A mesh and what lies along its axes.

    gather: "all" holds the keys and values of all views of a layer at once; "ring" holds two
    devices' share of them, and computes plain attention, with no fused kernel.
    """

    mesh: Mesh
    batch_axes: tuple[str, ...]  # scenes
    model_axis: str  # attention heads and channels
    view_axis: str  # target views, whose number it must divide
    gather: str = "all"  # one of GATHERS

    @property
    def num_view_shards(self) -> int:
        return self.mesh.shape[self.view_axis]

    @property
    def num_model_shards(self) -> int:
        return self.mesh.shape[self.model_axis]

    def over_views(self, function: Callable[..., Any], split: tuple[bool, ...]) -> Any:
        """`function`, each device's call of which sees its own views only.

        split: for each argument whether its arrays are [B, M, ...] and to be split over M; the
        others are seen whole. The result is [B, M, ...], split. All other axes of the mesh stay
        with the compiler.
        """
        if self.num_view_shards == 1:
            return function
        views = PartitionSpec(None, self.view_axis)
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=tuple(views if is_split else PartitionSpec() for is_split in split),
            out_specs=views,
            axis_names={self.view_axis},
            check_vma=False,  # its rules do not know nested maps; gradients are tested instead
        )

    def split_outputs(self, kernel: jax.Array) -> jax.Array:
        """A kernel [..., outputs] with its outputs split over the model axis, wherever it lay."""
        return self._split(kernel, PartitionSpec(*(None,) * (kernel.ndim - 1), self.model_axis))

    def split_rows(self, x: jax.Array) -> jax.Array:
        """Rows [B*m, ...] of scenes, each on the device of its scene."""
        return self._split(x, PartitionSpec(self.batch_axes))

    def _split(self, x: jax.Array, spec: PartitionSpec) -> jax.Array:
        if self._inside_views():
            return jax.lax.with_sharding_constraint(x, spec)
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))

    def depthwise(self, x: jax.Array, kernel: jax.Array, *settings: Any, **named: Any) -> jax.Array:
        """`jax.lax.conv_general_dilated`, each device its own rows of x [rows, h, w, C].

        XLA's partitioner (jaxlib 0.10.2) sums the gradient of a depthwise kernel over devices that
        hold equal rows too, so that it comes out as many times too large; a map of our own does
        not leave it the choice.
        """
        rows = PartitionSpec(self.batch_axes)
        return self._map(
            lambda x, kernel: jax.lax.conv_general_dilated(x, kernel, *settings, **named),
            (rows, PartitionSpec()),
            rows,
        )(x, kernel)

    def attend(
        self,
        kernel: Callable[..., jax.Array],
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        key_lengths: jax.Array | None,
        keys_are_views: bool,
    ) -> jax.Array:
        """Attention by a call of `kernel` on each device, for its own scenes and heads.

        kernel: (q, k, v, key_lengths=) -> result, as `attention.attend`, which says the shapes.
        keys_are_views: k and v hold this device's share of the views, like q, and q attends to all
        of them; key_lengths count over all views then.
        """

        def local(
            q: jax.Array, k: jax.Array, v: jax.Array, key_lengths: jax.Array | None
        ) -> jax.Array:
            if not keys_are_views or self.num_view_shards == 1:
                return kernel(q, k, v, key_lengths=key_lengths)
            if self.gather == "ring":
                return ring_attend(q, k, v, self.view_axis, key_lengths)
            k, v = (jax.lax.all_gather(x, self.view_axis, axis=1, tiled=True) for x in (k, v))
            return kernel(q, k, v, key_lengths=key_lengths)

        # The gather is inside: out there the compiler would first undo the split of all other axes.
        by_head = PartitionSpec(self.batch_axes, None, self.model_axis)
        lengths = PartitionSpec(self.batch_axes)
        return self._map(local, (by_head, by_head, by_head, lengths), by_head)(q, k, v, key_lengths)

    def _map(self, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Any:
        """A call of `function` on each device, inside `over_views` or outside."""
        axes = {*self.batch_axes, self.model_axis}
        if not self._inside_views():
            axes.add(self.view_axis)  # if only of one: a TPU kernel has no axis for the compiler
        return jax.shard_map(
            function,
            mesh=None if self._inside_views() else self.mesh,
            in_specs=in_specs,
            out_specs=out_specs,
            axis_names=axes,
            check_vma=False,
        )

    def _inside_views(self) -> bool:
        return self.view_axis in jax.sharding.get_abstract_mesh().manual_axes


def ring_attend(
    q: jax.Array, k: jax.Array, v: jax.Array, axis: str, key_lengths: jax.Array | None = None
) -> jax.Array:
    """Attention to the keys of all devices along a mesh axis, whose blocks travel round a ring.

    To be called inside a `shard_map` over `axis`. q: [B, Lq, heads, head_dim]; k, v: [B, Lk, heads,
    head_dim], this device's blocks. key_lengths: int32 [B], of all devices' keys together, in the
    order of the devices. Softmax in float32, merged over blocks by its running maximum and sum.
    Returns [B, Lq, heads, head_dim] in q's dtype. The backward pass recomputes each block, and
    keeps the blocks of keys and values that came by.
    """
    num_blocks, here = jax.lax.axis_size(axis), jax.lax.axis_index(axis)
    block_length, scale = k.shape[1], q.shape[-1] ** -0.5

    @jax.checkpoint
    def add_block(k: jax.Array, v: jax.Array, owner: jax.Array, so_far: Merged) -> Merged:
        maximum, total, weighted = so_far
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32) * scale
        if key_lengths is not None:
            position = owner * block_length + jnp.arange(block_length)
            seen = position[None] < key_lengths[:, None]  # [B, Lk]
            logits = jnp.where(seen[:, None, None], logits, _MASKED)
        higher = jnp.maximum(maximum, jax.lax.stop_gradient(logits.max(axis=-1)))
        weights = jnp.exp(logits - higher[..., None])
        shrink = jnp.exp(maximum - higher)
        values = jnp.einsum(
            "bhqk,bkhd->bhqd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
        )
        return (
            higher,
            total * shrink + weights.sum(axis=-1),
            weighted * shrink[..., None] + values,
        )

    def step(carry: Any, distance: jax.Array) -> tuple[Any, None]:
        k, v, so_far = carry
        to_next = [(i, (i + 1) % num_blocks) for i in range(num_blocks)]
        k, v = jax.lax.ppermute((k, v), axis, to_next)
        return (k, v, add_block(k, v, (here - distance) % num_blocks, so_far)), None

    batch, num_queries, num_heads, head_dim = q.shape
    rows = (batch, num_heads, num_queries)
    start = (jnp.full(rows, _MASKED), jnp.zeros(rows), jnp.zeros((*rows, head_dim)))
    carry = (k, v, add_block(k, v, here, start))
    (_, _, (_, total, weighted)), _ = jax.lax.scan(step, carry, jnp.arange(1, num_blocks))
    return jnp.moveaxis(weighted / total[..., None], 1, 2).astype(q.dtype)
