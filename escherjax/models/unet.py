"""The denoising U-Net: Stable Diffusion 1.5's, run over all target views of a scene at once.

EscherNet (arXiv 2402.03908), section 3, adds no parameter to Stable Diffusion's U-Net
(arXiv 2112.10752): views live in the batch axis for everything convolutional and in the token
axis inside attention, where cameras enter through `escherjax.cape`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from escherjax.cape import Poses
from escherjax.devices.spread import Spread
from escherjax.errors import UserError
from escherjax.models.attention import CACHE, Attention
from escherjax.models.blocks import (
    Conditioning,
    Downsample,
    GroupNorm,
    ResNetBlock,
    SpatialTransformer,
    Upsample,
    as_pairs,
)


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """Sizes of the U-Net; the defaults are Stable Diffusion 1.5's (859,520,964 parameters).

    Raises UserError if they do not fit together.
    """

    in_channels: int = 4
    out_channels: int = 4
    # Width of each level, finest first; each further level halves the sides
    block_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    # Whether a level has transformers, on the way down and up; the middle always has
    attention: tuple[bool, ...] = (True, True, True, False)
    layers_per_block: int = 2  # residual units on the way down; one more on the way up
    num_heads: int = 8
    cross_channels: int = 768  # width D of the reference tokens
    norm_groups: int = 32  # groups of each GroupNorm

    def __post_init__(self) -> None:
        if not self.block_channels or len(self.attention) != len(self.block_channels):
            raise UserError(
                f"unet.attention and unet.block_channels must have one entry for each level, and a "
                f"level at least, got {len(self.attention)} and {len(self.block_channels)}."
            )
        for name, divisor in (("norm_groups", self.norm_groups), ("num_heads", self.num_heads)):
            misfits = [c for c in self.block_channels if divisor < 1 or c % divisor]
            if misfits:
                raise UserError(
                    f"unet.{name} must be a common divisor of unet.block_channels = "
                    f"{list(self.block_channels)}, got {divisor}, which does not divide {misfits}."
                )


def timestep_features(timesteps: jax.Array, num_features: int) -> jax.Array:
    """Sinusoids of timesteps at geometric frequencies 1 .. 1/10000, cosines first.

    As in DDPM (arXiv 2006.11239) but with cosines before sines. timesteps: [B];
    num_features even. Returns float32 [B, num_features].
    """
    half = num_features // 2
    exponents = -math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / half
    angles = timesteps.astype(jnp.float32)[:, None] * jnp.exp(exponents)[None]  # [B, half]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimeEmbedding(nn.Module):
    """Two-layer perceptron with SiLU from timestep features to the embedding."""

    features: int
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x: [B, F] -> [B, features]."""
        dense = functools.partial(
            nn.Dense, self.features, dtype=self.dtype, param_dtype=self.param_dtype
        )
        return dense(name="linear_2")(nn.silu(dense(name="linear_1")(x)))


Layer = Callable[..., nn.Module]  # a module class with all fields but its name and width bound


class DownBlock(nn.Module):
    """One level on the way down: layers of residual (+ transformer), then half the sides.

    transformer, downsample: None where the level has none.
    """

    features: int
    num_layers: int
    resnet: Layer
    transformer: Layer | None
    downsample: Layer | None

    @nn.compact
    def __call__(
        self, h: jax.Array, time_embedding: jax.Array, conditioning: Conditioning
    ) -> list[jax.Array]:
        """h: [R, h, w, C] -> the output of every layer and of the down-sampler, in order."""
        outputs = []
        for i in range(self.num_layers):
            h = self.resnet(self.features, name=f"resnets_{i}")(h, time_embedding)
            if self.transformer is not None:
                h = self.transformer(name=f"attentions_{i}")(h, conditioning)
            outputs.append(h)
        if self.downsample is not None:
            outputs.append(self.downsample(name="downsamplers_0")(h))
        return outputs


class MidBlock(nn.Module):
    """The coarsest level: residual, transformer, residual."""

    features: int
    resnet: Layer
    transformer: Layer

    @nn.compact
    def __call__(
        self, h: jax.Array, time_embedding: jax.Array, conditioning: Conditioning
    ) -> jax.Array:
        """h: [R, h, w, C] -> [R, h, w, features]."""
        h = self.resnet(self.features, name="resnets_0")(h, time_embedding)
        h = self.transformer(name="attentions_0")(h, conditioning)
        return self.resnet(self.features, name="resnets_1")(h, time_embedding)


class UpBlock(nn.Module):
    """One level on the way up: layers that take a skip each, then twice the sides."""

    features: int
    resnet: Layer
    transformer: Layer | None
    upsample: Layer | None

    @nn.compact
    def __call__(
        self,
        h: jax.Array,
        skips: list[jax.Array],
        time_embedding: jax.Array,
        conditioning: Conditioning,
        size: tuple[int, ...] | None,
    ) -> jax.Array:
        """h: [R, h, w, C]; skips: one [R, h, w, S] a layer; size: (H, W) after up-sampling.

        A guided scene's early skips have half the rows: they are the same for both of its pair.
        """
        for i, skip in enumerate(skips):
            if h.shape[0] > skip.shape[0]:
                skip = as_pairs(skip, conditioning.num_scenes)
            h = jnp.concatenate([h, skip], axis=-1)  # [R, h, w, C+S]
            h = self.resnet(self.features, name=f"resnets_{i}")(h, time_embedding)
            if self.transformer is not None:
                h = self.transformer(name=f"attentions_{i}")(h, conditioning)
        if self.upsample is not None:
            h = self.upsample(name="upsamplers_0")(h, size)
        return h


class UNet(nn.Module):
    """Predicts the noise in the latents of M target views from N posed reference views.

    cape: a variant of `escherjax.cape`. dtype: of features; norms' statistics, softmax and cameras
    are float32 always. remat: recompute each residual and transformer unit in the backward pass
    instead of storing it. attention_impl: see `attention.attend`. spread: the devices that share a
    scene, if several do; target views are then this device's own.
    A fresh network outputs zeros: its last convolution starts at zero (`initialization`).
    """

    config: UNetConfig = UNetConfig()
    cape: str = "6dof"
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32
    remat: bool = False
    attention_impl: str = "auto"
    spread: Spread | None = None

    @nn.compact
    def __call__(
        self,
        latents: jax.Array,
        timesteps: jax.Array,
        tokens: jax.Array,
        target_poses: Poses,
        ref_poses: Poses,
        num_references: jax.Array | None = None,
        num_targets: jax.Array | None = None,
        guided: bool = False,
    ) -> jax.Array:
        """Predicts noise for all target views jointly.

        latents: [B, M, h, w, C]; timesteps: [B], one a scene; tokens: [B, N, L, D];
        target_poses, ref_poses: from `cape.poses`, of [B, M] and [B, N] cameras.
        num_references: int32 [B] >= 1, only the first so many references of a scene are seen;
        None = all. num_targets: int32 [B] >= 1, only the first so many target views, counted over
        all devices, are seen by other views; None = all.
        guided: predict twice, as for tokens of zero, and for these.
        Returns float32 [B, M, h, w, out_channels], guided [B*2, M, ...], scene by scene.
        With the collection of `reference_cache`, only the shapes of tokens and ref_poses matter.
        Raises UserError if cameras and views do not agree in number.
        """
        config = self.config
        batch, num_views, *_ = latents.shape
        num_refs, tokens_per_ref = tokens.shape[1:3]
        _check_poses("target", target_poses, (batch, num_views))
        _check_poses("reference", ref_poses, (batch, num_refs))

        types: Any = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        wrap: Callable[[Any], Any] = nn.remat if self.remat else lambda module: module
        resnet = functools.partial(wrap(ResNetBlock), num_groups=config.norm_groups, **types)
        transformer = functools.partial(
            wrap(SpatialTransformer),
            num_heads=config.num_heads,
            num_groups=config.norm_groups,
            cape=self.cape,
            attention_impl=self.attention_impl,
            spread=self.spread,
            **types,
        )
        num_levels = len(config.block_channels)

        conditioning = Conditioning(
            tokens.reshape(batch, num_refs * tokens_per_ref, -1).astype(self.dtype),
            target_poses,
            ref_poses,
            num_views,
            None if num_references is None else num_references.astype(jnp.int32) * tokens_per_ref,
            num_targets,
            guided,
        )
        time = timestep_features(timesteps, config.block_channels[0])
        time = TimeEmbedding(4 * config.block_channels[0], name="time_embedding", **types)(time)
        self.sow("intermediates", "h_time_embedding", time)

        h = latents.reshape(batch * num_views, *latents.shape[2:]).astype(self.dtype)
        h = nn.Conv(config.block_channels[0], (3, 3), name="conv_in", **types)(h)
        self.sow("intermediates", "h_conv_in", h)
        skips = [h]
        for i, channels in enumerate(config.block_channels):
            skips += DownBlock(
                channels,
                config.layers_per_block,
                resnet,
                transformer if config.attention[i] else None,
                functools.partial(Downsample, **types) if i < num_levels - 1 else None,
                name=f"down_blocks_{i}",
            )(skips[-1], time, conditioning)
            self.sow("intermediates", f"h_down_{i}", skips[-1])

        h = MidBlock(config.block_channels[-1], resnet, transformer, name="mid_block")(
            skips[-1], time, conditioning
        )
        self.sow("intermediates", "h_mid_block", h)

        for i, level in enumerate(reversed(range(num_levels))):
            num_skips = config.layers_per_block + 1
            level_skips = skips[: -num_skips - 1 : -1]
            del skips[-num_skips:]
            h = UpBlock(
                config.block_channels[level],
                resnet,
                transformer if config.attention[level] else None,
                functools.partial(Upsample, spread=self.spread, **types) if level > 0 else None,
                name=f"up_blocks_{i}",
            )(h, level_skips, time, conditioning, skips[-1].shape[1:3] if skips else None)
            self.sow("intermediates", f"h_up_{i}", h)

        h = GroupNorm(config.norm_groups, name="conv_norm_out", **types)(h)
        self.sow("intermediates", "h_conv_norm_out", h)
        h = nn.Conv(config.out_channels, (3, 3), name="conv_out", **types)(nn.silu(h))
        return h.astype(jnp.float32).reshape(-1, *latents.shape[1:-1], config.out_channels)

    @nn.nowrap
    def reference_cache(self, params: Any, tokens: jax.Array, ref_poses: Poses) -> dict[str, Any]:
        """Keys and values of every cross-attention, as variables to `apply` this network with.

        They depend on the references alone, so that they are the same at every sampling step.
        params: those of this network; tokens: [B, N, L, D]; ref_poses: see `__call__`.
        """
        context = tokens.reshape(tokens.shape[0], -1, tokens.shape[-1]).astype(self.dtype)
        layers = flatten_dict(params, is_leaf=lambda path, _: path[-1:] == ("attn2",))
        cache = {}
        for path, layer in layers.items():
            if path[-1] == "attn2":
                cross = Attention(
                    layer["to_k"]["kernel"].shape[-1],
                    self.config.num_heads,
                    self.cape,
                    dtype=self.dtype,
                    param_dtype=self.param_dtype,
                )
                cache[*path, "keys_values"] = cross.apply(
                    {"params": layer}, context, ref_poses, method="keys_values"
                )
        return {CACHE: unflatten_dict(cache)}


def _check_poses(role: str, poses: Poses, expected: tuple[int, int]) -> None:
    for leaf in jax.tree.leaves(poses):
        if leaf.shape[:2] != expected:
            raise UserError(
                f"{role} cameras must have the leading shape {expected} (scenes, {role} views), "
                f"got {leaf.shape[:2]}. Pass one camera for each {role} view."
            )
