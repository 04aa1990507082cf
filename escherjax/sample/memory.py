"""How much memory drawing M views from N takes, by formula, before anything is compiled.

An estimate, not a measurement: it counts the arrays that must be alive together in the largest
moment of each stage (encoding the references, one denoising step, decoding the views), as the
network is written, and adds the parameters. The stages follow each other, so the largest counts.
What a compiler fuses or copies beyond that is not in it; docs/sampling.md says how far it is off.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp

from escherjax.errors import UserError
from escherjax.models import attention
from escherjax.models.convnextv2 import ConvNeXtV2Config
from escherjax.models.eschernet import EscherNet, Params
from escherjax.models.unet import UNetConfig
from escherjax.models.vae import VAE, VAEConfig

# Part of the free memory that a plan may count on: the estimate's error and fragments take the rest
_USABLE = 0.75

# Of plain attention, for each query, key and head: float32 logits, exponentials and softmax
_SCORE_BYTES = 12

_GIB = 2**30

log = logging.getLogger("escherjax.sample.plans")


@dataclasses.dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on each device while M targets are drawn from N conditioning views.

    parameters: as they are stored; cast: their copies in the compute dtype, where that is another.
    encoding, denoising, decoding: the arrays of each stage at its largest; attention: the part of
    denoising that is scores of attention, zero for a fused kernel; kernel: which one the widest
    self-attention takes.
    """

    num_conditioning: int
    num_targets: int
    parameters: int
    cast: int
    encoding: int
    denoising: int
    decoding: int
    attention: int
    kernel: str

    @property
    def working(self) -> int:
        """What is needed beside the parameters themselves."""
        return self.cast + max(self.encoding, self.denoising, self.decoding)

    @property
    def total(self) -> int:
        return self.parameters + self.working

    def describe(self) -> str:
        """One line for people."""
        stages = {name: getattr(self, name) for name in ("encoding", "denoising", "decoding")}
        largest = max(stages, key=stages.__getitem__)
        scores = f", {self.attention / _GIB:.2f} of it scores" if largest == "denoising" else ""
        return (
            f"{self.total / _GIB:.2f} GiB estimated for {self.num_targets} views at once from "
            f"{self.num_conditioning}: parameters {(self.parameters + self.cast) / _GIB:.2f}, "
            f"{largest} {stages[largest] / _GIB:.2f} (attention by {self.kernel}{scores})"
        )


def estimate(
    model: EscherNet,
    params: Params,
    num_conditioning: int,
    num_targets: int,
    resolution: int,
    guidance_scale: float = 3.0,
    num_devices: int = 1,
) -> MemoryEstimate:
    """The memory of one pass; see `MemoryEstimate`.

    params: arrays or ShapeDtypeStructs. resolution: side in pixels of the views. guidance_scale:
    more than 1 doubles the rows of the network. num_devices: that share the targets.
    """
    dtype = model.unet.dtype
    size = jnp.dtype(dtype).itemsize
    guided = 2 if guidance_scale > 1 else 1
    local = -(-num_targets // num_devices)
    leaves = jax.tree.leaves({k: v for k, v in params.items() if k != "vae"})
    side = model.latent_shape(resolution)[0]
    tokens = num_conditioning * model.encoder.config.num_tokens
    units = _unet_units(model, side, guided, local, local * num_devices, tokens, size)
    largest, scores = max(units)
    cache = _cache_values(model.unet.config) * tokens * size
    stored = jax.tree.leaves(params)
    return MemoryEstimate(
        num_conditioning,
        num_targets,
        parameters=sum(leaf.size * leaf.dtype.itemsize for leaf in stored),
        cast=sum(leaf.size * size for leaf in leaves if leaf.dtype.itemsize != size),
        encoding=num_conditioning * _encoder_values(model.encoder.config) * size,
        denoising=largest + cache,
        decoding=_decoding(model, local, resolution, size),
        attention=scores,
        kernel=_kernel(model, local * side * side, model.unet.config.block_channels[0]),
    )


def free_bytes() -> int | None:
    """Memory of the first local device that is free now; None where nothing tells it.

    On a CPU what Linux calls available; other systems tell only how much memory there is.
    """
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        meminfo = Path("/proc/meminfo")
        if meminfo.is_file():
            fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
            return int(fields["MemAvailable"].split()[0]) * 1024
        if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
            return None
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return None
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0)


def largest_chunk(
    estimate_of: Callable[[int], MemoryEstimate], most: int, free: int | None = None
) -> int:
    """The most targets, up to `most`, whose estimate fits three quarters of the free memory.

    estimate_of: number of targets -> its estimate. free: bytes beside the parameters, which are
    there already; None asks `free_bytes`, and where that cannot tell, all are said to fit, with a
    warning. Raises UserError if not one fits.
    """
    free = free_bytes() if free is None else free
    if free is None:
        log.warning(
            "this device does not tell how much memory is free: all %d views are drawn at once "
            "(chunk, --chunk, says how many at most)",
            most,
        )
        return most
    low, high = 0, most  # the estimate grows with the number: bisect
    while low < high:
        middle = (low + high + 1) // 2
        fits = estimate_of(middle).working <= _USABLE * free
        low, high = (middle, high) if fits else (low, middle - 1)
    if low == 0:
        one = estimate_of(1)
        raise UserError(
            f"One view at a time from {one.num_conditioning} needs {one.working / _GIB:.2f} GiB "
            f"beside the parameters, and {_USABLE:.0%} of the free {free / _GIB:.2f} GiB can be "
            "counted on. Take fewer references, bfloat16, or a larger device."
        )
    return low


def _unet_units(
    model: EscherNet,
    side: int,
    guided: int,
    local: int,
    views: int,
    reference_tokens: int,
    size: int,
) -> Iterator[tuple[int, int]]:
    """(bytes alive, of these scores) for every unit of the U-Net, skips included."""
    config = model.unet.config
    rows = guided * local
    levels = []
    for channels, attends in zip(config.block_channels, config.attention, strict=True):
        levels.append((side * side, channels, attends))
        side = -(-side // 2)

    def resnet(pixels: int, channels_in: int, channels: int) -> tuple[int, int]:
        values = max(2 * channels_in + channels, channels_in + 3 * channels)
        return (skips + pixels * values) * rows * size, 0

    def transformer(pixels: int, channels: int) -> Iterator[tuple[int, int]]:
        # Gated feed-forward: values and gates 8C, their product 4C, two residuals
        yield (skips + 14 * pixels * channels) * rows * size, 0
        gathered = 2 * channels * pixels * (views - local) * guided * size
        scores = 0
        if _kernel(model, local * pixels, channels) == "xla":
            # Joint self-attention, or cross-attention, which the unconditional half does without
            keys = max(guided * views * pixels, reference_tokens)
            scores = _SCORE_BYTES * config.num_heads * local * pixels * keys
        kept = skips + 6 * pixels * channels  # two residuals, q, k, v and the result
        yield kept * rows * size + gathered + scores, scores

    skips = levels[0][0] * levels[0][1]  # values for one row
    stack = [skips]
    below = levels[0][1]
    for i, (pixels, channels, attends) in enumerate(levels):
        for _ in range(config.layers_per_block):
            yield resnet(pixels, below, channels)
            if attends:
                yield from transformer(pixels, channels)
            below = channels
            stack.append(pixels * channels)
            skips += stack[-1]
        if i + 1 < len(levels):
            stack.append(levels[i + 1][0] * channels)
            skips += stack[-1]
    pixels, channels, _ = levels[-1]
    yield resnet(pixels, channels, channels)
    yield from transformer(pixels, channels)
    for pixels, channels, attends in reversed(levels):
        for _ in range(config.layers_per_block + 1):
            skip = stack.pop()
            skips -= skip
            yield resnet(pixels, below + skip // pixels, channels)
            if attends:
                yield from transformer(pixels, channels)
            below = channels


def _kernel(model: EscherNet, num_queries: int, channels: int) -> str:
    heads = model.unet.config.num_heads
    queries = jax.ShapeDtypeStruct((1, num_queries, heads, channels // heads), model.unet.dtype)
    return attention.resolve_implementation(model.unet.attention_impl, queries)


def _cache_values(config: UNetConfig) -> int:
    """Keys and values of all cross-attentions for one reference token."""
    layers = 2 * config.layers_per_block + 1
    levels = zip(config.block_channels, config.attention, strict=True)
    attending = sum(layers * channels for channels, attends in levels if attends)
    return 2 * (attending + config.block_channels[-1])


def _encoder_values(config: ConvNeXtV2Config) -> int:
    """Values alive for one image in the encoder's first stage, the widest: C twice, 4C twice."""
    side = config.image_size // config.patch_size
    return side * side * config.widths[0] * (2 + 2 * 4)


def _decoding(model: EscherNet, views: int, resolution: int, size: int) -> int:
    if not isinstance(model.codec, VAE):
        return 2 * views * resolution * resolution * 3 * 4
    return views * max(_decoder_units(model.codec.config, resolution)) * size


def _decoder_units(config: VAEConfig, resolution: int) -> Iterator[int]:
    """Values alive for one view in every unit of the VAE's decoder."""
    widths = config.block_channels[::-1]
    side = resolution // 2 ** (len(widths) - 1)
    yield side**4 * 4 + 6 * side**2 * widths[0]  # attention of one head among all pixels
    below = widths[0]
    for i, channels in enumerate(widths):
        yield side**2 * max(2 * below + channels, below + 3 * channels)
        below = channels
        if i + 1 < len(widths):
            side *= 2
            yield side**2 * 2 * channels + side**2 // 4 * channels
