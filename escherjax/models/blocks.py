"""The units a U-Net is built of: residual, transformer, down- and up-sampling.

The design is that of Latent Diffusion (arXiv 2112.10752) as in Stable Diffusion 1.5. Images are
[R, h, w, C]; R = B*M folds scenes and target views, scene-major, as these units never mix views
outside attention. Parameter names follow the published PyTorch checkpoints.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from escherjax.cape import Poses
from escherjax.devices.spread import Spread
from escherjax.models.attention import Attention
from escherjax.models.convnextv2 import gelu


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("tokens", "target_poses", "ref_poses", "key_lengths", "num_targets"),
    meta_fields=("num_views", "guided"),
)
@dataclasses.dataclass(frozen=True)
class Conditioning:
    """What attention sees beside the image: reference tokens and all cameras.

    Where it is guided, each scene comes out twice, without its references and with them: pairs
    [B, 2]. What is not known to differ yet is computed once: a scene becomes a pair where it first
    meets tokens.
    """

    tokens: jax.Array  # [B, N*L, D], view-major
    target_poses: Poses  # from `cape.poses`, of M views
    ref_poses: Poses  # of N views
    num_views: int  # M
    key_lengths: jax.Array | None = None  # int32 [B], how many tokens count; None for all
    # int32 [B], how many target views, of all devices together, others attend to; None for all
    num_targets: jax.Array | None = None
    guided: bool = False

    @property
    def num_scenes(self) -> int:
        return self.tokens.shape[0]


def as_pairs(x: jax.Array, num_scenes: int) -> jax.Array:
    """[B*m, ...] -> [B*2*m, ...]: all rows of a scene, and then all of them again."""
    x = x.reshape(num_scenes, 1, -1, *x.shape[1:])
    twice = jnp.concatenate([x, x], axis=1)  # behind a broadcast XLA may gather all scenes
    return twice.reshape(-1, *x.shape[3:])


class GroupNorm(nn.Module):
    """Group normalisation (arXiv 1803.08494) of channels-last images, statistics in float32.

    Sums are taken over space first, then over a group's channels, and the result is applied as one
    multiply-add a channel, so that XLA needs one pass to read and one to write.
    activation: applied in float32, before the one rounding to dtype.
    """

    num_groups: int
    epsilon: float = 1e-5
    activation: Callable[[jax.Array], jax.Array] | None = None
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [R, ..., C] -> the same shape, in dtype."""
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (channels,), self.param_dtype)
        x = x.astype(jnp.float32)
        space = tuple(range(1, x.ndim - 1))
        mean = self._group_means(jnp.mean(x, axis=space))  # [R, G, 1]
        mean_square = self._group_means(jnp.mean(jnp.square(x), axis=space))
        variance = jnp.maximum(mean_square - jnp.square(mean), 0.0)
        inverse = jax.lax.rsqrt(variance + self.epsilon)
        grouped = (1, self.num_groups, channels // self.num_groups)
        gain = inverse * scale.astype(jnp.float32).reshape(grouped)  # [R, G, C/G]
        shift = bias.astype(jnp.float32).reshape(grouped) - mean * gain
        per_channel = (x.shape[0], *(1 for _ in space), channels)
        out = x * gain.reshape(per_channel) + shift.reshape(per_channel)
        if self.activation is not None:
            out = self.activation(out)
        return out.astype(self.dtype)

    def _group_means(self, channel_means: jax.Array) -> jax.Array:
        grouped = channel_means.reshape(channel_means.shape[0], self.num_groups, -1)
        return grouped.mean(axis=-1, keepdims=True)  # [R, G, 1]


class PointwiseConv(nn.Module):
    """1x1 convolution, computed as a matrix product: XLA compiles it in a fraction of the time.

    The kernel is [1, 1, C, features], a convolution's, as the checkpoints have it.
    """

    features: int
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [..., C] -> [..., features]."""
        shape = (1, 1, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), self.param_dtype)
        out = jnp.dot(x.astype(self.dtype), kernel[0, 0].astype(self.dtype))
        return out + bias.astype(self.dtype).reshape((1,) * (x.ndim - 1) + (-1,))


class ResNetBlock(nn.Module):
    """Residual unit: norm, SiLU, conv, plus time; norm, SiLU, conv; plus shortcut.

    The second convolution starts at zero (`initialization`), so that a fresh unit is the identity.
    epsilon: of both norms. Without a time embedding (in a VAE) there is no projection of it either.
    """

    features: int
    num_groups: int
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, time_embedding: jax.Array | None = None) -> jax.Array:
        """x: [R, h, w, C], time_embedding: [B, E] before its SiLU -> [R, h, w, features].

        Rows are those of B scenes, one scene after another.
        """
        types: Any = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        norm = functools.partial(
            GroupNorm, self.num_groups, self.epsilon, activation=nn.silu, **types
        )
        h = norm(name="norm1")(x)
        h = nn.Conv(self.features, (3, 3), name="conv1", **types)(h)
        if time_embedding is not None:
            time = nn.Dense(self.features, name="time_emb_proj", **types)(nn.silu(time_embedding))
            h = h + jnp.repeat(time, x.shape[0] // time.shape[0], axis=0)[:, None, None]
        h = norm(name="norm2")(h)
        h = nn.Conv(self.features, (3, 3), name="conv2", **types)(h)
        if x.shape[-1] != self.features:
            x = PointwiseConv(self.features, name="conv_shortcut", **types)(x)
        return x + h


class _ValueAndGate(nn.Module):
    """A linear map to twice `features`: the halves of its outputs are the values and the gates.

    One product, or where channels are split over devices two, so that each device gets the values
    and the gates of the same channels.
    """

    features: int
    spread: Spread | None
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> list[jax.Array]:
        shape = (x.shape[-1], 2 * self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, shape[1:], self.param_dtype)
        x, kernel, bias = (a.astype(self.dtype) for a in (x, kernel, bias))
        bias = bias.reshape((1,) * (x.ndim - 1) + (-1,))
        if self.spread is None or self.spread.num_model_shards == 1:
            return jnp.split(jnp.dot(x, kernel) + bias, 2, axis=-1)
        kernels = (self.spread.split_outputs(half) for half in jnp.split(kernel, 2, axis=-1))
        biases = jnp.split(bias, 2, axis=-1)
        return [jnp.dot(x, k) + b for k, b in zip(kernels, biases, strict=True)]


class _GEGLUProjection(nn.Module):
    """Linear to (value, gate), then value * GELU(gate) (arXiv 2002.05202); GELU by erf."""

    features: int
    spread: Spread | None
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        value, gate = _ValueAndGate(
            self.features, self.spread, self.dtype, self.param_dtype, name="proj"
        )(x)
        return value * gelu(gate)


class FeedForward(nn.Module):
    """Gated feed-forward of four times the width, back to the width."""

    spread: Spread | None = None
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [B, L, C] -> [B, L, C]."""
        width = x.shape[-1]
        hidden = _GEGLUProjection(
            4 * width, self.spread, self.dtype, self.param_dtype, name="net_0"
        )(x)
        return nn.Dense(width, dtype=self.dtype, param_dtype=self.param_dtype, name="net_2")(hidden)


class TransformerBlock(nn.Module):
    """Self-attention over all target views, cross-attention to references, feed-forward."""

    num_heads: int
    cape: str
    attention_impl: str = "auto"
    spread: Spread | None = None
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, conditioning: Conditioning) -> jax.Array:
        """x: [B, M*T, C], view-major -> same shape; guided [B, ...] or [2B, ...] -> [2B, ...]."""
        types: Any = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        heads = (x.shape[-1], self.num_heads, self.cape, self.attention_impl, self.spread)
        num_scenes, num_targets = conditioning.num_scenes, conditioning.num_targets
        shared = (
            conditioning.target_poses,
            (None if num_targets is None else num_targets * (x.shape[1] // conditioning.num_views)),
        )
        if x.shape[0] > num_scenes:
            shared = jax.tree.map(lambda array: as_pairs(array, num_scenes), shared)
        target_poses, target_lengths = shared
        h = nn.LayerNorm(epsilon=1e-5, name="norm1", **types)(x)
        x = x + Attention(*heads, keys_are_views=True, name="attn1", **types)(
            h, h, target_poses, target_poses, target_lengths
        )
        norm = nn.LayerNorm(epsilon=1e-5, name="norm2", **types)
        cross = Attention(*heads, name="attn2", **types)

        def attend_to_references(x: jax.Array) -> jax.Array:
            return cross(
                norm(x),
                conditioning.tokens,
                conditioning.target_poses,
                conditioning.ref_poses,
                conditioning.key_lengths,
            )

        if conditioning.guided:
            if x.shape[0] == num_scenes:
                x = as_pairs(x, num_scenes)
            pairs = x.reshape(num_scenes, 2, *x.shape[1:])
            seen = attend_to_references(pairs[:, 1])
            unseen = jnp.broadcast_to(cross.of_zeros(), seen.shape)
            x = x + jnp.stack([unseen, seen], axis=1).reshape(x.shape)
        else:
            x = x + attend_to_references(x)
        h = nn.LayerNorm(epsilon=1e-5, name="norm3", **types)(x)
        return x + FeedForward(self.spread, name="ff", **types)(h)


class SpatialTransformer(nn.Module):
    """Residual of a transformer block on an image's pixels as tokens, all views of a scene joined.

    The output projection starts at zero (`initialization`), so that a fresh unit is the identity.
    """

    num_heads: int
    num_groups: int
    cape: str
    attention_impl: str = "auto"
    spread: Spread | None = None
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, conditioning: Conditioning) -> jax.Array:
        """x: [B*M, h, w, C] -> the same shape; guided [B*M, ...] or [B*2*M, ...] -> the latter."""
        types: Any = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        width = x.shape[-1]
        h = GroupNorm(self.num_groups, epsilon=1e-6, name="norm", **types)(x)
        h = PointwiseConv(width, name="proj_in", **types)(h)
        h = h.reshape(x.shape[0] // conditioning.num_views, -1, width)  # [B, M*h*w, C]
        h = TransformerBlock(
            self.num_heads,
            self.cape,
            self.attention_impl,
            self.spread,
            name="transformer_blocks_0",
            **types,
        )(h, conditioning)
        h = h.reshape(-1, *x.shape[1:])
        if h.shape[0] > x.shape[0]:
            x = as_pairs(x, conditioning.num_scenes)
        return x + PointwiseConv(width, name="proj_out", **types)(h)


class Downsample(nn.Module):
    """Halves the sides, rounding up: 3x3 convolution, stride 2, one pixel of padding all round.

    padding: zeros at (top, bottom), (left, right); a VAE has ((0, 1), (0, 1)), and rounds down.
    """

    padding: tuple[tuple[int, int], tuple[int, int]] = ((1, 1), (1, 1))
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [R, h, w, C] -> [R, ceil(h/2), ceil(w/2), C]."""
        return nn.Conv(
            x.shape[-1],
            (3, 3),
            strides=(2, 2),
            padding=self.padding,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="conv",
        )(x)


class Upsample(nn.Module):
    """Repeats each pixel twice along both sides, cuts to a size, then a 3x3 convolution.

    spread: the devices that hold the rows; None where one holds them all.
    """

    spread: Spread | None = None
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, size: tuple[int, int]) -> jax.Array:
        """x: [R, h, w, C], size (H, W) with H in {2h-1, 2h}, so too W -> [R, H, W, C].

        For an odd size, cutting the doubled image equals nearest-neighbour interpolation to it.
        """
        rows, height, width, channels = x.shape
        doubled = jnp.broadcast_to(
            x[:, :, None, :, None], (rows, height, 2, width, 2, channels)
        ).reshape(rows, 2 * height, 2 * width, channels)
        doubled = doubled[:, : size[0], : size[1]]
        if self.spread is not None:  # or XLA's partitioner may gather all rows for the convolution
            doubled = self.spread.split_rows(doubled)
        return nn.Conv(
            channels, (3, 3), dtype=self.dtype, param_dtype=self.param_dtype, name="conv"
        )(doubled)
