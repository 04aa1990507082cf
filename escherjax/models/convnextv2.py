"""The image encoder: ConvNeXt V2 (arXiv 2301.00808), one token per position of its last map."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from escherjax.devices.spread import Spread
from escherjax.errors import UserError

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_NORM_EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class ConvNeXtV2Config:
    """Sizes of the encoder; the defaults are ConvNeXt V2 tiny, which EscherNet fine-tunes."""

    depths: tuple[int, ...] = (3, 3, 9, 3)  # blocks of each stage, any number of stages
    widths: tuple[int, ...] = (96, 192, 384, 768)  # channels of each stage
    patch_size: int = 4  # side of the stem's patches, in pixels
    image_size: int = 224  # side that images are resized to
    final_norm_eps: float = 1e-12  # epsilon of the norm of each token, as in EscherNet

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.widths) or not self.depths:
            raise UserError(
                f"encoder.depths and encoder.widths must have one entry for each stage, got "
                f"{self.depths} and {self.widths}."
            )
        if self.image_size % self.stride:
            raise UserError(
                f"encoder.image_size must be a multiple of {self.stride} (patch_size "
                f"{self.patch_size}, halved by each later stage), got {self.image_size}."
            )

    @property
    def stride(self) -> int:
        """Pixels between two positions of the last map."""
        return self.patch_size * 2 ** (len(self.depths) - 1)

    @property
    def num_tokens(self) -> int:
        """Tokens of one image."""
        return (self.image_size // self.stride) ** 2


def preprocess(images: jax.Array, image_size: int) -> jax.Array:
    """Resizes images to a square and normalises them with ImageNet's mean and deviation, float32.

    [..., H, W, 3] in [-1, 1] -> [..., image_size, image_size, 3]. The resize is bicubic without
    antialiasing, and its overshoot is kept: EscherNet was trained so. A side of the right
    length is left alone.
    """
    x = (images.astype(jnp.float32) + 1) / 2
    for axis in (x.ndim - 3, x.ndim - 2):
        if x.shape[axis] != image_size:
            x = _resize_axis(x, axis, *bicubic_taps(x.shape[axis], image_size))
    mean, std = np.array(_IMAGENET_MEAN, np.float32), np.array(_IMAGENET_STD, np.float32)
    return (x - jnp.broadcast_to(mean, x.shape)) / jnp.broadcast_to(std, x.shape)


def bicubic_taps(size_in: int, size_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Which pixels a bicubic resize along one axis reads, int [size_out, 4], and their weights.

    Keys' kernel (1981, eq. 8) with a = -0.75, half-pixel centres, edge pixels repeated, no
    antialiasing: each output reads four inputs however much the axis shrinks. Weights are float32;
    positions are rounded to float32, as torch does; exact ones would move preprocessed images by
    up to 1e-4.
    """
    a = -0.75
    scale, half = np.float32(size_in / size_out), np.float32(0.5)
    centre = scale * (np.arange(size_out, dtype=np.float32) + half) - half
    pixels = np.floor(centre)[:, None] + np.arange(-1, 3)
    d = np.abs(centre.astype(np.float64)[:, None] - pixels)
    near = ((a + 2) * d - (a + 3)) * d**2 + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    weights = np.where(d <= 1, near, far).astype(np.float32)
    return np.clip(pixels, 0, size_in - 1).astype(np.int32), weights


def _resize_axis(x: jax.Array, axis: int, pixels: np.ndarray, weights: np.ndarray) -> Any:
    """Sums four gathered copies of x: less to do than a product with a matrix mostly of zeros."""
    shape = [1] * x.ndim
    shape[axis] = len(pixels)
    return sum(
        jnp.take(x, pixels[:, tap], axis=axis) * weights[:, tap].reshape(shape)
        for tap in range(pixels.shape[1])
    )


class ConvNeXtV2(nn.Module):
    """Encodes images [B, H, W, 3] in [-1, 1] to tokens [B, L, D], row by row of the last map.

    Any H and W: `preprocess` brings them to the configured size. D is the last width. spread: the
    devices that share the work, if several do. The final
    norm acts on each token; nothing is pooled. Sown as intermediates: `preprocessed`, `stem`, and
    the map after each stage, `encoder/stage0`, `encoder/stage1`, ...
    """

    config: ConvNeXtV2Config
    spread: Spread | None = None
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        types: Any = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = preprocess(images, self.config.image_size)
        self.sow("intermediates", "preprocessed", x)
        x = _Embeddings(self.config, **types, name="embeddings")(x)
        self.sow("intermediates", "stem", x)
        x = _Stages(self.config, self.spread, **types, name="encoder")(x)
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])  # [B, L, D]
        return _layer_norm("layernorm", self.config.final_norm_eps, **types)(tokens)


class _Embeddings(nn.Module):
    """The stem: patches to channels, and a norm."""

    config: ConvNeXtV2Config
    dtype: DTypeLike
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        types: Any = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        side = (self.config.patch_size, self.config.patch_size)
        x = nn.Conv(self.config.widths[0], side, side, "VALID", **types, name="patch_embeddings")(x)
        return _layer_norm("layernorm", **types)(x)


class _Stages(nn.Module):
    """All stages; returns the last map."""

    config: ConvNeXtV2Config
    spread: Spread | None
    dtype: DTypeLike
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        types: Any = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        for i, (depth, width) in enumerate(
            zip(self.config.depths, self.config.widths, strict=True)
        ):
            x = _Stage(depth, width, i > 0, self.spread, name=f"stages_{i}", **types)(x)
            self.sow("intermediates", f"stage{i}", x)
        return x


class _Stage(nn.Module):
    """A norm and a halving of the map (but for the first stage), then blocks."""

    depth: int
    width: int
    downsample: bool
    spread: Spread | None
    dtype: DTypeLike
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        types: Any = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        if self.downsample:
            x = _layer_norm("downsampling_layer_0", **types)(x)
            x = nn.Conv(self.width, (2, 2), (2, 2), "VALID", **types, name="downsampling_layer_1")(
                x
            )
        for i in range(self.depth):
            x = _Block(self.spread, **types, name=f"layers_{i}")(x)
        return x


class _Block(nn.Module):
    """Depthwise 7x7, norm, widen by four, GELU, global response norm, narrow; plus the input."""

    spread: Spread | None
    dtype: DTypeLike
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        types: Any = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        width = x.shape[-1]
        h = nn.Conv(
            width,
            (7, 7),
            padding=3,
            feature_group_count=width,
            conv_general_dilated=None if self.spread is None else self.spread.depthwise,
            **types,
            name="dwconv",
        )(x)
        h = _layer_norm("layernorm", **types)(h)
        h = nn.Dense(4 * width, **types, name="pwconv1")(h)
        h = gelu(h)
        h = _GlobalResponseNorm(**types, name="grn")(h)
        return x + nn.Dense(width, **types, name="pwconv2")(h)


class _GlobalResponseNorm(nn.Module):
    """Scales channels by their share of the map's response (arXiv 2301.00808, eq. 1-3).

    Acts on [B, H, W, C]; the statistics are float32.
    """

    dtype: DTypeLike
    param_dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (1, 1, 1, x.shape[-1])
        gain = self.param("weight", nn.initializers.zeros, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
        wide = x.astype(jnp.float32)
        energy = jnp.sum(wide**2, axis=(1, 2), keepdims=True)  # [B, 1, 1, C]
        silent = energy == 0  # the square root has no gradient there; take it as 0
        response = jnp.where(silent, 0.0, jnp.sqrt(jnp.where(silent, 1.0, energy)))
        share = response / (jnp.mean(response, axis=-1, keepdims=True) + _NORM_EPS)
        scale = 1 + jnp.asarray(gain, jnp.float32) * share
        return (wide * scale + jnp.asarray(bias, jnp.float32)).astype(self.dtype)


def _layer_norm(
    name: str, epsilon: float = _NORM_EPS, *, dtype: DTypeLike, param_dtype: DTypeLike
) -> nn.LayerNorm:
    return nn.LayerNorm(
        epsilon, dtype=dtype, param_dtype=param_dtype, use_fast_variance=False, name=name
    )


def gelu(x: jax.Array) -> jax.Array:
    """x * Phi(x), Phi the normal distribution's (arXiv 1606.08415), in float32, then x's dtype.

    By the error function, which is one operation to XLA; `flax.linen.gelu` takes its complement,
    which becomes polynomials, in half precision rounded after each term.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * np.float32(0.5**0.5)))).astype(x.dtype)
