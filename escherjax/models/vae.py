"""The autoencoder of Stable Diffusion 1.5: images to latents and back (arXiv 2112.10752).

It is frozen in EscherNet. Parameter names follow the published PyTorch checkpoints.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp

from escherjax.devices.spread import Spread
from escherjax.errors import UserError
from escherjax.models.attention import attend
from escherjax.models.blocks import Downsample, GroupNorm, ResNetBlock, Upsample

_NORM_EPS = 1e-6
_MIN_LOGVAR, _MAX_LOGVAR = -30.0, 20.0


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """Sizes of the autoencoder; the defaults are those of Stable Diffusion 1.5."""

    in_channels: int = 3
    latent_channels: int = 4
    # Widths from the image inwards, any number of levels; each but the last halves the sides
    block_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2  # residual units of an encoder level; a decoder level has one more
    norm_groups: int = 32  # groups of each GroupNorm
    scaling_factor: float = 0.18215  # latents are multiplied by it before diffusion

    def __post_init__(self) -> None:
        if not self.block_channels or any(c % self.norm_groups for c in self.block_channels):
            raise UserError(
                "vae.block_channels must be at least one multiple of norm_groups = "
                f"{self.norm_groups}, got {self.block_channels}."
            )


class VAE(nn.Module):
    """Images [B, H, W, 3] in [-1, 1] to latents [B, h, w, C] and back; computes in `dtype`.

    Every level but the last halves the sides, rounding down. Norm statistics and both results are
    float32. spread: the devices that share the images; None where one holds them all.
    """

    config: VAEConfig = VAEConfig()
    spread: Spread | None = None
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        types: Any = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.encoder = Encoder(self.config, **types)
        self.decoder = Decoder(self.config, self.spread, **types)
        self.quant_conv = nn.Conv(2 * self.config.latent_channels, (1, 1), **types)
        self.post_quant_conv = nn.Conv(self.config.latent_channels, (1, 1), **types)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Reconstructs images from the mean of their latents."""
        mean, _ = self.encode(images)
        return self.decode(mean)

    def encode(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(mean, log variance), each [B, h, w, C], of the latents before the scaling factor.

        Log variances are clamped to [-30, 20].
        """
        moments = self.quant_conv(self.encoder(images)).astype(jnp.float32)  # [B, h, w, 2C]
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(logvar, _MIN_LOGVAR, _MAX_LOGVAR)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Images [B, H, W, 3], about [-1, 1], of latents after division by the scaling factor."""
        return self.decoder(self.post_quant_conv(latents)).astype(jnp.float32)


class Encoder(nn.Module):
    """Residual units between halvings of the image, then attention at the smallest size."""

    config: VAEConfig
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, 3] -> [B, h, w, 2C], before `quant_conv`."""
        types: Any = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        groups, depth = self.config.norm_groups, self.config.layers_per_block
        widths = self.config.block_channels
        x = nn.Conv(widths[0], (3, 3), name="conv_in", **types)(x)
        for i, width in enumerate(widths):
            resample = "down" if i + 1 < len(widths) else None
            x = _Level(width, depth, groups, resample, None, name=f"down_blocks_{i}", **types)(x)
        x = _Middle(groups, name="mid_block", **types)(x)
        x = GroupNorm(groups, _NORM_EPS, nn.silu, name="conv_norm_out", **types)(x)
        return nn.Conv(2 * self.config.latent_channels, (3, 3), name="conv_out", **types)(x)


class Decoder(nn.Module):
    """The encoder's mirror, with one more residual unit a level."""

    config: VAEConfig
    spread: Spread | None
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, h, w, C], after `post_quant_conv` -> [B, H, W, 3]."""
        types: Any = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        groups, depth = self.config.norm_groups, self.config.layers_per_block + 1
        widths = self.config.block_channels[::-1]
        x = nn.Conv(widths[0], (3, 3), name="conv_in", **types)(x)
        x = _Middle(groups, name="mid_block", **types)(x)
        for i, width in enumerate(widths):
            resample = "up" if i + 1 < len(widths) else None
            level = _Level(
                width, depth, groups, resample, self.spread, name=f"up_blocks_{i}", **types
            )
            x = level(x)
        x = GroupNorm(groups, _NORM_EPS, nn.silu, name="conv_norm_out", **types)(x)
        return nn.Conv(self.config.in_channels, (3, 3), name="conv_out", **types)(x)


class _Level(nn.Module):
    """Residual units of one width; then sides are halved ("down"), doubled ("up") or kept."""

    width: int
    depth: int
    groups: int
    resample: str | None
    spread: Spread | None
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        types: Any = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        for i in range(self.depth):
            x = ResNetBlock(self.width, self.groups, _NORM_EPS, name=f"resnets_{i}", **types)(x)
        if self.resample == "down":
            x = Downsample(padding=((0, 1), (0, 1)), name="downsamplers_0", **types)(x)
        elif self.resample == "up":
            size = (2 * x.shape[1], 2 * x.shape[2])
            x = Upsample(self.spread, name="upsamplers_0", **types)(x, size)
        return x


class _Middle(nn.Module):
    """Residual unit, attention, residual unit."""

    groups: int
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        types: Any = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        width = x.shape[-1]
        x = ResNetBlock(width, self.groups, _NORM_EPS, name="resnets_0", **types)(x)
        x = _PixelAttention(self.groups, name="attentions_0", **types)(x)
        return ResNetBlock(width, self.groups, _NORM_EPS, name="resnets_1", **types)(x)


class _PixelAttention(nn.Module):
    """Residual single-head attention among all pixels of one image; no position code, no camera."""

    groups: int
    dtype: jnp.dtype
    param_dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        types: Any = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        batch, height, width, channels = x.shape
        h = GroupNorm(self.groups, _NORM_EPS, name="group_norm", **types)(x)
        h = h.reshape(batch, height * width, 1, channels)  # [B, T, heads, C]
        q, k, v = (nn.Dense(channels, name=f"to_{part}", **types)(h) for part in "qkv")
        h = attend(q, k, v).reshape(x.shape)
        return x + nn.Dense(channels, name="to_out_0", **types)(h)


@dataclasses.dataclass(frozen=True)
class PixelCodec:
    """Space-to-depth of patches of `patch` x `patch` pixels; no parameters, and nothing is lost."""

    patch: int

    def __post_init__(self) -> None:
        if self.patch < 1:
            raise UserError(f"patch must be at least 1, got {self.patch}.")

    @property
    def latent_channels(self) -> int:
        """Channels of a latent position: three colours of each pixel of the patch."""
        return 3 * self.patch**2

    def encode(self, images: jax.Array) -> jax.Array:
        """Moves patches into channels: [..., H, W, 3] -> [..., H/patch, W/patch, 3 patch^2].

        Raises UserError where a side is not a multiple of the patch.
        """
        height, width = images.shape[-3:-1]
        if height % self.patch or width % self.patch:
            raise UserError(
                f"image sides must be multiples of patch = {self.patch}, got {height} x {width} "
                "pixels. Change the resolution or the patch."
            )
        return einops.rearrange(
            images, "... (h p) (w q) c -> ... h w (p q c)", p=self.patch, q=self.patch
        )

    def decode(self, latents: jax.Array) -> jax.Array:
        """Inverts `encode`: [..., h, w, 3 patch^2] -> [..., h*patch, w*patch, 3]."""
        if latents.shape[-1] != self.latent_channels:
            raise UserError(
                f"latents must have {self.latent_channels} channels for patches of {self.patch} "
                f"pixels, got {latents.shape[-1]}."
            )
        return einops.rearrange(
            latents, "... h w (p q c) -> ... (h p) (w q) c", p=self.patch, q=self.patch
        )
